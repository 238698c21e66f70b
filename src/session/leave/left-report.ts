/** What could not be put back at the end of a run, and what could not be counted, on standard error. */
import type { SessionIo } from "../options.ts";
import type { LeftTarget } from "../targets.ts";

const detachLater = (pid: number) => `take the probes out later with: trapline detach -p ${pid}`;

/** Returns the exit code: 1 if something that another tool has patched was left alone. */
export function reportLeft(left: readonly LeftTarget[], io: SessionIo): number {
  let code = 0;
  for (const { pid, report, failure } of left) {
    if (failure !== undefined) {
      code = 1;
      io.err.write(`trapline: restore process ${pid}: ${failure}\nhint: ${detachLater(pid)}\n`);
    }
    if (report === undefined) continue;
    for (const each of report.damage) io.err.write(`trapline: restore process ${pid}: ${each}\n`);
    for (const at of report.foreign) {
      code = 1;
      io.err.write(
        `trapline: restore process ${pid}: 0x${at.toString(16)}: another tool has patched it; left alone\n`,
      );
    }
    if (report.occupants.length > 0)
      io.err.write(
        `trapline: restore process ${pid}: the text is restored, but thread ${report.occupants[0]!.tid} is still in our code; ` +
          `free it later with: trapline detach -p ${pid}\n`,
      );
  }
  return code;
}

export function reportMissedReturns(missed: bigint, io: SessionIo): void {
  if (missed > 0n)
    io.err.write(
      `missed ${missed} returns: too many calls were active at once; allow more with --maxactive\n`,
    );
}
