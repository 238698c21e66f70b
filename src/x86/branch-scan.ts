/**
 * Which addresses does code elsewhere in the image branch to?
 *
 * Decoding a whole image is slow (node has 50 MB of text). But a branch into a given region holds the distance to it
 * in four bytes, whatever instruction it belongs to. So every position of the text is read as a rel32 and looked up in
 * a bitmap of the wanted addresses: one pass for any number of regions, about a nanosecond a byte. The few hits
 * are candidates; each is confirmed by decoding the function that contains it.
 *
 * Found this way: jmp, jcc, call, xbegin with rel32, `lea` of a code address, and, where the text lies below 2 GiB,
 * the address as an absolute constant. Branches with rel8 reach 129 bytes: `findShortBranch` looks there.
 * What the function that contains the address does itself is known exactly from its decoded code, and is skipped.
 */
import type { CodeImage, FunctionRange } from "./code-image.ts";
import { effectsOf, int32At, ripTargetOf } from "./decode.ts";
import type { FunctionCode } from "./function-code.ts";
import { isLegacyPrefix } from "./modrm.ts";

/** `from` is the instruction, `to` the wanted address that it leads to. */
export interface BranchInto {
  readonly from: bigint;
  readonly to: bigint;
}

/** Finds decoded functions; caches them. */
export type FunctionLookup = (addr: bigint) => FunctionCode | undefined;

interface Candidate {
  /** Does the 4-byte field hold a distance or the address itself? */
  readonly kind: "relative" | "constant";
  readonly field: bigint;
  readonly to: bigint;
}

/**
 * All branches from other functions to one of `wanted`. `wanted` may have any order; the result has at most one
 * branch for each wanted address.
 */
export function findBranchesInto(
  image: CodeImage,
  wanted: readonly bigint[],
  functionAt: FunctionLookup,
): Map<bigint, BranchInto> {
  const found = new Map<bigint, BranchInto>();
  if (wanted.length === 0) return found;
  for (const candidate of scan(image, wanted)) {
    if (found.has(candidate.to)) continue;
    const from = confirm(image, candidate, functionAt);
    if (from !== undefined) found.set(candidate.to, { from, to: candidate.to });
  }
  return found;
}

/**
 * All branches from other functions into `ranges`, which are sorted by their starts. Only ranges that `isOpen` says so are
 * looked at any further: with many branches into one it is cheap to have seen enough.
 */
export function visitBranchesInto(
  image: CodeImage,
  ranges: readonly { readonly start: bigint; readonly end: bigint }[],
  functionAt: FunctionLookup,
  isOpen: (range: number) => boolean,
  visit: (range: number, branch: BranchInto) => void,
): void {
  if (ranges.length === 0) return;
  const low = ranges[0]!.start;
  const high = ranges.reduce((most, { end }) => (end > most ? end : most), low);
  const bitmap = new Uint8Array((Number(high - low) >> 3) + 1);
  for (const { start, end } of ranges)
    for (let bit = Number(start - low); bit < Number(end - low); bit++) bitmap[bit >> 3]! |= 1 << (bit & 7);
  for (const candidate of scanBitmap(image, low, high - 1n, bitmap)) {
    let first = 0;
    let last = ranges.length;
    while (last - first > 1) {
      const middle = (first + last) >>> 1;
      if (ranges[middle]!.start <= candidate.to) first = middle;
      else last = middle;
    }
    if (!isOpen(first)) continue;
    const from = confirm(image, candidate, functionAt);
    if (from !== undefined) visit(first, { from, to: candidate.to });
  }
}

function scan(image: CodeImage, wanted: readonly bigint[]): Candidate[] {
  let low = wanted[0]!;
  let high = low;
  for (const addr of wanted) {
    if (addr < low) low = addr;
    if (addr > high) high = addr;
  }
  const bitmap = new Uint8Array((Number(high - low) >> 3) + 1);
  for (const addr of wanted) {
    const offset = Number(addr - low);
    bitmap[offset >> 3]! |= 1 << (offset & 7);
  }
  return scanBitmap(image, low, high, bitmap);
}

/** Bit n of the bitmap stands for low + n; `high` is the last address. */
function scanBitmap(image: CodeImage, low: bigint, high: bigint, bitmap: Uint8Array): Candidate[] {
  const candidates: Candidate[] = [];
  const span = Number(high - low) + 1;
  const lowIsConstant = high < 0x8000_0000n ? Number(low) : undefined;
  for (const range of image.text) {
    // The field at i leads to range.start + i + 4 + rel, that is bit (start - low) + i + 4 + rel.
    scanRange(range.bytes, Number(BigInt.asIntN(32, range.start - low)), span, bitmap, (i, bit) => {
      candidates.push({ kind: "relative", field: range.start + BigInt(i), to: low + BigInt(bit) });
    });
    if (lowIsConstant !== undefined) {
      scanConstants(range.bytes, lowIsConstant, span, bitmap, (i, bit) => {
        candidates.push({ kind: "constant", field: range.start + BigInt(i), to: low + BigInt(bit) });
      });
    }
  }
  return candidates;
}

function scanRange(
  bytes: Uint8Array,
  startBit: number,
  span: number,
  bitmap: Uint8Array,
  hit: (i: number, bit: number) => void,
): void {
  const end = bytes.length - 4;
  if (end < 0) return;
  let word = int32At(bytes, 0);
  let base = (startBit + 4) | 0;
  for (let i = 0; ; i++) {
    const bit = (base + word) >>> 0;
    if (bit < span && (bitmap[bit >> 3]! >> (bit & 7)) & 1 && mayHoldBranch(bytes, i)) hit(i, bit);
    if (i >= end) return;
    word = (word >>> 8) | (bytes[i + 4]! << 24);
    base++;
  }
}

function scanConstants(
  bytes: Uint8Array,
  low: number,
  span: number,
  bitmap: Uint8Array,
  hit: (i: number, bit: number) => void,
): void {
  const end = bytes.length - 4;
  if (end < 0) return;
  let word = int32At(bytes, 0);
  for (let i = 0; ; i++) {
    const bit = (word - low) >>> 0;
    if (bit < span && (bitmap[bit >> 3]! >> (bit & 7)) & 1) hit(i, bit);
    if (i >= end) return;
    word = (word >>> 8) | (bytes[i + 4]! << 24);
  }
}

/** Do the bytes before a field look like jmp, call, jcc, xbegin or `lea reg, [rip+field]`? */
function mayHoldBranch(bytes: Uint8Array, field: number): boolean {
  const before = bytes[field - 1]!;
  const twoBefore = bytes[field - 2]!;
  return (
    before === 0xe8 ||
    before === 0xe9 ||
    (twoBefore === 0x0f && (before & 0xf0) === 0x80) ||
    (twoBefore === 0xc7 && before === 0xf8) ||
    (twoBefore === 0x8d && (before & 0xc7) === 0x05)
  );
}

/**
 * The instruction that really leads there, or undefined for a chance match. Where nobody knows the instructions, what
 * looks like a branch counts as one; a constant, which looks like nothing, does not.
 */
function confirm(image: CodeImage, candidate: Candidate, functionAt: FunctionLookup): bigint | undefined {
  const at = candidate.field - 1n;
  const unknown = candidate.kind === "relative" ? at : undefined;
  const own = image.findFunction(candidate.to);
  const range = image.findFunction(at);
  if (range === undefined) return unknown;
  if (own !== undefined && range.start === own.start) return undefined;
  const fn = functionAt(at);
  const index = fn === undefined ? -1 : fn.code.indexContaining(Number(at - fn.start));
  if (fn === undefined || index < 0) return unknown;
  const insn = fn.code.insn(index);
  const end = insn.addr + BigInt(insn.lenBytes);
  const endsWithField = candidate.field + 4n === end;
  if (candidate.kind === "constant") {
    // Branches end with a distance, and displacements of memory operands are data.
    const isImmediate = endsWithField && insn.target === undefined && hasImmediate32(insn.bytes);
    return isImmediate ? insn.addr : undefined;
  }
  if (insn.target === candidate.to && endsWithField) return insn.addr;
  const isLea =
    endsWithField && effectsOf(insn.bytes).mnemonic === "lea" && ripTargetOf(insn) === candidate.to;
  return isLea ? insn.addr : undefined;
}

/** mov r, imm32 (b8+r), push imm32 (68), mov m, imm32 (c7 /0): the instructions that store an address. */
function hasImmediate32(bytes: Uint8Array): boolean {
  let at = 0;
  while (isLegacyPrefix(bytes[at]!) || (bytes[at]! & 0xf0) === 0x40) at++;
  const opcode = bytes[at]!;
  return (opcode & 0xf8) === 0xb8 || opcode === 0x68 || opcode === 0xc7;
}

/**
 * A rel8 branch of another function to one of `wanted`, which are addresses inside `own`, a few bytes apart.
 */
export function findShortBranch(
  image: CodeImage,
  wanted: readonly bigint[],
  own: FunctionRange,
  functionAt: FunctionLookup,
): BranchInto | undefined {
  for (const to of wanted) {
    for (const range of image.text) {
      const offset = Number(to - range.start);
      if (offset < 0 || offset >= range.bytes.length) continue;
      const from = shortBranchTo(range.bytes, offset, (at) => {
        const addr = range.start + BigInt(at);
        if (addr >= own.start && addr < own.end) return false;
        const fn = functionAt(addr);
        if (fn === undefined) return image.findFunction(addr) !== undefined;
        const index = fn.code.indexContaining(at - Number(fn.start - range.start));
        return index < 0 || fn.code.insn(index).target === to;
      });
      if (from !== undefined) return { from: range.start + BigInt(from), to };
    }
  }
  return undefined;
}

function shortBranchTo(bytes: Uint8Array, to: number, isTrue: (at: number) => boolean): number | undefined {
  const first = Math.max(0, to - 129);
  const last = Math.min(bytes.length - 2, to + 126);
  for (let at = first; at <= last; at++) {
    const opcode = bytes[at]!;
    const isBranch = (opcode & 0xf0) === 0x70 || opcode === 0xeb || (opcode & 0xfc) === 0xe0;
    if (isBranch && at + 2 + ((bytes[at + 1]! << 24) >> 24) === to && isTrue(at)) return at;
  }
  return undefined;
}
