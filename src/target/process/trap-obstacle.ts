/**
 * Threads that an `int3` would kill: the kernel cannot deliver a SIGTRAP that is blocked, whatever handler there is, and ends
 * the process instead.
 */
import { readFileSync } from "node:fs";
import { Freeze } from "./freeze.ts";
import { usleep } from "./libc.ts";
import { hasSignal, readStatus } from "./proc-fs.ts";
import * as ptrace from "./ptrace.ts";

/** How long a thread may block SIGTRAP before it counts: glibc blocks all signals while it starts or forks something. */
export const BLOCKED_FOR_MS = 100;
/** And one that would like to run, but has not had so much of a processor: on a busy machine threads start slowly. */
const STARVED_FOR_MS = 3000;
const RUN_FOR_NS = 10_000_000;

/** Why an `int3` would kill the process: a thread that blocks SIGTRAP dies of it whatever handler there is. */
export function findTrapObstacle(
  pid: number,
): { readonly kind: "sigtrap-blocked"; readonly tid: number } | undefined {
  const start = performance.now();
  for (const tid of Freeze.listThreads(pid)) {
    let ranBefore: number | undefined;
    while (blocksTraps(pid, tid)) {
      const ran = runTimeNs(pid, tid);
      ranBefore ??= ran;
      const waited = performance.now() - start;
      const isStarved = ran - ranBefore < RUN_FOR_NS && waited < STARVED_FOR_MS && isRunnable(pid, tid);
      if (waited > BLOCKED_FOR_MS && !isStarved) return { kind: "sigtrap-blocked", tid };
      usleep(1000);
    }
  }
  return undefined;
}

/** Time that a thread has had on processors (Documentation/scheduler/sched-stats.rst); without such figures, endless. */
function runTimeNs(pid: number, tid: number): number {
  try {
    return Number.parseInt(readFileSync(`/proc/${pid}/task/${tid}/schedstat`, "latin1"), 10);
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

function isRunnable(pid: number, tid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/task/${tid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).startsWith("R");
  } catch {
    return false;
  }
}

function blocksTraps(pid: number, tid: number): boolean {
  try {
    const { state, signals } = readStatus(pid, tid);
    return state !== "Z" && state !== "X" && hasSignal(signals.blocked, ptrace.SIGTRAP);
  } catch {
    // It has ended.
    return false;
  }
}
