/** What the processor can do, as far as generated code depends on it. */
import { readFileSync } from "node:fs";
import type { LinkEnv } from "../../bpf/jit/index.ts";

/** How code finds the number of the processor that it runs on. */
export function processorSource(): LinkEnv["cpu"] {
  return /^flags\s*:.*\brdpid\b/m.test(readFileSync("/proc/cpuinfo", "latin1")) ? "rdpid" : "lsl";
}
