/**
 * What bpf_trace_printk and bpf_trace_vprintk leave in the ring buffer `Bundle.printk`: the format and its arguments as
 * they were at the hit. The text is made when the record is read.
 *
 *     0   u32 process id       4  u32 thread id
 *     8   u32 processor       12  u16 bytes of the format    14  u16 number of arguments
 *     16  u64 nanoseconds of the monotonic clock
 *     24  u64 argument 0 .. n - 1
 *         the format, without its NUL
 *         for each string or IP address that the format prints, in order: u16 length, bytes
 *
 * A record that does not fit its cell is cut: the format, or the strings from some point on. It comes from memory that
 * the traced process can write: the reader believes no length in it.
 */
import {
  FORMAT_STRING_BYTES,
  type FormatMemory,
  formatSpecs,
  MAX_FORMAT_ARGS,
  parseFormat,
  printFormat,
} from "./print-format.ts";

/** Enough for long lines with strings: the `valueBytes` of the ring buffer. */
export const PRINTK_RECORD_BYTES = 1024;
/** Arguments of bpf_trace_printk. */
export const PRINTK_ARGS = 3;

export const PRINTK_PID = 0;
export const PRINTK_TID = 4;
export const PRINTK_CPU = 8;
export const PRINTK_FORMAT_BYTES = 12;
export const PRINTK_ARG_COUNT = 14;
export const PRINTK_TIME = 16;
export const PRINTK_BODY = 24;
/** Bytes of the length before a string. */
export const PRINTK_LENGTH_BYTES = 2;

/** Why the kernel would refuse a format, or undefined. `argCount` is how many arguments there are, if that is known. */
export function checkFormat(text: Uint8Array | string, argCount = MAX_FORMAT_ARGS): string | undefined {
  const parts = parseFormat(typeof text === "string" ? new TextEncoder().encode(text) : text);
  if (parts === undefined || formatSpecs(parts).length > argCount) return "Invalid format string";
  return undefined;
}

/** A record as it was read. */
export interface PrintkRecord {
  readonly pid: number;
  readonly tid: number;
  readonly cpu: number;
  readonly timeNs: bigint;
  /** What the kernel would have printed. */
  readonly text: string;
}

/** The text of a record. */
export function formatPrintk(record: Uint8Array): string {
  return decodePrintk(record).text;
}

export function decodePrintk(record: Uint8Array): PrintkRecord {
  const bytes = new Uint8Array(Math.max(record.length, PRINTK_BODY));
  bytes.set(record);
  const view = new DataView(bytes.buffer);
  return {
    pid: view.getUint32(PRINTK_PID, true),
    tid: view.getUint32(PRINTK_TID, true),
    cpu: view.getUint32(PRINTK_CPU, true),
    timeNs: view.getBigUint64(PRINTK_TIME, true),
    text: textOf(bytes, view),
  };
}

function textOf(bytes: Uint8Array, view: DataView): string {
  const argCount = Math.min(
    view.getUint16(PRINTK_ARG_COUNT, true),
    MAX_FORMAT_ARGS,
    Math.floor((bytes.length - PRINTK_BODY) / 8),
  );
  const args = Array.from({ length: argCount }, (_, i) => view.getBigUint64(PRINTK_BODY + 8 * i, true));
  const formatAt = PRINTK_BODY + 8 * argCount;
  const format = bytes.subarray(formatAt, formatAt + view.getUint16(PRINTK_FORMAT_BYTES, true));
  const parts = parseFormat(format);
  if (parts === undefined || formatSpecs(parts).length > argCount)
    return `(invalid format ${JSON.stringify(decode(format))})`;

  let at = formatAt + format.length;
  const next = () => {
    if (at + PRINTK_LENGTH_BYTES > bytes.length) return new Uint8Array(0);
    const from = at + PRINTK_LENGTH_BYTES;
    at = Math.min(bytes.length, from + view.getUint16(at, true));
    return bytes.subarray(from, at);
  };
  const memory: FormatMemory = {
    string: () => next(),
    bytes: (_addr, lenBytes) => {
      const found = next();
      return found.length === lenBytes ? found : undefined;
    },
  };
  return decode(printFormat(parts, args, memory));
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

export interface PrintkInput {
  readonly pidTgid: bigint;
  readonly cpu: number;
  readonly timeNs: bigint;
  /** Without its NUL. */
  readonly format: Uint8Array;
  readonly args: readonly bigint[];
  /** For strings, at most so many bytes with their NUL are of use. */
  readonly memory: FormatMemory;
  /** Bytes that the record may have. */
  readonly limitBytes: number;
}

/** A record as the JIT's routine writes it. */
export function encodePrintk(input: PrintkInput): Uint8Array {
  const { args, limitBytes } = input;
  const bytes = new Uint8Array(limitBytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(PRINTK_PID, Number(input.pidTgid >> 32n), true);
  view.setUint32(PRINTK_TID, Number(input.pidTgid & 0xffff_ffffn), true);
  view.setUint32(PRINTK_CPU, input.cpu, true);
  view.setUint16(PRINTK_ARG_COUNT, args.length, true);
  view.setBigUint64(PRINTK_TIME, input.timeNs, true);
  for (const [i, arg] of args.entries()) view.setBigUint64(PRINTK_BODY + 8 * i, arg, true);
  const formatAt = PRINTK_BODY + 8 * args.length;
  const format = input.format.subarray(0, limitBytes - formatAt);
  view.setUint16(PRINTK_FORMAT_BYTES, format.length, true);
  bytes.set(format, formatAt);
  let at = formatAt + format.length;
  for (const { lenBytes, index } of pointedTo(format)) {
    const room = limitBytes - at - PRINTK_LENGTH_BYTES;
    if (index >= args.length || room <= 0) break;
    const from = at + PRINTK_LENGTH_BYTES;
    let found: Uint8Array;
    if (lenBytes === undefined) {
      const most = Math.min(room, FORMAT_STRING_BYTES) - 1;
      found = input.memory.string(args[index]!, index).subarray(0, most);
    } else {
      if (room < lenBytes) break;
      found = input.memory.bytes(args[index]!, lenBytes, index) ?? new Uint8Array(0);
    }
    view.setUint16(at, found.length, true);
    bytes.set(found, from);
    at = from + found.length;
  }
  return bytes.subarray(0, at);
}

/**
 * The arguments of a format whose memory is read at the hit: strings (`lenBytes` undefined) and IP addresses. Finds
 * them as the routine does, which does not judge the format: for one that is right, they are those of `parseFormat`.
 */
function pointedTo(format: Uint8Array): { readonly index: number; readonly lenBytes: number | undefined }[] {
  const found: { index: number; lenBytes: number | undefined }[] = [];
  const text = String.fromCharCode(...format);
  let index = 0;
  for (const match of text.matchAll(/%(?:%|[0-9 +-]*(s|p[ku]s|p[iI]4|p[iI]6)?)/g)) {
    if (match[0] === "%%") continue;
    const kind = match[1];
    if (kind !== undefined)
      found.push({ index, lenBytes: kind.endsWith("4") ? 4 : kind.endsWith("6") ? 16 : undefined });
    index++;
  }
  return found;
}
