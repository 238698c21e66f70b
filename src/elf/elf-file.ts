/**
 * One ELF64 x86-64 image: what its headers say, and lazy doors to its symbols, unwind tables and relocations.
 *
 * The problem: the images of a process range from the vDSO (two pages, in memory only) to programs of hundreds
 * of megabytes, and section headers may have been stripped. So opening reads the ELF header and the program
 * headers, everything else is read when first asked for, and whatever the loader itself needs is found through
 * program headers and the dynamic segment. Section headers are used where they exist and never required.
 *
 * Addresses inside this folder's tables are numbers relative to `origin` (the first executable segment), which
 * keeps them exact and cheap for programs at 0x400000 and for kernels at 0xffffffff81000000 alike. Every
 * address that leaves the folder is a `bigint` as the file states it ("file address"): the address that objdump
 * prints, without load bias.
 *
 * Two layouts: "file" (offsets are file offsets) and "memory" (offset 0 is the load address and segments lie at
 * their virtual distance from it; section headers do not exist, dynamic entries may have been relocated).
 *
 * Not handled: relocatable objects, core files, 32-bit, other machines (refused with `ElfError`), separate
 * debug files. Source: System V gABI chapters 4 and 5, AMD64 psABI.
 */
import { type ByteSource, stringAt, viewOf, wordsOf } from "./byte-source.ts";
import { ElfError, type ElfErrorReason } from "./elf-error.ts";
import {
  DT_GNU_HASH,
  DT_HASH,
  DT_NEEDED,
  DT_RPATH,
  DT_RUNPATH,
  DT_SONAME,
  DT_STRSZ,
  DT_STRTAB,
  DT_SYMTAB,
  DT_VERSYM,
  type ElfNote,
  type ImageReader,
  PF_X,
  PT_DYNAMIC,
  PT_INTERP,
  PT_LOAD,
  PT_NOTE,
  type RawSymbols,
  type RelRange,
  type Section,
  type Segment,
  SHF_ALLOC,
  SHF_EXECINSTR,
  SHT_DYNSYM,
  SHT_NOBITS,
  SHT_NOTE,
  SHT_SYMTAB,
} from "./elf-format.ts";
import { type Relocations, readRelocations } from "./relocations.ts";
import { SymbolTable } from "./symbol-table.ts";
import { findTextPointers } from "./text-pointers.ts";
import { UnwindTable } from "./unwind-table.ts";

export interface ParseElfOptions {
  /** How messages name the image. */
  readonly name?: string;
  /** For "memory": the address at which the image lies, to undo what the loader wrote into the dynamic segment. */
  readonly layout?: { readonly kind: "file" } | { readonly kind: "memory"; readonly loadAddr: bigint };
}

const MACHINE_NAMES: Readonly<Record<number, string>> = {
  3: "i386",
  40: "arm",
  183: "aarch64",
  243: "riscv",
  21: "powerpc64",
  22: "s390",
};

/** Opens an image. Throws `ElfError` for what is not a loadable little-endian ELF64 x86-64 image. */
export function parseElf(source: ByteSource, options: ParseElfOptions = {}): ElfFile {
  return new ElfFile(source, options);
}

/** u64 at `offset` as a number; exact below 2^53, which file offsets and sizes are. */
function u64(view: DataView, offset: number): number {
  return view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 0x1_0000_0000;
}

export class ElfFile implements ImageReader {
  readonly name: string;
  /** "exec": linked to fixed addresses, its load bias is 0; "dyn": shared library or PIE. */
  readonly kind: "exec" | "dyn";
  /** Entry point as a file address; 0 when there is none. */
  readonly entry: bigint;
  readonly segments: readonly Segment[];
  /** File address that relative addresses count from: start of the first executable segment. */
  readonly origin: bigint;
  /** Executable segments, ascending. */
  readonly execRanges: readonly RelRange[];

  readonly #source: ByteSource;
  readonly #inMemoryAt: bigint | undefined;
  /** Relative address of offset 0 in memory layout. */
  readonly #memoryStart: number;
  readonly #sectionHeaders: { offset: number; count: number; nameIndex: number };
  #sections: readonly Section[] | undefined;
  #dynamic: ReadonlyArray<readonly [tag: number, value: bigint]> | undefined;
  #dynamicSymbols: { readonly raw: RawSymbols | undefined } | undefined;
  #buildId: { readonly id: string | undefined } | undefined;
  #symbols: SymbolTable | undefined;
  #unwind: UnwindTable | undefined;
  #relocations: Relocations | undefined;
  #textPointers: Float64Array | undefined;
  #bulk: { start: number; bytes: Uint8Array } | undefined;

  constructor(source: ByteSource, options: ParseElfOptions) {
    this.name = options.name ?? "(unnamed)";
    this.#source = source;
    this.#inMemoryAt = options.layout?.kind === "memory" ? options.layout.loadAddr : undefined;
    const head = source.read(0, 64);
    if (!head) {
      const magic = source.read(0, 4);
      if (magic && isElfMagic(magic)) throw this.#error("truncated", "the file ends inside the ELF header");
      throw this.#error("not-elf", "the file is shorter than an ELF header");
    }
    if (!isElfMagic(head)) throw this.#error("not-elf", "not an ELF file");
    if (head[4] !== 2) throw this.#error("32-bit", "a 32-bit image; only x86-64 is supported");
    if (head[5] !== 1) throw this.#error("big-endian", "a big-endian image; only x86-64 is supported");
    const view = viewOf(head);
    const machine = view.getUint16(18, true);
    if (machine !== 62) {
      const machineName = MACHINE_NAMES[machine] ?? `machine ${machine}`;
      throw this.#error("other-machine", `an image for ${machineName}; only x86-64 is supported`);
    }
    const type = view.getUint16(16, true);
    if (type !== 2 && type !== 3) {
      const typeName = { 1: "a relocatable object", 4: "a core file" }[type] ?? `of ELF type ${type}`;
      throw this.#error("not-loadable", `${typeName}, not a program or shared library`);
    }
    this.kind = type === 2 ? "exec" : "dyn";
    this.entry = view.getBigUint64(24, true);
    this.#sectionHeaders = {
      offset: this.#inMemoryAt === undefined && view.getUint16(58, true) === 64 ? u64(view, 40) : 0,
      count: view.getUint16(60, true),
      nameIndex: view.getUint16(62, true),
    };
    this.segments = this.#readSegments(u64(view, 32), view.getUint16(54, true), view.getUint16(56, true));
    const loads = this.segments.filter((s) => s.type === PT_LOAD);
    const firstExec = loads.find((s) => (s.flags & PF_X) !== 0) ?? loads[0];
    if (!firstExec) throw this.#error("not-loadable", "no segment is loaded");
    this.origin = firstExec.addr;
    this.execRanges = loads
      .filter((s) => (s.flags & PF_X) !== 0)
      .map((s) => ({ start: this.rel(s.addr), end: this.rel(s.addr) + s.memBytes }))
      .sort((a, b) => a.start - b.start);
    this.#memoryStart = Math.min(...loads.map((s) => this.rel(s.addr & ~0xfffn)));
  }

  #error(reason: ElfErrorReason, detail: string): ElfError {
    return new ElfError(reason, this.name, detail);
  }

  #readSegments(tableOffset: number, entryBytes: number, headerCount: number): Segment[] {
    let count = headerCount;
    if (count === 0xffff) {
      const first = this.#source.read(this.#sectionHeaders.offset, 64);
      count = first ? viewOf(first).getUint32(44, true) : 0;
    }
    if (count === 0) throw this.#error("not-loadable", "no program headers");
    if (entryBytes !== 56) throw this.#error("malformed", `program headers of ${entryBytes} bytes`);
    const table = this.#source.read(tableOffset, count * 56);
    if (!table) throw this.#error("truncated", "the program headers lie outside the file");
    const view = viewOf(table);
    return Array.from({ length: count }, (_, i) => ({
      type: view.getUint32(i * 56, true),
      flags: view.getUint32(i * 56 + 4, true),
      offset: u64(view, i * 56 + 8),
      addr: view.getBigUint64(i * 56 + 16, true),
      fileBytes: u64(view, i * 56 + 32),
      memBytes: u64(view, i * 56 + 40),
      alignBytes: u64(view, i * 56 + 48),
    }));
  }

  /** A file address as this folder's tables hold it. */
  rel(addr: bigint): number {
    return Number(addr - this.origin);
  }

  /** The file address of a relative address. */
  addrOf(rel: number): bigint {
    return this.origin + BigInt(rel);
  }

  /** Section headers; empty when the file has none (or they lie outside it). */
  get sections(): readonly Section[] {
    this.#sections ??= this.#readSections();
    return this.#sections;
  }

  #readSections(): Section[] {
    const { offset, count: headerCount, nameIndex: headerNameIndex } = this.#sectionHeaders;
    if (offset === 0) return [];
    const first = this.#source.read(offset, 64);
    if (!first) return [];
    // gABI: numbers that do not fit into the ELF header are in the otherwise unused section 0.
    const count = headerCount === 0 ? u64(viewOf(first), 32) : headerCount;
    const nameIndex = headerNameIndex === 0xffff ? viewOf(first).getUint32(40, true) : headerNameIndex;
    const table = this.#source.read(offset, count * 64);
    if (!table) return [];
    const view = viewOf(table);
    const nameTable = nameIndex < count ? nameIndex * 64 : undefined;
    const names =
      (nameTable !== undefined && this.#source.read(u64(view, nameTable + 24), u64(view, nameTable + 32))) ||
      new Uint8Array(0);
    return Array.from({ length: count }, (_, i) => ({
      name: stringAt(names, view.getUint32(i * 64, true)),
      type: view.getUint32(i * 64 + 4, true),
      flags: view.getUint32(i * 64 + 8, true),
      addr: view.getBigUint64(i * 64 + 16, true),
      offset: u64(view, i * 64 + 24),
      sizeBytes: u64(view, i * 64 + 32),
      link: view.getUint32(i * 64 + 40, true),
    }));
  }

  findSection(name: string): Section | undefined {
    return this.sections.find((s) => s.name === name);
  }

  /** The loaded section that contains a file address, if section headers exist. */
  findSectionAt(addr: bigint): Section | undefined {
    return this.sections.find(
      (s) => (s.flags & SHF_ALLOC) !== 0 && addr >= s.addr && addr < s.addr + BigInt(s.sizeBytes),
    );
  }

  /** The loaded segment that contains a file address. */
  findSegmentAt(addr: bigint): Segment | undefined {
    return this.segments.find(
      (s) => s.type === PT_LOAD && addr >= s.addr && addr < s.addr + BigInt(s.memBytes),
    );
  }

  /** Whether code lies at a file address: in an executable segment and, where sections are known, in a code section. */
  isCode(addr: bigint): boolean {
    if (!this.isExecutable(this.rel(addr))) return false;
    const section = this.findSectionAt(addr);
    return section === undefined ? true : (section.flags & SHF_EXECINSTR) !== 0;
  }

  /** Whether a relative address lies in an executable segment. */
  isExecutable(rel: number): boolean {
    for (const range of this.execRanges) if (rel >= range.start && rel < range.end) return true;
    return false;
  }

  /** Contents of a section as stored; undefined for NOBITS and for sections outside the file. */
  readSection(section: Section): Uint8Array | undefined {
    return section.type === SHT_NOBITS ? undefined : this.#source.read(section.offset, section.sizeBytes);
  }

  /** `lenBytes` bytes at a file address as stored in the file (before relocation); undefined if not all are. */
  readAddr(addr: bigint, lenBytes: number): Uint8Array | undefined {
    return this.readRel(this.rel(addr), lenBytes);
  }

  /** As `readAddr`, by relative address. */
  readRel(rel: number, lenBytes: number): Uint8Array | undefined {
    for (const segment of this.segments) {
      if (segment.type !== PT_LOAD) continue;
      const at = rel - this.rel(segment.addr);
      if (at < 0 || at + lenBytes > segment.fileBytes) continue;
      return this.#source.read(
        this.#inMemoryAt === undefined ? segment.offset + at : rel - this.#memoryStart,
        lenBytes,
      );
    }
    return undefined;
  }

  /** The stored bytes from a relative address to the end of its section, or of its segment without sections. */
  readRelToEnd(rel: number): Uint8Array | undefined {
    const bulk = this.#bulk;
    if (bulk && rel >= bulk.start && rel < bulk.start + bulk.bytes.length) {
      return bulk.bytes.subarray(rel - bulk.start);
    }
    const addr = this.addrOf(rel);
    const holder = this.findSectionAt(addr) ?? this.findSegmentAt(addr);
    if (!holder) return undefined;
    const lenBytes = "fileBytes" in holder ? holder.fileBytes : holder.sizeBytes;
    const start = this.rel(holder.addr);
    const bytes = this.readRel(start, lenBytes);
    if (!bytes) return undefined;
    this.#bulk = { start, bytes };
    return bytes.subarray(rel - start);
  }

  /** Entries of the dynamic segment in order; empty for a static program. */
  get dynamic(): ReadonlyArray<readonly [tag: number, value: bigint]> {
    this.#dynamic ??= this.#readDynamic();
    return this.#dynamic;
  }

  #readDynamic(): Array<readonly [number, bigint]> {
    const segment = this.segments.find((s) => s.type === PT_DYNAMIC);
    const bytes = segment && this.readAddr(segment.addr, segment.fileBytes);
    if (!bytes) return [];
    const view = viewOf(bytes);
    const entries: Array<readonly [number, bigint]> = [];
    for (let at = 0; at + 16 <= bytes.length; at += 16) {
      const tag = u64(view, at);
      if (tag === 0) break;
      entries.push([tag, view.getBigUint64(at + 8, true)]);
    }
    return entries;
  }

  findDynamic(tag: number): bigint | undefined {
    return this.dynamic.find(([t]) => t === tag)?.[1];
  }

  /** A dynamic entry that holds an address, relative; glibc's loader turns some of them into run-time addresses. */
  findDynamicRel(tag: number): number | undefined {
    const value = this.findDynamic(tag);
    if (value === undefined) return undefined;
    if (this.#inMemoryAt !== undefined && value >= this.#inMemoryAt) {
      return Number(value - this.#inMemoryAt) + this.#memoryStart;
    }
    return this.rel(value);
  }

  #dynamicString(value: bigint | undefined): string | undefined {
    if (value === undefined) return undefined;
    const strings = this.rawDynamicSymbols?.strings ?? this.#dynamicStrings();
    return strings && Number(value) < strings.length ? stringAt(strings, Number(value)) : undefined;
  }

  /** The name under which a library was linked (DT_SONAME). */
  get soname(): string | undefined {
    return this.#dynamicString(this.findDynamic(DT_SONAME));
  }

  /** Sonames of the libraries that this image asks for, in order. */
  get needed(): readonly string[] {
    return this.dynamic
      .filter(([tag]) => tag === DT_NEEDED)
      .map(([, value]) => this.#dynamicString(value))
      .filter((name) => name !== undefined);
  }

  /** Folders in which the loader looks first for what this image loads (DT_RPATH, DT_RUNPATH), as they stand in the file. */
  get searchFolders(): readonly string[] {
    return this.dynamic
      .filter(([tag]) => tag === DT_RPATH || tag === DT_RUNPATH)
      .flatMap(([, value]) => (this.#dynamicString(value) ?? "").split(":"))
      .filter((folder) => folder !== "");
  }

  /** The loader that a program asks for; undefined for static programs and most libraries. */
  get interpreter(): string | undefined {
    const segment = this.segments.find((s) => s.type === PT_INTERP);
    const bytes = segment && this.readAddr(segment.addr, segment.fileBytes);
    return bytes && stringAt(bytes, 0);
  }

  /** All notes of the loaded note segments, or of the note sections when there are no such segments. */
  get notes(): readonly ElfNote[] {
    const segments = this.segments.filter((s) => s.type === PT_NOTE);
    const blocks =
      segments.length > 0
        ? segments.map((s) => ({ bytes: this.readAddr(s.addr, s.fileBytes), alignBytes: s.alignBytes }))
        : this.sections
            .filter((s) => s.type === SHT_NOTE)
            .map((s) => ({ bytes: this.readSection(s), alignBytes: 4 }));
    return blocks.flatMap(({ bytes, alignBytes }) => (bytes ? parseNotes(bytes, alignBytes) : []));
  }

  /** The notes of one section, loaded or not. */
  readNotes(section: Section): readonly ElfNote[] {
    const bytes = this.readSection(section);
    return bytes === undefined ? [] : parseNotes(bytes, 4);
  }

  /** The build-id in hex. */
  get buildId(): string | undefined {
    this.#buildId ??= { id: this.#readBuildId() };
    return this.#buildId.id;
  }

  #readBuildId(): string | undefined {
    const note = this.notes.find((n) => n.owner === "GNU" && n.type === 3);
    return note && Array.from(note.payload, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  #rawSymbols(type: number): RawSymbols | undefined {
    const table = this.sections.find((s) => s.type === type);
    const strings = table && this.sections[table.link];
    const tableBytes = table && this.readSection(table);
    const stringBytes = strings && this.readSection(strings);
    if (!tableBytes || !stringBytes) return undefined;
    const versions = type === SHT_DYNSYM ? this.#readVersions(Math.floor(tableBytes.length / 24)) : undefined;
    return { words: wordsOf(tableBytes), strings: stringBytes, versions };
  }

  /** .symtab, where it was not stripped. */
  readStaticSymbols(): RawSymbols | undefined {
    return this.#rawSymbols(SHT_SYMTAB);
  }

  /** .dynsym, through section headers or else through the dynamic segment. Relocations index it. */
  get rawDynamicSymbols(): RawSymbols | undefined {
    this.#dynamicSymbols ??= { raw: this.#rawSymbols(SHT_DYNSYM) ?? this.#readDynamicSymbols() };
    return this.#dynamicSymbols.raw;
  }

  #dynamicStrings(): Uint8Array | undefined {
    const strings = this.findDynamicRel(DT_STRTAB);
    const stringBytes = this.findDynamic(DT_STRSZ);
    return strings === undefined || stringBytes === undefined
      ? undefined
      : this.readRel(strings, Number(stringBytes));
  }

  #readDynamicSymbols(): RawSymbols | undefined {
    const strings = this.#dynamicStrings();
    const table = this.findDynamicRel(DT_SYMTAB);
    if (!strings || table === undefined) return undefined;
    const count = this.#countDynamicSymbols();
    const bytes = count === undefined ? undefined : this.readRel(table, count * 24);
    return bytes && { words: wordsOf(bytes), strings, versions: this.#readVersions(count!) };
  }

  #readVersions(count: number): Uint16Array | undefined {
    const start = this.findDynamicRel(DT_VERSYM);
    const bytes = start === undefined ? undefined : this.readRel(start, count * 2);
    if (!bytes) return undefined;
    const view = viewOf(bytes);
    return Uint16Array.from({ length: count }, (_, i) => view.getUint16(i * 2, true));
  }

  /** The dynamic segment does not state how many symbols there are; the hash tables cover them all. */
  #countDynamicSymbols(): number | undefined {
    const sysv = this.findDynamicRel(DT_HASH);
    const sysvHead = sysv === undefined ? undefined : this.readRel(sysv, 8);
    if (sysvHead) return viewOf(sysvHead).getUint32(4, true);
    const gnu = this.findDynamicRel(DT_GNU_HASH);
    const bytes = gnu === undefined ? undefined : this.readRelToEnd(gnu);
    if (!bytes || bytes.length < 16) return undefined;
    // Header: nbuckets, first hashed symbol, bloom words (64-bit), bloom shift; then bloom, buckets, chains.
    const words = wordsOf(bytes);
    const [buckets, firstHashed, bloomWords] = [words[0]!, words[1]!, words[2]!];
    const bucketsAt = 4 + bloomWords * 2;
    const chainsAt = bucketsAt + buckets;
    let last = 0;
    for (let i = bucketsAt; i < chainsAt && i < words.length; i++) last = Math.max(last, words[i]!);
    if (last < firstHashed) return firstHashed;
    // A chain ends at the word whose lowest bit is set.
    for (let i = chainsAt + last - firstHashed; i < words.length; i++, last++) {
      if ((words[i]! & 1) === 1) return last + 1;
    }
    return undefined;
  }

  /** Function symbols of .symtab and .dynsym. */
  get symbols(): SymbolTable {
    this.#symbols ??= new SymbolTable(this);
    return this.#symbols;
  }

  /** Ranges and landing pads from .eh_frame. */
  get unwind(): UnwindTable {
    this.#unwind ??= new UnwindTable(this);
    return this.#unwind;
  }

  /** Dynamic relocations. */
  get relocations(): Relocations {
    this.#relocations ??= readRelocations(this);
    return this.#relocations;
  }

  /** Relative addresses in executable segments that static data points to, ascending without duplicates. */
  get textPointers(): Float64Array {
    this.#textPointers ??= findTextPointers(this, this.relocations, this.symbols);
    return this.#textPointers;
  }
}

function isElfMagic(bytes: Uint8Array): boolean {
  return bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
}

function parseNotes(bytes: Uint8Array, segmentAlignBytes: number): ElfNote[] {
  const align = segmentAlignBytes === 8 ? 8 : 4;
  const view = viewOf(bytes);
  const notes: ElfNote[] = [];
  for (let at = 0; at + 12 <= bytes.length; ) {
    const ownerBytes = view.getUint32(at, true);
    const payloadBytes = view.getUint32(at + 4, true);
    const payloadAt = at + roundUp(12 + ownerBytes, align);
    if (payloadAt + payloadBytes > bytes.length) break;
    notes.push({
      owner: stringAt(bytes.subarray(at + 12, at + 12 + ownerBytes), 0),
      type: view.getUint32(at + 8, true),
      payload: bytes.subarray(payloadAt, payloadAt + payloadBytes),
    });
    at = payloadAt + roundUp(payloadBytes, align);
  }
  return notes;
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}
