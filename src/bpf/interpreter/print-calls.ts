/** bpf_snprintf and printk as the interpreter does them. */
import { u64 } from "../alu.ts";
import { EINVAL } from "../error-numbers.ts";
import { MAX_CPU } from "../helpers.ts";
import {
  FORMAT_STRING_BYTES,
  type FormatMemory,
  formatSpecs,
  MAX_FORMAT_ARGS,
  parseFormat,
  printFormat,
} from "../print-format.ts";
import { encodePrintk, PRINTK_ARGS, PRINTK_RECORD_BYTES } from "../printk.ts";
import { bytesAt, copyIn, type HelperWorld, textAt } from "./helper-world.ts";
import { readMemory, readString } from "./memory-reads.ts";

const INVALID = u64(BigInt(EINVAL));
const EBUSY = u64(-16n);

/** bpf_snprintf; r0. */
export function snprintf(world: HelperWorld, args: readonly bigint[]): bigint {
  const [to = 0n, size = 0n, format = 0n, data = 0n, lenBytes = 0n] = args;
  const parts = parseFormat(textAt(world, format));
  const values = argumentsAt(world, data, lenBytes);
  if (parts === undefined || values === undefined || formatSpecs(parts).length > values.length)
    return INVALID;
  const text = printFormat(parts, values, memoryOf(world));
  const into = bytesAt(world, to, size);
  if (into.length > 0) {
    const kept = text.subarray(0, into.length - 1);
    into.set(kept);
    into[kept.length] = 0;
  }
  return BigInt(text.length + 1);
}

/** bpf_trace_printk; r0. */
export function tracePrintk(world: HelperWorld, args: readonly bigint[]): bigint {
  const [format = 0n, size = 0n, ...values] = args;
  return printk(world, copyIn(world, format, Number(size)), values.slice(0, PRINTK_ARGS));
}

/** bpf_trace_vprintk; r0. */
export function traceVprintk(world: HelperWorld, args: readonly bigint[]): bigint {
  const [format = 0n, size = 0n, data = 0n, lenBytes = 0n] = args;
  const values = argumentsAt(world, data, lenBytes);
  return values === undefined ? INVALID : printk(world, copyIn(world, format, Number(size)), values);
}

/** Sends a record; the length of the format, which is judged by whoever prints the record. */
function printk(world: HelperWorld, format: Uint8Array, args: readonly bigint[]): bigint {
  const { host, printk: ring } = world;
  const length = format.indexOf(0);
  if (length < 0) return INVALID;
  if (ring === undefined) return BigInt(length);
  const record = encodePrintk({
    pidTgid: host.pidTgid(),
    cpu: host.cpu() & MAX_CPU,
    timeNs: host.ktimeGetNs(),
    format: format.subarray(0, length),
    args,
    memory: memoryOf(world),
    limitBytes: ring.spec.valueBytes === 0 ? PRINTK_RECORD_BYTES : ring.spec.valueBytes,
  });
  const offset = ring.reserve(record.length);
  if (offset === undefined) return EBUSY;
  ring.memory.bytes.set(record, offset);
  ring.submit(offset, 0n);
  return BigInt(length);
}

/** 64-bit arguments in memory; undefined: too many, or not whole ones. */
function argumentsAt(world: HelperWorld, addr: bigint, lenBytes: bigint): bigint[] | undefined {
  if (lenBytes % 8n !== 0n || lenBytes > BigInt(8 * MAX_FORMAT_ARGS)) return undefined;
  if (lenBytes === 0n) return [];
  const bytes = copyIn(world, addr, Number(lenBytes));
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 8 }, (_, i) => view.getBigUint64(8 * i, true));
}

function memoryOf(world: HelperWorld): FormatMemory {
  return {
    string(addr) {
      const bytes = new Uint8Array(FORMAT_STRING_BYTES);
      return bytes.subarray(0, Math.max(0, readString(world, addr, bytes) - 1));
    },
    bytes(addr, lenBytes) {
      const bytes = new Uint8Array(lenBytes);
      return readMemory(world, addr, bytes) ? bytes : undefined;
    },
  };
}
