/** A program of a session whose machine code is wrong, in a process that looks whether it is as before (fixtures/faulting.c). */
import { expect } from "vitest";
import { accountingOf } from "./accounting.ts";
import { buildFixture } from "./fixtures.ts";
import { ProgramCode } from "./program-code.ts";
import { hasProtectionKeys } from "./protection-keys.ts";
import { Tracing, type TracingResult } from "./tracing.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export const THREADS = 2;
/** An emulated processor takes longer for each. */
export const ROUNDS = hasProtectionKeys ? 1_000 : 10_000;
export const PASSED = THREADS * ROUNDS;
/** A place that every round comes to as well. */
export const BESIDE = "uprobe:faulting:narrow+4";

/** They change r11 at most, as the programs do. */
export const faults = {
  "a read where nothing is mapped": { code: [0x4c, 0x8b, 0x1c, 0x25, 0, 0, 0, 0], signal: "SIGSEGV" },
  "a write to code": { code: [0xc6, 0x05, 0, 0, 0, 0, 0], signal: "SIGSEGV" },
  "no instruction": { code: [0x0f, 0x0b], signal: "SIGILL" },
  "a division by 0": { code: [0x45, 0x31, 0xdb, 0x41, 0xf7, 0xf3], signal: "SIGFPE" },
  "a jump to nowhere": { code: [0x45, 0x31, 0xdb, 0x41, 0xff, 0xe3], signal: "SIGSEGV" },
  "a call to nowhere": { code: [0x45, 0x31, 0xdb, 0x41, 0xff, 0xd3], signal: "SIGSEGV" },
} as const;

export const LEVELS = ["stack", "strict"] as const;

export interface Faulty {
  readonly level?: (typeof LEVELS)[number];
  readonly site: string;
  readonly args?: readonly string[];
  readonly code: readonly number[];
  readonly where?: "start" | "counted";
  readonly storm?: boolean;
}

/** Runs the fixture with two programs at a site, of which the first is spoiled. */
export async function runFaulty({
  level = "stack",
  site,
  args = [],
  code,
  where = "start",
  storm = false,
}: Faulty) {
  using child = await UnmanagedChild.start([
    buildFixture("faulting"),
    `${THREADS}`,
    `${ROUNDS}`,
    ...(storm ? ["signals"] : []),
  ]);
  await using tracing = await Tracing.armed(
    ["--gate", level, "--verify", ...args, "-p", `${child.pid}`],
    `${site} { @first = count(); } ${site} { @second = count(); } ${BESIDE} { @calls = count(); }`,
  );
  ProgramCode.find(child.pid, site).spoil(code, where);
  child.send("\n");
  const line = await child.line(60_000);
  await tracing.untilError("violation: ");
  const result = await tracing.interrupt();
  expect({ line: line.replace(/\d+$/, "N"), code: result.code }).toEqual({
    line: `wrong 0, passed ${PASSED}, handled N`,
    code: 0,
  });
  const handled = Number(/\d+$/.exec(line)![0]);
  const [first, second, calls] = accountingOf(result.lines);
  return { pid: child.pid, handled, first: first!, second: second!, calls: calls!, result };
}

export const violationsOf = ({ lines }: Pick<TracingResult, "lines">) =>
  lines.filter(({ type }) => type === "violation").map(({ data }) => data);
