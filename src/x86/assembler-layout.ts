/**
 * Where everything ends up: labels, jumps of two sizes, alignment, and the displacements that depend on them.
 *
 * Code is collected with every jump in its short form and every alignment empty. `layOut` then decides:
 * a jump that does not reach grows to rel32 and stays long, alignments are recomputed, until nothing changes.
 * Sizes of jumps only grow, so this ends; growth of one jump can push the target of another out of reach, so
 * it takes rounds. Offsets before that are "raw", after it "final".
 */
import { AssemblerError, type CodeTarget, type Label } from "./assembler-operands.ts";

/** Something in the code whose bytes depend on final offsets. `raw` is where it begins. */
export type Fixup =
  /** `short` is one opcode byte before rel8, `long` the bytes before rel32; the raw code holds no byte of it. */
  | {
      readonly kind: "jump";
      readonly raw: number;
      readonly short: number;
      readonly long: readonly number[];
      readonly target: CodeTarget;
      isLong: boolean;
    }
  | {
      readonly kind: "align";
      readonly raw: number;
      readonly to: number;
      readonly fill: "nop" | "int3" | "zero";
      lenBytes: number;
    }
  /** Four bytes at `raw`, relative to the end of the instruction, `tailBytes` after them. */
  | {
      readonly kind: "rel32";
      readonly raw: number;
      readonly tailBytes: number;
      readonly target: CodeTarget;
      readonly disp: number;
    }
  /** Eight bytes at `raw`. */
  | { readonly kind: "abs64"; readonly raw: number; readonly target: CodeTarget };

const SHORT_JUMP_BYTES = 2;

export interface LaidOut {
  readonly bytes: Uint8Array;
  /** Final offset of a raw offset. At the place of a fixup this is its beginning. */
  readonly finalOffset: (raw: number, fixupIndex: number) => number;
}

/** A label's place: its raw offset, and how many fixups lie before it. */
export interface LabelPlace {
  readonly raw: number;
  readonly fixupIndex: number;
}

/** Final bytes of `raw` placed at `base`. */
export function layOut(
  base: bigint,
  raw: Uint8Array,
  fixups: readonly Fixup[],
  placeOf: (label: Label) => LabelPlace,
): LaidOut {
  const grownBefore = Array.from({ length: fixups.length + 1 }, () => 0);
  const finalOffset = (offset: number, fixupIndex: number) => offset + grownBefore[fixupIndex]!;
  const addressOf = (target: CodeTarget): bigint => {
    if (typeof target === "bigint") return target;
    const place = placeOf(target);
    return base + BigInt(finalOffset(place.raw, place.fixupIndex));
  };

  for (;;) {
    let hasGrown = false;
    let grown = 0;
    for (const [i, fixup] of fixups.entries()) {
      grownBefore[i] = grown;
      grown += ownBytes(fixup, base + BigInt(fixup.raw + grown));
    }
    grownBefore[fixups.length] = grown;
    for (const [i, fixup] of fixups.entries()) {
      if (fixup.kind !== "jump" || fixup.isLong) continue;
      const end = base + BigInt(finalOffset(fixup.raw, i) + SHORT_JUMP_BYTES);
      const rel = addressOf(fixup.target) - end;
      if (rel < -128n || rel > 127n) {
        fixup.isLong = true;
        hasGrown = true;
      }
    }
    if (!hasGrown) break;
  }

  const bytes = new Uint8Array(raw.length + grownBefore[fixups.length]!);
  const view = new DataView(bytes.buffer);
  const relTo = (target: CodeTarget, end: number, disp: number): number => {
    const rel = addressOf(target) + BigInt(disp) - (base + BigInt(end));
    if (BigInt.asIntN(32, rel) !== rel) {
      throw new AssemblerError(
        `encode rel32 at 0x${(base + BigInt(end)).toString(16)}: 0x${addressOf(target).toString(16)} is out of reach`,
      );
    }
    return Number(rel);
  };
  let copiedRaw = 0;
  for (const [i, fixup] of fixups.entries()) {
    const at = finalOffset(fixup.raw, i);
    bytes.set(raw.subarray(copiedRaw, fixup.raw), at - (fixup.raw - copiedRaw));
    copiedRaw = fixup.raw;
    switch (fixup.kind) {
      case "jump": {
        const opcode = fixup.isLong ? fixup.long : [fixup.short];
        bytes.set(opcode, at);
        if (fixup.isLong) {
          const end = at + opcode.length + 4;
          view.setInt32(at + opcode.length, relTo(fixup.target, end, 0), true);
        } else {
          view.setInt8(at + 1, relTo(fixup.target, at + SHORT_JUMP_BYTES, 0));
        }
        break;
      }
      case "align":
        bytes.set(padding(fixup.fill, fixup.lenBytes), at);
        break;
      case "rel32":
        bytes.set(raw.subarray(fixup.raw, fixup.raw + 4), at);
        view.setInt32(at, relTo(fixup.target, at + 4 + fixup.tailBytes, fixup.disp), true);
        copiedRaw += 4;
        break;
      case "abs64":
        view.setBigUint64(at, BigInt.asUintN(64, addressOf(fixup.target)), true);
        copiedRaw += 8;
        break;
      default:
        fixup satisfies never;
    }
  }
  bytes.set(raw.subarray(copiedRaw), finalOffset(copiedRaw, fixups.length));
  return { bytes, finalOffset };
}

/** Bytes that a fixup adds to the raw code when it stands at `address`. */
function ownBytes(fixup: Fixup, address: bigint): number {
  switch (fixup.kind) {
    case "jump":
      return fixup.isLong ? fixup.long.length + 4 : SHORT_JUMP_BYTES;
    case "align": {
      const to = BigInt(fixup.to);
      fixup.lenBytes = Number((to - (address % to)) % to);
      return fixup.lenBytes;
    }
    case "rel32":
    case "abs64":
      return 0;
    default:
      return fixup satisfies never;
  }
}

function padding(fill: "nop" | "int3" | "zero", lenBytes: number): Uint8Array {
  if (fill === "nop") return nopBytes(lenBytes);
  return new Uint8Array(lenBytes).fill(fill === "int3" ? 0xcc : 0);
}

/** The recommended multi-byte NOPs by length (Intel SDM 2B, NOP, table 4-12), index 0 unused. */
const nops: readonly (readonly number[])[] = [
  [],
  [0x90],
  [0x66, 0x90],
  [0x0f, 0x1f, 0x00],
  [0x0f, 0x1f, 0x40, 0x00],
  [0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
  [0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
  [0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/** `lenBytes` bytes of as few no-operation instructions as possible. */
export function nopBytes(lenBytes: number): Uint8Array {
  const bytes = new Uint8Array(lenBytes);
  for (let at = 0; at < lenBytes; ) {
    const nop = nops[Math.min(lenBytes - at, nops.length - 1)]!;
    bytes.set(nop, at);
    at += nop.length;
  }
  return bytes;
}
