/**
 * How bpf_strtol and bpf_strtoul read a number: white space, a minus sign, a prefix where the base is 0 or 16, then
 * digits up to the first character that is none. This is the reference; the JIT's routine does the same.
 */
import { EINVAL, ERANGE } from "./error-numbers.ts";

/** Bits of the flags that hold the base. */
export const NUMBER_BASE_MASK = 0x1f;
/** Characters behind the sign that are looked at. */
export const MAX_NUMBER_CHARS = 63;

const U64_MAX = (1n << 64n) - 1n;
const S64_MAX = (1n << 63n) - 1n;

export interface NumberInText {
  /** Characters read, or a negative error number. */
  readonly result: number;
  /** 0 after an error; signed if a signed number was asked for. */
  readonly value: bigint;
}

export function readNumber(text: Uint8Array, flags: bigint, isSigned: boolean): NumberInText {
  if (flags > BigInt(NUMBER_BASE_MASK) || ![0, 8, 10, 16].includes(Number(flags))) return error(EINVAL);
  let at = 0;
  while (at < text.length && isSpace(text[at]!)) at++;
  const isNegative = text[at] === 0x2d;
  if (isNegative) at++;
  if (at >= text.length) return error(EINVAL);
  const part = text.subarray(at, at + MAX_NUMBER_CHARS);
  const { base, prefixChars } = radixOf(part, Number(flags));

  let end = prefixChars;
  let value = 0n;
  for (; end < part.length; end++) {
    const digit = digitOf(part[end]!);
    if (digit === undefined || digit >= base) break;
    value = value * BigInt(base) + BigInt(digit);
  }
  if (value > U64_MAX) return error(ERANGE);
  if (end === prefixChars) return error(EINVAL);
  const result = at + end;
  if (!isSigned) return isNegative ? error(EINVAL) : { result, value };
  if (!isNegative) return value > S64_MAX ? error(ERANGE) : { result, value };
  // What does not fit turns positive when it is negated as 64 bits.
  const negated = BigInt.asIntN(64, -value);
  return negated > 0n ? error(ERANGE) : { result, value: negated };
}

function radixOf(part: Uint8Array, asked: number): { base: number; prefixChars: number } {
  const startsWithZero = part[0] === 0x30;
  const hasX = startsWithZero && part.length > 1 && (part[1]! | 0x20) === 0x78;
  let base = asked;
  if (base === 0) {
    if (!startsWithZero) base = 10;
    else base = hasX && part.length > 2 && digitOf(part[2]!) !== undefined ? 16 : 8;
  }
  return { base, prefixChars: base === 16 && hasX ? 2 : 0 };
}

function digitOf(char: number): number | undefined {
  if (char >= 0x30 && char <= 0x39) return char - 0x30;
  const lower = char | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x61 + 10 : undefined;
}

function isSpace(char: number): boolean {
  return (char >= 9 && char <= 13) || char === 0x20 || char === 0xa0;
}

function error(result: number): NumberInText {
  return { result, value: 0n };
}
