/** Copies and key words inside routines: unrolled while they are short, loops when they are long. */
import type { Assembler } from "../../x86/assembler.ts";
import { type Reg, RSP } from "../../x86/registers.ts";

/** Above this many words a copy becomes a loop. */
const UNROLLED_WORDS = 8;

export interface Place {
  readonly base: Reg;
  readonly disp: number;
}

/**
 * Loads `lenBytes` bytes (1 to 8) from unaligned memory into `dst`, the bytes above them zero, without reading any
 * other byte. `temp` changes when 3, 5, 6 or 7 bytes are loaded.
 */
export function emitLoadBytes(a: Assembler, dst: Reg, from: Place, lenBytes: number, temp: Reg): void {
  const at = (offset: number) => ({ base: from.base, disp: from.disp + offset });
  const addPart = (offset: number, size: 8 | 16 | 32) => {
    if (size === 32) a.mov(temp, at(offset), 32);
    else a.movzx(temp, at(offset), size);
    a.shl(temp, offset * 8);
    a.or(dst, temp);
  };
  switch (lenBytes) {
    case 1:
      a.movzx(dst, from, 8);
      return;
    case 2:
    case 3:
      a.movzx(dst, from, 16);
      if (lenBytes === 3) addPart(2, 8);
      return;
    case 8:
      a.mov(dst, from);
      return;
    default:
      a.mov(dst, from, 32);
      if (lenBytes >= 6) addPart(4, 16);
      if (lenBytes === 5) addPart(4, 8);
      if (lenBytes === 7) addPart(6, 8);
  }
}

/**
 * Copies `lenBytes` bytes as words; the last word is padded with zeros, so the destination must have room for whole
 * words. `temp`, `part` and `counter` change; the three and the bases are all different.
 */
export function emitCopyWords(
  a: Assembler,
  to: Place,
  from: Place,
  lenBytes: number,
  temp: Reg,
  part: Reg,
  counter: Reg,
): void {
  const words = Math.floor(lenBytes / 8);
  if (words > UNROLLED_WORDS) {
    a.movImm(counter, -words * 8);
    const next = a.here("copy");
    a.mov(temp, { base: from.base, index: counter, disp: from.disp + words * 8 });
    a.mov({ base: to.base, index: counter, disp: to.disp + words * 8 }, temp);
    a.addImm(counter, 8);
    a.jcc("ne", next);
  } else {
    for (let i = 0; i < words; i++) {
      a.mov(temp, { base: from.base, disp: from.disp + i * 8 });
      a.mov({ base: to.base, disp: to.disp + i * 8 }, temp);
    }
  }
  const rest = lenBytes % 8;
  if (rest === 0) return;
  emitLoadBytes(a, temp, { base: from.base, disp: from.disp + words * 8 }, rest, part);
  a.mov({ base: to.base, disp: to.disp + words * 8 }, temp);
}

/** Zeroes `[to, to + count)` bytes; `to` and `count` change, `count` may be 0. */
export function emitZeroBytes(a: Assembler, to: Reg, count: Reg): void {
  const [done, next] = [a.label("zeroed"), a.label("zero")];
  a.test(count, count);
  a.jcc("e", done);
  a.bind(next);
  a.movImm({ base: to }, 0, 8);
  a.inc(to);
  a.dec(count);
  a.jcc("ne", next);
  a.bind(done);
}

/** Loads a constant address; leaves the flags alone. */
export function emitAddress(a: Assembler, dst: Reg, address: bigint): void {
  const isShort = address >> 32n === 0n;
  if (!isShort && isNear(a, address)) a.lea(dst, { ripTo: address });
  else a.movImm(dst, address);
}

/** How far from the beginning of an assembler an address may be for its code to reach it; leaves room for the code. */
const NEAR_BYTES = 0x7f00_0000n;

/** Whether all code of the assembler can address this place relative to itself. */
export function isNear(a: Assembler, address: bigint): boolean {
  const distance = BigInt.asIntN(64, address - a.base);
  return distance > -NEAR_BYTES && distance < NEAR_BYTES;
}

/** A frame of local variables in a routine; offsets are from rsp. */
export function emitFrame(a: Assembler, bytes: number, emitBody: (leave: () => void) => void): void {
  if (bytes > 0) a.subImm(RSP, bytes);
  emitBody(() => {
    if (bytes > 0) a.addImm(RSP, bytes);
    a.ret();
  });
}
