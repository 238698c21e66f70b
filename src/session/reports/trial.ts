/**
 * The proof that probing works here: a command of our own is started stopped, memory is mapped in it by a borrowed
 * thread, and a byte of its code is written with the value that it has, in a real transaction. Then it runs to its end.
 */
import { closeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { killRaw } from "../../target/process/libc.ts";
import { AT_ENTRY, readAuxv } from "../../target/process/proc-fs.ts";
import { reapCommand } from "../../target/process/reap-command.ts";
import { startStopped } from "../../target/process/start-command.ts";
import { JOURNAL_MEMORY_NAME, TracedProcess } from "../../target/process/traced-process.ts";

const SIGKILL = 9;
const END_TIMEOUT_MS = 2000;

export type TrialResult = { readonly kind: "worked" } | { readonly kind: "failed"; readonly why: string };

export async function tryProbing(): Promise<TrialResult> {
  let pid: number | undefined;
  try {
    const started = startStopped(["true"], process.env);
    pid = started.pid;
    const traced = TracedProcess.adopt(pid, started.freeze);
    try {
      closeSync(traced.createShared(JOURNAL_MEMORY_NAME, 4096).fd);
      const entry = readAuxv(pid).get(AT_ENTRY)!;
      const code = traced.read(entry, 1);
      const report = traced.commit({
        sites: [{ at: entry, expect: code, write: code, fallback: undefined, moves: [] }],
        moves: [],
        trapSites: [],
        returnTables: [],
        vacate: [],
        usesTraps: true,
        finalCalls: [],
      });
      if (report.kind === "refused") return { kind: "failed", why: report.reason.kind };
      traced.release();
      const exitCode = await waitForEnd(pid);
      if (exitCode !== 0) return { kind: "failed", why: `the command ended with ${exitCode ?? "nothing"}` };
      pid = undefined;
      return { kind: "worked" };
    } finally {
      traced.close();
    }
  } catch (error) {
    return { kind: "failed", why: error instanceof Error ? error.message : String(error) };
  } finally {
    if (pid !== undefined) {
      killRaw(pid, SIGKILL);
      reapCommand(pid);
    }
  }
}

async function waitForEnd(pid: number): Promise<number | undefined> {
  for (let waitedMs = 0; waitedMs < END_TIMEOUT_MS; waitedMs += 5) {
    const exitCode = reapCommand(pid);
    if (exitCode !== undefined) return exitCode;
    await sleep(5);
  }
  return undefined;
}
