/**
 * Programs whose machine code is wrong: the process goes on as if the program had returned, the probe is disarmed and named, and
 * every hit is accounted for.
 */
import { describe, expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import {
  BESIDE,
  faults,
  LEVELS,
  PASSED,
  ROUNDS,
  runFaulty,
  THREADS,
  violationsOf,
} from "../support/faulty-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { ProgramCode } from "../support/program-code.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

describe.each(LEVELS)("a program raises a fault, level %s", (level) => {
  it.each(Object.entries(faults))("%s", async (_, { code, signal }) => {
    const site = "uprobe:faulting:wide+1";
    const { pid, handled, first, second, calls, result } = await runFaulty({
      level,
      site,
      code,
      storm: true,
    });
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
      level,
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
      ["--gate", level, "-p", `${child.pid}`],
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

  it("in a routine that would have given registers back at its end", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`]);
    const site = "uprobe:faulting:wide+1";
    await using tracing = await Tracing.armed(
      ["--gate", level, "-p", `${child.pid}`],
      `${site} { @first = sum(nsecs); } ${site} { @second = count(); }`,
    );
    // push rbp; mov rbp, rsp
    ProgramCode.find(child.pid, site).spoilBehind([0x55, 0x48, 0x89, 0xe5], faults["no instruction"].code);
    child.send("\n");
    expect(await child.line(60_000)).toMatch(/^wrong 0, /);
    await tracing.untilError("violation: ");
    const [first, second] = accountingOf((await tracing.interrupt()).lines);
    expect(first).toMatchObject({ run: 0, hits: first!.faulted });
    expect(second).toMatchObject({ hits: PASSED, faulted: first!.faulted });
  });

  it("signals of faults that somebody sends are the application's, also while a thread is in the gate", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`, "faults"]);
    await using tracing = await Tracing.armed(
      ["--gate", level, "--verify", "-p", `${child.pid}`],
      `uprobe:faulting:wide+1 { @ = count(); } ${BESIDE} { @calls = count(); }`,
    );
    child.send("\n");
    const line = await child.line(60_000);
    expect(line).toMatch(/^wrong 0, /);
    const handled = Number(/handled (\d+)$/.exec(line)![1]);
    expect(handled).toBeGreaterThan(0);
    const result = await tracing.interrupt();
    expect({ code: result.code, violations: violationsOf(result) }).toEqual({ code: 0, violations: [] });
    const [probed, calls] = accountingOf(result.lines);
    expect(probed).toMatchObject({ hits: PASSED + handled, faulted: 0 });
    // Where signals wait, no handler finds a stack in use.
    if (level === "strict") expect(probed!.recursed).toBe(0);
    expect(calls).toMatchObject({ hits: PASSED, run: PASSED });
  });

  it("in a forked child", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`]);
    const site = "uprobe:faulting:wide+1";
    await using tracing = await Tracing.armed(
      ["--gate", level, "-p", `${child.pid}`],
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
    const tracing = await Tracing.armed(["--gate", level, "-p", `${child.pid}`], `${site} { @ = count(); }`);
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

  it.each([0, 1])("two tracers have a handler each, tracer %i leaves first", async (leaver) => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`]);
    const sites = ["uprobe:faulting:wide+1", "uprobe:faulting:narrow+1"] as const;
    const args = ["--gate", level, "--verify", "-p", `${child.pid}`];
    const tracers: Tracing[] = [];
    for (const site of sites)
      tracers.push(
        await Tracing.armed(args, `${site} { @ = count(); } uprobe:faulting:entered { @calls = count(); }`),
      );
    try {
      for (const site of sites)
        ProgramCode.find(child.pid, site).spoil(faults["a read where nothing is mapped"].code, "start");
      child.send("\n");
      expect(await child.line(60_000)).toMatch(/^wrong 0, /);
      for (const tracing of tracers) await tracing.untilError("violation: ");
      for (const tracing of [tracers[leaver]!, tracers[1 - leaver]!]) {
        const { code, lines } = await tracing.interrupt();
        expect(code).toBe(0);
        expect(violationsOf({ lines })).toHaveLength(1);
        const [probed, calls] = accountingOf(lines);
        expect(probed).toMatchObject({ run: 0, hits: probed!.faulted });
        expect(probed!.faulted).toBeGreaterThan(0);
        expect(calls!.hits).toBe(tracing === tracers[leaver] ? PASSED : 2 * PASSED);
        child.send("\n");
        expect(await child.line(60_000)).toMatch(/^wrong 0, /);
      }
    } finally {
      for (const tracing of tracers) await tracing[Symbol.asyncDispose]();
    }
  });
});
