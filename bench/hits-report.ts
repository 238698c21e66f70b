/** Costs of a hit as a table, each beside what trapline's jump costs for the same work on the same site. */
import type { HitCost, HitResult } from "./hits.ts";
import type { Site } from "./hot-process.ts";
import { type Column, printFigure, printTable } from "./table.ts";
import { describeWork } from "./tracers/tracer.ts";

const columns: readonly Column[] = [
  { title: "at each hit", align: "left" },
  { title: "function begins with", align: "left" },
  { title: "tracer", align: "left" },
  { title: "bare ns", align: "right" },
  { title: "probed ns", align: "right" },
  { title: "added ns", align: "right" },
  { title: "rounds", align: "right" },
  { title: "x jump", align: "right" },
  { title: "", align: "left" },
];

const describeSite: Partial<Record<Site, string>> = {
  mov: "3-byte mov",
  push: "push %rbp",
  nop5: "5-byte nop",
  sled: "five nops",
  imm: "5-byte mov",
};

export function printHits(results: readonly HitResult[]): string {
  const sorted = [...results].sort(
    (a, b) =>
      Object.keys(describeWork).indexOf(a.work) - Object.keys(describeWork).indexOf(b.work) ||
      Object.keys(describeSite).indexOf(a.site) - Object.keys(describeSite).indexOf(b.site),
  );
  return printTable(
    columns,
    sorted.map((result) => {
      const head = [describeWork[result.work], describeSite[result.site] ?? result.site, result.tracer];
      const { outcome } = result;
      if (outcome.kind !== "measured")
        return [
          ...head,
          "",
          "",
          "",
          "",
          "",
          `${outcome.kind === "failed" ? "failed: " : ""}${outcome.reason}`,
        ];
      const { bare, probed, added, miscounted, failures } = outcome;
      const ratio = ratioToJump(results, result);
      return [
        ...head,
        printFigure(bare.median),
        printFigure(probed.median),
        printFigure(added.median),
        `${printFigure(added.lowest)}..${printFigure(added.highest)}`,
        ratio === undefined ? "" : printFigure(ratio),
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

/** Added time as a multiple of what the product's jump adds for the same work on the same site. */
function ratioToJump(results: readonly HitResult[], result: HitResult): number | undefined {
  const jump = findCost(results, { ...result, tracer: "trapline, jump" });
  if (jump === undefined || result.tracer === "trapline, jump" || result.outcome.kind !== "measured")
    return undefined;
  return result.outcome.added.median / jump.added.median;
}

export function findCost(
  results: readonly HitResult[],
  { tracer, site, work }: Pick<HitResult, "tracer" | "site" | "work">,
): HitCost | undefined {
  const outcome = results.find(
    (result) => result.tracer === tracer && result.site === site && result.work === work,
  )?.outcome;
  return outcome?.kind === "measured" ? outcome : undefined;
}
