/**
 * The function symbols of one image: by name, by pattern, by address.
 *
 * A program can have hundreds of thousands of symbols, of which a probe asks for a few. So the table is columns
 * of numbers over the raw symbol and string tables; a name becomes a string only when it is handed out, the
 * address index is built at the first question about an address, and a name index only once enough exact names
 * have been asked for to pay for it.
 *
 * What counts as a function: STT_FUNC and STT_GNU_IFUNC in an executable segment, and STT_NOTYPE there, which is
 * how hand-written assembly often appears ("label": found by exact name, never by a pattern; names that begin
 * with `.` or `$` are marks of tools, not code). Undefined and absolute symbols are left out. .symtab and .dynsym
 * are joined. Names are without versions (`name@@VERSION` in .symtab is cut off); of a name with several versions only
 * the default one is found, because the others serve binaries linked long ago, and their code is often shared with
 * functions of other names.
 */
import { textBetween } from "./byte-source.ts";
import type { ImageReader, RawSymbols } from "./elf-format.ts";
import type { Glob } from "./glob.ts";
import { NearestNames } from "./nearest-names.ts";

/** "ifunc": the address is that of a resolver which picks the implementation. "label": code without a type. */
export type SymbolKind = "func" | "ifunc" | "label";

export interface ElfSymbol {
  readonly name: string;
  /** File address. */
  readonly addr: bigint;
  /** 0 when the image does not say. */
  readonly sizeBytes: number;
  readonly kind: SymbolKind;
  readonly binding: "local" | "global" | "weak";
}

/** A function symbol in relative addresses, without its name. */
export interface SymbolRange {
  readonly index: number;
  readonly start: number;
  /** `start` when the image does not say. */
  readonly end: number;
}

const NO_TYPE = 0;
const FUNC = 2;
const GNU_IFUNC = 10;
const SHN_UNDEF = 0;
const SHN_ABS = 0xfff1;
const VERSION_HIDDEN = 0x8000;
const AT_SIGN = 0x40;

/** After so many exact look-ups by scanning, the name index pays for itself. */
const SCANS_BEFORE_INDEX = 12;

const utf8 = new TextEncoder();

export class SymbolTable {
  /** Number of function symbols, aliases counted each. */
  readonly count: number;

  readonly #reader: ImageReader;
  /** Symbols from `#split` on are from the second table. */
  readonly #split: number;
  readonly #firstStrings: Uint8Array;
  readonly #secondStrings: Uint8Array;
  readonly #nameOffsets: Uint32Array;
  readonly #starts: Float64Array;
  readonly #sizes: Float64Array;
  /** st_info: binding in the high nibble, type in the low one. */
  readonly #infos: Uint8Array;
  /** 1: a dynamic symbol whose version is not the default one of its name. */
  readonly #old: Uint8Array;

  #byAddr: { order: Uint32Array; starts: Float64Array; highestEnds: Float64Array } | undefined;
  #byName: { slots: Int32Array; next: Int32Array } | undefined;
  #scans = 0;

  constructor(reader: ImageReader) {
    this.#reader = reader;
    const tables = [reader.readStaticSymbols(), reader.rawDynamicSymbols];
    const capacity = tables.reduce((sum, table) => sum + Math.floor((table?.words.length ?? 0) / 6), 0);
    this.#nameOffsets = new Uint32Array(capacity);
    this.#starts = new Float64Array(capacity);
    this.#sizes = new Float64Array(capacity);
    this.#infos = new Uint8Array(capacity);
    this.#old = new Uint8Array(capacity);
    this.#firstStrings = tables[0]?.strings ?? new Uint8Array(0);
    this.#secondStrings = tables[1]?.strings ?? new Uint8Array(0);
    this.#split = tables[0] ? this.#load(tables[0], 0) : 0;
    this.count = tables[1] ? this.#load(tables[1], this.#split) : this.#split;
  }

  /** Appends the functions of one raw table; returns the new number of symbols. */
  #load({ words, strings, versions }: RawSymbols, from: number): number {
    const originLow = Number(this.#reader.origin & 0xffff_ffffn);
    const originHigh = Number(this.#reader.origin >> 32n);
    let at = from;
    // Elf64_Sym: name u32, info u8, other u8, shndx u16, value u64, size u64.
    for (let word = 6; word + 6 <= words.length; word += 6) {
      const packed = words[word + 1]!;
      const type = packed & 0xf;
      if (type !== FUNC && type !== GNU_IFUNC && type !== NO_TYPE) continue;
      const section = packed >>> 16;
      if (section === SHN_UNDEF || section === SHN_ABS) continue;
      const start = (words[word + 3]! - originHigh) * 0x1_0000_0000 + (words[word + 2]! - originLow);
      if (!this.#reader.isExecutable(start)) continue;
      const nameOffset = words[word]!;
      const firstByte = strings[nameOffset];
      if (firstByte === undefined || firstByte === 0) continue;
      if (type === NO_TYPE && (firstByte === 0x2e || firstByte === 0x24)) continue;
      this.#nameOffsets[at] = nameOffset;
      this.#starts[at] = start;
      this.#sizes[at] = words[word + 4]! + words[word + 5]! * 0x1_0000_0000;
      this.#infos[at] = packed & 0xff;
      if (versions && (versions[word / 6]! & VERSION_HIDDEN) !== 0) this.#old[at] = 1;
      at++;
    }
    return at;
  }

  #stringsOf(index: number): Uint8Array {
    return index < this.#split ? this.#firstStrings : this.#secondStrings;
  }

  #nameEnd(strings: Uint8Array, start: number): number {
    let end = start;
    for (let byte = strings[end]; byte !== undefined && byte !== 0; byte = strings[++end]) {
      if (byte === AT_SIGN && end > start) break;
    }
    return end;
  }

  #name(index: number): string {
    const strings = this.#stringsOf(index);
    const start = this.#nameOffsets[index]!;
    return textBetween(strings, start, this.#nameEnd(strings, start));
  }

  #kind(index: number): SymbolKind {
    const type = this.#infos[index]! & 0xf;
    return type === FUNC ? "func" : type === GNU_IFUNC ? "ifunc" : "label";
  }

  #symbol(index: number): ElfSymbol {
    const binding = this.#infos[index]! >> 4;
    return {
      name: this.#name(index),
      addr: this.#reader.origin + BigInt(this.#starts[index]!),
      sizeBytes: this.#sizes[index]!,
      kind: this.#kind(index),
      binding: binding === 0 ? "local" : binding === 2 ? "weak" : "global",
    };
  }

  /** Symbols with exactly this name, one for each address, ascending; local functions may share a name. */
  find(name: string): ElfSymbol[] {
    const wanted = utf8.encode(name);
    if (wanted.length === 0) return [];
    const found: number[] = [];
    if (this.#byName === undefined && ++this.#scans > SCANS_BEFORE_INDEX) this.#byName = this.#indexNames();
    if (this.#byName) {
      const { slots, next } = this.#byName;
      const slot = hashOf(wanted, 0, wanted.length) & (slots.length - 1);
      for (let i = slots[slot]!; i >= 0; i = next[i]!) if (this.#hasName(i, wanted)) found.push(i);
    } else {
      for (let i = 0; i < this.count; i++) if (this.#hasName(i, wanted)) found.push(i);
    }
    return this.#oneForEachAddress(found);
  }

  #hasName(index: number, wanted: Uint8Array): boolean {
    const strings = index < this.#split ? this.#firstStrings : this.#secondStrings;
    const start = this.#nameOffsets[index]!;
    const after = strings[start + wanted.length];
    if (after !== 0 && after !== AT_SIGN && after !== undefined) return false;
    for (let i = 0; i < wanted.length; i++) if (strings[start + i] !== wanted[i]) return false;
    return true;
  }

  #indexNames(): { slots: Int32Array; next: Int32Array } {
    const slots = new Int32Array(1 << Math.ceil(Math.log2(this.count + 2))).fill(-1);
    const next = new Int32Array(this.count);
    for (let i = 0; i < this.count; i++) {
      const strings = this.#stringsOf(i);
      const start = this.#nameOffsets[i]!;
      const slot = hashOf(strings, start, this.#nameEnd(strings, start)) & (slots.length - 1);
      next[i] = slots[slot]!;
      slots[slot] = i;
    }
    return { slots, next };
  }

  /** Functions whose name matches, one for each address (the most telling matching name), ascending. */
  match(glob: Glob): ElfSymbol[] {
    const found: number[] = [];
    const prefix = glob.prefix;
    candidates: for (let i = 0; i < this.count; i++) {
      if ((this.#infos[i]! & 0xf) === NO_TYPE) continue;
      const strings = this.#stringsOf(i);
      const start = this.#nameOffsets[i]!;
      for (let k = 0; k < prefix.length; k++) if (strings[start + k] !== prefix[k]) continue candidates;
      if (glob.matchesBytes(strings, start, this.#nameEnd(strings, start))) found.push(i);
    }
    return this.#oneForEachAddress(found);
  }

  /** Whether a symbol is an old version of its name: by the version table, or by a single @ in .symtab. */
  #isOld(index: number): boolean {
    if (index >= this.#split) return this.#old[index] === 1;
    const strings = this.#firstStrings;
    const end = this.#nameEnd(strings, this.#nameOffsets[index]!);
    return strings[end] === AT_SIGN && strings[end + 1] !== AT_SIGN;
  }

  /** Leaves out old versions of names that also have a default one. */
  #withoutOldVersions(found: readonly number[]): number[] {
    const old = found.filter((index) => this.#isOld(index));
    if (old.length === 0) return [...found];
    const oldNames = new Set(old.map((index) => this.#name(index)));
    const current = new Set<string>();
    for (const index of found) {
      if (this.#isOld(index)) continue;
      const name = this.#name(index);
      if (oldNames.has(name)) current.add(name);
    }
    return found.filter((index) => !this.#isOld(index) || !current.has(this.#name(index)));
  }

  #oneForEachAddress(candidates: readonly number[]): ElfSymbol[] {
    const found = this.#withoutOldVersions(candidates);
    found.sort((a, b) => this.#starts[a]! - this.#starts[b]!);
    const symbols: ElfSymbol[] = [];
    for (let i = 0; i < found.length; ) {
      let best = found[i]!;
      let next = i + 1;
      for (; next < found.length && this.#starts[found[next]!] === this.#starts[best]; next++) {
        if (this.#isMoreTelling(found[next]!, best)) best = found[next]!;
      }
      symbols.push(this.#symbol(best));
      i = next;
    }
    return symbols;
  }

  /**
   * Which of two aliases to show: a function before a label, exported before local, current versions before old ones,
   * few leading underscores (`open` before `__open64`), then short, then a known size, then alphabetical.
   */
  #isMoreTelling(a: number, b: number): boolean {
    // The same symbol in both tables.
    if (this.#nameOffsets[a] === this.#nameOffsets[b] && a < this.#split === b < this.#split) return false;
    const labels = Number(this.#kind(a) === "label") - Number(this.#kind(b) === "label");
    if (labels !== 0) return labels < 0;
    const locals = Number(this.#infos[a]! >> 4 === 0) - Number(this.#infos[b]! >> 4 === 0);
    if (locals !== 0) return locals < 0;
    const olds = Number(this.#isOld(a)) - Number(this.#isOld(b));
    if (olds !== 0) return olds < 0;
    const [nameA, nameB] = [this.#name(a), this.#name(b)];
    const underscores = leadingUnderscores(nameA) - leadingUnderscores(nameB);
    if (underscores !== 0) return underscores < 0;
    if (nameA.length !== nameB.length) return nameA.length < nameB.length;
    const sizes = this.#sizes[a]! - this.#sizes[b]!;
    return sizes !== 0 ? sizes > 0 : nameA < nameB;
  }

  #addrIndex(): { order: Uint32Array; starts: Float64Array; highestEnds: Float64Array } {
    if (this.#byAddr) return this.#byAddr;
    const order = sortedOrder(this.#starts.subarray(0, this.count));
    const starts = new Float64Array(this.count);
    const highestEnds = new Float64Array(this.count);
    let highest = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < this.count; i++) {
      const index = order[i]!;
      starts[i] = this.#starts[index]!;
      highest = Math.max(highest, starts[i]! + this.#sizes[index]!);
      highestEnds[i] = highest;
    }
    this.#byAddr = { order, starts, highestEnds };
    return this.#byAddr;
  }

  /** Position of the last symbol that starts at or before `rel`, in address order; -1 for none. */
  #lastAtOrBefore(rel: number): number {
    return lastAtOrBelow(this.#addrIndex().starts, rel);
  }

  /** All names of one file address, most telling first. */
  at(addr: bigint): ElfSymbol[] {
    const { order, starts } = this.#addrIndex();
    const rel = this.#reader.rel(addr);
    const found: number[] = [];
    for (let i = this.#lastAtOrBefore(rel); i >= 0 && starts[i] === rel; i--) found.push(order[i]!);
    found.sort((a, b) => (a === b ? 0 : this.#isMoreTelling(a, b) ? -1 : 1));
    const names = new Set<string>();
    return found
      .map((index) => this.#symbol(index))
      .filter((symbol) => !names.has(symbol.name) && names.add(symbol.name));
  }

  /**
   * The symbol whose code contains a relative address: of nested ones the innermost, of aliases the most telling
   * one. Where no symbol of known size contains it, the last one before it, if that is of unknown size, is taken to
   * reach to the next function; `end` is then `start`.
   */
  findRange(rel: number): SymbolRange | undefined {
    const { order, starts, highestEnds } = this.#addrIndex();
    const last = this.#lastAtOrBefore(rel);
    let found = -1;
    for (let at = last; at >= 0 && highestEnds[at]! > rel; at--) {
      const index = order[at]!;
      if (found >= 0 && starts[at] !== this.#starts[found]) break;
      if (starts[at]! + this.#sizes[index]! <= rel) continue;
      if (found < 0 || this.#isMoreTelling(index, found)) found = index;
    }
    if (found >= 0) return this.#range(found);
    for (let at = last; at >= 0 && starts[at] === starts[last]; at--) {
      const index = order[at]!;
      if (this.#sizes[index] === 0 && (found < 0 || this.#isMoreTelling(index, found))) found = index;
    }
    return found >= 0 ? this.#range(found) : undefined;
  }

  #range(index: number): SymbolRange {
    const start = this.#starts[index]!;
    return { index, start, end: start + this.#sizes[index]! };
  }

  /** Start of the first typed function after `rel`; undefined at the end. */
  nextStart(rel: number): number | undefined {
    const { order, starts } = this.#addrIndex();
    for (let at = this.#lastAtOrBefore(rel) + 1; at < this.count; at++) {
      if ((this.#infos[order[at]!]! & 0xf) !== NO_TYPE) return starts[at];
    }
    return undefined;
  }

  /** The symbol that contains a file address, and how far into it the address lies. */
  enclosing(addr: bigint): { readonly symbol: ElfSymbol; readonly offsetBytes: number } | undefined {
    const rel = this.#reader.rel(addr);
    const range = this.findRange(rel);
    return range && { symbol: this.#symbol(range.index), offsetBytes: rel - range.start };
  }

  /** Name of the symbol with an index that this table gave out. */
  nameOf(index: number): string {
    return this.#name(index);
  }

  /** Starts of all symbols, labels included, ascending, with repeats. */
  get sortedStarts(): Float64Array {
    return this.#addrIndex().starts;
  }

  /** Names close to one that was not found, best first. */
  nearest(name: string, count = 3): string[] {
    const nearest = new NearestNames(name);
    for (let i = 0; i < this.count; i++) {
      const strings = this.#stringsOf(i);
      const start = this.#nameOffsets[i]!;
      const end = this.#nameEnd(strings, start);
      if (nearest.canTake(end - start)) nearest.offer(textBetween(strings, start, end));
    }
    return nearest.best(count);
  }

  /** Whether the image uses a function of this name that another image defines. */
  imports(name: string): boolean {
    const raw = this.#reader.rawDynamicSymbols;
    if (!raw) return false;
    const wanted = utf8.encode(name);
    const { words, strings } = raw;
    for (let word = 6; word + 6 <= words.length; word += 6) {
      if (words[word + 1]! >>> 16 !== SHN_UNDEF) continue;
      const start = words[word]!;
      if (strings[start + wanted.length] !== 0) continue;
      if (wanted.every((byte, i) => strings[start + i] === byte)) return true;
    }
    return false;
  }
}

function leadingUnderscores(name: string): number {
  let count = 0;
  while (name.charCodeAt(count) === 0x5f) count++;
  // Itanium mangling starts with _Z: that underscore says nothing.
  return count === 1 && name.charCodeAt(1) === 0x5a ? 0 : count;
}

/** FNV-1a. */
function hashOf(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return hash ^ (hash >>> 15);
}

/** Index of the last value at or below `limit` in ascending values; -1 for none. */
export function lastAtOrBelow(values: Float64Array, limit: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[middle]! <= limit) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The order that sorts the values, without a comparison function where value and index fit into 53 bits. */
function sortedOrder(values: Float64Array): Uint32Array {
  const count = values.length;
  let lowest = 0;
  let highest = 0;
  for (const value of values) {
    if (value < lowest) lowest = value;
    if (value > highest) highest = value;
  }
  const order = new Uint32Array(count);
  if ((highest - lowest + 1) * count > Number.MAX_SAFE_INTEGER) {
    for (let i = 0; i < count; i++) order[i] = i;
    return order.sort((a, b) => values[a]! - values[b]! || a - b);
  }
  const keys = new Float64Array(count);
  for (let i = 0; i < count; i++) keys[i] = (values[i]! - lowest) * count + i;
  keys.sort();
  for (let i = 0; i < count; i++) order[i] = keys[i]! % count;
  return order;
}
