/** Probes of one session that run behind different gates. */
import { describe, expect, it } from "vitest";
import type * as Trapline from "../../src/index.ts";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import { BESIDE, faults, PASSED, ROUNDS, THREADS, violationsOf } from "../support/faulty-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { storm } from "../support/gate-storms.ts";
import { ProgramCode } from "../support/program-code.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const library = new URL("../../dist/index.js", import.meta.url);
const { attach } = (await import(library.href)) as typeof Trapline;

describe.each(["none", "stack"])("in a session with --gate %s", (session) => {
  it.each(["own", "alt"] as const)(
    "signals wait at the one probe that is strict, handlers on their %s stack",
    async (stack) => {
      const gates = ["--gate", session, "--gate", "uprobe:*:probed=strict"];
      const { probedCalls, calmCalls, probed, calm, result } = await storm(stack, "stay", gates);
      expect(probed).toMatchObject({ hits: probedCalls, run: probedCalls, recursed: 0 });
      expect(result.map("@")).toBe(probedCalls);
      expect(calm).toMatchObject({ hits: calmCalls, run: calmCalls });
    },
  );
});

it("a probe without a private stack runs in handlers that interrupt one with", async () => {
  const gates = ["--gate", "stack", "--gate", "uprobe:gate-stacks:calm=none"];
  const { probedCalls, calmCalls, probed, calm } = await storm("own", "stay", gates);
  expect(probed.hits).toBe(probedCalls);
  expect(isBalanced(probed)).toBe(true);
  expect(calm).toMatchObject({ hits: calmCalls, run: calmCalls, recursed: 0 });
});

describe("three gates in one process", () => {
  const [strict, stack] = ["uprobe:faulting:wide+1", "uprobe:faulting:narrow+1"] as const;
  const gates = ["--gate", "none", "--gate", `${strict}=strict`, "--gate", "*:narrow+1=stack", "--verify"];
  const program = `${strict} { @strict = count(); } ${stack} { @stack = count(); } ${BESIDE} { @none = count(); }`;

  const run = async (signals: string, prepare: (pid: number) => void) => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`, signals]);
    await using tracing = await Tracing.armed([...gates, "-p", `${child.pid}`], program);
    prepare(child.pid);
    child.send("\n");
    const line = await child.line(60_000);
    expect(line).toMatch(/^wrong 0, /);
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    const [first, second, third] = accountingOf(result.lines);
    expect([first, second, third].every((account) => isBalanced(account!))).toBe(true);
    expect(third).toMatchObject({ hits: PASSED, run: PASSED });
    const handled = Number(/handled (\d+)$/.exec(line)![1]);
    expect(handled).toBeGreaterThan(0);
    return { first: first!, second: second!, handled, violations: violationsOf(result) };
  };

  it("a fault ends the program of its probe", async () => {
    const { first, second, violations } = await run("signals", (pid) => {
      ProgramCode.find(pid, strict).spoil(faults["a jump to nowhere"].code, "start");
      ProgramCode.find(pid, stack).spoil(faults["a read where nothing is mapped"].code, "start");
    });
    expect(violations).toHaveLength(2);
    expect([first.run, second.run, second.recursed]).toEqual([0, 0, 0]);
    expect(first.faulted > 0 && second.faulted > 0).toBe(true);
  });

  it("signals of faults that somebody sends are the application's", async () => {
    const { first, second, handled, violations } = await run("faults", () => {});
    expect(violations).toEqual([]);
    expect(first.hits).toBe(PASSED + handled);
    expect(second).toMatchObject({ hits: PASSED, run: PASSED });
  });
});

it("-v says which probe has which gate", async () => {
  using child = await UnmanagedChild.start([buildFixture("compute"), "6"]);
  await using tracing = await Tracing.armed(
    ["-v", "--gate", "uprobe:compute:w*=strict", "-p", `${child.pid}`],
    "uprobe:compute:step, uprobe:compute:work { @ = count(); }",
  );
  const { err } = await tracing.interrupt();
  expect(err).toContain(
    "  gate of uprobe:compute:work: private stacks, signals wait: it was asked for this probe\n",
  );
  expect(err).not.toContain("gate of uprobe:compute:step");
});

it("a gate for a probe that nobody has written is refused", async () => {
  using child = await UnmanagedChild.start([buildFixture("compute"), "6"]);
  const program = "uprobe:compute:step { @ = count(); }";
  const args = ["--gate", "uprobe:compute:stop=strict", "-p", `${child.pid}`];
  const { code, err } = await runTracing([...args, "-e", program]);
  expect({ code, err }).toEqual({
    code: 1,
    err:
      "trapline: choose gates: --gate uprobe:compute:stop=strict: no probe is written so\n" +
      "hint: there is uprobe:compute:step\n",
  });
});

describe("probes that are added to a session", () => {
  const calls = 1000;
  const start = async () => {
    const child = await UnmanagedChild.start([buildFixture("stages"), `${calls}`]);
    const round = async () => {
      child.send("\n");
      await child.line();
    };
    await round();
    return { pid: child.pid, round, [Symbol.dispose]: () => child[Symbol.dispose]() };
  };
  const count = "{ @ = count(); }";

  it("may have any gate where there are private stacks, also at the same place", async () => {
    using target = await start();
    await using session = await attach(target.pid, { gate: "stack" });
    const gates = [undefined, "none", "strict", "none"] as const;
    const probes: Trapline.Probe[] = [];
    for (const [index, gate] of gates.entries()) {
      const at = index < 3 ? "uprobe:stages:first" : "uretprobe:stages:first";
      probes.push(await session.probe(at, count, gate && { gate }));
      await target.round();
    }
    await probes[2]!.remove();
    await target.round();
    expect(probes.map((probe) => Number(probe.counts.run) / calls)).toEqual([5, 4, 2, 2]);
  });

  it("cannot have private stacks where there are none", async () => {
    using target = await start();
    await using session = await attach(target.pid, { gate: "none" });
    await expect(session.probe("uprobe:stages:first", count, { gate: "strict" })).rejects.toMatchObject({
      code: "cannot-probe",
      message: expect.stringContaining("the session was attached without private stacks"),
      hint: expect.stringContaining('attach with { gate: "stack" }'),
    });
    await session.probe("uprobe:stages:first", count, { gate: "none" });
  });

  it("are strict where the session is", async () => {
    using target = await start();
    await using session = await attach(target.pid, { gate: "strict" });
    await expect(session.probe("uprobe:stages:first", count, { gate: "none" })).rejects.toMatchObject({
      code: "cannot-probe",
    });
    const probe = await session.probe("uprobe:stages:first", count);
    await target.round();
    expect(Number(probe.counts.run)).toBe(calls);
  });
});
