/**
 * What is known about a 64-bit number: bits, and ranges of it as unsigned, signed, and of its low half as both.
 *
 * Bits are a tristate number: bit i is known iff `mask` bit i is 0, and then equals bit i of `value`. All seven
 * descriptions hold at once, and `normalise` lets each sharpen the others. A description that no number satisfies is
 * `undefined`: the path that leads to it cannot be taken.
 *
 * Invariants: value & mask = 0; umin <= umax and so on; a constant has mask 0 and equal bounds.
 */

export const U64_MAX = (1n << 64n) - 1n;
export const S64_MIN = -(1n << 63n);
export const S64_MAX = (1n << 63n) - 1n;
export const U32_MAX = (1n << 32n) - 1n;
export const S32_MIN = -(1n << 31n);
export const S32_MAX = (1n << 31n) - 1n;
const SIGN64 = 1n << 63n;
const SIGN32 = 1n << 31n;

/** The seven descriptions, while they are being changed. */
export interface Draft {
  value: bigint;
  mask: bigint;
  umin: bigint;
  umax: bigint;
  smin: bigint;
  smax: bigint;
  umin32: bigint;
  umax32: bigint;
  smin32: bigint;
  smax32: bigint;
}

export interface Scalar extends Readonly<Draft> {
  readonly kind: "scalar";
  /** Registers and slots with the same id hold the same number; 0: none is known. */
  readonly id: number;
}

/** A draft that says nothing. */
export function newDraft(): Draft {
  return {
    value: 0n,
    mask: U64_MAX,
    umin: 0n,
    umax: U64_MAX,
    smin: S64_MIN,
    smax: S64_MAX,
    umin32: 0n,
    umax32: U32_MAX,
    smin32: S32_MIN,
    smax32: S32_MAX,
  };
}

/** A draft that knows only bits. */
export function bitsDraft(value: bigint, mask: bigint): Draft {
  const draft = newDraft();
  draft.value = value;
  draft.mask = mask;
  return draft;
}

/** A draft to change what is known about `scalar`. */
export function draftOf(scalar: Scalar): Draft {
  const { value, mask, umin, umax, smin, smax, umin32, umax32, smin32, smax32 } = scalar;
  return { value, mask, umin, umax, smin, smax, umin32, umax32, smin32, smax32 };
}

/** Constants that programs use all the time, made when they are first needed. */
const smallConstants: (Scalar | undefined)[] = [];
const SMALLEST = -512n;
const LARGEST = 4096n;

/** Any number at all. */
export const unknownScalar: Scalar = freeze(newDraft(), 0);

/** The number `value`, signed or unsigned. */
export function constant(value: bigint): Scalar {
  if (value < SMALLEST || value > LARGEST) return newConstant(value);
  const index = Number(value - SMALLEST);
  let small = smallConstants[index];
  if (!small) {
    small = newConstant(value);
    smallConstants[index] = small;
  }
  return small;
}

function newConstant(value: bigint): Scalar {
  const unsigned = BigInt.asUintN(64, value);
  const signed = BigInt.asIntN(64, value);
  const low = unsigned & U32_MAX;
  const signedLow = BigInt.asIntN(32, low);
  return {
    kind: "scalar",
    value: unsigned,
    mask: 0n,
    umin: unsigned,
    umax: unsigned,
    smin: signed,
    smax: signed,
    umin32: low,
    umax32: low,
    smin32: signedLow,
    smax32: signedLow,
    id: 0,
  };
}

export const zero: Scalar = constant(0n);

/** Any number from `low` to `high`, unsigned. */
export function unsignedRange(low: bigint, high: bigint): Scalar {
  return getScalar({ ...newDraft(), umin: low, umax: high });
}

/** Any number from `low` to `high`, signed. */
export function signedRange(low: bigint, high: bigint): Scalar {
  return getScalar({ ...newDraft(), smin: low, smax: high });
}

/** Whether nothing at all is known. */
export function isUnknown(scalar: Scalar): boolean {
  return (
    scalar === unknownScalar ||
    (scalar.mask === U64_MAX &&
      scalar.umin === 0n &&
      scalar.umax === U64_MAX &&
      scalar.smin === S64_MIN &&
      scalar.smax === S64_MAX &&
      scalar.umin32 === 0n &&
      scalar.umax32 === U32_MAX &&
      scalar.smin32 === S32_MIN &&
      scalar.smax32 === S32_MAX)
  );
}

export function isConstant(scalar: Scalar): boolean {
  return scalar.mask === 0n;
}

/** The same knowledge about a number that is known to equal those with this id. */
export function withId(scalar: Scalar, id: number): Scalar {
  return scalar.id === id ? scalar : { ...scalar, id };
}

/** Makes a draft that is known to describe some number into a scalar. */
export function getScalar(draft: Draft): Scalar {
  // A sound operation on numbers that exist cannot give nothing; if the operands had none, any answer is right.
  return findScalar(draft, 0) ?? unknownScalar;
}

/** Makes a draft into a scalar; undefined if no number fits it. Changes the draft. */
export function findScalar(draft: Draft, id: number): Scalar | undefined {
  return normalise(draft) ? freeze(draft, id) : undefined;
}

/** Whether every number that `inner` allows is allowed by `outer`. */
export function isWithin(inner: Scalar, outer: Scalar): boolean {
  return (
    inner.umin >= outer.umin &&
    inner.umax <= outer.umax &&
    inner.smin >= outer.smin &&
    inner.smax <= outer.smax &&
    inner.umin32 >= outer.umin32 &&
    inner.umax32 <= outer.umax32 &&
    inner.smin32 >= outer.smin32 &&
    inner.smax32 <= outer.smax32 &&
    (inner.mask & ~outer.mask) === 0n &&
    (inner.value & ~outer.mask) === outer.value
  );
}

/** Whether the number `value` (unsigned) satisfies all descriptions. */
export function contains(scalar: Scalar, value: bigint): boolean {
  const signed = BigInt.asIntN(64, value);
  const low = value & U32_MAX;
  const signedLow = BigInt.asIntN(32, value);
  return (
    (value & ~scalar.mask & U64_MAX) === scalar.value &&
    value >= scalar.umin &&
    value <= scalar.umax &&
    signed >= scalar.smin &&
    signed <= scalar.smax &&
    low >= scalar.umin32 &&
    low <= scalar.umax32 &&
    signedLow >= scalar.smin32 &&
    signedLow <= scalar.smax32
  );
}

function freeze(d: Draft, id: number): Scalar {
  // One literal for all scalars, so that engines see one shape.
  return {
    kind: "scalar",
    value: d.value,
    mask: d.mask,
    umin: d.umin,
    umax: d.umax,
    smin: d.smin,
    smax: d.smax,
    umin32: d.umin32,
    umax32: d.umax32,
    smin32: d.smin32,
    smax32: d.smax32,
    id,
  };
}

/** A second round is worth it if the first found bits; returns whether a number may fit. */
function normalise(d: Draft): boolean {
  if (d.mask === 0n) return fitConstant(d);
  for (let round = 0; round < 2; round++) {
    boundsFromBits(d);
    deduce64(d);
    deduce32(d);
    low32FromWhole(d);
    deduce32(d);
    wholeFromLow32(d);
    deduce64(d);
    if (d.umin > d.umax || d.smin > d.smax || d.umin32 > d.umax32 || d.smin32 > d.smax32) return false;
    const { mask } = d;
    if (!bitsFromBounds(d)) return false;
    if (d.mask === 0n) return fitConstant(d);
    if (d.mask === mask) return true;
  }
  return true;
}

function fitConstant(d: Draft): boolean {
  const c = constant(d.value);
  const fits =
    c.umin >= d.umin &&
    c.umax <= d.umax &&
    c.smin >= d.smin &&
    c.smax <= d.smax &&
    c.umin32 >= d.umin32 &&
    c.umax32 <= d.umax32 &&
    c.smin32 >= d.smin32 &&
    c.smax32 <= d.smax32;
  if (!fits) return false;
  d.umin = c.umin;
  d.umax = c.umax;
  d.smin = c.smin;
  d.smax = c.smax;
  d.umin32 = c.umin32;
  d.umax32 = c.umax32;
  d.smin32 = c.smin32;
  d.smax32 = c.smax32;
  return true;
}

function boundsFromBits(d: Draft): void {
  d.umin = max(d.umin, d.value);
  d.umax = min(d.umax, d.value | d.mask);
  d.smin = max(d.smin, BigInt.asIntN(64, d.value | (d.mask & SIGN64)));
  d.smax = min(d.smax, BigInt.asIntN(64, d.value | (d.mask & ~SIGN64)));
  const value = d.value & U32_MAX;
  const mask = d.mask & U32_MAX;
  d.umin32 = max(d.umin32, value);
  d.umax32 = min(d.umax32, value | mask);
  d.smin32 = max(d.smin32, BigInt.asIntN(32, value | (mask & SIGN32)));
  d.smax32 = min(d.smax32, BigInt.asIntN(32, value | (mask & ~SIGN32)));
}

/**
 * A range on one side of the sign change reads the same as signed and as unsigned. A signed range on both sides is two
 * unsigned ones; if the unsigned range leaves room for one of them only, it is that one.
 */
function deduce64(d: Draft): void {
  if (BigInt.asIntN(64, d.umin) <= BigInt.asIntN(64, d.umax)) {
    d.smin = max(d.smin, BigInt.asIntN(64, d.umin));
    d.smax = min(d.smax, BigInt.asIntN(64, d.umax));
  }
  const fromSmin = BigInt.asUintN(64, d.smin);
  const fromSmax = BigInt.asUintN(64, d.smax);
  if (fromSmin <= fromSmax) {
    d.umin = max(d.umin, fromSmin);
    d.umax = min(d.umax, fromSmax);
  } else if (d.smin > d.smax) {
    return;
  } else if (d.umax < fromSmin) {
    d.umax = min(d.umax, fromSmax);
    d.smin = 0n;
  } else if (d.umin > fromSmax) {
    d.umin = max(d.umin, fromSmin);
    d.smax = -1n;
  }
}

function deduce32(d: Draft): void {
  if (BigInt.asIntN(32, d.umin32) <= BigInt.asIntN(32, d.umax32)) {
    d.smin32 = max(d.smin32, BigInt.asIntN(32, d.umin32));
    d.smax32 = min(d.smax32, BigInt.asIntN(32, d.umax32));
  }
  const fromSmin = BigInt.asUintN(32, d.smin32);
  const fromSmax = BigInt.asUintN(32, d.smax32);
  if (fromSmin <= fromSmax) {
    d.umin32 = max(d.umin32, fromSmin);
    d.umax32 = min(d.umax32, fromSmax);
  } else if (d.smin32 > d.smax32) {
    return;
  } else if (d.umax32 < fromSmin) {
    d.umax32 = min(d.umax32, fromSmax);
    d.smin32 = 0n;
  } else if (d.umin32 > fromSmax) {
    d.umin32 = max(d.umin32, fromSmin);
    d.smax32 = -1n;
  }
}

/** Numbers with one high half are ordered by their low halves. */
function low32FromWhole(d: Draft): void {
  if (d.umin >> 32n === d.umax >> 32n) {
    d.umin32 = max(d.umin32, d.umin & U32_MAX);
    d.umax32 = min(d.umax32, d.umax & U32_MAX);
  }
  if (d.smin >> 32n === d.smax >> 32n) {
    d.umin32 = max(d.umin32, d.smin & U32_MAX);
    d.umax32 = min(d.umax32, d.smax & U32_MAX);
  }
  // A signed 64-bit range that fits 32 bits is the range of the low half as well.
  if (d.smin >= S32_MIN && d.smax <= S32_MAX) {
    d.smin32 = max(d.smin32, d.smin);
    d.smax32 = min(d.smax32, d.smax);
  }
}

/** The high half of a bound with the bound of the low half is again a bound. */
function wholeFromLow32(d: Draft): void {
  d.umin = max(d.umin, ((d.umin >> 32n) << 32n) | d.umin32);
  d.umax = min(d.umax, ((d.umax >> 32n) << 32n) | d.umax32);
  d.smin = max(d.smin, ((d.smin >> 32n) << 32n) | d.umin32);
  d.smax = min(d.smax, ((d.smax >> 32n) << 32n) | d.umax32);
}

/** Returns false if a known bit would have to be both. Bounds that differ in their highest bit share none. */
function bitsFromBounds(d: Draft): boolean {
  if ((d.umin ^ d.umax) < SIGN64) {
    const { value, mask } = commonBits(d.umin, d.umax);
    if (!meetBits(d, value, mask)) return false;
  }
  if ((d.umin32 ^ d.umax32) < SIGN32) {
    const { value, mask } = commonBits(d.umin32, d.umax32);
    return meetBits(d, value & U32_MAX, (mask & U32_MAX) | (U64_MAX ^ U32_MAX));
  }
  return true;
}

/** Adds the knowledge of another tristate number; returns false if they contradict. */
export function meetBits(d: Draft, value: bigint, mask: bigint): boolean {
  if (((d.value ^ value) & ~d.mask & ~mask) !== 0n) return false;
  d.mask &= mask;
  d.value = (d.value | value) & ~d.mask & U64_MAX;
  return true;
}

/** The leading bits that all numbers from `low` to `high` share. */
function commonBits(low: bigint, high: bigint): { value: bigint; mask: bigint } {
  const differ = low ^ high;
  const mask = differ === 0n ? 0n : (1n << BigInt(bitLength(differ))) - 1n;
  return { value: low & ~mask, mask };
}

/** Position of the highest set bit, from 1. `value` is unsigned. */
function bitLength(value: bigint): number {
  const high = Number(value >> 32n);
  return high !== 0 ? 64 - Math.clz32(high) : 32 - Math.clz32(Number(value & U32_MAX));
}

export function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}

export function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}
