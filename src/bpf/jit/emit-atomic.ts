/** Atomic operations. `and`, `or` and `xor` that return the old value have no instruction: they are loops. */
import type { IndexedMem, Mem } from "../../x86/assembler.ts";
import { RAX, regSet } from "../../x86/registers.ts";
import { JitError } from "./jit-error.ts";
import type { OperationContext, ScratchPool } from "./operation-context.ts";
import type { Op } from "./operations.ts";

type AtomicOp = Extract<Op, { kind: "atomic" }>;

export function emitAtomic(context: OperationContext, op: AtomicOp): void {
  const { asm } = context;
  const { width } = op;
  switch (op.op) {
    case "cmpxchg":
      emitCompareExchange(context, op);
      return;
    case "xchg":
      if (op.src.kind === "reg") asm.xchg(context.mem(op.mem), context.dst(op.src.reg), width);
      return;
    default:
  }
  if (op.fetches && op.src.kind === "reg") {
    if (op.op === "add") asm.lock().xadd(context.mem(op.mem), context.dst(op.src.reg), width);
    else emitFetchLoop(context, op, op.op, op.src.reg);
    return;
  }
  const mem = context.mem(op.mem);
  asm.lock();
  if (op.src.kind === "reg") asm.alu(op.op, mem, context.reg(op.src.reg), width);
  else if (op.op === "add" && op.src.value === 1) asm.inc(mem, width);
  else if (op.op === "add" && op.src.value === -1) asm.dec(mem, width);
  else asm.aluImm(op.op, mem, op.src.value, width);
}

/** The instruction compares with rax, whatever register r0 has. */
function emitCompareExchange(context: OperationContext, op: AtomicOp): void {
  const { asm } = context;
  if (op.src.kind !== "reg") throw new JitError("emit cmpxchg: the new value must be a register");
  const r0 = context.dst(0);
  let mem = context.mem(op.mem);
  let source = context.reg(op.src.reg);
  if (r0 === RAX) {
    asm.lock().cmpxchg(mem, source, op.width);
    // When it succeeds with 32 bits it leaves the high half as it was.
    if (op.width === 32) asm.mov(RAX, RAX, 32);
    return;
  }
  context.clobber(RAX);
  const scratch = context.scratchPool(regSet(RAX));
  mem = withoutRax(context, mem, scratch);
  if (source === RAX) {
    source = scratch.take();
    asm.mov(source, RAX);
  }
  const saved = context.isNeededAfter(RAX, 0) ? scratch.take() : undefined;
  if (saved !== undefined) asm.mov(saved, RAX);
  asm.mov(RAX, r0, op.width);
  asm.lock().cmpxchg(mem, source, op.width);
  asm.mov(r0, RAX, op.width);
  if (saved !== undefined) asm.mov(RAX, saved);
}

function emitFetchLoop(
  context: OperationContext,
  op: AtomicOp,
  name: "and" | "or" | "xor",
  srcReg: number,
): void {
  const { asm } = context;
  const { width } = op;
  const src = context.dst(srcReg);
  context.clobber(RAX);
  const scratch = context.scratchPool(regSet(RAX));
  const mem = withoutRax(context, context.mem(op.mem), scratch);
  const changed = scratch.take();
  let operand = src;
  if (src === RAX) {
    operand = scratch.take();
    asm.mov(operand, RAX);
  }
  const saved = src !== RAX && context.isNeededAfter(RAX, srcReg) ? scratch.take() : undefined;
  if (saved !== undefined) asm.mov(saved, RAX);
  asm.mov(RAX, mem, width);
  const retry = asm.here("fetch");
  asm.mov(changed, RAX, width);
  asm.alu(name, changed, operand, width);
  asm.lock().cmpxchg(mem, changed, width);
  asm.jcc("ne", retry);
  if (src !== RAX || width === 32) asm.mov(src, RAX, width);
  if (saved !== undefined) asm.mov(RAX, saved);
}

/** The same place addressed without rax. */
function withoutRax(context: OperationContext, mem: Mem, scratch: ScratchPool): Mem {
  if ("ripTo" in mem || "fs" in mem) return mem;
  const indexed: IndexedMem = mem;
  let { base, index } = indexed;
  if (base === RAX) {
    base = scratch.take();
    context.asm.mov(base, RAX);
  }
  if (index === RAX) {
    index = scratch.take();
    context.asm.mov(index, RAX);
  }
  return {
    ...(base === undefined ? {} : { base }),
    ...(index === undefined ? {} : { index, scale: indexed.scale ?? 1 }),
    disp: indexed.disp ?? 0,
  };
}
