/**
 * An ELF file that only names code: a symbol for each piece, at the address where it is, and how to unwind out of it. For
 * debuggers, as a file or in memory.
 *
 *     header | .eh_frame | .symtab | .strtab | .shstrtab | section headers
 *
 * Sections `.text`, `.text.1` and so on have no bytes: they say where code lies, one for each stretch of memory, since a debugger
 * finds a symbol by the section of its address. Facts: ELF specification 1.2; psABI 4.
 */
export interface NamedRange {
  readonly at: bigint;
  readonly lenBytes: number;
  readonly name: string;
}

const HEADER_BYTES = 64;
const SECTION_BYTES = 64;
const SYMBOL_BYTES = 24;
const [SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS] = [1, 2, 3, 8];
const [SHF_ALLOC, SHF_EXECINSTR] = [2n, 4n];
/** Code further apart lies in stretches of its own. */
const MAX_GAP = 1n << 20n;

interface Section {
  readonly name: string;
  readonly type: number;
  readonly flags: bigint;
  readonly addr: bigint;
  readonly bytes: Uint8Array;
  /** Without bytes. */
  readonly memoryBytes?: bigint;
  readonly link?: number;
  readonly info?: number;
  readonly entryBytes?: number;
}

export function encodeSymbolFile(ranges: readonly NamedRange[], ehFrame: Uint8Array): Uint8Array {
  const sorted = [...ranges].sort((a, b) => (a.at < b.at ? -1 : 1));
  const stretches = findStretches(sorted);
  const names = new Names();
  const symbols = new Uint8Array(SYMBOL_BYTES * (sorted.length + 1));
  const view = new DataView(symbols.buffer);
  for (const [index, { at, lenBytes, name }] of sorted.entries()) {
    const base = SYMBOL_BYTES * (index + 1);
    const stretch = stretches.findIndex(({ start, end }) => at >= start && at < end);
    view.setUint32(base, names.add(name), true);
    view.setUint8(base + 4, 0x12); // global function
    view.setUint16(base + 6, stretch + 1, true);
    view.setBigUint64(base + 8, at, true);
    view.setBigUint64(base + 16, BigInt(lenBytes), true);
  }
  const texts = stretches.map(
    ({ start, end }, index): Section => ({
      name: index === 0 ? ".text" : `.text.${index}`,
      type: SHT_NOBITS!,
      flags: SHF_ALLOC! | SHF_EXECINSTR!,
      addr: start,
      bytes: new Uint8Array(0),
      memoryBytes: end - start,
    }),
  );
  const strtab = texts.length + 3;
  return encode([
    ...texts,
    // Unallocated addresses would make the debugger look for it in memory.
    { name: ".eh_frame", type: SHT_PROGBITS!, flags: SHF_ALLOC!, addr: 0n, bytes: ehFrame },
    {
      name: ".symtab",
      type: SHT_SYMTAB!,
      flags: 0n,
      addr: 0n,
      bytes: symbols,
      link: strtab,
      info: 1,
      entryBytes: SYMBOL_BYTES,
    },
    { name: ".strtab", type: SHT_STRTAB!, flags: 0n, addr: 0n, bytes: names.bytes },
  ]);
}

function findStretches(sorted: readonly NamedRange[]): { readonly start: bigint; end: bigint }[] {
  const stretches: { readonly start: bigint; end: bigint }[] = [];
  for (const { at, lenBytes } of sorted) {
    const end = at + BigInt(lenBytes);
    const last = stretches.at(-1);
    if (last === undefined || at - last.end > MAX_GAP) stretches.push({ start: at, end });
    else if (end > last.end) last.end = end;
  }
  return stretches;
}

class Names {
  readonly #parts: Uint8Array[] = [Uint8Array.of(0)];
  #lenBytes = 1;

  add(name: string): number {
    const bytes = new TextEncoder().encode(`${name}\0`);
    const at = this.#lenBytes;
    this.#parts.push(bytes);
    this.#lenBytes += bytes.length;
    return at;
  }

  get bytes(): Uint8Array {
    const all = new Uint8Array(this.#lenBytes);
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

function encode(sections: readonly Section[]): Uint8Array {
  const names = new Names();
  const nameAt = [...sections.map(({ name }) => names.add(name)), names.add(".shstrtab")];
  const all: Section[] = [
    ...sections,
    { name: ".shstrtab", type: SHT_STRTAB!, flags: 0n, addr: 0n, bytes: names.bytes },
  ];
  let at = HEADER_BYTES;
  const places = all.map(({ bytes }) => {
    const place = at;
    at = (at + bytes.length + 7) & ~7;
    return place;
  });
  const file = new Uint8Array(at + SECTION_BYTES * (all.length + 1));
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]);
  view.setUint16(16, 2, true); // ET_EXEC: addresses are what they say
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(40, BigInt(at), true);
  view.setUint16(52, HEADER_BYTES, true);
  view.setUint16(58, SECTION_BYTES, true);
  view.setUint16(60, all.length + 1, true);
  view.setUint16(62, all.length, true);
  all.forEach((section, index) => {
    const { type, flags, addr, bytes, memoryBytes, link = 0, info = 0, entryBytes = 0 } = section;
    file.set(bytes, places[index]!);
    const base = at + SECTION_BYTES * (index + 1);
    view.setUint32(base, nameAt[index]!, true);
    view.setUint32(base + 4, type, true);
    view.setBigUint64(base + 8, flags, true);
    view.setBigUint64(base + 16, addr, true);
    view.setBigUint64(base + 24, BigInt(places[index]!), true);
    view.setBigUint64(base + 32, memoryBytes ?? BigInt(bytes.length), true);
    view.setUint32(base + 40, link, true);
    view.setUint32(base + 44, info, true);
    view.setBigUint64(base + 48, 8n, true);
    view.setBigUint64(base + 56, BigInt(entryBytes), true);
  });
  return file;
}
