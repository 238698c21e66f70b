/**
 * What the arithmetic and comparing instructions compute (RFC 9669, sections 4.1, 4.2 and 4.3), on plain numbers.
 *
 * The one definition that the interpreter runs and that the verifier uses on constants. All 64-bit values are
 * bigints in 0 .. 2^64-1. Division by zero gives 0, modulo zero the dividend; the smallest signed number divided by
 * -1 gives itself, with remainder 0; shift counts are masked to the width.
 */
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
  JMP_JEQ,
  JMP_JGE,
  JMP_JGT,
  JMP_JLE,
  JMP_JLT,
  JMP_JNE,
  JMP_JSET,
  JMP_JSGE,
  JMP_JSGT,
  JMP_JSLE,
  JMP_JSLT,
} from "./opcodes.ts";

/** `value` as an unsigned 64-bit number. */
export function u64(value: bigint): bigint {
  return BigInt.asUintN(64, value);
}

/** `value` as a signed 64-bit number. */
export function s64(value: bigint): bigint {
  return BigInt.asIntN(64, value);
}

/**
 * `dst op src` on 64 bits. `off` is the instruction's: 1 makes div and mod signed, 8, 16 or 32 makes mov
 * sign-extend. Operations that do not exist are the caller's mistake.
 */
export function evalAlu64(op: number, off: number, dst: bigint, src: bigint): bigint {
  return evalAlu(64, op, off, dst, src);
}

/** The same on the low 32 bits; the high half of the result is 0. */
export function evalAlu32(op: number, off: number, dst: bigint, src: bigint): bigint {
  return evalAlu(32, op, off, BigInt.asUintN(32, dst), BigInt.asUintN(32, src));
}

function evalAlu(width: 32 | 64, op: number, off: number, dst: bigint, src: bigint): bigint {
  const unsigned = (value: bigint) => BigInt.asUintN(width, value);
  const signed = (value: bigint) => BigInt.asIntN(width, value);
  switch (op) {
    case ALU_ADD:
      return unsigned(dst + src);
    case ALU_SUB:
      return unsigned(dst - src);
    case ALU_MUL:
      return unsigned(dst * src);
    case ALU_DIV:
      if (src === 0n) return 0n;
      // bigint division truncates towards zero, as the RFC wants.
      return off === 1 ? unsigned(signed(dst) / signed(src)) : dst / src;
    case ALU_MOD:
      if (src === 0n) return dst;
      return off === 1 ? unsigned(signed(dst) % signed(src)) : dst % src;
    case ALU_OR:
      return dst | src;
    case ALU_AND:
      return dst & src;
    case ALU_XOR:
      return dst ^ src;
    case ALU_LSH:
      return unsigned(dst << (src & BigInt(width - 1)));
    case ALU_RSH:
      return dst >> (src & BigInt(width - 1));
    case ALU_ARSH:
      return unsigned(signed(dst) >> (src & BigInt(width - 1)));
    case ALU_NEG:
      return unsigned(-dst);
    case ALU_MOV:
      return off === 0 ? src : unsigned(BigInt.asIntN(off, src));
    default:
      throw new RangeError(`evaluate bpf arithmetic: no operation 0x${op.toString(16)}`);
  }
}

/** The low `bits` of `value` with their bytes in reverse order; higher bits are 0. */
export function swapBytes(value: bigint, bits: 16 | 32 | 64): bigint {
  let rest = BigInt.asUintN(bits, value);
  let swapped = 0n;
  for (let done = 0; done < bits; done += 8) {
    swapped = (swapped << 8n) | (rest & 0xffn);
    rest >>= 8n;
  }
  return swapped;
}

/** Whether `dst cond src` holds on 64 bits. */
export function evalJump64(op: number, dst: bigint, src: bigint): boolean {
  return evalJump(64, op, dst, src);
}

/** Whether it holds on the low 32 bits. */
export function evalJump32(op: number, dst: bigint, src: bigint): boolean {
  return evalJump(32, op, BigInt.asUintN(32, dst), BigInt.asUintN(32, src));
}

function evalJump(width: 32 | 64, op: number, dst: bigint, src: bigint): boolean {
  const signed = (value: bigint) => BigInt.asIntN(width, value);
  switch (op) {
    case JMP_JEQ:
      return dst === src;
    case JMP_JNE:
      return dst !== src;
    case JMP_JSET:
      return (dst & src) !== 0n;
    case JMP_JGT:
      return dst > src;
    case JMP_JGE:
      return dst >= src;
    case JMP_JLT:
      return dst < src;
    case JMP_JLE:
      return dst <= src;
    case JMP_JSGT:
      return signed(dst) > signed(src);
    case JMP_JSGE:
      return signed(dst) >= signed(src);
    case JMP_JSLT:
      return signed(dst) < signed(src);
    case JMP_JSLE:
      return signed(dst) <= signed(src);
    default:
      throw new RangeError(`evaluate bpf comparison: no operation 0x${op.toString(16)}`);
  }
}
