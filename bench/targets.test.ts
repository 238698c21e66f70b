/** Promises beside measured figures: which are kept, and which cannot be judged. */
import { expect, test } from "vitest";
import type { HitResult } from "./hits.ts";
import type { Site } from "./hot-process.ts";
import type { Spread } from "./statistics.ts";
import { checkTargets, printTargets } from "./targets.ts";

const exactly = (value: number): Spread => ({ median: value, lowest: value, highest: value });

const hit = (tracer: string, site: Site, addedNs: number): HitResult => ({
  tracer,
  site,
  work: "count",
  outcome: {
    kind: "measured",
    failures: [],
    bare: exactly(2),
    probed: exactly(2 + addedNs),
    added: exactly(addedNs),
    miscounted: 0,
  },
});

const kernel = "kernel uprobe (bpftrace)";
const jump = "trapline, jump";

test("a share of a peer's cost is judged against the same site only", () => {
  const hits = [
    hit(jump, "mov", 2),
    hit(jump, "nop5", 50),
    hit(kernel, "mov", 1000),
    hit(kernel, "nop5", 600),
  ];
  expect(
    printTargets(checkTargets(hits, [], undefined))
      .split("\n")
      .slice(2),
  ).toEqual([
    "count() by jump, added to a call                         12.0 ns   2.00 ns",
    "count() by jump, part of the kernel's 5-byte-nop uprobe     1/20      1/12  MISSED",
    "count() by jump, part of the kernel's int3 uprobe          1/400     1/500",
  ]);
});

test("what was not measured is not judged", () => {
  const missing: HitResult = {
    tracer: kernel,
    site: "mov",
    work: "count",
    outcome: { kind: "missing", reason: "not installed" },
  };
  expect(checkTargets([hit(jump, "mov", 13), missing], [], undefined)).toEqual([
    { promise: "count() by jump, added to a call", limit: 12, unit: "ns", measured: 13, kept: false },
  ]);
});

test("a stop is judged for one probe among 200 threads", () => {
  const times = { attach: 400, attachStop: 25, detach: 30, detachStop: 15, end: 60, silence: 30, total: 500 };
  const spreads = {
    attach: exactly(times.attach),
    attachStop: exactly(times.attachStop),
    detach: exactly(times.detach),
    detachStop: exactly(times.detachStop),
    end: exactly(times.end),
    silence: exactly(times.silence),
    total: exactly(times.total),
  };
  const attach = [
    { probes: 1, threads: 200, load: "idle", failures: [], times: spreads },
    { probes: 100, threads: 200, load: "idle", failures: [], times: spreads },
    { probes: 1, threads: 200, load: "busy", failures: ["it ended"], times: undefined },
  ] as const;
  const checks = checkTargets([], attach, exactly(399));
  expect(checks.map(({ measured, kept }) => ({ measured, kept }))).toEqual([
    { measured: 25, kept: false },
    { measured: 15, kept: true },
    { measured: 399, kept: true },
  ]);
});
