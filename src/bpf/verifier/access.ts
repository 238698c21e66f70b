/**
 * Loads, stores and helper arguments: what may be accessed, and what a load gives.
 *
 * Addresses are intervals: the pointer's fixed offset plus the signed range of its variable part. All of the interval
 * must be inside what is pointed to. Stack accesses are aligned unless `Limits.unalignedStack` says otherwise, atomic
 * ones everywhere, as the processor promises nothing for those that cross a cache line.
 */
import { CTX_BYTES } from "../context.ts";
import type { Machine } from "./machine.ts";
import { reject } from "./rejection.ts";
import { constant, isConstant, type Scalar } from "./scalar.ts";
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
import { noteKills, noteReads, noteWrites, type StepNote } from "./step-note.ts";
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
  if (pointer.to === "ctx") {
    checkCtx(step, base, pointer, off, lenBytes, "read");
  } else {
    checkReadable(step, pointer, off, lenBytes);
    checkRegion(base, pointer, off, lenBytes);
    const known = findContents(step, pointer, off, lenBytes);
    if (known !== undefined) return constant(isSigned ? BigInt.asIntN(bits, known) : known);
  }
  return isSigned ? signedOfBits(bits) : unsignedOfBits(bits);
}

/** What a read-only map with known contents holds at a known place. */
function findContents(step: Step, pointer: Pointer, off: number, lenBytes: number): bigint | undefined {
  if (pointer.to !== "map-value" || !isConstant(pointer.variable)) return undefined;
  const { contents, isReadOnly } = step.machine.getMap(pointer.target);
  if (!contents || isReadOnly !== true) return undefined;
  let value = 0n;
  const from = pointer.off + off + Number(pointer.variable.smin);
  for (let i = lenBytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(contents[from + i] ?? 0);
  return value;
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
    checkWritable(step, base, pointer, off, lenBytes);
    checkRegion(base, pointer, off, lenBytes);
  }
}

/** An atomic instruction through register `base`; what it fetches. */
export function atomicMemory(step: Step, base: number, off: number, lenBytes: number): Scalar {
  const pointer = getAccessible(step, base);
  if (pointer.to === "ctx") reject(`BPF_ATOMIC stores into R${base} ctx is not allowed`);
  if (pointer.to === "stack") {
    const range = stackRange(step, base, pointer, off, lenBytes, "read");
    checkAligned(pointer, off, lenBytes, "stack ");
    checkInitialised(step, range, lenBytes, "stack");
    const slots = slotsBetween(range.low, range.high + lenBytes);
    noteReads(step.note, range.frame, slots);
    noteWrites(step.note, range.frame, slots);
    clobberStack(step, range, lenBytes, range.low !== range.high);
  } else {
    checkReadable(step, pointer, off, lenBytes);
    checkWritable(step, base, pointer, off, lenBytes);
    checkRegion(base, pointer, off, lenBytes);
    checkAligned(pointer, off, lenBytes, pointer.to === "map-value" ? "value " : "");
  }
  return unsignedOfBits(lenBytes * 8);
}

/** Kinds of memory that a helper can read or fill, as the kernel lists them. */
const memoryKinds = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_";

/** The pointer to memory that a helper gets in register `reg`. */
export function getMemoryArgument(step: Step, reg: number): Pointer {
  const value = getReg(step, reg);
  const isMemory =
    value.kind === "pointer" &&
    value.nullId === 0 &&
    value.to !== "ctx" &&
    value.to !== "map" &&
    value.to !== "function";
  return isMemory ? value : reject(`R${reg} type=${typeName(value)} expected=${memoryKinds}`);
}

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
  const value = getMemoryArgument(step, reg);
  if (value.to !== "stack") {
    if (mode === "fill") checkWritable(step, reg, value, 0, lenBytes);
    else checkReadable(step, value, 0, lenBytes);
    checkRegion(reg, value, 0, lenBytes);
    return;
  }
  if (lenBytes === 0) return;
  const { note } = step;
  const range = stackRange(step, reg, value, 0, lenBytes, mode === "read" ? "read" : "write");
  const { frame, low, high } = range;
  const end = high + lenBytes;
  const slots = slotsBetween(low, end);
  const isWhole = exact && low === high;
  if (mode === "read" || !isWhole) {
    checkInitialised(step, range, lenBytes, `stack R${reg}`);
    noteReads(note, frame, slots);
  }
  if (mode === "read") return;
  noteWrites(note, frame, slots);
  if (isWhole) {
    const firstWhole = (low + 7) & ~7;
    const endWhole = end & ~7;
    if (firstWhole < endWhole) noteKills(note, frame, slotsBetween(firstWhole, endWhole));
  }
  clobberStack(step, range, lenBytes, !isWhole);
}

/** The pointer in a register, if memory can be accessed through it. */
function getAccessible(step: Step, reg: number): Pointer {
  const value: Value = getReg(step, reg);
  const isAccessible =
    value.kind === "pointer" && value.nullId === 0 && value.to !== "map" && value.to !== "function";
  return isAccessible ? value : reject(`R${reg} invalid mem access '${typeName(value)}'`);
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

function checkWritable(step: Step, reg: number, pointer: Pointer, off: number, lenBytes: number): void {
  if (pointer.to === "map-key") reject(`write to change key R${reg} not allowed`);
  if (pointer.to !== "map-value" || step.machine.getMap(pointer.target).isReadOnly !== true) return;
  forbid("write into", pointer, off, lenBytes);
}

function checkReadable(step: Step, pointer: Pointer, off: number, lenBytes: number): void {
  if (pointer.to !== "map-value" || step.machine.getMap(pointer.target).isWriteOnly !== true) return;
  forbid("read from", pointer, off, lenBytes);
}

function forbid(what: string, pointer: Pointer, off: number, lenBytes: number): never {
  reject(`${what} map forbidden, value_size=${pointer.lenBytes} off=${pointer.off + off} size=${lenBytes}`);
}

/** Map values and keys, records and sized memory. */
export function checkRegion(reg: number, pointer: Pointer, off: number, lenBytes: number): void {
  const { variable, lenBytes: limit } = pointer;
  const fixed = BigInt(pointer.off + off);
  const size = BigInt(lenBytes);
  const outside = (at: bigint) => {
    const where = `off=${at} size=${lenBytes}`;
    if (pointer.to === "map-value") return `invalid access to map value, value_size=${limit} ${where}`;
    if (pointer.to === "map-key") return `invalid access to map key, key_size=${limit} ${where}`;
    return `invalid access to memory, mem_size=${limit} ${where}`;
  };
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

/** A helper writes 64 bits at register `reg`, aligned. */
export function checkHelperU64(step: Step, reg: number): void {
  checkHelperMemory(step, reg, 8, "fill", true);
  const pointer = getMemoryArgument(step, reg);
  if (pointer.to === "stack") checkStackAligned(step, pointer, 0, 8);
  else checkAligned(pointer, 0, 8, pointer.to === "map-value" ? "value " : "");
}

function checkAligned(pointer: Pointer, off: number, lenBytes: number, what: string): void {
  const { variable } = pointer;
  const low = BigInt(lenBytes - 1);
  const fixed = BigInt(pointer.off + off) + variable.value;
  if ((fixed & low) !== 0n || (variable.mask & low) !== 0n) {
    reject(`misaligned ${what}access off ${printBits(variable)}+${pointer.off}+${off} size ${lenBytes}`);
  }
}

/** The bytes of a frame, counted from the lowest, where an access can begin. */
interface StackRange {
  readonly frame: number;
  readonly low: number;
  readonly high: number;
}

function stackRange(
  step: Step,
  reg: number,
  pointer: Pointer,
  off: number,
  lenBytes: number,
  mode: "read" | "write",
): StackRange {
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
  const frame = pointer.target;
  step.machine.noteStack(step.state.activityOf(frame).fn, STACK_BYTES - low);
  return { frame, low, high };
}

function checkStackAligned(step: Step, pointer: Pointer, off: number, lenBytes: number): void {
  if (!step.machine.limits.unalignedStack) checkAligned(pointer, off, lenBytes, "stack ");
}

function loadStack(step: Step, reg: number, pointer: Pointer, off: number, lenBytes: number): StoredValue {
  const range = stackRange(step, reg, pointer, off, lenBytes, "read");
  checkStackAligned(step, pointer, off, lenBytes);
  checkInitialised(step, range, lenBytes, "stack");
  const { frame, low, high } = range;
  noteReads(step.note, frame, slotsBetween(low, high + lenBytes));
  if (low !== high || (low & 7) + lenBytes > 8) return unsignedOfBits(lenBytes * 8);
  const value = loadFromSlot(step.state.getSlot(frame, low >> 3), low & 7, lenBytes);
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
  const { state, note } = step;
  const range = stackRange(step, reg, pointer, off, lenBytes, "write");
  checkStackAligned(step, pointer, off, lenBytes);
  const { frame, low, high } = range;
  if (value.kind === "pointer") {
    if (lenBytes !== 8) reject("invalid size of register spill");
    // The callee's frame would be gone when the caller uses what is in its own.
    if (value.to === "stack" && frame < state.depth)
      reject("cannot spill pointers to stack into stack frame of the caller");
  }
  const slots = slotsBetween(low, high + lenBytes);
  noteWrites(note, frame, slots);
  if (low !== high || (low & 7) + lenBytes > 8) {
    clobberStack(step, range, lenBytes, low !== high);
    return;
  }
  if (lenBytes === 8) noteKills(note, frame, slots);
  const slot = low >> 3;
  state.setSlot(frame, slot, storeInSlot(state.getSlot(frame, slot), low & 7, lenBytes, value));
}

/** All that an access can touch now holds something unknown; with `maybe` it may also be as before. */
function clobberStack(step: Step, { frame, low, high }: StackRange, lenBytes: number, maybe: boolean): void {
  const { state } = step;
  const to = high + lenBytes;
  for (let at = low; at < to; at = (at | 7) + 1) {
    const end = Math.min(to, (at | 7) + 1);
    const slot = at >> 3;
    state.setSlot(frame, slot, clobberSlot(state.getSlot(frame, slot), at & 7, end - at, maybe));
  }
}

function checkInitialised(
  step: Step,
  { frame, low, high }: StackRange,
  lenBytes: number,
  where: string,
): void {
  if (step.machine.limits.uninitStack === "allow") return;
  const to = high + lenBytes;
  for (let at = low; at < to; at = (at | 7) + 1) {
    const end = Math.min(to, (at | 7) + 1);
    const hole = findUninitByte(step.state.getSlot(frame, at >> 3), at & 7, end - at);
    if (hole < 0) continue;
    reject(`invalid read from ${where} off ${low - STACK_BYTES}+${(at & ~7) + hole - low} size ${lenBytes}`);
  }
}

/** A tristate number as the kernel prints it. */
export function printBits({ value, mask }: Scalar): string {
  if (mask === 0n) return value === 0n ? "0" : `0x${value.toString(16)}`;
  return `(0x${value.toString(16)}; 0x${mask.toString(16)})`;
}
