/**
 * Arithmetic, shifts and byte order: the shortest instructions that do what the operation says. Each says what the
 * zero flag tells afterwards, so that a comparison with 0 that follows costs nothing.
 */
import { RCX, type Reg } from "../../x86/registers.ts";
import type { OperationContext } from "./operation-context.ts";
import type { Op } from "./operations.ts";

/** Whether this register, in this width, is zero. */
export interface ZeroFlag {
  readonly reg: Reg;
  readonly width: 32 | 64;
}

export function emitAlu(context: OperationContext, op: Extract<Op, { kind: "alu" }>): ZeroFlag | undefined {
  const { asm } = context;
  const { width } = op;
  const dst = context.dst(op.dst);
  const flag = { reg: dst, width };
  if (op.src.kind === "reg") {
    if (op.op === "mul") {
      asm.imul(dst, context.reg(op.src.reg), width);
      return undefined;
    }
    asm.alu(op.op, dst, context.reg(op.src.reg), width);
    return flag;
  }
  const { value } = op.src;
  const power = Math.log2(value >>> 0);
  if (op.op === "mul") {
    if (value === 0) asm.zero(dst);
    else if (value === 1) keepWidth(context, dst, width);
    else if (value > 0 && Number.isInteger(power)) asm.shl(dst, power, width);
    else asm.imulImm(dst, dst, value, width);
    return undefined;
  }
  if (op.op === "and") {
    if (value === -1) keepWidth(context, dst, width);
    else if (value === 0xff) asm.movzx(dst, dst, 8);
    else if (value === 0xffff) asm.movzx(dst, dst, 16);
    else {
      // The high half becomes zero either way.
      asm.andImm(dst, value, value >= 0 ? 32 : width);
      return flag;
    }
    return undefined;
  }
  if (value === 0) keepWidth(context, dst, width);
  else if (op.op === "xor" && value === -1) asm.not(dst, width);
  else {
    asm.aluImm(op.op, dst, value, width);
    return flag;
  }
  return undefined;
}

/** An operation without effect, except that 32-bit ones clear the high half. */
function keepWidth({ asm }: OperationContext, dst: Reg, width: 32 | 64): void {
  if (width === 32) asm.mov(dst, dst, 32);
}

export function emitShift(
  context: OperationContext,
  op: Extract<Op, { kind: "shift" }>,
): ZeroFlag | undefined {
  const { asm } = context;
  const { width } = op;
  const dst = context.dst(op.dst);
  if (op.src.kind === "imm") {
    const count = op.src.value & (width - 1);
    if (count > 0) {
      asm.shift(op.op, dst, count, width);
      return { reg: dst, width };
    }
    keepWidth(context, dst, width);
    return undefined;
  }
  const count = context.reg(op.src.reg);
  if (count === RCX && dst !== RCX) {
    asm.shiftCl(op.op, dst, width);
    return undefined;
  }
  context.clobber(RCX);
  if (dst === RCX) {
    const temp = context.scratchPool(1 << RCX).take();
    asm.mov(temp, RCX);
    if (count !== RCX) asm.mov(RCX, count, 32);
    asm.shiftCl(op.op, temp, width);
    asm.mov(RCX, temp);
    return undefined;
  }
  const saved = context.isNeededAfter(RCX, op.dst) ? context.scratchPool(1 << RCX).take() : undefined;
  if (saved !== undefined) asm.mov(saved, RCX);
  asm.mov(RCX, count, 32);
  asm.shiftCl(op.op, dst, width);
  if (saved !== undefined) asm.mov(RCX, saved);
  return undefined;
}

export function emitByteOrder(context: OperationContext, op: Extract<Op, { kind: "byte-order" }>): void {
  const { asm } = context;
  const dst = context.dst(op.dst);
  if (op.bits === 16) {
    if (op.swaps) asm.rol(dst, 8, 16);
    asm.movzx(dst, dst, 16);
  } else if (op.swaps) asm.bswap(dst, op.bits);
  else if (op.bits === 32) asm.mov(dst, dst, 32);
}
