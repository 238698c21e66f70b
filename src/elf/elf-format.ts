/**
 * Numbers and records of the ELF format as far as this folder reads it, and the narrow view of an image that its
 * tables are built from. Source: System V gABI chapters 4 and 5, AMD64 psABI chapter 4.
 */
export const PT_LOAD = 1;
export const PT_DYNAMIC = 2;
export const PT_INTERP = 3;
export const PT_NOTE = 4;
export const PT_TLS = 7;
export const PT_GNU_EH_FRAME = 0x6474e550;

export const PF_X = 1;
export const PF_W = 2;
export const PF_R = 4;

export const SHT_SYMTAB = 2;
export const SHT_RELA = 4;
export const SHT_NOTE = 7;
export const SHT_NOBITS = 8;
export const SHT_DYNSYM = 11;
export const SHF_ALLOC = 2;
export const SHF_EXECINSTR = 4;

export const DT_NEEDED = 1;
export const DT_PLTRELSZ = 2;
export const DT_HASH = 4;
export const DT_STRTAB = 5;
export const DT_SYMTAB = 6;
export const DT_RELA = 7;
export const DT_RELASZ = 8;
export const DT_STRSZ = 10;
export const DT_INIT = 12;
export const DT_FINI = 13;
export const DT_SONAME = 14;
export const DT_RPATH = 15;
export const DT_JMPREL = 23;
export const DT_RUNPATH = 29;
export const DT_RELRSZ = 35;
export const DT_RELR = 36;
export const DT_GNU_HASH = 0x6ffffef5;
export const DT_VERSYM = 0x6ffffff0;

/** One program header. `offset` is in the file, `addr` the file address; sizes in bytes. */
export interface Segment {
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly addr: bigint;
  readonly fileBytes: number;
  readonly memBytes: number;
  readonly alignBytes: number;
}

/** One section header; `addr` is 0 for sections that are not loaded. */
export interface Section {
  readonly name: string;
  readonly type: number;
  readonly flags: number;
  readonly addr: bigint;
  readonly offset: number;
  readonly sizeBytes: number;
  readonly link: number;
}

/** One ELF note: owner ("GNU", "stapsdt"), type and payload. */
export interface ElfNote {
  readonly owner: string;
  readonly type: number;
  readonly payload: Uint8Array;
}

/** A symbol table as stored: six 32-bit words for each symbol, and its string table. */
export interface RawSymbols {
  readonly words: Uint32Array;
  readonly strings: Uint8Array;
  /** One version index for each symbol, with bit 15 set on versions that are not the default; if there are versions. */
  readonly versions: Uint16Array | undefined;
}

/** A half-open range of relative addresses. */
export interface RelRange {
  readonly start: number;
  readonly end: number;
}

/** What the tables of an image read it through; addresses are relative to the image's origin. */
export interface ImageReader {
  readonly kind: "exec" | "dyn";
  readonly entry: bigint;
  readonly origin: bigint;
  readonly segments: readonly Segment[];
  readonly sections: readonly Section[];
  readonly execRanges: readonly RelRange[];
  readonly rawDynamicSymbols: RawSymbols | undefined;
  readStaticSymbols(): RawSymbols | undefined;
  rel(addr: bigint): number;
  isExecutable(rel: number): boolean;
  findSection(name: string): Section | undefined;
  findDynamic(tag: number): bigint | undefined;
  findDynamicRel(tag: number): number | undefined;
  readSection(section: Section): Uint8Array | undefined;
  readRel(rel: number, lenBytes: number): Uint8Array | undefined;
  readRelToEnd(rel: number): Uint8Array | undefined;
}
