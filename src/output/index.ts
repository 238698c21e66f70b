/** Printing: what programs send and maps hold, for people and for programs. */
export { createJsonOutput } from "./json-output.ts";
export type { Output, PrintMapOptions, Sink } from "./output.ts";
export { type FormatConversion, type FormatPart, formatPrintf } from "./printf.ts";
export { createTextOutput } from "./text-output.ts";
export { DEFAULT_TIME_FORMAT, formatTime } from "./time-format.ts";
export { topEntries } from "./top-entries.ts";
export {
  byteString,
  encodeText,
  type LinearHistogram,
  type Log2Histogram,
  type MapEntry,
  type MapValue,
  type MapView,
  type OutputValue,
} from "./value.ts";
export { printValue } from "./value-text.ts";
