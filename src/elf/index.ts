export { type ByteSource, byteSourceOf } from "./byte-source.ts";
export { type CodeImage, codeImageOf, type ImageFunction } from "./code-image.ts";
export { ElfError, type ElfErrorReason } from "./elf-error.ts";
export { ElfFile, type ParseElfOptions, parseElf } from "./elf-file.ts";
export type { ElfNote, Section, Segment } from "./elf-format.ts";
export { Glob, isGlob } from "./glob.ts";
export {
  describePlaceRefusal,
  type FileLocation,
  findPlace,
  type Place,
  type PlaceMatches,
  type PlaceRefusal,
} from "./location.ts";
export { editDistance, nearestNames } from "./nearest-names.ts";
export type { ElfSymbol, SymbolKind, SymbolTable } from "./symbol-table.ts";
export { findUsdtProbes, type UsdtProbe } from "./usdt-probes.ts";
