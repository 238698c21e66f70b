/**
 * Jumps that end in bytes which are there already.
 *
 * A site of fewer than five bytes cannot hold `e9 rel32`. But the jump may begin there and end in the bytes of what
 * follows: those stay as they are, for whoever jumps to them, and are read as the high bytes of the displacement by
 * whoever comes through the site (Duck, Gao, Roychoudhury: Binary Rewriting without Control Flow Recovery, 2020).
 *
 *     before   48 89 c3 | e8 12 34 ..           a site of three bytes
 *     after    e9 xx yy | e8 12 34 ..           jmp site + 5 + 0x12e8yyxx: two bytes are free
 *     or       2e e9 xx | e8 12 34 ..           cs jmp: the prefix says nothing, and moves the given bytes up
 *
 * Prefixes give other windows of targets; each byte that they take makes the window 256 times smaller. With all four
 * bytes given there is exactly one target. What a window leads to has to be memory that can be mapped.
 *
 * Invariant: a pun changes bytes of the displaced instructions only. It depends on the `kept` bytes behind them: as long as
 * it stands, nobody may change those.
 *
 * Facts: Intel SDM 2A 2.1.1 (a segment override is ignored by near jumps; 66 is not used, since AMD truncates rip then).
 */

/** Length of `e9 rel32`. */
export const JUMP_BYTES = 5;
/** Length of `eb rel8`. */
export const HOP_BYTES = 2;

/** `cs`: without meaning before a near jump in 64-bit mode. */
const PREFIX = 0x2e;

/** One way to read a jump from a site's bytes and those behind it. */
export interface Pun {
  readonly prefixes: number;
  /** The lowest target; the others follow byte by byte. */
  readonly first: bigint;
  /** Number of targets: 1, 256, 65536 or 2^24. */
  readonly count: number;
  /** Number of bytes behind the site that the jump ends with. */
  readonly kept: number;
}

/** All puns at `at`, the widest first. `text` begins at the site; `lenBytes` of it may be changed: fewer than five. */
export function punsOf(text: Uint8Array, at: bigint, lenBytes: number): Pun[] {
  const puns: Pun[] = [];
  for (let prefixes = 0; prefixes < lenBytes; prefixes++) {
    const free = lenBytes - 1 - prefixes;
    const kept = 4 - free;
    if (lenBytes + kept > text.length) break;
    let high = 0;
    for (let i = kept - 1; i >= 0; i--) high = high * 256 + text[lenBytes + i]!;
    const count = 256 ** free;
    const disp = BigInt.asIntN(32, BigInt(high) * BigInt(count));
    puns.push({ prefixes, first: at + BigInt(prefixes + JUMP_BYTES) + disp, count, kept });
  }
  return puns;
}

/** The bytes of the site, `lenBytes` long, that make the pun lead to one of its targets. */
export function encodePun(pun: Pun, target: bigint, lenBytes: number): Uint8Array {
  const bytes = new Uint8Array(lenBytes).fill(PREFIX, 0, pun.prefixes);
  bytes[pun.prefixes] = 0xe9;
  let low = Number(target - pun.first);
  for (let i = pun.prefixes + 1; i < lenBytes; i++) {
    bytes[i] = low & 0xff;
    low >>>= 8;
  }
  return bytes;
}

/** `e9 rel32` at `at`, or undefined where it does not reach. */
export function encodeJump(at: bigint, to: bigint): Uint8Array | undefined {
  const rel = to - (at + BigInt(JUMP_BYTES));
  if (BigInt.asIntN(32, rel) !== rel) return undefined;
  const bytes = new Uint8Array(JUMP_BYTES);
  bytes[0] = 0xe9;
  for (let i = 0; i < 4; i++) bytes[1 + i] = Number((rel >> BigInt(8 * i)) & 0xffn);
  return bytes;
}

/** `e8 rel32` at `at`, or undefined where it does not reach. */
export function encodeCall(at: bigint, to: bigint): Uint8Array | undefined {
  const bytes = encodeJump(at, to);
  if (bytes !== undefined) bytes[0] = 0xe8;
  return bytes;
}

/** Does `eb rel8` at `at` reach `to`? */
export function hopReaches(at: bigint, to: bigint): boolean {
  const rel = to - (at + BigInt(HOP_BYTES));
  return BigInt.asIntN(8, rel) === rel;
}

/** `eb rel8` at `at`, followed by what stands in `rest`. */
export function encodeHop(at: bigint, to: bigint, old: Uint8Array): Uint8Array {
  const bytes = Uint8Array.from(old);
  bytes[0] = 0xeb;
  bytes[1] = Number(BigInt.asUintN(8, to - (at + BigInt(HOP_BYTES))));
  return bytes;
}
