/**
 * The relocations that the loader applies to an image: where, and which address in the same image ends up there.
 *
 * Read through the dynamic segment (DT_RELA, DT_JMPREL, DT_RELR); a static non-PIE program has no dynamic segment
 * and states its IRELATIVE relocations in a loaded section instead. Relocations against symbols of other images
 * are kept by symbol name only, because their value is not known here.
 * Source: AMD64 psABI table 4.9, gABI "Relative Relocation Table" (RELR).
 */
import { stringAt, viewOf, wordsOf } from "./byte-source.ts";
import {
  DT_JMPREL,
  DT_PLTRELSZ,
  DT_RELA,
  DT_RELASZ,
  DT_RELR,
  DT_RELRSZ,
  type ImageReader,
  SHF_ALLOC,
  SHT_RELA,
} from "./elf-format.ts";

const R_X86_64_64 = 1;
const R_X86_64_GLOB_DAT = 6;
const R_X86_64_JUMP_SLOT = 7;
const R_X86_64_RELATIVE = 8;
const R_X86_64_IRELATIVE = 37;

/** Columns of equal length: at `places[i]` the loader stores the run-time form of `targets[i]` (both relative). */
export interface Relocations {
  /** Word-sized pointers into this image, by place ascending. */
  readonly pointers: { readonly places: Float64Array; readonly targets: Float64Array };
  /** Slots filled with what a resolver returns; `targets` are the resolvers. */
  readonly irelative: { readonly places: Float64Array; readonly targets: Float64Array };
  /** Places (relative) that the loader fills with the address of a named function, imported or own. */
  slotsOf(symbolName: string): readonly number[];
}

export function readRelocations(reader: ImageReader): Relocations {
  const places: number[] = [];
  const targets: number[] = [];
  const resolverPlaces: number[] = [];
  const resolvers: number[] = [];
  const slotPlaces: number[] = [];
  const slotSymbols: number[] = [];
  const symbols = reader.rawDynamicSymbols;
  const originLow = Number(reader.origin & 0xffff_ffffn);
  const originHigh = Number(reader.origin >> 32n);
  const relOf = (low: number, high: number) => (high - originHigh) * 0x1_0000_0000 + (low - originLow);

  for (const table of readRelaTables(reader)) {
    // Elf64_Rela: offset u64, type u32, symbol u32, addend i64.
    for (let word = 0; word + 6 <= table.length; word += 6) {
      const place = relOf(table[word]!, table[word + 1]!);
      const type = table[word + 2]!;
      const addendLow = table[word + 4]!;
      const addendHigh = table[word + 5]! | 0;
      if (type === R_X86_64_RELATIVE) {
        places.push(place);
        targets.push(relOf(addendLow, addendHigh >>> 0));
      } else if (type === R_X86_64_IRELATIVE) {
        resolverPlaces.push(place);
        resolvers.push(relOf(addendLow, addendHigh >>> 0));
      } else if (type === R_X86_64_64 || type === R_X86_64_GLOB_DAT || type === R_X86_64_JUMP_SLOT) {
        const symbolWord = table[word + 3]! * 6;
        if (!symbols || symbolWord + 6 > symbols.words.length) continue;
        const addend = type === R_X86_64_64 ? addendHigh * 0x1_0000_0000 + addendLow : 0;
        if (addend === 0) {
          slotPlaces.push(place);
          slotSymbols.push(symbolWord);
        }
        if (symbols.words[symbolWord + 1]! >>> 16 === 0) continue;
        places.push(place);
        targets.push(relOf(symbols.words[symbolWord + 2]!, symbols.words[symbolWord + 3]!) + addend);
      }
    }
  }
  readRelr(reader, (place, low, high) => {
    places.push(place);
    targets.push(relOf(low, high));
  });

  return {
    pointers: sortedByPlace(places, targets),
    irelative: sortedByPlace(resolverPlaces, resolvers),
    slotsOf: (symbolName) =>
      slotPlaces.filter(
        (_, i) =>
          symbols !== undefined && stringAt(symbols.strings, symbols.words[slotSymbols[i]!]!) === symbolName,
      ),
  };
}

function readRelaTables(reader: ImageReader): Uint32Array[] {
  const stated: ReadonlyArray<readonly [start: number, size: number]> = [
    [DT_RELA, DT_RELASZ],
    [DT_JMPREL, DT_PLTRELSZ],
  ];
  const dynamic = stated.flatMap(([startTag, sizeTag]) => {
    const start = reader.findDynamicRel(startTag);
    const sizeBytes = reader.findDynamic(sizeTag);
    const bytes =
      start === undefined || sizeBytes === undefined ? undefined : reader.readRel(start, Number(sizeBytes));
    return bytes ? [wordsOf(bytes)] : [];
  });
  if (dynamic.length > 0) return dynamic;
  return reader.sections
    .filter((s) => s.type === SHT_RELA && (s.flags & SHF_ALLOC) !== 0)
    .flatMap((s) => {
      const bytes = reader.readSection(s);
      return bytes ? [wordsOf(bytes)] : [];
    });
}

/**
 * Packed relative relocations: an even word is the place of one pointer and sets the base behind it; an odd word is
 * a map of the next 63 words, bit 1 being the first.
 */
function readRelr(reader: ImageReader, emit: (place: number, low: number, high: number) => void): void {
  const start = reader.findDynamicRel(DT_RELR);
  const sizeBytes = reader.findDynamic(DT_RELRSZ);
  const table =
    start === undefined || sizeBytes === undefined ? undefined : reader.readRel(start, Number(sizeBytes));
  if (!table) return;
  const view = viewOf(table);
  let data: { start: number; bytes: Uint8Array; view: DataView } | undefined;
  const emitAt = (place: number) => {
    if (!data || place < data.start || place + 8 > data.start + data.bytes.length) {
      const segment = reader.segments.find((s) => {
        const at = place - reader.rel(s.addr);
        return s.type === 1 && at >= 0 && at + 8 <= s.fileBytes;
      });
      const bytes = segment && reader.readRel(reader.rel(segment.addr), segment.fileBytes);
      if (!bytes) return;
      data = { start: reader.rel(segment.addr), bytes, view: viewOf(bytes) };
    }
    const at = place - data.start;
    emit(place, data.view.getUint32(at, true), data.view.getUint32(at + 4, true));
  };
  let base = 0;
  for (let at = 0; at + 8 <= table.length; at += 8) {
    const low = view.getUint32(at, true);
    const high = view.getUint32(at + 4, true);
    if ((low & 1) === 0) {
      const place = reader.rel(BigInt(high) * 0x1_0000_0000n + BigInt(low));
      emitAt(place);
      base = place + 8;
    } else {
      for (let bit = 1; bit < 64; bit++) {
        const set = bit < 32 ? (low >>> bit) & 1 : (high >>> (bit - 32)) & 1;
        if (set === 1) emitAt(base + (bit - 1) * 8);
      }
      base += 63 * 8;
    }
  }
}

function sortedByPlace(places: number[], targets: number[]): { places: Float64Array; targets: Float64Array } {
  let ascending = true;
  for (let i = 1; i < places.length && ascending; i++) ascending = places[i]! >= places[i - 1]!;
  if (ascending) return { places: Float64Array.from(places), targets: Float64Array.from(targets) };
  const order = Array.from(places, (_, i) => i).sort((a, b) => places[a]! - places[b]!);
  return {
    places: Float64Array.from(order, (i) => places[i]!),
    targets: Float64Array.from(order, (i) => targets[i]!),
  };
}
