/**
 * Programs whose machine code is wrong: the process goes on as if the program had returned, the probe is disarmed and named, and
 * every hit is accounted for.
 */
import { describe, expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import { buildFixture } from "../support/fixtures.ts";
import { ProgramCode } from "../support/program-code.ts";
import { Tracing, type TracingResult } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 2;
const ROUNDS = 10_000;
const PASSED = THREADS * ROUNDS;
/** A place that every round comes to as well. */
const BESIDE = "uprobe:faulting:narrow+4";

/** They change r11 at most, as the programs do. */
const faults = {
  "a read where nothing is mapped": { code: [0x4c, 0x8b, 0x1c, 0x25, 0, 0, 0, 0], signal: "SIGSEGV" },
  "a write to code": { code: [0xc6, 0x05, 0, 0, 0, 0, 0], signal: "SIGSEGV" },
  "no instruction": { code: [0x0f, 0x0b], signal: "SIGILL" },
  "a division by 0": { code: [0x45, 0x31, 0xdb, 0x41, 0xf7, 0xf3], signal: "SIGFPE" },
  "a jump to nowhere": { code: [0x45, 0x31, 0xdb, 0x41, 0xff, 0xe3], signal: "SIGSEGV" },
  "a call to nowhere": { code: [0x45, 0x31, 0xdb, 0x41, 0xff, 0xd3], signal: "SIGSEGV" },
} as const;

interface Faulty {
  readonly site: string;
  readonly args?: readonly string[];
  readonly code: readonly number[];
  readonly where?: "start" | "counted";
  readonly storm?: boolean;
}

/** Runs the fixture with two programs at a site, of which the first is spoiled. */
async function runFaulty({ site, args = [], code, where = "start", storm = false }: Faulty) {
  using child = await UnmanagedChild.start([
    buildFixture("faulting"),
    `${THREADS}`,
    `${ROUNDS}`,
    ...(storm ? ["signals"] : []),
  ]);
  await using tracing = await Tracing.armed(
    ["--gate", "stack", "--verify", ...args, "-p", `${child.pid}`],
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

const violationsOf = ({ lines }: TracingResult) =>
  lines.filter(({ type }) => type === "violation").map(({ data }) => data);

describe("a program raises a fault", () => {
  it.each(Object.entries(faults))("%s", async (_, { code, signal }) => {
    const site = "uprobe:faulting:wide+1";
    const { pid, handled, first, second, calls, result } = await runFaulty({ site, code, storm: true });
    expect(violationsOf(result)).toMatchObject([
      {
        kind: "fault",
        pid,
        probe: site,
        program: site,
        point: "wide+0x1 (faulting)",
        signal,
        disarmed: true,
      },
    ]);
    expect(result.err).toMatch(
      new RegExp(
        `violation: process ${pid}, thread \\d+: the program of uprobe:faulting:wide\\+1 raised ${signal} at `,
      ),
    );
    // It has never come to its end, and the one behind it has run from when it was disarmed.
    expect(first).toMatchObject({ run: 0, filtered: 0 });
    expect(first.faulted).toBeGreaterThan(0);
    expect(second.faulted).toBe(first.faulted);
    expect(second.hits).toBe(PASSED + handled);
    expect(calls).toMatchObject({ hits: PASSED, run: PASSED });
    expect([first, second, calls].every(isBalanced)).toBe(true);
    expect(result.map("@second")).toBe(second.run);
  });

  it.each([
    ["at a jump, behind its count", "uprobe:faulting:wide+1", []],
    ["at an int3", "uprobe:faulting:wide+1", ["--mechanism", "int3"]],
    ["at a punned jump", "uprobe:faulting:narrow+1", ["--mechanism", "punned"]],
    ["at a call", "uprobe:faulting:entered", []],
    ["at the exits of a function", "uretprobe:faulting:entered", ["--return", "sites"]],
  ] as const)("%s", async (_, site, args) => {
    const { first, second, calls, result } = await runFaulty({
      site,
      args,
      code: faults["no instruction"].code,
      where: "counted",
    });
    expect(violationsOf(result)).toMatchObject([{ probe: site, signal: "SIGILL", disarmed: true }]);
    expect(first).toMatchObject({ run: 0, hits: first.faulted });
    expect(first.faulted).toBeGreaterThan(0);
    expect(second).toMatchObject({ hits: PASSED, faulted: first.faulted, run: PASSED - first.faulted });
    expect(calls.hits).toBe(PASSED);
    expect(result.map("@first")).toBe(first.faulted);
  });

  it("in its predicate: the hit is counted once, too", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`]);
    const site = "uprobe:faulting:wide+1";
    await using tracing = await Tracing.armed(
      ["--gate", "stack", "-p", `${child.pid}`],
      `${site} /reg("bx") != 1/ { @first = sum(reg("bx")); } ${site} { @second = count(); }`,
    );
    ProgramCode.find(child.pid, site).spoil(faults["no instruction"].code, "start");
    child.send("\n");
    expect(await child.line(60_000)).toMatch(/^wrong 0, /);
    await tracing.untilError("violation: ");
    const [first, second] = accountingOf((await tracing.interrupt()).lines);
    expect(first).toMatchObject({ run: 0, filtered: 0, hits: first!.faulted });
    expect(second).toMatchObject({ hits: PASSED, faulted: first!.faulted });
  });

  it("in a forked child", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`]);
    const site = "uprobe:faulting:wide+1";
    await using tracing = await Tracing.armed(
      ["--gate", "stack", "-p", `${child.pid}`],
      `${site} { @first = count(); } ${site} { @second = count(); }`,
    );
    ProgramCode.find(child.pid, site).spoil(faults["no instruction"].code, "counted");
    child.send("f\n");
    expect(await child.line(60_000)).toMatch(/^wrong 0, /);
    await tracing.untilError("violation: ");
    const [first, second] = accountingOf((await tracing.interrupt()).lines);
    // The child goes on with what it was forked with.
    expect(first).toMatchObject({ hits: PASSED, run: 0, faulted: PASSED });
    expect(second).toMatchObject({ hits: PASSED, run: 0, faulted: PASSED });
  });

  it("after its tracer has died: the process goes on, and detach takes the handler out", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`]);
    const site = "uprobe:faulting:wide+1";
    const tracing = await Tracing.armed(
      ["--gate", "stack", "-p", `${child.pid}`],
      `${site} { @ = count(); }`,
    );
    ProgramCode.find(child.pid, site).spoil(faults["no instruction"].code, "start");
    tracing.signal("SIGKILL");
    await tracing.ended();
    child.send("\n");
    expect(await child.line(60_000)).toMatch(/^wrong 0, /);
    await using detach = Tracing.start(["detach", "-p", `${child.pid}`, "--verify"]);
    const { code, err, lines } = await detach.ended();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(lines.find(({ type }) => type === "proof")?.data).toMatchObject({
      holds: true,
      signals: { SIGSEGV: { equal: true, after: "00".repeat(32) }, SIGFPE: { equal: true } },
    });
    child.send("\n");
    expect(await child.line(60_000)).toMatch(/^wrong 0, /);
  });
});
