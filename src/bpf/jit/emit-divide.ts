/**
 * Division as BPF defines it: by zero gives 0 (the remainder is the dividend), and the smallest number divided by -1
 * gives itself with remainder 0. The machine's div would fault on both.
 */
import { RAX, RDX, type Reg, regSet } from "../../x86/registers.ts";
import type { OperationContext } from "./operation-context.ts";
import type { Op } from "./operations.ts";

export function emitDivide(context: OperationContext, op: Extract<Op, { kind: "divide" }>): void {
  const dst = context.dst(op.dst);
  if (op.src.kind === "imm" && emitDivideByConstant(context, op, dst, op.src.value)) return;

  const { asm } = context;
  const { width } = op;
  context.clobber(RAX);
  context.clobber(RDX);
  const scratch = context.scratchPool(regSet(RAX, RDX));
  // The dividend goes through rax and rdx: a divisor there has to move.
  let divisor = op.src.kind === "reg" ? context.reg(op.src.reg) : scratch.take();
  if (op.src.kind === "imm") asm.movImm(divisor, op.src.value, width);
  else if (divisor === RAX || divisor === RDX) {
    const copy = scratch.take();
    asm.mov(copy, divisor, width);
    divisor = copy;
  }
  const savedRax = dst !== RAX && context.isNeededAfter(RAX, op.dst) ? scratch.take() : undefined;
  const savedRdx = dst !== RDX && context.isNeededAfter(RDX, op.dst) ? scratch.take() : undefined;
  if (savedRax !== undefined) asm.mov(savedRax, RAX);
  if (savedRdx !== undefined) asm.mov(savedRdx, RDX);
  if (dst !== RAX) asm.mov(RAX, dst, width);

  const [byZero, byMinusOne, store] = [asm.label("by zero"), asm.label("by -1"), asm.label("store")];
  const mayBe = (value: number) => op.src.kind === "reg" || op.src.value === value;
  if (mayBe(0)) {
    asm.test(divisor, divisor, width);
    asm.jcc("e", byZero);
  }
  if (op.isSigned) {
    if (mayBe(-1)) {
      asm.cmpImm(divisor, -1, width);
      asm.jcc("e", byMinusOne);
    }
    if (width === 64) asm.cqo();
    else asm.cdq();
    asm.idiv(divisor, width);
  } else {
    asm.zero(RDX);
    asm.div(divisor, width);
  }
  if (op.isSigned && mayBe(-1)) {
    asm.jmp(store);
    asm.bind(byMinusOne);
    if (op.isModulo) asm.zero(RDX);
    else asm.neg(RAX, width);
  }
  if (mayBe(0)) {
    asm.jmp(store);
    asm.bind(byZero);
    if (op.isModulo) asm.mov(RDX, RAX, width);
    else asm.zero(RAX);
  }
  asm.bind(store);
  const result = op.isModulo ? RDX : RAX;
  if (dst !== result) asm.mov(dst, result, width);
  if (savedRax !== undefined) asm.mov(RAX, savedRax);
  if (savedRdx !== undefined) asm.mov(RDX, savedRdx);
}

/** Divisors that need no division; false if this is none of them. */
function emitDivideByConstant(
  context: OperationContext,
  op: Extract<Op, { kind: "divide" }>,
  dst: Reg,
  divisor: number,
): boolean {
  const { asm } = context;
  const { width } = op;
  const power = Math.log2(divisor);
  if (op.isSigned || divisor <= 0 || !Number.isInteger(power)) return false;
  if (op.isModulo) {
    // The remainder is below 2^31, so the high half is zero.
    if (divisor === 1) asm.zero(dst);
    else asm.andImm(dst, divisor - 1, 32);
  } else if (power > 0) asm.shr(dst, power, width);
  else if (width === 32) asm.mov(dst, dst, 32);
  return true;
}
