/** The atomic instructions (RFC 9669, section 5.3) on a block that other threads may be writing. */
import {
  ATOMIC_ADD,
  ATOMIC_AND,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  ATOMIC_OR,
  ATOMIC_XCHG,
  ATOMIC_XOR,
} from "../opcodes.ts";
import type { Block } from "./memory.ts";

/**
 * Does the operation `imm` on 4 or 8 aligned bytes at `at` and returns the old value, zero-extended. `expected` is
 * r0, for compare-and-exchange only.
 */
export function atomicAt(
  block: Block,
  at: number,
  lenBytes: 4 | 8,
  imm: number,
  operand: bigint,
  expected: bigint,
): bigint {
  return lenBytes === 8
    ? BigInt.asUintN(
        64,
        atomic64(block.words, at / 8, imm, BigInt.asIntN(64, operand), BigInt.asIntN(64, expected)),
      )
    : BigInt(atomic32(block.ints, at / 4, imm, low32(operand), low32(expected)) >>> 0);
}

function low32(value: bigint): number {
  return Number(BigInt.asIntN(32, value));
}

function atomic64(
  words: BigInt64Array,
  index: number,
  imm: number,
  operand: bigint,
  expected: bigint,
): bigint {
  if (imm === ATOMIC_XCHG) return Atomics.exchange(words, index, operand);
  if (imm === ATOMIC_CMPXCHG) return Atomics.compareExchange(words, index, expected, operand);
  switch (imm & ~ATOMIC_FETCH) {
    case ATOMIC_ADD:
      return Atomics.add(words, index, operand);
    case ATOMIC_OR:
      return Atomics.or(words, index, operand);
    case ATOMIC_AND:
      return Atomics.and(words, index, operand);
    case ATOMIC_XOR:
      return Atomics.xor(words, index, operand);
    default:
      throw new RangeError(`bpf atomic: no operation 0x${imm.toString(16)}`);
  }
}

function atomic32(ints: Int32Array, index: number, imm: number, operand: number, expected: number): number {
  if (imm === ATOMIC_XCHG) return Atomics.exchange(ints, index, operand);
  if (imm === ATOMIC_CMPXCHG) return Atomics.compareExchange(ints, index, expected, operand);
  switch (imm & ~ATOMIC_FETCH) {
    case ATOMIC_ADD:
      return Atomics.add(ints, index, operand);
    case ATOMIC_OR:
      return Atomics.or(ints, index, operand);
    case ATOMIC_AND:
      return Atomics.and(ints, index, operand);
    case ATOMIC_XOR:
      return Atomics.xor(ints, index, operand);
    default:
      throw new RangeError(`bpf atomic: no operation 0x${imm.toString(16)}`);
  }
}
