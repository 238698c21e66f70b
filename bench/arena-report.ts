/** The gigabyte map in pages of several sizes, as a table. */
import type { ArenaResults } from "./arena.ts";
import { type Column, printFigure, printTable } from "./table.ts";

const columns: readonly Column[] = [
  { title: "pages", align: "left" },
  { title: "made, ms", align: "right" },
  { title: "filled, ms", align: "right" },
  { title: "lookup, ns", align: "right" },
  { title: "x 4k", align: "right" },
  { title: "update, ns", align: "right" },
  { title: "x 4k", align: "right" },
  { title: "TLB misses", align: "right" },
  { title: "update's", align: "right" },
  { title: "keyed, ms", align: "right" },
  { title: "lookup, ns", align: "right" },
  { title: "", align: "left" },
];

const optional = (value: number | undefined): string => (value === undefined ? "" : printFigure(value));

export function printArena({ results, noCounter, noKeys }: ArenaResults): string {
  const base = results.find(({ pages }) => pages === "4k")?.figures;
  const ratio = (value: number, of: number | undefined) => (of === undefined ? "" : printFigure(value / of));
  const rows = results.map(({ pages, figures, refused = "" }) =>
    figures === undefined
      ? [pages, ...Array.from({ length: columns.length - 2 }, () => ""), refused]
      : [
          pages,
          printFigure(figures.makeMs),
          printFigure(figures.fillMs),
          printFigure(figures.lookupNs),
          ratio(figures.lookupNs, base?.lookupNs),
          printFigure(figures.updateNs),
          ratio(figures.updateNs, base?.updateNs),
          optional(figures.lookupMisses),
          optional(figures.updateMisses),
          optional(figures.keyMs),
          optional(figures.keyedLookupNs),
          "",
        ],
  );
  const notes = [noCounter, noKeys === undefined ? undefined : `no cost of a key: ${noKeys}`];
  return [printTable(columns, rows), ...notes.filter((note) => note !== undefined)].join("\n");
}
