/**
 * The world of programs that run in the tracer itself: BEGIN, END and intervals. They see the tracer's own time,
 * processor, process and thread; its memory cannot be read.
 */
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import type { HelperHost } from "../bpf/index.ts";
import {
  CLOCK_BOOTTIME,
  CLOCK_MONOTONIC_COARSE,
  CLOCK_TAI,
  clockNs,
  clockTickNs,
} from "../target/process/clocks.ts";

export const tracerHost: HelperHost = {
  // hrtime is CLOCK_MONOTONIC, as in a target.
  ktimeGetNs: () => process.hrtime.bigint(),
  clockNs: (clock) => clockNs(clockIds[clock]),
  jiffies: () => {
    // As the generated code does it: the coarse clock in ticks, and where the kernel began to count.
    const tickNs = clockTickNs();
    const began = BigInt.asUintN(32, -300n * (1_000_000_000n / tickNs));
    return clockNs(CLOCK_MONOTONIC_COARSE) / tickNs + began;
  },
  numaNode: () => nodeOf(currentCpu()),
  prandomU32: () => randomBytes(4).readUInt32LE(0),
  cpu: () => currentCpu(),
  pidTgid: () => (BigInt(process.pid) << 32n) | BigInt(process.pid),
  uidGid: () => (BigInt(process.getgid?.() ?? 0) << 32n) | BigInt(process.getuid?.() ?? 0),
  comm: () => readFileSync("/proc/self/comm").subarray(0, -1),
  readUser: () => false,
};

const clockIds = { boot: CLOCK_BOOTTIME, coarse: CLOCK_MONOTONIC_COARSE, tai: CLOCK_TAI };

/** The memory node of a processor: a link beside it; 0 where the kernel has no nodes. */
function nodeOf(cpu: number): number {
  try {
    const link = readdirSync(`/sys/devices/system/cpu/cpu${cpu}`).find((name) => /^node\d+$/.test(name));
    return link === undefined ? 0 : Number(link.slice("node".length));
  } catch {
    return 0;
  }
}

/** The processor that the main thread last ran on: field 39 of /proc/self/stat. */
function currentCpu(): number {
  const stat = readFileSync("/proc/self/stat", "latin1");
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[36] ?? 0);
}
