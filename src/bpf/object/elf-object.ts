/**
 * The sections, symbols and relocations of a relocatable ELF64 file for BPF (machine 247), as clang writes it. It knows
 * nothing of programs and segments: `src/elf` reads those, and BPF imports nothing of it.
 *
 * Field offsets are those of the System V ABI, chapter 4 (ELF64).
 */
import { ByteReader } from "./byte-reader.ts";
import { fail } from "./object-error.ts";

export const SHT_PROGBITS = 1;
export const SHT_NOBITS = 8;
const SHT_SYMTAB = 2;
const SHT_REL = 9;
const SHF_EXECINSTR = 4;
const SHN_XINDEX = 0xffff;

const EM_BPF = 247;
const ET_REL = 1;
const SECTION_HEADER_BYTES = 64;
const SYMBOL_BYTES = 24;
const REL_BYTES = 16;
/** A section without bytes of its own is memory that we will have to provide. */
const MAX_NOBITS = 1 << 28;

export interface Section {
  readonly index: number;
  readonly name: string;
  readonly type: number;
  readonly isCode: boolean;
  readonly sizeBytes: number;
  /** Empty for a section that has no bytes in the file. */
  readonly data: ByteReader;
}

export type SymbolKind = "none" | "object" | "function" | "section" | "other";

export interface ObjectSymbol {
  readonly name: string;
  readonly kind: SymbolKind;
  readonly isLocal: boolean;
  readonly isWeak: boolean;
  /** Index of its section; 0: it is defined elsewhere. */
  readonly section: number;
  /** Offset in the section. */
  readonly value: number;
  readonly sizeBytes: number;
}

/** A place in a section that names a symbol. */
export interface Relocation {
  readonly offset: number;
  readonly type: number;
  readonly symbol: ObjectSymbol;
}

export interface ElfObject {
  readonly sections: readonly Section[];
  readonly symbols: readonly ObjectSymbol[];
  /** By index of the section that they change, in the order of offsets. */
  readonly relocations: ReadonlyMap<number, readonly Relocation[]>;
}

const symbolKinds: readonly SymbolKind[] = ["none", "object", "function", "section"];

/** Throws ObjectError for anything else than a BPF object. */
export function readElfObject(bytes: Uint8Array): ElfObject {
  const file = new ByteReader(bytes, "file");
  if (bytes.length < 64 || file.u32(0) !== 0x464c457f) fail("it is no ELF file");
  if (file.u8(4) !== 2 || file.u8(5) !== 1)
    fail("it is no little-endian 64-bit ELF file (clang -target bpf)");
  if (file.u16(18) !== EM_BPF) fail(`it is for machine ${file.u16(18)}, not for BPF (clang -target bpf)`);
  if (file.u16(16) !== ET_REL) fail("it is no relocatable file (clang -c)");

  const headersAt = file.u64(40);
  const headerBytes = file.u16(58);
  const count = file.u16(60);
  const namesIndex = file.u16(62);
  if (headerBytes !== SECTION_HEADER_BYTES) fail(`its section headers have ${headerBytes} bytes`);
  const headers = Array.from({ length: count }, (_, index) =>
    file.part(headersAt + index * headerBytes, headerBytes, `section header ${index}`),
  );
  const dataOf = (header: ByteReader, what: string) =>
    header.u32(4) === SHT_NOBITS
      ? new ByteReader(new Uint8Array(0), what)
      : file.part(header.u64(24), header.u64(32), what);
  const namesHeader =
    headers[namesIndex] ?? fail(`it has no section ${namesIndex} for the names of sections`);
  const names = dataOf(namesHeader, "names of sections");
  const sections = headers.map((header, index): Section => {
    // The first header is not used, and its fields mean other things.
    const isNull = index === 0;
    const name = isNull ? "" : names.string(header.u32(0));
    const sizeBytes = isNull ? 0 : header.u64(32);
    if (header.u32(4) === SHT_NOBITS && sizeBytes > MAX_NOBITS)
      fail(`section ${name}: ${sizeBytes} bytes are too many`);
    return {
      index,
      name,
      type: isNull ? 0 : header.u32(4),
      isCode: !isNull && (header.u64(8) & SHF_EXECINSTR) !== 0,
      sizeBytes,
      data: isNull ? new ByteReader(new Uint8Array(0), "") : dataOf(header, `section ${name}`),
    };
  });

  const symbolIndex = sections.findIndex(({ type }) => type === SHT_SYMTAB);
  if (symbolIndex < 0) fail("it has no symbols");
  const symbolNames = sections[headers[symbolIndex]!.u32(40)] ?? fail("its symbols have no names");
  const symbols = readSymbols(sections[symbolIndex]!.data, symbolNames.data, sections);
  const relocations = new Map<number, Relocation[]>();
  for (const { index, type, name, data } of sections) {
    if (type !== SHT_REL) continue;
    const target = headers[index]!.u32(44);
    if (sections[target] === undefined)
      fail(`section ${name}: there is no section ${target} that it changes`);
    relocations.set(target, readRelocations(data, symbols, name));
  }
  return { sections, symbols, relocations };
}

function readSymbols(data: ByteReader, names: ByteReader, sections: readonly Section[]): ObjectSymbol[] {
  const STB_LOCAL = 0;
  const STB_WEAK = 2;
  return Array.from({ length: Math.floor(data.length / SYMBOL_BYTES) }, (_, i) => {
    const at = i * SYMBOL_BYTES;
    const info = data.u8(at + 4);
    const section = data.u16(at + 6);
    if (section === SHN_XINDEX) fail("it has more than 65,000 sections");
    return {
      name: names.string(data.u32(at)) || (sections[section]?.name ?? ""),
      kind: symbolKinds[info & 15] ?? "other",
      isLocal: info >> 4 === STB_LOCAL,
      isWeak: info >> 4 === STB_WEAK,
      section,
      value: data.u64(at + 8),
      sizeBytes: data.u64(at + 16),
    };
  });
}

function readRelocations(data: ByteReader, symbols: readonly ObjectSymbol[], name: string): Relocation[] {
  const list = Array.from({ length: Math.floor(data.length / REL_BYTES) }, (_, i) => {
    const at = i * REL_BYTES;
    const index = data.u32(at + 12);
    const symbol =
      symbols[index] ?? fail(`section ${name}: entry ${i} names symbol ${index}, which is not there`);
    return { offset: data.u64(at), type: data.u32(at + 8), symbol };
  });
  return list.sort((a, b) => a.offset - b.offset);
}
