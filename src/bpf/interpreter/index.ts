/** Reference execution of eBPF programs. */
export type {
  HelperHost,
  LookupMapAccess,
  MapAccess,
  ProgramMapAccess,
  RingMapAccess,
  SharedWords,
} from "./host.ts";
export { type InterpreterInput, type InterpreterResult, interpret } from "./interpreter.ts";
