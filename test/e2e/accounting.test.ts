/**
 * Accounts are exact: whatever threads, signal handlers and forked children do at the same time, every call is in one word
 * of the account of each probe, and the fixture's own count is their sum.
 */
import { describe, expect, it } from "vitest";
import { type Accounting, accountingOf, isBalanced } from "../support/accounting.ts";
import { buildBpfFixture } from "../support/bpf-objects.ts";
import { buildFixture } from "../support/fixtures.ts";
import { runObject } from "../support/object-run.ts";
import { Tracing, type TracingResult } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

interface Calls {
  readonly all: number;
  readonly odd: number;
}

async function makeCalls(child: UnmanagedChild): Promise<Calls> {
  child.send("\n");
  const [all, odd] = (await child.line(60_000)).split(" ").map(Number);
  return { all: all!, odd: odd! };
}

/** Calls from threads, handlers and children while the program's probes are armed. */
async function account(
  args: readonly string[],
  program: string,
  work = ["4", "2", "40000"],
): Promise<{
  readonly calls: Calls;
  readonly result: TracingResult;
  readonly probes: readonly Accounting[];
}> {
  using child = await UnmanagedChild.start([buildFixture("accounted"), ...work]);
  await using tracing = await Tracing.armed([...args, "-p", `${child.pid}`], program);
  const calls = await makeCalls(child);
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  return { calls, result, probes: accountingOf(result.lines) };
}

const none = { filtered: 0, recursed: 0, dropped: 0, faulted: 0, missed: 0, unwound: 0 };

describe("accounts of a script's probes", () => {
  it.each(["jump", "int3"] as const)(
    "every hit of every probe of a point, with and without predicates, %s",
    async (mechanism) => {
      const { calls, result, probes } = await account(
        ["--mechanism", mechanism],
        "uprobe:accounted:probed { @ = count(); } " +
          "uprobe:accounted:probed / arg1 & 1 / { @odd = count(); } " +
          "uprobe:accounted:probed / arg1 & 1 / { @sum = sum(1); @last = hist(arg1); @ = count(); } " +
          "uretprobe:accounted:probed { @out[1] = count(); }",
        mechanism === "jump" ? undefined : ["4", "2", "5000"],
      );
      const { all, odd } = calls;
      const filtered = { ...none, hits: all, run: odd, filtered: all - odd };
      const at = `uprobe:accounted:probed`;
      expect(probes).toEqual([
        { probe: at, ...none, hits: all, run: all, mechanisms: { [mechanism]: 1 } },
        { probe: at, ...filtered, mechanisms: { [mechanism]: 1 } },
        { probe: at, ...filtered, mechanisms: { [mechanism]: 1 } },
        { probe: "uretprobe:accounted:probed", ...none, hits: all, run: all, mechanisms: { [mechanism]: 1 } },
      ]);
      expect(result.map("@")).toBe(all + odd);
      expect(result.map("@odd")).toBe(odd);
      expect(result.map("@sum")).toBe(odd);
      expect(result.map("@out")).toEqual({ "1": all });
    },
  );

  it("a hit that loses an event is dropped, once however many it loses", async () => {
    const { calls, result, probes } = await account(
      [],
      'uprobe:accounted:probed / arg1 & 1 / { printf("a"); printf("b"); } ' +
        'uprobe:accounted:probed { printf("c"); }',
    );
    const [both, one] = probes as [Accounting, Accounting];
    expect([both.hits, one.hits]).toEqual([calls.all, calls.all]);
    expect(both.filtered).toBe(calls.all - calls.odd);
    expect(isBalanced(both) && isBalanced(one)).toBe(true);
    expect(both.dropped).toBeGreaterThan(0);
    expect(one.dropped).toBeGreaterThan(0);
    const printed = (text: string) =>
      result.lines.filter(({ type, data }) => type === "printf" && data === text).length;
    const lost = result.lines
      .filter(({ type }) => type === "lost_events")
      .reduce((sum, { data }) => sum + (data as { events: number }).events, 0);
    expect(one.run).toBe(printed("c"));
    // Of the two events of a hit the first, the second or both are lost.
    const lostPairs = 2 * calls.odd - printed("a") - printed("b");
    expect(lost).toBe(lostPairs + one.dropped);
    expect(both.dropped).toBeGreaterThanOrEqual(lostPairs / 2);
    expect(both.dropped).toBeLessThanOrEqual(lostPairs);
    expect(both.run).toBeLessThanOrEqual(Math.min(printed("a"), printed("b")));
  });

  it("missed returns are those of each probe, and no hits", async () => {
    const { calls, probes } = await account(
      ["--return", "stack", "--maxactive", "4"],
      "uretprobe:accounted:probed { @ = count(); } uretprobe:accounted:probed / retval & 1 / { @odd = count(); }",
      ["16", "0", "20000"],
    );
    for (const probe of probes) {
      expect(isBalanced(probe)).toBe(true);
      expect(probe.hits + probe.missed).toBe(calls.all);
    }
    expect(probes[0]!.missed).toBe(probes[1]!.missed);
  });

  it("two attach points of one action have an account each", async () => {
    const { calls, result, probes } = await account(
      [],
      "uprobe:accounted:probed, uretprobe:accounted:probed, uprobe:accounted:on_al* { @ = count(); }",
    );
    expect(probes.map(({ probe, hits }) => ({ probe, hits })).slice(0, 2)).toEqual([
      { probe: "uprobe:accounted:probed", hits: calls.all },
      { probe: "uretprobe:accounted:probed", hits: calls.all },
    ]);
    const alarms = probes[2]!.hits;
    expect(alarms).toBeGreaterThan(0);
    expect(result.map("@")).toBe(2 * calls.all + alarms);
  });

  it("a count that is cleared is kept beside the account", async () => {
    const { calls, result, probes } = await account(
      [],
      "uprobe:accounted:probed { @ = count(); } uprobe:accounted:on_alarm { clear(@); }",
    );
    expect(probes[0]).toMatchObject({ hits: calls.all, run: calls.all });
    expect(result.map("@") ?? 0).toBeLessThan(calls.all);
  });
});

describe("accounts of an object's programs", () => {
  it("every hit of every program, with what found no room", async () => {
    using child = await UnmanagedChild.start([buildFixture("accounted"), "4", "2", "20000"]);
    const object = buildBpfFixture("accounted");
    const args = [object, "-f", "json", "-p", `${child.pid}`];
    let calls: Calls = { all: 0, odd: 0 };
    const { code, lines, map } = await runObject(args, async () => {
      calls = await makeCalls(child);
    });
    expect(code).toBe(0);
    const probes = accountingOf(lines);
    expect(probes.map(({ probe }) => probe)).toEqual([
      "uprobe:accounted:probed",
      "uprobe:accounted:probed",
      "uretprobe:accounted:probed",
    ]);
    expect(probes.map(({ hits }) => hits)).toEqual([calls.all, calls.all, calls.all]);
    expect(probes.every(isBalanced)).toBe(true);
    expect(probes[0]).toMatchObject({ run: calls.all, ...none });
    expect(probes[1]!.dropped).toBe(map("reserve_failed"));
    expect(probes[2]!.dropped).toBe(map("output_failed"));
    expect(probes[1]!.dropped).toBeGreaterThan(0);
    expect(probes[2]!.dropped).toBeGreaterThan(0);
  });
});
