/** Costs of probes on first instructions of every length, each beside the 5-byte one. */
import type { HitResult } from "./hits.ts";
import { type Column, printFigure, printTable } from "./table.ts";

const columns: readonly Column[] = [
  { title: "first instruction", align: "left" },
  { title: "second one is", align: "left" },
  { title: "probe", align: "left" },
  { title: "armed by", align: "left" },
  { title: "bare ns", align: "right" },
  { title: "added ns", align: "right" },
  { title: "rounds", align: "right" },
  { title: "x 5 bytes", align: "right" },
  { title: "", align: "left" },
];

export function printInstructions(results: readonly HitResult[]): string {
  const five = results.find(
    ({ site, work, tracer }) => site === "first5" && work === "count" && tracer === "trapline, auto",
  );
  const fiveNs = five?.outcome.kind === "measured" ? five.outcome.added.median : undefined;
  return printTable(
    columns,
    results.map(({ site, work, outcome }) => {
      const bytes = /\d+$/.exec(site)?.[0] ?? "";
      const head = [
        `${bytes} bytes`,
        site.startsWith("hemmed") ? "a branch target" : "free",
        work === "return" ? "return" : "entry",
      ];
      if (outcome.kind !== "measured") return [...head, `${outcome.kind}: ${outcome.reason}`];
      const { bare, added, mechanism, miscounted, failures } = outcome;
      return [
        ...head,
        mechanism ?? "",
        printFigure(bare.median),
        printFigure(added.median),
        `${printFigure(added.lowest)}..${printFigure(added.highest)}`,
        fiveNs === undefined ? "" : printFigure(added.median / fiveNs),
        [
          miscounted ? `MISCOUNTED by ${miscounted}` : "",
          failures.length > 0 ? `${failures.length} rounds failed: ${failures[0]}` : "",
        ]
          .filter(Boolean)
          .join("; "),
      ];
    }),
  );
}
