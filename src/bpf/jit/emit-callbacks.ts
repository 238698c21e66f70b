/**
 * bpf_loop and bpf_for_each_map_elem: loops around calls of a local function.
 *
 * What an iteration keeps (index or cursor, count, context) stays in registers that the callback gives back, as
 * far as there are any that no BPF register has, and in the frame otherwise. Nothing is loaded that the callback
 * does not read.
 */
import type { Label, Mem } from "../../x86/assembler.ts";
import { R11, RAX, RCX, RDI, RDX, type Reg, RSI, regSet } from "../../x86/registers.ts";
import { E2BIG, EINVAL } from "../maps/index.ts";
import type { Home, OperationContext } from "./operation-context.ts";
import type { CallbackContext, Op, Source } from "./operations.ts";
import type { Routine } from "./routines/routine.ts";

/** BPF_MAX_LOOPS */
const MAX_LOOPS = 1 << 23;
/** r1 to r4 of a callback. */
const argumentRegs: readonly Reg[] = [RDI, RSI, RDX, RCX];
/** The word of the frame that holds an array's key; those before it are for homes. */
const KEY_WORD = 4;

type LoopOp = Extract<Op, { kind: "loop" }>;
type ForEachOp = Extract<Op, { kind: "for-each" }>;

/** Homes for the length of one operation, safe from what it calls. */
class Homes {
  readonly #context: OperationContext;
  readonly #pool;
  #words = 0;

  constructor(context: OperationContext, callees: readonly Routine[]) {
    this.#context = context;
    const changed = callees.reduce((set, { clobbers }) => set | clobbers, 0);
    this.#pool = context.scratchPool(changed | regSet(RAX, R11, ...argumentRegs));
  }

  take(): Home {
    return this.#pool.find() ?? this.#context.localWord(this.#words++);
  }
}

export function emitLoop(context: OperationContext, op: LoopOp): void {
  const { asm } = context;
  const { callee, count, flags } = op;
  context.clobber(RAX);
  for (const arg of callee.args) context.clobber(argumentRegs[arg - 1]!);
  if (refuses(context, flags)) return;
  if (count.kind === "imm" && (count.value === 0 || count.value >>> 0 > MAX_LOOPS)) {
    context.constant(RAX, BigInt.asUintN(64, BigInt(count.value === 0 ? 0 : E2BIG)));
    return;
  }
  const [done, fail] = [asm.label("done"), asm.label("error")];
  const homes = new Homes(context, [callee]);
  const index = homes.take();
  let limit: Home | number;
  if (count.kind === "imm") limit = count.value >>> 0;
  else {
    const nr = context.reg(count.reg);
    limit = homes.take();
    asm.cmpImm(nr, MAX_LOOPS, 32);
    asm.jcc("a", fail);
    asm.mov(limit, nr, 32);
    if (typeof limit !== "number") asm.movImm(upperHalf(limit), 0, 32);
  }
  failUnlessZero(context, flags, done);
  const passContext = keepContext(context, homes, callee, 2, op.context);
  setZero(context, index);
  if (count.kind === "reg") {
    asm.mov(RAX, index);
    asm.test(context.reg(count.reg), context.reg(count.reg), 32);
    asm.jcc("e", done);
  }
  const next = asm.here("iteration");
  if (callee.args.includes(1)) asm.mov(RDI, index);
  passContext();
  context.call(callee);
  asm.inc(index);
  asm.test(RAX, RAX);
  asm.mov(RAX, index);
  asm.jcc("ne", done);
  if (count.kind === "imm") asm.cmpImm(RAX, limit as number);
  else asm.cmp(RAX, limit as Home);
  asm.jcc("b", next);
  asm.bind(done);
  if (count.kind === "reg")
    context.outOfLine(() => {
      asm.bind(fail);
      context.constant(RAX, BigInt.asUintN(64, BigInt(E2BIG)));
      asm.jmp(done);
    });
}

export function emitForEach(context: OperationContext, op: ForEachOp): void {
  const { asm } = context;
  const { callee, elements, flags } = op;
  context.clobber(RAX);
  for (const arg of callee.args) context.clobber(argumentRegs[arg - 1]!);
  if (refuses(context, flags)) return;
  const done = asm.label("done");
  const callees = elements.kind === "cursor" ? [callee, elements.next] : [callee];
  const homes = new Homes(context, callees);
  failUnlessZero(context, flags, done);
  const map = keepMap(context, homes, elements.mapAddr);
  const visited = homes.take();
  if (elements.kind === "array") {
    const isRead = (arg: number) => callee.args.includes(arg);
    const passContext = keepContext(context, homes, callee, 4, op.context);
    let values: Home | undefined;
    if (elements.copyStride !== undefined && isRead(3)) {
      // The copies of one slot: their distance is that of the elements.
      values = homes.take();
      context.loadCpuSlot(RAX);
      asm.imulImm(RAX, RAX, elements.copyStride);
      context.clobber(RDX);
      map(RDX, elements.valuesOffset);
      asm.add(RAX, RDX);
      asm.mov(values, RAX);
    }
    setZero(context, visited);
    const next = asm.here("iteration");
    passContext();
    if (isRead(3) || isRead(2)) asm.mov(RAX, visited);
    if (isRead(2)) {
      asm.mov(context.localWord(KEY_WORD), RAX);
      asm.lea(RSI, context.localWord(KEY_WORD));
    }
    if (isRead(3)) {
      asm.imulImm(RAX, RAX, elements.stride);
      if (values === undefined) map(RDX, elements.valuesOffset);
      else asm.mov(RDX, values);
      asm.add(RDX, RAX);
    }
    if (isRead(1)) map(RDI, 0);
    context.call(callee);
    asm.inc(visited);
    asm.test(RAX, RAX);
    asm.mov(RAX, visited);
    asm.jcc("ne", done);
    asm.cmpImm(RAX, elements.maxEntries);
    asm.jcc("b", next);
    asm.bind(done);
    return;
  }
  const cursor = homes.take();
  const passContext = keepContext(context, homes, callee, 4, op.context);
  setZero(context, visited);
  setZero(context, cursor);
  const [next, end] = [asm.here("iteration"), asm.label("end")];
  context.clobber(RDI);
  asm.mov(RDI, cursor);
  if (elements.mapAddr === undefined) {
    context.clobber(RSI);
    map(RSI, 0);
  }
  if (elements.takesSlot) context.loadCpuSlot(R11);
  context.call(elements.next);
  asm.test(RAX, RAX);
  asm.jcc("e", end);
  asm.mov(cursor, RAX);
  // Lists that the process has damaged can lead to one element from everywhere.
  asm.cmpImm(visited, elements.most);
  asm.jcc("ae", end);
  asm.inc(visited);
  passContext();
  if (callee.args.includes(1)) map(RDI, 0);
  context.call(callee);
  asm.test(RAX, RAX);
  asm.jcc("e", next);
  asm.bind(end);
  asm.mov(RAX, visited);
  asm.bind(done);
}

/** Loads an address in the map, which is kept if it is not known. */
function keepMap(
  context: OperationContext,
  homes: Homes,
  mapAddr: bigint | undefined,
): (into: Reg, offset: number) => void {
  if (mapAddr !== undefined) return (into, offset) => context.constant(into, mapAddr + BigInt(offset));
  const { asm } = context;
  const home = homes.take();
  asm.mov(home, context.reg(1));
  return (into, offset) => {
    asm.mov(into, home);
    if (offset !== 0) asm.addImm(into, offset);
  };
}

/** Flags that are known not to be 0: the result is an error, and that is all. */
function refuses(context: OperationContext, flags: Source): boolean {
  if (flags.kind !== "imm" || flags.value === 0) return false;
  context.constant(RAX, BigInt.asUintN(64, BigInt(EINVAL)));
  return true;
}

function failUnlessZero(context: OperationContext, flags: Source, done: Label): void {
  if (flags.kind === "imm") return;
  const { asm } = context;
  const invalid = asm.label("invalid flags");
  const reg = context.reg(flags.reg);
  asm.test(reg, reg);
  asm.jcc("ne", invalid);
  context.outOfLine(() => {
    asm.bind(invalid);
    context.constant(RAX, BigInt.asUintN(64, BigInt(EINVAL)));
    asm.jmp(done);
  });
}

/** Puts the callback's context aside; the result loads it as the argument `arg`. */
function keepContext(
  context: OperationContext,
  homes: Homes,
  callee: Routine,
  arg: number,
  value: CallbackContext,
): () => void {
  const { asm } = context;
  const into = argumentRegs[arg - 1]!;
  if (!callee.args.includes(arg)) return () => undefined;
  switch (value.kind) {
    case "const":
      return () => context.constant(into, value.value);
    case "stack":
      return () => context.stackAddress(into, value.off);
    default: {
      const home = homes.take();
      asm.mov(home, context.reg(value.reg));
      return () => asm.mov(into, home);
    }
  }
}

function setZero({ asm }: OperationContext, home: Home): void {
  if (typeof home === "number") asm.zero(home);
  else asm.movImm(home, 0);
}

function upperHalf(mem: Mem): Mem {
  return "disp" in mem ? { ...mem, disp: (mem.disp ?? 0) + 4 } : mem;
}
