/** Addresses of data by name: symbol tables that are searched for functions leave it out. */
import type { ElfFile } from "./elf-file.ts";

const SYMBOL_BYTES = 24;
const OBJECT = 1;

/** File addresses of all objects (STT_OBJECT) with exactly this name. */
export function findDataSymbols(elf: ElfFile, name: string): bigint[] {
  const found = new Set<bigint>();
  const wanted = new TextEncoder().encode(`${name}\0`);
  for (const tableName of [".symtab", ".dynsym"]) {
    const table = elf.findSection(tableName);
    const strings = table && elf.sections[table.link];
    const symbols = table && elf.readSection(table);
    const names = strings && elf.readSection(strings);
    if (symbols === undefined || names === undefined) continue;
    const view = new DataView(symbols.buffer, symbols.byteOffset, symbols.byteLength);
    for (let at = 0; at + SYMBOL_BYTES <= symbols.length; at += SYMBOL_BYTES) {
      if ((symbols[at + 4]! & 15) !== OBJECT || view.getUint16(at + 6, true) === 0) continue;
      const start = view.getUint32(at, true);
      if (wanted.every((byte, index) => names[start + index] === byte))
        found.add(view.getBigUint64(at + 8, true));
    }
  }
  return [...found];
}
