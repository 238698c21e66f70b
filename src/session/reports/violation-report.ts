/**
 * Says what has gone wrong in a target: on standard error, and with `-f json` as a line of JSON as well. A fault of a program is
 * `{"type": "violation", "data": {"kind": "fault", ...}}`, an access of the application to our memory has the kind "access".
 */
import type { ProgramFault, StrayAccess, Violation, ViolationTotals } from "../attach/violations.ts";
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
  const { kind, pid, tid, address, ip } = violation;
  const at = targets.describe(ip);
  const facts = violation.kind === "fault" ? faultFacts(violation, targets) : accessFacts(violation);
  if (options.format === "json") {
    const data = { kind, pid, tid, address: hex(address), ip: hex(ip), at, ...facts };
    io.out.write(`${JSON.stringify({ type: "violation", data })}\n`);
  }
  io.err.write(`violation: ${violationText(violation, targets)}\n`);
}

/** What has happened, for people. */
export function violationText(violation: Violation, targets: ViolationNames): string {
  const at = targets.describe(violation.ip);
  const text = violation.kind === "fault" ? faultText(violation, targets, at) : accessText(violation, at);
  return `process ${violation.pid}, thread ${violation.tid}: ${text}`;
}

/** What there was in all of what has been reported once; one line for each instruction that did it again. */
export function reportTotals(
  totals: readonly ViolationTotals[],
  targets: ViolationNames,
  options: Pick<RunOptions, "format">,
  io: SessionIo,
): void {
  for (const { pid, accesses, unknown } of options.format === "json" ? totals : []) {
    const counts = accesses.map(({ ip, count }) => ({ ip: hex(ip), at: targets.describe(ip), count }));
    const data = { pid, accesses: counts, untold: unknown };
    io.out.write(`${JSON.stringify({ type: "violations", data })}\n`);
  }
  for (const text of totalsTexts(totals, targets)) io.err.write(`violation: ${text}\n`);
}

export function totalsTexts(totals: readonly ViolationTotals[], targets: ViolationNames): string[] {
  return totals.flatMap(({ pid, accesses, unknown }) => [
    ...accesses
      .filter(({ count }) => count > 1)
      .map(({ ip, count }) => `process ${pid}: ${count} accesses in all at ${targets.describe(ip)}`),
    ...(unknown === 0 ? [] : [`process ${pid}: ${unknown} more, of which there was no room to tell`]),
  ]);
}

function faultFacts({ account, program, point, signal, code, stays }: ProgramFault, targets: ViolationNames) {
  const probe = account === undefined ? undefined : targets.accounts.nameOf(account);
  return {
    probe,
    program,
    point: point === undefined ? undefined : targets.describe(point),
    signal: signalName(signal),
    code,
    disarmed: stays === undefined && probe !== undefined,
  };
}

function faultText(fault: ProgramFault, targets: ViolationNames, at: string): string {
  const { probe, point, signal, disarmed } = faultFacts(fault, targets);
  const whose = probe === undefined ? "code of the session" : `the program of ${probe}`;
  const where = point === undefined ? "" : `, run at ${point}`;
  const end = disarmed
    ? "; the probe is disarmed"
    : probe === undefined
      ? ""
      : `; the probe stays: ${fault.stays}`;
  return (
    `${whose} raised ${signal} at ${at}, address ${hex(fault.address)}${where}; ` +
    `it was abandoned, and the process went on${end}`
  );
}

const accessFacts = ({ access, memory, key, outcome, why }: StrayAccess) => ({
  access,
  memory,
  key,
  outcome,
  why,
});

const outcomes = {
  kill: "it is a fault, as if nothing were mapped there",
  skip: "the instruction was left out",
  report: "it was let through",
} as const;

function accessText({ access, address, memory, key, outcome, why }: StrayAccess, at: string): string {
  const what = memory === undefined ? "" : `, ${memory}`;
  return (
    `${access} of ${hex(address)}${what} of this tracer, under protection key ${key}, at ${at}; ` +
    `${outcomes[outcome]}${why === undefined ? "" : `: ${why}`}`
  );
}
