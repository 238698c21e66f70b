/** Size and time of compiled programs as a table, beside the kernel's. */
import type { ProgramResult } from "./programs.ts";
import { type Column, printFigure, printTable } from "./table.ts";

const columns: readonly Column[] = [
  { title: "program", align: "left" },
  { title: "insns", align: "right" },
  { title: "bytes", align: "right" },
  { title: "kernel's", align: "right" },
  { title: "ns per run", align: "right" },
  { title: "kernel's", align: "right" },
  { title: "x kernel", align: "right" },
  { title: "", align: "left" },
];

export function printPrograms(results: readonly ProgramResult[]): string {
  return printTable(
    columns,
    results.map(({ name, insns, ours, kernel }) =>
      typeof kernel === "string"
        ? [name, `${insns}`, `${ours.codeBytes}`, "", printFigure(ours.ns), "", "", kernel]
        : [
            name,
            `${insns}`,
            `${ours.codeBytes}`,
            `${kernel.codeBytes}`,
            printFigure(ours.ns),
            printFigure(kernel.ns),
            printFigure(ours.ns / kernel.ns),
            "",
          ],
    ),
  );
}
