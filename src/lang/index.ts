/** The language: scripts to BPF programs, and the bytes that these leave back to values. */
export type { AttachPoint, UserAttachPoint } from "./attach-point.ts";
export { type CompileOptions, type CompileResult, compileScript } from "./compile.ts";
export {
  type DecodedMapValue,
  type DecodedValue,
  decodeEventId,
  decodeFields,
  decodeJoin,
  decodeKey,
  decodeMapValue,
  decodeValue,
  zeroedMapValue,
} from "./decode.ts";
export { type Diagnostic, printDiagnostic, printDiagnostics, type Severity } from "./diagnostics.ts";
export type { Conversion, FormatPart } from "./format.ts";
export type {
  EventField,
  MapValue,
  Script,
  ScriptEvent,
  ScriptMap,
  ScriptProbe,
  ShardedValue,
} from "./script.ts";
export type { Span, TextPlace } from "./source.ts";
export type { AggregateName } from "./types.ts";
export type { ValueType } from "./value-type.ts";
