/**
 * Histograms as rows: from the first bucket that has something to the last that has, with the empty ones between.
 */
import type { LinearHistogram, Log2Histogram } from "./value.ts";

export type Histogram = Log2Histogram | LinearHistogram;

export interface HistogramRow {
  /** Lowest value; undefined: no lower end. */
  readonly min: bigint | undefined;
  /** Highest value, inclusive; undefined: no upper end. */
  readonly max: bigint | undefined;
  /** `[2, 4)`. */
  readonly label: string;
  readonly count: bigint;
}

const BAR_COLUMNS = 52;
const LABEL_COLUMNS = 16;
const COUNT_COLUMNS = 8;
const SUFFIXES = ["", "K", "M", "G", "T", "P", "E"];

/** Empty if nothing was counted. */
export function histogramRows(histogram: Histogram): HistogramRow[] {
  const first = histogram.counts.findIndex((count) => count !== 0n);
  if (first < 0) return [];
  const last = histogram.counts.findLastIndex((count) => count !== 0n);
  const rows: HistogramRow[] = [];
  for (let index = first; index <= last; index++) {
    const count = histogram.counts[index]!;
    rows.push(histogram.kind === "hist" ? log2Row(index, count) : linearRow(histogram, index, count));
  }
  return rows;
}

/** All that was counted. */
export function histogramTotal(histogram: Histogram): bigint {
  return histogram.counts.reduce((sum, count) => sum + count, 0n);
}

/** A line per row, each with its newline. Counts are shown divided; bars keep the undivided proportions. */
export function printHistogramRows(rows: readonly HistogramRow[], div: (count: bigint) => bigint): string {
  const most = rows.reduce((max, { count }) => (count > max ? count : max), 1n);
  let text = "";
  for (const { label, count } of rows) {
    const bar = "@".repeat(barColumns(count, most)).padEnd(BAR_COLUMNS);
    text += `${label.padEnd(LABEL_COLUMNS)}${String(div(count)).padStart(COUNT_COLUMNS)} |${bar}|\n`;
  }
  return text;
}

/** Single precision, as bpftrace computes it: bars of the same counts have the same length. */
function barColumns(count: bigint, most: bigint): number {
  const share = Math.fround(Math.fround(Number(count)) / Math.fround(Number(most)));
  return Math.trunc(Math.fround(share * BAR_COLUMNS));
}

function log2Row(index: number, count: bigint): HistogramRow {
  if (index === 0) return { min: undefined, max: -1n, label: "(..., 0)", count };
  if (index === 1) return { min: 0n, max: 0n, label: "[0]", count };
  if (index === 2) return { min: 1n, max: 1n, label: "[1]", count };
  const min = 1n << BigInt(index - 2);
  return { min, max: min * 2n - 1n, label: `[${printBound(min)}, ${printBound(min * 2n)})`, count };
}

function linearRow(histogram: LinearHistogram, index: number, count: bigint): HistogramRow {
  const { min, max, step } = histogram;
  if (index === 0) return { min: undefined, max: min - 1n, label: `(..., ${printBound(min)})`, count };
  if (index === histogram.counts.length - 1) {
    return { min: max, max: undefined, label: `[${printBound(max)}, ...)`, count };
  }
  const from = min + BigInt(index - 1) * step;
  // The last step is shorter where the steps do not fill the range.
  const to = from + step > max ? max : from + step;
  return { min: from, max: to - 1n, label: `[${printBound(from)}, ${printBound(to)})`, count };
}

/** Whole multiples of powers of 1024 with their suffix: `2K`, `1500`. */
function printBound(bound: bigint): string {
  let suffix = 0;
  while (bound !== 0n && bound % 1024n === 0n && suffix < SUFFIXES.length - 1) {
    bound /= 1024n;
    suffix++;
  }
  return `${bound}${SUFFIXES[suffix]}`;
}
