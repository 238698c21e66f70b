import { describe, expect, it } from "vitest";
import type { Histogram } from "./histogram.ts";
import { histogramRows, printHistogramRows } from "./histogram.ts";

const FULL = "@".repeat(52);
const NONE = " ".repeat(52);
const HALF = "@".repeat(26).padEnd(52);
const THIRD = "@".repeat(17).padEnd(52);

/** Bucket index → count. */
function log2(counts: Readonly<Record<number, number>>): Histogram {
  return { kind: "hist", counts: Array.from({ length: 66 }, (_, index) => BigInt(counts[index] ?? 0)) };
}

function linear(min: number, max: number, step: number, counts: Readonly<Record<number, number>>): Histogram {
  const length = Math.ceil((max - min) / step) + 2;
  return {
    kind: "lhist",
    min: BigInt(min),
    max: BigInt(max),
    step: BigInt(step),
    counts: Array.from({ length }, (_, index) => BigInt(counts[index] ?? 0)),
  };
}

describe("histogram", () => {
  // As printed by bpftrace 0.17, but for what lies above 2^31, where it is wrong.
  const cases: readonly {
    readonly name: string;
    readonly histogram: Histogram;
    readonly lines: readonly string[];
  }[] = [
    { name: "empty", histogram: log2({}), lines: [] },
    { name: "no buckets", histogram: { kind: "hist", counts: [] }, lines: [] },
    { name: "negative only", histogram: log2({ 0: 1 }), lines: [`(..., 0)               1 |${FULL}|`] },
    { name: "0 only", histogram: log2({ 1: 3 }), lines: [`[0]                    3 |${FULL}|`] },
    { name: "1 only", histogram: log2({ 2: 1 }), lines: [`[1]                    1 |${FULL}|`] },
    {
      name: "empty buckets between others",
      histogram: log2({ 0: 1, 1: 1, 4: 2 }),
      lines: [
        `(..., 0)               1 |${HALF}|`,
        `[0]                    1 |${HALF}|`,
        `[1]                    0 |${NONE}|`,
        `[2, 4)                 0 |${NONE}|`,
        `[4, 8)                 2 |${FULL}|`,
      ],
    },
    {
      name: "bars are rounded down",
      histogram: log2({ 3: 3, 4: 1 }),
      lines: [`[2, 4)                 3 |${FULL}|`, `[4, 8)                 1 |${THIRD}|`],
    },
    {
      name: "suffixes from 1024 on",
      histogram: log2({ 10: 1, 12: 1 }),
      lines: [
        `[256, 512)             1 |${FULL}|`,
        `[512, 1K)              0 |${NONE}|`,
        `[1K, 2K)               1 |${FULL}|`,
      ],
    },
    { name: "M", histogram: log2({ 22: 1 }), lines: [`[1M, 2M)               1 |${FULL}|`] },
    { name: "K to M", histogram: log2({ 21: 1 }), lines: [`[512K, 1M)             1 |${FULL}|`] },
    { name: "G", histogram: log2({ 32: 1 }), lines: [`[1G, 2G)               1 |${FULL}|`] },
    { name: "T", histogram: log2({ 42: 1 }), lines: [`[1T, 2T)               1 |${FULL}|`] },
    { name: "the last bucket", histogram: log2({ 65: 1 }), lines: [`[8E, 16E)              1 |${FULL}|`] },
    {
      name: "counts wider than their column",
      histogram: log2({ 1: 12_345_678_901 }),
      lines: [`[0]             12345678901 |${FULL}|`],
    },
    { name: "linear, empty", histogram: linear(0, 10, 1, {}), lines: [] },
    {
      name: "linear, below and above",
      histogram: linear(0, 20, 5, { 0: 2, 5: 1 }),
      lines: [
        `(..., 0)               2 |${FULL}|`,
        `[0, 5)                 0 |${NONE}|`,
        `[5, 10)                0 |${NONE}|`,
        `[10, 15)               0 |${NONE}|`,
        `[15, 20)               0 |${NONE}|`,
        `[20, ...)              1 |${HALF}|`,
      ],
    },
    {
      name: "linear, above only",
      histogram: linear(0, 10, 5, { 3: 2 }),
      lines: [`[10, ...)              2 |${FULL}|`],
    },
    {
      name: "linear, multiples of 1024 have a suffix",
      histogram: linear(1024, 10240, 1024, { 0: 1, 2: 1 }),
      lines: [
        `(..., 1K)              1 |${FULL}|`,
        `[1K, 2K)               0 |${NONE}|`,
        `[2K, 3K)               1 |${FULL}|`,
      ],
    },
    {
      name: "linear, other bounds have none",
      histogram: linear(1000, 2000, 8, { 4: 2 }),
      lines: [`[1K, 1032)             2 |${FULL}|`],
    },
    {
      name: "linear, multiples of 1000 have none",
      histogram: linear(0, 5000, 1000, { 1: 1, 2: 1 }),
      lines: [`[0, 1000)              1 |${FULL}|`, `[1000, 2000)           1 |${FULL}|`],
    },
    {
      name: "linear, M",
      histogram: linear(0, 10_485_760, 1_048_576, { 3: 1 }),
      lines: [`[2M, 3M)               1 |${FULL}|`],
    },
    {
      name: "linear, the last step is cut off",
      histogram: linear(0, 10, 4, { 3: 1, 4: 1 }),
      lines: [`[8, 10)                1 |${FULL}|`, `[10, ...)              1 |${FULL}|`],
    },
    {
      name: "linear, negative",
      histogram: linear(-20, 20, 20, { 0: 1, 1: 1 }),
      lines: [`(..., -20)             1 |${FULL}|`, `[-20, 0)               1 |${FULL}|`],
    },
  ];
  it.each(cases)("$name", ({ histogram, lines }) => {
    const text = printHistogramRows(histogramRows(histogram), (count) => count);
    expect(text).toBe(lines.map((line) => `${line}\n`).join(""));
  });

  it("draws bars of one column for each count up to the most", () => {
    for (let count = 1; count < 52; count++) {
      const text = printHistogramRows(histogramRows(log2({ 3: count, 4: 52 })), (n) => n);
      // Single precision may fall just below the whole column.
      expect([count - 1, count]).toContain(text.split("|")[1]!.trim().length);
    }
  });
});
