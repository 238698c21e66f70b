/** Times to attach and detach as a table. */
import type { AttachResult, AttachTimes } from "./attach.ts";
import type { Spread } from "./statistics.ts";
import { type Column, printFigure, printTable } from "./table.ts";

const timeColumns: readonly { readonly name: keyof AttachTimes; readonly title: string }[] = [
  { name: "attach", title: "start to armed" },
  { name: "attachStop", title: "stopped" },
  { name: "detach", title: "Ctrl-C to restored" },
  { name: "detachStop", title: "stopped" },
  { name: "end", title: "Ctrl-C to end" },
  { name: "silence", title: "longest silence" },
  { name: "total", title: "whole command" },
];

const columns: readonly Column[] = [
  { title: "probes", align: "right" },
  { title: "threads", align: "left" },
  ...timeColumns.map(({ title }): Column => ({ title, align: "right" })),
  { title: "", align: "left" },
];

export function printAttach(results: readonly AttachResult[]): string {
  return printTable(
    columns,
    results.map(({ probes, threads, load, times, failures }) => [
      `${probes}`,
      `${threads} ${load}`,
      ...timeColumns.map(({ name }) => (times === undefined ? "" : printSpread(times[name]))),
      failures.length > 0 ? `${failures.length} rounds failed: ${failures[0]}` : "",
    ]),
  );
}

export const printSpread = ({ median, lowest, highest }: Spread): string =>
  `${printFigure(median)} (${printFigure(lowest)}..${printFigure(highest)})`;
