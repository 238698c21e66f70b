/** Object files of programs in the style of libbpf, as clang compiles them. */
export {
  type AttachTarget,
  parseUsdtPlace,
  parseUserPlace,
  printUsdtPlace,
  printUserPlace,
  type UsdtPlace,
  type UserPlace,
} from "./attach-target.ts";
export type { Btf } from "./btf.ts";
export type { SourceLine } from "./btf-ext.ts";
export { type BtfValue, btfValueJson, decodeBtfValue, printBtfValue, printHex } from "./btf-value.ts";
export type { MapSlot, ObjectMap, ObjectVariable } from "./object-maps.ts";
export { type BpfObject, type ObjectProgram, type ObjectResult, readObject } from "./read-object.ts";
export { findRecordType } from "./record-type.ts";
export { fitRing } from "./ring-size.ts";
