/**
 * Arithmetic on what is known about numbers: the result describes every number that the instruction can give for
 * operands that the operands describe.
 *
 * The tristate additions follow the carry argument of "Sound, Precise, and Fast Abstract Interpretation with
 * Tristate Numbers" (Vishwanathan et al., CGO 2022). 32-bit operations are done on the zero- and on the
 * sign-extended low halves; both results are right modulo 2^32, so what both say holds.
 */
import { evalAlu32, evalAlu64, swapBytes } from "../alu.ts";
import {
  ALU_ADD,
  ALU_AND,
  ALU_ARSH,
  ALU_DIV,
  ALU_LSH,
  ALU_MOD,
  ALU_MOV,
  ALU_MUL,
  ALU_NEG,
  ALU_OR,
  ALU_RSH,
  ALU_SUB,
  ALU_XOR,
} from "../opcodes.ts";
import {
  bitsDraft,
  constant,
  type Draft,
  draftOf,
  getScalar,
  isConstant,
  isUnknown,
  max,
  meetBits,
  min,
  newDraft,
  S64_MAX,
  S64_MIN,
  type Scalar,
  signedRange,
  U32_MAX,
  U64_MAX,
  unknownScalar,
  unsignedRange,
  withId,
  zero,
} from "./scalar.ts";

/** `dst op src` on 64 or 32 bits; `off` is the instruction's. The result has no id. */
export function aluScalar(is64: boolean, op: number, off: number, dst: Scalar, src: Scalar): Scalar {
  if (isConstant(src) && (isConstant(dst) || op === ALU_MOV)) {
    return constant((is64 ? evalAlu64 : evalAlu32)(op, off, dst.value, src.value));
  }
  return withId(is64 ? alu64(op, off, dst, src) : alu32(op, off, dst, src), 0);
}

/** The byte order instructions. */
export function swapScalar(swaps: boolean, bits: 16 | 32 | 64, dst: Scalar): Scalar {
  if (!swaps) return withId(truncate(dst, bits), 0);
  return isConstant(dst) ? constant(swapBytes(dst.value, bits)) : unsignedOfBits(bits);
}

const widths = [8, 16, 32, 64] as const;
const unsignedByBits = new Map<number, Scalar>(
  widths.map((bits) => [bits, bits === 64 ? unknownScalar : unsignedRange(0n, (1n << BigInt(bits)) - 1n)]),
);
const signedByBits = new Map<number, Scalar>(
  widths.map((bits) => {
    const half = 1n << BigInt(bits - 1);
    return [bits, bits === 64 ? unknownScalar : signedRange(-half, half - 1n)];
  }),
);

/** Any number of `bits` bits: 8, 16, 32 or 64. */
export function unsignedOfBits(bits: number): Scalar {
  return unsignedByBits.get(bits)!;
}

/** Any number of `bits` bits, sign-extended. */
export function signedOfBits(bits: number): Scalar {
  return signedByBits.get(bits)!;
}

/** The low `bits` of `scalar`, zero-extended. */
export function truncate(scalar: Scalar, bits: number): Scalar {
  if (bits === 64) return scalar;
  const ones = (1n << BigInt(bits)) - 1n;
  if (scalar.umax <= ones) return scalar;
  if (isUnknown(scalar)) return unsignedOfBits(bits);
  const draft = bitsDraft(scalar.value & ones, scalar.mask & ones);
  draft.umax = ones;
  if (bits === 32) keepLow32(draft, scalar);
  return getScalar(draft);
}

/** The low `bits` of `scalar`, sign-extended. */
export function signExtend(scalar: Scalar, bits: number): Scalar {
  if (bits === 64) return scalar;
  const half = 1n << BigInt(bits - 1);
  if (scalar.smin >= -half && scalar.smax < half) return scalar;
  const draft: Draft = {
    ...newDraft(),
    // An unknown sign bit makes all higher bits unknown, a known one makes them its copies.
    value: BigInt.asUintN(64, BigInt.asIntN(bits, scalar.value)),
    mask: BigInt.asUintN(64, BigInt.asIntN(bits, scalar.mask)),
    smin: -half,
    smax: half - 1n,
  };
  if (bits === 32) {
    draft.smin = scalar.smin32;
    draft.smax = scalar.smax32;
    keepLow32(draft, scalar);
  }
  return getScalar(draft);
}

function keepLow32(draft: Draft, from: Scalar): void {
  draft.umin32 = from.umin32;
  draft.umax32 = from.umax32;
  draft.smin32 = from.smin32;
  draft.smax32 = from.smax32;
}

function alu64(op: number, off: number, dst: Scalar, src: Scalar): Scalar {
  switch (op) {
    case ALU_ADD:
      return add(dst, src);
    case ALU_SUB:
      return sub(dst, src);
    case ALU_NEG:
      return sub(zero, dst);
    case ALU_MUL:
      return mul(dst, src);
    case ALU_AND:
      return and(dst, src);
    case ALU_OR:
      return or(dst, src);
    case ALU_XOR:
      return xor(dst, src);
    case ALU_LSH:
      return shiftLeft(dst, src, 64);
    case ALU_RSH:
      return shiftRight(dst, src, 64);
    case ALU_ARSH:
      return shiftRightSigned(dst, src, 64);
    case ALU_DIV:
      return off === 1 ? divSigned(dst, src) : div(dst, src);
    case ALU_MOD:
      return off === 1 ? modSigned(dst, src) : mod(dst, src);
    case ALU_MOV:
      return off === 0 ? src : signExtend(src, off);
    default:
      return unknownScalar;
  }
}

function alu32(op: number, off: number, dst: Scalar, src: Scalar): Scalar {
  const u = truncate(dst, 32);
  const v = truncate(src, 32);
  switch (op) {
    case ALU_ADD:
    case ALU_SUB:
    case ALU_MUL:
    case ALU_AND:
    case ALU_OR:
    case ALU_XOR: {
      const unsigned = truncate(alu64(op, 0, u, v), 32);
      const signed = truncate(alu64(op, 0, signExtend(dst, 32), signExtend(src, 32)), 32);
      return both(unsigned, signed);
    }
    case ALU_NEG:
      return both(truncate(sub(zero, u), 32), truncate(sub(zero, signExtend(dst, 32)), 32));
    case ALU_LSH:
      return truncate(shiftLeft(u, v, 32), 32);
    case ALU_RSH:
      return shiftRight(u, v, 32);
    case ALU_ARSH:
      return truncate(shiftRightSigned(signExtend(dst, 32), v, 32), 32);
    case ALU_DIV:
      return off === 1 ? truncate(divSigned(signExtend(dst, 32), signExtend(src, 32)), 32) : div(u, v);
    case ALU_MOD:
      return off === 1 ? truncate(modSigned(signExtend(dst, 32), signExtend(src, 32)), 32) : mod(u, v);
    case ALU_MOV:
      return off === 0 ? v : truncate(signExtend(src, off), 32);
    default:
      return unsignedOfBits(32);
  }
}

/** What two right descriptions of one number say together. */
function both(a: Scalar, b: Scalar): Scalar {
  const d = draftOf(a);
  if (!meetBits(d, b.value, b.mask)) return a;
  d.umin = max(d.umin, b.umin);
  d.umax = min(d.umax, b.umax);
  d.smin = max(d.smin, b.smin);
  d.smax = min(d.smax, b.smax);
  d.umin32 = max(d.umin32, b.umin32);
  d.umax32 = min(d.umax32, b.umax32);
  d.smin32 = max(d.smin32, b.smin32);
  d.smax32 = min(d.smax32, b.smax32);
  return getScalar(d);
}

function u64(value: bigint): bigint {
  return BigInt.asUintN(64, value);
}

/** Sets the bounds if none of the numbers between them wraps around. */
function unsignedBounds(d: Draft, low: bigint, high: bigint): void {
  if (low < 0n || high > U64_MAX) return;
  d.umin = low;
  d.umax = high;
}

function signedBounds(d: Draft, low: bigint, high: bigint): void {
  if (low < S64_MIN || high > S64_MAX) return;
  d.smin = low;
  d.smax = high;
}

function add(a: Scalar, b: Scalar): Scalar {
  if (isUnknown(a) || isUnknown(b)) return unknownScalar;
  const sumOfValues = u64(a.value + b.value);
  const carries = u64(u64(a.mask + b.mask) + sumOfValues) ^ sumOfValues;
  const mask = carries | a.mask | b.mask;
  const d = bitsDraft(sumOfValues & ~mask & U64_MAX, mask);
  unsignedBounds(d, a.umin + b.umin, a.umax + b.umax);
  signedBounds(d, a.smin + b.smin, a.smax + b.smax);
  return getScalar(d);
}

function sub(a: Scalar, b: Scalar): Scalar {
  if (isUnknown(a) || isUnknown(b)) return unknownScalar;
  const difference = u64(a.value - b.value);
  const borrows = u64(difference + a.mask) ^ u64(difference - b.mask);
  const mask = borrows | a.mask | b.mask;
  const d = bitsDraft(difference & ~mask & U64_MAX, mask);
  unsignedBounds(d, a.umin - b.umax, a.umax - b.umin);
  signedBounds(d, a.smin - b.smax, a.smax - b.smin);
  return getScalar(d);
}

function mul(a: Scalar, b: Scalar): Scalar {
  const d = newDraft();
  unsignedBounds(d, a.umin * b.umin, a.umax * b.umax);
  const products = [a.smin * b.smin, a.smin * b.smax, a.smax * b.smin, a.smax * b.smax];
  signedBounds(d, products.reduce(min), products.reduce(max));
  // The product ends in at least as many zeros as its factors together.
  const zeros = trailingZeros(a) + trailingZeros(b);
  d.mask = zeros >= 64n ? 0n : u64(U64_MAX << zeros);
  return getScalar(d);
}

/** How many low bits are known to be 0. */
function trailingZeros(a: Scalar): bigint {
  const maybe = a.value | a.mask;
  let zeros = 0n;
  while (zeros < 64n && ((maybe >> zeros) & 1n) === 0n) zeros++;
  return zeros;
}

function and(a: Scalar, b: Scalar): Scalar {
  const value = a.value & b.value;
  const mask = (a.value | a.mask) & (b.value | b.mask) & ~value;
  const d = bitsDraft(value, mask);
  d.umax = min(a.umax, b.umax);
  return getScalar(d);
}

function or(a: Scalar, b: Scalar): Scalar {
  const value = a.value | b.value;
  const mask = (a.mask | b.mask) & ~value;
  const d = bitsDraft(value, mask);
  d.umin = max(a.umin, b.umin);
  return getScalar(d);
}

function xor(a: Scalar, b: Scalar): Scalar {
  const mask = a.mask | b.mask;
  return mask === U64_MAX ? unknownScalar : getScalar(bitsDraft((a.value ^ b.value) & ~mask, mask));
}

/** The counts that a masked shift by `by` can have. */
function counts(by: Scalar, width: 32 | 64): { low: bigint; high: bigint } {
  const top = BigInt(width - 1);
  if (isConstant(by)) return { low: by.value & top, high: by.value & top };
  return by.umax <= top ? { low: by.umin, high: by.umax } : { low: 0n, high: top };
}

function shiftLeft(a: Scalar, by: Scalar, width: 32 | 64): Scalar {
  const { low, high } = counts(by, width);
  const d = newDraft();
  unsignedBounds(d, a.umin << low, a.umax << high);
  if (low === high) {
    d.value = u64(a.value << low);
    d.mask = u64(a.mask << low);
    signedBounds(d, a.smin << low, a.smax << low);
  } else {
    d.mask = u64(U64_MAX << low);
  }
  return getScalar(d);
}

function shiftRight(a: Scalar, by: Scalar, width: 32 | 64): Scalar {
  const { low, high } = counts(by, width);
  const d = newDraft();
  d.umin = a.umin >> high;
  d.umax = a.umax >> low;
  if (low === high) {
    d.value = a.value >> low;
    d.mask = a.mask >> low;
  }
  return getScalar(d);
}

function shiftRightSigned(a: Scalar, by: Scalar, width: 32 | 64): Scalar {
  const { low, high } = counts(by, width);
  const d = newDraft();
  d.smin = a.smin >> (a.smin < 0n ? low : high);
  d.smax = a.smax >> (a.smax < 0n ? high : low);
  if (low === high) {
    d.value = u64(BigInt.asIntN(64, a.value) >> low);
    d.mask = u64(BigInt.asIntN(64, a.mask) >> low);
  }
  return getScalar(d);
}

function div(a: Scalar, b: Scalar): Scalar {
  if (b.umax === 0n) return zero;
  // Division by zero gives 0.
  return b.umin === 0n ? unsignedRange(0n, a.umax) : unsignedRange(a.umin / b.umax, a.umax / b.umin);
}

function mod(a: Scalar, b: Scalar): Scalar {
  // Modulo zero and modulo something larger give the dividend.
  if (b.umax === 0n || a.umax < b.umin) return a;
  if (b.umin === 0n) return unsignedRange(0n, a.umax);
  return unsignedRange(0n, min(a.umax, b.umax - 1n));
}

function divSigned(a: Scalar, b: Scalar): Scalar {
  if (!isConstant(b)) return unknownScalar;
  const by = b.smin;
  if (by === 0n) return zero;
  const ends = [a.smin / by, a.smax / by];
  const d = newDraft();
  // Only the smallest number divided by -1 leaves the range.
  signedBounds(d, ends.reduce(min), ends.reduce(max));
  return getScalar(d);
}

function modSigned(a: Scalar, b: Scalar): Scalar {
  if (!isConstant(b)) return unknownScalar;
  if (b.smin === 0n) return a;
  const most = (b.smin < 0n ? -b.smin : b.smin) - 1n;
  // The remainder has the sign of the dividend and is not further from 0.
  return signedRange(a.smin < 0n ? max(-most, a.smin) : 0n, a.smax > 0n ? min(most, a.smax) : 0n);
}

/** The pieces of a known 64-bit number that a load of `bits` at byte `at` of it sees. */
export function extractConstant(value: bigint, at: number, bits: number): Scalar {
  return constant(BigInt.asUintN(bits, value >> BigInt(at * 8)));
}

/** Low half of a number as a scalar of its own. */
export function low32(scalar: Scalar): Scalar {
  return truncate(scalar, 32);
}

/** Whether a number fits 32 bits unsigned. */
export function fits32(scalar: Scalar): boolean {
  return scalar.umax <= U32_MAX;
}
