/**
 * The world of programs that run in the tracer itself: BEGIN, END and intervals. They see the tracer's own time,
 * processor, process and thread; its memory cannot be read.
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import type { HelperHost } from "../bpf/index.ts";

export const tracerHost: HelperHost = {
  // hrtime is CLOCK_MONOTONIC, as in a target.
  ktimeGetNs: () => process.hrtime.bigint(),
  prandomU32: () => randomBytes(4).readUInt32LE(0),
  cpu: () => currentCpu(),
  pidTgid: () => (BigInt(process.pid) << 32n) | BigInt(process.pid),
  uidGid: () => (BigInt(process.getgid?.() ?? 0) << 32n) | BigInt(process.getuid?.() ?? 0),
  comm: () => readFileSync("/proc/self/comm").subarray(0, -1),
  readUser: () => false,
};

/** The processor that the main thread last ran on: field 39 of /proc/self/stat. */
function currentCpu(): number {
  const stat = readFileSync("/proc/self/stat", "latin1");
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[36] ?? 0);
}
