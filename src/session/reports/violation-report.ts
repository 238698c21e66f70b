/** Says what a program has done wrong in a target: on standard error, and with `-f json` as a line of JSON as well. */
import type { Violation } from "../attach/violations.ts";
import { signalName } from "../leave/proof.ts";
import type { RunOptions, SessionIo } from "../options.ts";
import type { Targets } from "../targets.ts";

/** The targets as a report needs them. */
export interface ViolationNames extends Pick<Targets, "describe"> {
  readonly accounts: Pick<Targets["accounts"], "nameOf">;
}

const hex = (value: bigint): string => `0x${value.toString(16)}`;

export function reportViolation(
  violation: Violation,
  targets: ViolationNames,
  options: Pick<RunOptions, "format">,
  io: SessionIo,
): void {
  const { kind, pid, tid, address, ip, program, account, point, stays } = violation;
  const signal = signalName(violation.signal);
  const probe = account === undefined ? undefined : targets.accounts.nameOf(account);
  const at = targets.describe(ip);
  if (options.format === "json") {
    const data = {
      kind,
      pid,
      tid,
      probe,
      program,
      point: point === undefined ? undefined : targets.describe(point),
      signal,
      code: violation.code,
      address: hex(address),
      ip: hex(ip),
      at,
      disarmed: stays === undefined && probe !== undefined,
    };
    io.out.write(`${JSON.stringify({ type: "violation", data })}\n`);
  }
  const whose = probe === undefined ? "code of the session" : `the program of ${probe}`;
  const where = point === undefined ? "" : `, run at ${targets.describe(point)}`;
  const end =
    probe === undefined
      ? ""
      : stays === undefined
        ? "; the probe is disarmed"
        : `; the probe stays: ${stays}`;
  io.err.write(
    `violation: process ${pid}, thread ${tid}: ${whose} raised ${signal} at ${at}, address ${hex(address)}${where}; ` +
      `it was abandoned, and the process went on${end}\n`,
  );
}
