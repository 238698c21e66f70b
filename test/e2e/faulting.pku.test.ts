/** Faults of programs whose stacks are under a key: the handler runs on them, and the thread comes back with the key closed. */
import { expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import { faults, PASSED, ROUNDS, runFaulty, THREADS, violationsOf } from "../support/faulty-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { describeWithKeys } from "../support/protection-keys.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

buildFixture("faulting");

describeWithKeys("a program raises a fault under a key", () => {
  it.each([
    ["at a jump, with signals", "uprobe:faulting:wide+1", "a read where nothing is mapped", []],
    ["at an int3", "uprobe:faulting:wide+1", "no instruction", ["--mechanism", "int3"]],
    ["at a call", "uprobe:faulting:entered", "a jump to nowhere", []],
    ["at the exits of a function", "uretprobe:faulting:entered", "no instruction", ["--return", "sites"]],
  ] as const)("%s", async (_, site, fault, args) => {
    const storm = site === "uprobe:faulting:wide+1";
    const { handled, first, second, calls, result } = await runFaulty({
      level: "strict",
      site,
      args,
      storm,
      code: faults[fault].code,
    });
    expect(violationsOf(result)).toMatchObject([
      { kind: "fault", probe: site, signal: faults[fault].signal, disarmed: true },
    ]);
    const all = PASSED + (storm ? handled : 0);
    expect(first).toMatchObject({ run: 0, hits: first.faulted, recursed: 0 });
    expect(first.faulted).toBeGreaterThan(0);
    expect(second).toMatchObject({ hits: all, faulted: first.faulted });
    expect(calls).toMatchObject({ hits: PASSED, run: PASSED });
    expect([first, second, calls].every(isBalanced)).toBe(true);
  });

  it("signals of faults that somebody sends wait while a thread is in the gate", async () => {
    using child = await UnmanagedChild.start([buildFixture("faulting"), `${THREADS}`, `${ROUNDS}`, "faults"]);
    await using tracing = await Tracing.armed(
      ["--gate", "strict", "-p", `${child.pid}`],
      "uprobe:faulting:wide+1 { @ = count(); }",
    );
    child.send("\n");
    const line = await child.line(120_000);
    expect(line).toMatch(/^wrong 0, passed \d+, handled [1-9]/);
    const result = await tracing.interrupt();
    expect({ code: result.code, violations: violationsOf(result) }).toEqual({ code: 0, violations: [] });
    const [probed] = accountingOf(result.lines);
    const hits = PASSED + Number(/handled (\d+)$/.exec(line)![1]);
    expect(probed).toMatchObject({ hits, run: hits, recursed: 0 });
  });
});
