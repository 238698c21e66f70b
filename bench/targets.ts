/** What the product promises, beside what was measured. */
import type { AttachResult } from "./attach.ts";
import type { HitResult } from "./hits.ts";
import { findCost } from "./hits-report.ts";
import type { Site } from "./hot-process.ts";
import type { Spread } from "./statistics.ts";
import { type Column, printFigure, printTable } from "./table.ts";

export interface TargetCheck {
  readonly promise: string;
  /** At most this. */
  readonly limit: number;
  readonly measured: number;
  readonly unit: string;
  readonly kept: boolean;
}

export function checkTargets(
  hits: readonly HitResult[],
  attach: readonly AttachResult[],
  firstEvent: Spread | undefined,
): TargetCheck[] {
  const checks: TargetCheck[] = [];
  const check = (promise: string, limit: number, unit: string, measured: number | undefined): void => {
    if (measured !== undefined) checks.push({ promise, limit, unit, measured, kept: measured <= limit });
  };
  const jumpNs = (site: Site) =>
    findCost(hits, { tracer: "trapline, jump", site, work: "count" })?.added.median;
  /** The product's cost as one part of so many of the peer's. */
  const share = (site: Site): number | undefined => {
    const ours = jumpNs(site);
    const kernel = findCost(hits, { tracer: "kernel uprobe (bpftrace)", site, work: "count" })?.added.median;
    return ours === undefined || kernel === undefined ? undefined : ours / kernel;
  };
  check("count() by jump, added to a call", 12, "ns", jumpNs("mov"));
  check("count() by jump, part of the kernel's 5-byte-nop uprobe", 1 / 20, "", share("nop5"));
  check("count() by jump, part of the kernel's int3 uprobe", 1 / 400, "", share("mov"));
  const entryNs = jumpNs("mov");
  const returnNs = findCost(hits, { tracer: "trapline, jump", site: "mov", work: "return" })?.added.median;
  check(
    "count() at a return, times that at an entry",
    1.5,
    "times",
    entryNs === undefined || returnNs === undefined ? undefined : returnNs / entryNs,
  );
  const privateNs = findCost(hits, { tracer: "trapline, jump, --gate stack", site: "mov", work: "count" });
  check(
    "count() on a private stack, more than on the thread's own",
    6,
    "ns",
    entryNs === undefined || privateNs === undefined ? undefined : privateNs.added.median - entryNs,
  );
  for (const { probes, threads, load, times } of attach)
    if (probes === 1 && threads === 200) {
      check(`200 ${load} threads stand for one probe, attaching`, 20, "ms", times?.attachStop.median);
      check(`200 ${load} threads stand for one probe, detaching`, 20, "ms", times?.detachStop.median);
    }
  for (const { probes, threads, load, times } of attach) {
    const limit = probes === 2000 ? 60 : 100;
    if (probes < 2000 || threads !== 16 || load !== "idle") continue;
    check(`16 threads stand for ${probes} probes, attaching`, limit, "ms", times?.attachStop.median);
    check(`16 threads stand for ${probes} probes, detaching`, limit, "ms", times?.detachStop.median);
    check(`${probes} probes put in and taken out, all of the command`, 3000, "ms", times?.total.median);
  }
  check("start to first event", 400, "ms", firstEvent?.median);
  return checks;
}

const columns: readonly Column[] = [
  { title: "promise", align: "left" },
  { title: "at most", align: "right" },
  { title: "measured", align: "right" },
  { title: "", align: "left" },
];

export function printTargets(checks: readonly TargetCheck[]): string {
  return printTable(
    columns,
    checks.map(({ promise, limit, unit, measured, kept }) => [
      promise,
      printAmount(limit, unit),
      printAmount(measured, unit),
      kept ? "" : "MISSED",
    ]),
  );
}

function printAmount(value: number, unit: string): string {
  return unit === "" ? `1/${(1 / value).toFixed(0)}` : `${printFigure(value)} ${unit}`;
}
