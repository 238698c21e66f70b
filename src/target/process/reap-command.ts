/** Collecting the exit status of a command that this tracer has started. */
import { waitpidRaw } from "./libc.ts";

const WNOHANG = 1;

/**
 * The exit code of a command that has ended, as a shell gives it (128 and the signal's number for a command that was
 * killed); undefined while it runs.
 */
export function reapCommand(pid: number): number | undefined {
  const status = new Int32Array(1);
  if (waitpidRaw(pid, status, WNOHANG) !== pid) return undefined;
  const word = status[0]!;
  const signal = word & 0x7f;
  return signal === 0 ? (word >> 8) & 0xff : 128 + signal;
}
