/**
 * An image as the code analysis sees it: run-time addresses, code bytes, function bounds, possible jump targets.
 *
 * The same file mapped by several processes differs in its load bias only, so everything is computed once for the
 * `ElfFile` and shifted here. Code bytes are those of the file: what the process has made of them (breakpoints,
 * another tracer's patches, text relocations) is for the caller to compare.
 */
import { viewOf } from "./byte-source.ts";
import type { ElfFile } from "./elf-file.ts";
import { lastAtOrBelow } from "./symbol-table.ts";
import { readExecSegments } from "./unwind-table.ts";

/** A function's bounds at run time; `name` is undefined where only the unwind table knows it. */
export interface ImageFunction {
  readonly start: bigint;
  readonly end: bigint;
  readonly name: string | undefined;
}

/** Run-time view of one mapped image; all addresses are run-time addresses. */
export interface CodeImage {
  readonly name: string;
  /** Bytes of the executable segments as in the file; read at first use. */
  readonly text: ReadonlyArray<{ readonly start: bigint; readonly bytes: Uint8Array }>;
  /** The function that contains an address: by symbol size, else by unwind range, else up to the next symbol. */
  findFunction(addr: bigint): ImageFunction | undefined;
  /** Addresses in [from, to) that static data or symbols point to, ascending. */
  pointersInto(from: bigint, to: bigint): readonly bigint[];
  /** Exception landing pads that lie in the range, ascending. */
  landingPads(range: { readonly start: bigint; readonly end: bigint }): readonly bigint[];
  /** Stored bytes with the image's own relative relocations applied; undefined outside the stored image. */
  readData(addr: bigint, lenBytes: number): Uint8Array | undefined;
}

/**
 * The image as mapped with a load bias (run-time address minus file address; 0 for a fixed-address program).
 * `name` is what the process knows it by, where that is not the name of the file that was read.
 */
export function codeImageOf(elf: ElfFile, bias: bigint, name = elf.name): CodeImage {
  const base = elf.origin + bias;
  const relOf = (addr: bigint) => Number(addr - base);
  const addrOf = (rel: number) => base + BigInt(rel);
  const between = (sorted: Float64Array, from: bigint, to: bigint): bigint[] => {
    const found: bigint[] = [];
    const end = relOf(to);
    for (let i = lastAtOrBelow(sorted, relOf(from) - 1) + 1; i < sorted.length && sorted[i]! < end; i++) {
      found.push(addrOf(sorted[i]!));
    }
    return found;
  };
  let text: Array<{ start: bigint; bytes: Uint8Array }> | undefined;
  return {
    name,
    get text() {
      text ??= readExecSegments(elf).map(({ start, bytes }) => ({ start: addrOf(start), bytes }));
      return text;
    },
    findFunction(addr) {
      const found = findFunctionRel(elf, relOf(addr));
      return found && { start: addrOf(found.start), end: addrOf(found.end), name: found.name };
    },
    pointersInto: (from, to) => between(elf.textPointers, from, to),
    landingPads: (range) => between(elf.unwind.landingPads, range.start, range.end),
    readData(addr, lenBytes) {
      const rel = relOf(addr);
      const bytes = elf.readRel(rel, lenBytes);
      return bytes && relocated(elf, bytes, rel, base);
    },
  };
}

/** Bounds of the function at a relative address; see `CodeImage.findFunction`. */
export function findFunctionRel(
  elf: ElfFile,
  rel: number,
): { readonly start: number; readonly end: number; readonly name: string | undefined } | undefined {
  if (!elf.isExecutable(rel)) return undefined;
  const symbol = elf.symbols.findRange(rel);
  if (symbol && symbol.end > symbol.start) {
    return { start: symbol.start, end: symbol.end, name: elf.symbols.nameOf(symbol.index) };
  }
  const frame = elf.unwind.findRange(rel);
  if (frame) {
    const named = symbol && symbol.start >= frame.start;
    // An unsized symbol inside the range names its own part of it: several assembly entries under one unwind entry.
    return named
      ? { start: symbol.start, end: frame.end, name: elf.symbols.nameOf(symbol.index) }
      : { start: frame.start, end: frame.end, name: undefined };
  }
  if (!symbol) return undefined;
  const segmentEnd = elf.execRanges.find((range) => rel >= range.start && rel < range.end)!.end;
  const section = elf.findSectionAt(elf.addrOf(symbol.start));
  const limit = section ? elf.rel(section.addr) + section.sizeBytes : segmentEnd;
  const end = Math.min(elf.symbols.nextStart(symbol.start) ?? limit, limit);
  return rel < end ? { start: symbol.start, end, name: elf.symbols.nameOf(symbol.index) } : undefined;
}

/** A copy with the words that the loader would have relocated; the bytes themselves where there are none. */
function relocated(elf: ElfFile, bytes: Uint8Array, rel: number, base: bigint): Uint8Array {
  const { places, targets } = elf.relocations.pointers;
  let at = lastAtOrBelow(places, rel - 8) + 1;
  if (at >= places.length || places[at]! >= rel + bytes.length) return bytes;
  const copy = bytes.slice();
  const word = new Uint8Array(8);
  for (; at < places.length && places[at]! < rel + bytes.length; at++) {
    viewOf(word).setBigUint64(0, base + BigInt(targets[at]!), true);
    for (let i = 0; i < 8; i++) {
      const to = places[at]! - rel + i;
      if (to >= 0 && to < copy.length) copy[to] = word[i]!;
    }
  }
  return copy;
}
