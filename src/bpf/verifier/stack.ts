/**
 * What is known about the 512 bytes of stack below r10.
 *
 * The stack is 64 slots of 8 bytes; slot 0 is the lowest. A slot remembers a whole value that was stored with one
 * 8-byte store, or a number per 4-byte half, and per byte whether it was written and whether it is zero. Slots are
 * immutable: a store replaces one, so that states can share them.
 *
 * `low` and `high` exclude `whole`. A byte that belongs to a remembered value is VALUE; the rest say what they hold.
 */
import { isConstant, type Scalar, unknownScalar, zero } from "./scalar.ts";
import { extractConstant, truncate, unsignedOfBits } from "./scalar-alu.ts";
import type { Value } from "./value.ts";

export const STACK_BYTES = 512;
export const STACK_SLOTS = STACK_BYTES / 8;

/** What a byte of a slot holds. */
export const BYTE_UNINIT = 0;
/** Written, contents unknown. */
export const BYTE_MISC = 1;
export const BYTE_ZERO = 2;
/** Part of a remembered value. */
export const BYTE_VALUE = 3;

export type ByteKind = typeof BYTE_UNINIT | typeof BYTE_MISC | typeof BYTE_ZERO | typeof BYTE_VALUE;

export interface Slot {
  /** Eight kinds, byte 0 first. */
  readonly bytes: readonly ByteKind[];
  /** All eight bytes, from one store. */
  readonly whole: Exclude<Value, { kind: "uninit" }> | undefined;
  readonly low: Scalar | undefined;
  readonly high: Scalar | undefined;
}

export type StoredValue = NonNullable<Slot["whole"]>;

const allUninit: readonly ByteKind[] = [0, 0, 0, 0, 0, 0, 0, 0];
const allValue: readonly ByteKind[] = [3, 3, 3, 3, 3, 3, 3, 3];

const uninitSlot: Slot = { bytes: allUninit, whole: undefined, low: undefined, high: undefined };

/** A slot that holds one 8-byte value. */
export function wholeSlot(value: StoredValue): Slot {
  return { bytes: allValue, whole: value, low: undefined, high: undefined };
}

/**
 * The slot after `value` was stored to its bytes `at` to `at + lenBytes`; only numbers are stored in part. Of an
 * unaligned store only zero is remembered.
 */
export function storeInSlot(slot: Slot | undefined, at: number, lenBytes: number, value: StoredValue): Slot {
  if (lenBytes === 8) return wholeSlot(value);
  const number = value.kind === "scalar" ? truncate(value, lenBytes * 8) : unknownScalar;
  if (lenBytes === 4 && (at & 3) === 0) {
    const rest = splitSlot(slot ?? uninitSlot);
    const bytes = rest.bytes.map((kind, i) => (i >= at && i < at + 4 ? BYTE_VALUE : kind));
    const stored = { ...number, id: 0 };
    return at === 0 ? { ...rest, bytes, low: stored } : { ...rest, bytes, high: stored };
  }
  const isZero = isConstant(number) && number.value === 0n;
  return markBytes(slot, at, lenBytes, () => (isZero ? BYTE_ZERO : BYTE_MISC));
}

/** The slot after bytes were filled with something unknown. `maybe`: or were not touched. */
export function clobberSlot(slot: Slot | undefined, at: number, lenBytes: number, maybe: boolean): Slot {
  return markBytes(slot, at, lenBytes, (kind) => (maybe && kind === BYTE_UNINIT ? BYTE_UNINIT : BYTE_MISC));
}

/** Index of the first byte in the range that was never written, or -1. */
export function findUninitByte(slot: Slot | undefined, at: number, lenBytes: number): number {
  if (!slot) return at;
  for (let i = at; i < at + lenBytes; i++) if (slot.bytes[i] === BYTE_UNINIT) return i;
  return -1;
}

/** A read that the slot cannot serve: only a part of a pointer. */
export type PartOfPointer = "part-of-pointer";

/** What a load gives, zero-extended; bytes that were never written are unknown. */
export function loadFromSlot(
  slot: Slot | undefined,
  at: number,
  lenBytes: number,
): StoredValue | PartOfPointer {
  const bits = lenBytes * 8;
  if (!slot) return unsignedOfBits(bits);
  const { whole, low, high } = slot;
  if (whole) {
    if (lenBytes === 8) return whole;
    if (whole.kind === "pointer") return "part-of-pointer";
    if (isConstant(whole)) return extractConstant(whole.value, at, bits);
    return at === 0 ? cut(whole, bits) : unsignedOfBits(bits);
  }
  if (low && at === 0 && lenBytes <= 4) return cut(low, bits);
  if (high && at === 4 && lenBytes <= 4) return cut(high, bits);
  let value = 0n;
  for (let i = lenBytes - 1; i >= 0; i--) {
    const byte = knownByte(slot, at + i);
    if (byte === undefined) {
      // Unknown low half, zero high half: a 32-bit number that was widened.
      const zeroHigh = at === 0 && lenBytes === 8 && i < 4 && value === 0n;
      return zeroHigh ? (low ?? unsignedOfBits(32)) : unsignedOfBits(bits);
    }
    value = (value << 8n) | BigInt(byte);
  }
  return value === 0n ? zero : extractConstant(value, 0, bits);
}

/** A shorter number loses its id: the same id means all 64 bits are equal. */
function cut(value: Scalar, bits: number): Scalar {
  return value.umax < 1n << BigInt(bits) ? value : { ...truncate(value, bits), id: 0 };
}

/** The byte if it is a constant. */
export function knownByte(slot: Slot, at: number): number | undefined {
  if (slot.bytes[at] === BYTE_ZERO) return 0;
  if (slot.bytes[at] !== BYTE_VALUE) return undefined;
  const { whole } = slot;
  const number = whole ?? (at < 4 ? slot.low : slot.high);
  if (number?.kind !== "scalar" || !isConstant(number)) return undefined;
  return Number((number.value >> BigInt((whole || at < 4 ? at : at - 4) * 8)) & 0xffn);
}

/** Replaces a whole number by its halves, and a whole pointer by bytes. */
function splitSlot(slot: Slot): Slot {
  const { whole } = slot;
  if (!whole) return slot;
  if (whole.kind === "pointer") return { ...uninitSlot, bytes: allUninit.map(() => BYTE_MISC) };
  const high = isConstant(whole) ? extractConstant(whole.value, 4, 32) : unsignedOfBits(32);
  return { bytes: allValue, whole: undefined, low: { ...truncate(whole, 32), id: 0 }, high };
}

/** Changes some bytes; values that lose a byte become plain bytes. */
function markBytes(
  slot: Slot | undefined,
  at: number,
  lenBytes: number,
  mark: (kind: ByteKind) => ByteKind,
): Slot {
  const old = slot ?? uninitSlot;
  const split = lenBytes > 4 || (at < 4 && at + lenBytes > 4) ? old : splitSlot(old);
  const touched = (i: number) => i >= at && i < at + lenBytes;
  const keepsLow = split.low !== undefined && at >= 4;
  const keepsHigh = split.high !== undefined && at + lenBytes <= 4;
  const bytes = split.bytes.map((kind, i): ByteKind => {
    if (touched(i)) return mark(kind);
    if (kind !== BYTE_VALUE || (i < 4 ? keepsLow : keepsHigh)) return kind;
    return knownByte(split, i) === 0 ? BYTE_ZERO : BYTE_MISC;
  });
  return {
    bytes,
    whole: undefined,
    low: keepsLow ? split.low : undefined,
    high: keepsHigh ? split.high : undefined,
  };
}
