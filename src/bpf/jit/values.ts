/**
 * What is known about the registers before each instruction: constants, and addresses in the stack and the context.
 *
 * Problem: BPF spells `[r10 - 8]`, small constants and map addresses as moves through registers. Knowing them, the
 * code generator addresses the stack and the context through rsp and puts constants into instructions, and the
 * moves become dead.
 *
 * Strategy: forward data flow over the slots; where paths meet only what they agree on is kept. Values only ever
 * go from known to unknown, so it ends after few rounds.
 */
import { evalAlu32, evalAlu64, u64 } from "../alu.ts";
import { type Insn, imm64Of, jumpTarget } from "../insn.ts";
import {
  ALU_ADD,
  ALU_END,
  ALU_MOV,
  ALU_NEG,
  ALU_SUB,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_JMP,
  CLASS_JMP32,
  CLASS_LD,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
  classOf,
  isSrcReg,
  MODE_ATOMIC,
  MODE_MEMSX,
  modeOf,
  OP_CALL,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  opOf,
  PSEUDO_FUNCTION,
  PSEUDO_MAP_INDEX_VALUE,
  PSEUDO_MAP_VALUE,
  PSEUDO_NONE,
  sizeBytesOf,
} from "../opcodes.ts";
import type { MapSpec } from "../program.ts";

/** undefined: not known. */
export type Value =
  | undefined
  /** Unsigned 64 bits. */
  | { readonly kind: "const"; readonly value: bigint }
  /** The frame pointer, or the context, plus an offset in bytes. */
  | { readonly kind: "stack" | "ctx"; readonly off: number }
  /** A map as a helper's argument. No instruction computes with it. */
  | { readonly kind: "map"; readonly index: number };

/** Values of r0 to r10. */
export type Values = readonly Value[];

export interface KnownValues {
  /** Values before each slot; undefined for a slot that is never reached or is the second of two. */
  readonly before: readonly (Values | undefined)[];
  /** Slots that a jump leads to. */
  readonly isTarget: readonly boolean[];
}

const FRAME_POINTER = 10;

/** What the load `insn` gives, where memory never changes; undefined where that is not known. */
export type KnownLoad = (insn: Insn, before: Values) => Value;

export interface ValueSources {
  isDead(slot: number): boolean;
  /** What is in r1. Of memory and of arguments nothing is known. */
  readonly entry: "context" | "memory" | "local";
  /** The address of a map's storage. */
  mapAddr(index: number): bigint;
  readonly knownLoad: KnownLoad;
}

/** The values in one function, whose instructions these are. */
export function knownValues(insns: readonly Insn[], sources: ValueSources): KnownValues {
  const before: (Values | undefined)[] = insns.map(() => undefined);
  const isTarget = insns.map(() => false);
  const work: number[] = [];
  const flow = (slot: number, values: Values) => {
    if (sources.isDead(slot)) return;
    const old = before[slot];
    if (old === undefined) before[slot] = values;
    else if (old.every((value, i) => value === undefined || isSame(value, values[i]))) return;
    else before[slot] = old.map((value, i) => (isSame(value, values[i]) ? value : undefined));
    work.push(slot);
  };

  const entry: Value[] = Array.from({ length: 11 }, () => undefined);
  if (sources.entry === "context") entry[1] = { kind: "ctx", off: 0 };
  entry[FRAME_POINTER] = { kind: "stack", off: 0 };
  flow(0, entry);
  while (work.length > 0) {
    const slot = work.pop()!;
    const insn = insns[slot]!;
    const after = transfer(insns, slot, before[slot]!, sources);
    const target = jumpTarget(insn, slot);
    if (target !== undefined) {
      isTarget[target] = true;
      flow(target, after);
    }
    if (insn.opcode === OP_JA || insn.opcode === OP_JA32 || insn.opcode === OP_EXIT) continue;
    flow(slot + slotsOf(insn), after);
  }
  return { before, isTarget };
}

/** Slots that an instruction takes. */
export function slotsOf(insn: Insn): 1 | 2 {
  return classOf(insn.opcode) === CLASS_LD ? 2 : 1;
}

function transfer(
  insns: readonly Insn[],
  slot: number,
  before: Values,
  { mapAddr, knownLoad }: ValueSources,
): Values {
  const insn = insns[slot]!;
  if (leavesRegisters(insn)) return before;
  const after = [...before];
  switch (classOf(insn.opcode)) {
    case CLASS_ALU:
    case CLASS_ALU64:
      after[insn.dst] = aluResult(insn, before);
      break;
    case CLASS_LD:
      after[insn.dst] = loadedConstant(insn, insns[slot + 1]!, mapAddr);
      break;
    case CLASS_LDX:
      after[insn.dst] = knownLoad(insn, before);
      break;
    case CLASS_STX:
      if (modeOf(insn.opcode) !== MODE_ATOMIC) break;
      if (insn.imm === ATOMIC_CMPXCHG) after[0] = undefined;
      else if ((insn.imm & ATOMIC_FETCH) !== 0) after[insn.src] = undefined;
      break;
    default:
      if (insn.opcode === OP_CALL) for (let reg = 0; reg <= 5; reg++) after[reg] = undefined;
  }
  return after;
}

/** Whether no register changes, so that the values before are those after. */
function leavesRegisters(insn: Insn): boolean {
  switch (classOf(insn.opcode)) {
    case CLASS_ST:
      return true;
    case CLASS_STX:
      return modeOf(insn.opcode) !== MODE_ATOMIC;
    case CLASS_JMP:
    case CLASS_JMP32:
      return insn.opcode !== OP_CALL;
    default:
      return false;
  }
}

/** What an arithmetic instruction leaves in its destination. */
export function aluResult(insn: Insn, before: Values): Value {
  const op = opOf(insn.opcode);
  const is64 = classOf(insn.opcode) === CLASS_ALU64;
  if (op === ALU_END) return undefined;
  const dst = before[insn.dst];
  const src: Value = isSrcReg(insn.opcode)
    ? before[insn.src]
    : { kind: "const", value: u64(BigInt(insn.imm)) };
  if (op === ALU_MOV && is64 && insn.off === 0) return src;
  if (src === undefined && op !== ALU_NEG) return undefined;
  const hasConstDst = op === ALU_MOV || dst?.kind === "const";
  if (hasConstDst && (src?.kind === "const" || op === ALU_NEG)) {
    const evaluate = is64 ? evalAlu64 : evalAlu32;
    const dstValue = dst?.kind === "const" ? dst.value : 0n;
    return { kind: "const", value: evaluate(op, insn.off, dstValue, src?.kind === "const" ? src.value : 0n) };
  }
  if (is64 && src?.kind === "const" && (dst?.kind === "stack" || dst?.kind === "ctx")) {
    const delta = Number(BigInt.asIntN(64, src.value));
    const off = op === ALU_ADD ? dst.off + delta : op === ALU_SUB ? dst.off - delta : undefined;
    if (off !== undefined && Math.abs(off) < 2 ** 30) return { kind: dst.kind, off };
  }
  return undefined;
}

/** What an `ldimm64` loads. */
export function loadedConstant(low: Insn, high: Insn, mapAddr: (index: number) => bigint): Value {
  switch (low.src) {
    case PSEUDO_NONE:
      return { kind: "const", value: imm64Of(low, high) };
    case PSEUDO_MAP_VALUE:
    case PSEUDO_MAP_INDEX_VALUE:
      return { kind: "const", value: u64(mapAddr(low.imm) + BigInt(high.imm)) };
    case PSEUDO_FUNCTION:
      return undefined;
    default:
      return { kind: "map", index: low.imm };
  }
}

function isSame(a: Value, b: Value): boolean {
  if (a === undefined || b === undefined) return a === b;
  switch (a.kind) {
    case "const":
      return b.kind === "const" && a.value === b.value;
    case "map":
      return b.kind === "map" && a.index === b.index;
    case "stack":
    case "ctx":
      return b.kind === a.kind && a.off === b.off;
    default:
      return a satisfies never;
  }
}

/** Loads from maps that never change. `mapAddr` may refuse maps that no program names. */
export function loadsFrom(maps: readonly MapSpec[], mapAddr: (index: number) => bigint): KnownLoad {
  const known = maps.flatMap(({ contents, isReadOnly }, index) =>
    isReadOnly === true && contents !== undefined ? [{ index, contents }] : [],
  );
  if (known.length === 0) return () => undefined;
  return (insn, before) => {
    const base = before[insn.src];
    if (base?.kind !== "const") return undefined;
    const lenBytes = sizeBytesOf(insn.opcode);
    for (const { index, contents } of known) {
      const at = BigInt.asIntN(64, base.value + BigInt(insn.off) - mapAddr(index));
      if (at < 0n || at + BigInt(lenBytes) > BigInt(contents.length)) continue;
      const bytes = contents.subarray(Number(at), Number(at) + lenBytes);
      const value = bytes.reduceRight((high, byte) => (high << 8n) | BigInt(byte), 0n);
      const isSigned = modeOf(insn.opcode) === MODE_MEMSX;
      return { kind: "const", value: isSigned ? u64(BigInt.asIntN(lenBytes * 8, value)) : value };
    }
    return undefined;
  };
}
