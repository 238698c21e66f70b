/**
 * Loads, stores and helper arguments: what may be accessed, and what a load gives.
 *
 * Addresses are intervals: the pointer's fixed offset plus the signed range of its variable part. All of the interval
 * must be inside what is pointed to. Stack accesses are aligned, as spills need it; atomic ones everywhere, as the
 * processor promises nothing for those that cross a cache line.
 */
import { CTX_BYTES } from "../context.ts";
import type { StepNote } from "./demand.ts";
import type { Machine } from "./machine.ts";
import { reject } from "./rejection.ts";
import type { Scalar } from "./scalar.ts";
import { signExtend, signedOfBits, unsignedOfBits } from "./scalar-alu.ts";
import {
  clobberSlot,
  findUninitByte,
  loadFromSlot,
  STACK_BYTES,
  type StoredValue,
  storeInSlot,
} from "./stack.ts";
import { type State, slotsBetween } from "./state.ts";
import { isFixed, type Pointer, typeName, type Value } from "./value.ts";

/** What steps work on. */
export interface Step {
  readonly machine: Machine;
  readonly state: State;
  readonly note: StepNote;
  /** Index of the instruction. */
  readonly at: number;
}

export type AccessMode = "read" | "write" | "atomic";

/** No offset beyond this is ever right, and none is added up. */
export const MAX_OFFSET = 1 << 29;

/** The initialised value of a register. */
export function getReg(step: Step, reg: number): StoredValue {
  const value = step.state.regs[reg]!;
  if (value.kind === "uninit") reject(`R${reg} !read_ok`);
  return value;
}

/** Loads through register `base`. */
export function loadMemory(
  step: Step,
  base: number,
  off: number,
  lenBytes: number,
  isSigned: boolean,
): StoredValue {
  const pointer = getAccessible(step, base);
  const bits = lenBytes * 8;
  if (pointer.to === "stack") {
    const value = loadStack(step, base, pointer, off, lenBytes);
    return isSigned && value.kind === "scalar" ? { ...signExtend(value, bits), id: 0 } : value;
  }
  if (pointer.to === "ctx") checkCtx(step, base, pointer, off, lenBytes, "read");
  else checkRegion(base, pointer, off, lenBytes);
  return isSigned ? signedOfBits(bits) : unsignedOfBits(bits);
}

/** Stores through register `base`. */
export function storeMemory(
  step: Step,
  base: number,
  off: number,
  lenBytes: number,
  value: StoredValue,
): void {
  const pointer = getAccessible(step, base);
  if (pointer.to === "stack") storeStack(step, base, pointer, off, lenBytes, value);
  else if (pointer.to === "ctx") checkCtx(step, base, pointer, off, lenBytes, "write");
  else {
    checkWritable(step, pointer, off, lenBytes);
    checkRegion(base, pointer, off, lenBytes);
  }
}

/** An atomic instruction through register `base`; what it fetches. */
export function atomicMemory(step: Step, base: number, off: number, lenBytes: number): Scalar {
  const pointer = getAccessible(step, base);
  if (pointer.to === "ctx") reject(`BPF_ATOMIC stores into R${base} ctx is not allowed`);
  if (pointer.to === "stack") {
    const { low, high } = stackRange(step, base, pointer, off, lenBytes, "read");
    checkInitialised(step, low, high + lenBytes, `stack off ${low - STACK_BYTES}`, lenBytes);
    step.note.reads = step.note.writes = slotsBetween(low, high + lenBytes);
    clobberStack(step, low, high + lenBytes, false);
  } else {
    checkWritable(step, pointer, off, lenBytes);
    checkRegion(base, pointer, off, lenBytes);
    checkAligned(pointer, off, lenBytes, pointer.to === "map-value" ? "value " : "");
  }
  return unsignedOfBits(lenBytes * 8);
}

/** Kinds of memory that a helper can read or fill. */
const memoryKinds = "fp, map_value, ringbuf_mem, mem";

/**
 * A helper reads or fills up to `lenBytes` bytes at register `reg`. `exact`: it fills all of them, so that they
 * need not be initialised before.
 */
export function checkHelperMemory(
  step: Step,
  reg: number,
  lenBytes: number,
  mode: "read" | "fill",
  exact: boolean,
): void {
  const value = getReg(step, reg);
  if (value.kind !== "pointer" || value.nullId !== 0 || value.to === "ctx" || value.to === "map") {
    reject(`R${reg} type=${typeName(value)} expected=${memoryKinds}`);
  }
  if (value.to !== "stack") {
    if (mode === "fill") checkWritable(step, value, 0, lenBytes);
    checkRegion(reg, value, 0, lenBytes);
    return;
  }
  if (lenBytes === 0) return;
  const { low, high } = stackRange(step, reg, value, 0, lenBytes, mode === "read" ? "read" : "write", false);
  const end = high + lenBytes;
  const slots = slotsBetween(low, end);
  if (mode === "read" || !exact || low !== high) {
    checkInitialised(step, low, end, `stack R${reg} off ${low - STACK_BYTES}`, lenBytes);
    step.note.reads = union(step.note.reads, slots);
    if (mode === "read") return;
    step.note.writes = union(step.note.writes, slots);
    clobberStack(step, low, end, true);
    return;
  }
  step.note.writes = union(step.note.writes, slots);
  const firstWhole = (low + 7) & ~7;
  const endWhole = end & ~7;
  if (firstWhole < endWhole) step.note.kills = union(step.note.kills, slotsBetween(firstWhole, endWhole));
  clobberStack(step, low, end, false);
}

function union(a: StepNote["reads"], b: StepNote["reads"]): StepNote["reads"] {
  return { low: a.low | b.low, high: a.high | b.high };
}

/** The pointer in a register, if memory can be accessed through it. */
function getAccessible(step: Step, reg: number): Pointer {
  const value: Value = getReg(step, reg);
  if (value.kind !== "pointer" || value.nullId !== 0 || value.to === "map") {
    reject(`R${reg} invalid mem access '${typeName(value)}'`);
  }
  return value;
}

/** The context itself: what is added to its address must be 0. */
export function checkCtxPointer(reg: number, pointer: Pointer): void {
  if (!isFixed(pointer)) reject(`variable ctx access var_off=${printBits(pointer.variable)} disallowed`);
  if (pointer.off !== 0) reject(`dereference of modified ctx ptr R${reg} off=${pointer.off} disallowed`);
}

function checkCtx(
  step: Step,
  reg: number,
  pointer: Pointer,
  off: number,
  lenBytes: number,
  mode: AccessMode,
): void {
  checkCtxPointer(reg, pointer);
  const isInside = off >= 0 && off + lenBytes <= CTX_BYTES && off % lenBytes === 0;
  if (mode !== "read" || !isInside) reject(`invalid bpf_context access off=${off} size=${lenBytes}`);
  step.machine.findings.ctxReads.add(off & ~7);
}

function checkWritable(step: Step, pointer: Pointer, off: number, lenBytes: number): void {
  if (pointer.to !== "map-value" || step.machine.maps[pointer.map]?.isReadOnly !== true) return;
  reject(
    `write into map forbidden, value_size=${pointer.lenBytes} off=${pointer.off + off} size=${lenBytes}`,
  );
}

/** Map values, records and sized memory. */
function checkRegion(reg: number, pointer: Pointer, off: number, lenBytes: number): void {
  const { variable, lenBytes: limit } = pointer;
  const fixed = BigInt(pointer.off + off);
  const size = BigInt(lenBytes);
  const outside = (at: bigint) =>
    pointer.to === "map-value"
      ? `invalid access to map value, value_size=${limit} off=${at} size=${lenBytes}`
      : `invalid access to memory, mem_size=${limit} off=${at} size=${lenBytes}`;
  if (isFixed(pointer)) {
    if (fixed < 0n || fixed + size > BigInt(limit)) reject(outside(fixed));
    return;
  }
  const low = fixed + variable.smin;
  const high = fixed + variable.smax;
  if (low < 0n && variable.smin < 0n) {
    reject(`R${reg} min value is negative, either use unsigned index or do a if (index >=0) check.`);
  }
  if (low < 0n || low + size > BigInt(limit)) {
    reject(`${outside(low)}: R${reg} min value is outside of the allowed memory range`);
  }
  if (variable.smax >= MAX_OFFSET) {
    reject(`R${reg} unbounded memory access, make sure to bounds check any such access`);
  }
  if (high + size > BigInt(limit)) {
    reject(`${outside(high)}: R${reg} max value is outside of the allowed memory range`);
  }
}

function checkAligned(pointer: Pointer, off: number, lenBytes: number, what: string): void {
  const { variable } = pointer;
  const low = BigInt(lenBytes - 1);
  const fixed = BigInt(pointer.off + off) + variable.value;
  if ((fixed & low) !== 0n || (variable.mask & low) !== 0n) {
    reject(`misaligned ${what}access off ${printBits(variable)}+${pointer.off}+${off} size ${lenBytes}`);
  }
}

/** The stack bytes, counted from the lowest, where an access can begin. */
function stackRange(
  step: Step,
  reg: number,
  pointer: Pointer,
  off: number,
  lenBytes: number,
  mode: "read" | "write",
  aligned = true,
): { low: number; high: number } {
  const { variable } = pointer;
  const fixed = pointer.off + off;
  const direction = mode === "read" ? "read from" : "write to";
  if (!isFixed(pointer) && (variable.smin <= -MAX_OFFSET || variable.smax >= MAX_OFFSET)) {
    reject(`invalid unbounded variable-offset ${direction} stack R${reg}`);
  }
  const low = STACK_BYTES + fixed + Number(variable.smin);
  const high = STACK_BYTES + fixed + Number(variable.smax);
  if (low < 0 || high + lenBytes > STACK_BYTES) {
    if (isFixed(pointer)) reject(`invalid ${direction} stack R${reg} off=${fixed} size=${lenBytes}`);
    reject(
      `invalid variable-offset ${direction} stack R${reg} var_off=${printBits(variable)} off=${fixed} size=${lenBytes}`,
    );
  }
  if (aligned) checkAligned(pointer, off, lenBytes, "stack ");
  step.machine.findings.stackBytes = Math.max(step.machine.findings.stackBytes, STACK_BYTES - low);
  return { low, high };
}

function loadStack(step: Step, reg: number, pointer: Pointer, off: number, lenBytes: number): StoredValue {
  const { low, high } = stackRange(step, reg, pointer, off, lenBytes, "read");
  checkInitialised(step, low, high + lenBytes, `stack off ${low - STACK_BYTES}`, lenBytes);
  step.note.reads = slotsBetween(low, high + lenBytes);
  if (low !== high) return unsignedOfBits(lenBytes * 8);
  const value = loadFromSlot(step.state.slots[low >> 3]!, low & 7, lenBytes);
  return value === "part-of-pointer" ? reject("invalid size of register fill") : value;
}

function storeStack(
  step: Step,
  reg: number,
  pointer: Pointer,
  off: number,
  lenBytes: number,
  value: StoredValue,
): void {
  const { low, high } = stackRange(step, reg, pointer, off, lenBytes, "write");
  step.note.writes = slotsBetween(low, high + lenBytes);
  if (low !== high) {
    clobberStack(step, low, high + lenBytes, true);
    return;
  }
  if (value.kind === "pointer" && lenBytes !== 8) reject("invalid size of register spill");
  if (lenBytes === 8) step.note.kills = step.note.writes;
  const slot = low >> 3;
  step.state.slots[slot] = storeInSlot(step.state.slots[slot], low & 7, lenBytes, value);
}

/** Bytes `from` to `to` now hold something unknown; with `maybe` they may also be as before. */
function clobberStack(step: Step, from: number, to: number, maybe: boolean): void {
  const { slots } = step.state;
  for (let at = from; at < to; at = (at | 7) + 1) {
    const end = Math.min(to, (at | 7) + 1);
    slots[at >> 3] = clobberSlot(slots[at >> 3], at & 7, end - at, maybe);
  }
}

function checkInitialised(step: Step, from: number, to: number, where: string, lenBytes: number): void {
  for (let at = from; at < to; at = (at | 7) + 1) {
    const end = Math.min(to, (at | 7) + 1);
    const hole = findUninitByte(step.state.slots[at >> 3], at & 7, end - at);
    if (hole >= 0) reject(`invalid read from ${where}+${(at & ~7) + hole - from} size ${lenBytes}`);
  }
}

/** A tristate number as the kernel prints it. */
export function printBits({ value, mask }: Scalar): string {
  if (mask === 0n) return value === 0n ? "0" : `0x${value.toString(16)}`;
  return `(0x${value.toString(16)}; 0x${mask.toString(16)})`;
}
