/**
 * The addresses in code that data of the same image may jump or call to.
 *
 * A detour may not displace the inside of an instruction run that something jumps into. Jumps in code are found by
 * decoding; jumps through data (computed goto tables, virtual tables, function pointers) only by looking at the data.
 * The answer is a superset: an address here may be no jump target, but no static target is left out, which holds
 * because
 *  - in a PIE or shared library every absolute pointer has a relocation, whose target is read;
 *  - in a program linked to fixed addresses there are no such relocations, so every aligned word of its data that
 *    could be a pointer into code is taken for one;
 *  - entry point, init and fini, and the starts of all function symbols are added.
 * Not seen: 32-bit absolute and relative tables (found by the decoder where the jump is), pointers built at run time.
 */
import { wordsOf } from "./byte-source.ts";
import {
  DT_FINI,
  DT_INIT,
  type ImageReader,
  PF_X,
  PT_LOAD,
  SHF_ALLOC,
  SHF_EXECINSTR,
  SHT_NOBITS,
} from "./elf-format.ts";
import type { Relocations } from "./relocations.ts";
import type { SymbolTable } from "./symbol-table.ts";

/** Bytes of data looked at in one go. */
const CHUNK_BYTES = 4 << 20;

/** Relative addresses, ascending without duplicates. */
export function findTextPointers(
  reader: ImageReader,
  relocations: Relocations,
  symbols: SymbolTable,
): Float64Array {
  const found: number[] = [];
  const add = (rel: number | undefined) => {
    if (rel !== undefined && reader.isExecutable(rel)) found.push(rel);
  };
  add(reader.rel(reader.entry));
  add(reader.findDynamicRel(DT_INIT));
  add(reader.findDynamicRel(DT_FINI));
  relocations.pointers.targets.forEach(add);
  relocations.irelative.targets.forEach(add);
  if (reader.kind === "exec") scanData(reader, add);
  return mergeSorted(Float64Array.from(found).sort(), symbols.sortedStarts);
}

/** Offers every aligned word of the data that has the value of an address in code. */
function scanData(reader: ImageReader, add: (rel: number) => void): void {
  const first = reader.execRanges[0];
  const last = reader.execRanges.at(-1);
  if (!first || !last) return;
  const originLow = Number(reader.origin & 0xffff_ffffn);
  const originHigh = Number(reader.origin >> 32n);
  for (const range of dataRanges(reader)) {
    const end = range.end;
    for (let start = range.start; start + 8 <= end; start += CHUNK_BYTES) {
      const bytes = reader.readRel(start, Math.min(CHUNK_BYTES, (end - start) & ~7));
      if (!bytes) break;
      collectPointers(wordsOf(bytes), originLow, originHigh, first.start, last.end, add);
    }
  }
}

/** One tight loop over pairs of 32-bit words: it sees 60 MB of a large program. */
function collectPointers(
  words: Uint32Array,
  originLow: number,
  originHigh: number,
  start: number,
  end: number,
  add: (rel: number) => void,
): void {
  for (let i = 0; i < words.length; i += 2) {
    const rel = words[i]! - originLow;
    if (rel >= start && rel < end && words[i + 1] === originHigh) add(rel);
  }
}

/** Loaded data that holds no code, from 8-byte boundary to end; whole segments where sections are not known. */
function dataRanges(reader: ImageReader): Array<{ start: number; end: number }> {
  const alignUp = (addr: bigint) => reader.rel((addr + 7n) & ~7n);
  const sections = reader.sections.filter((s) => (s.flags & SHF_ALLOC) !== 0);
  if (sections.length > 0) {
    return sections
      .filter((s) => (s.flags & SHF_EXECINSTR) === 0 && s.type !== SHT_NOBITS)
      .map((s) => ({ start: alignUp(s.addr), end: reader.rel(s.addr) + s.sizeBytes }));
  }
  const loads = reader.segments.filter((s) => s.type === PT_LOAD);
  // Without sections constants can share a segment with code: then that is looked at too.
  const mixed = loads.every((s) => (s.flags & PF_X) !== 0 || (s.flags & 2) !== 0);
  return loads
    .filter((s) => mixed || (s.flags & PF_X) === 0)
    .map((s) => ({ start: alignUp(s.addr), end: reader.rel(s.addr) + s.fileBytes }));
}

/** Both ascending; the result is ascending without duplicates. */
function mergeSorted(a: Float64Array, b: Float64Array): Float64Array {
  const merged = new Float64Array(a.length + b.length);
  let count = 0;
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    const next = j >= b.length || (i < a.length && a[i]! <= b[j]!) ? a[i++]! : b[j++]!;
    if (count === 0 || merged[count - 1] !== next) merged[count++] = next;
  }
  return merged.slice(0, count);
}
