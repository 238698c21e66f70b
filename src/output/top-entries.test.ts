import { describe, expect, it } from "vitest";
import { topEntries } from "./top-entries.ts";
import type { MapEntry, MapValue, OutputValue } from "./value.ts";
import { printKeys } from "./value-text.ts";

const int = (value: bigint | number): OutputValue => ({
  kind: "integer",
  value: BigInt(value),
  signed: true,
});
const str = (text: string): OutputValue => ({ kind: "string", text });
const plain = (value: OutputValue): MapValue => ({ kind: "plain", value });
const of = (keys: OutputValue | OutputValue[], value: MapValue): MapEntry => ({
  keys: Array.isArray(keys) ? keys : [keys],
  value,
});
const avg = (count: number, total: number): MapValue => ({
  kind: "avg",
  count: BigInt(count),
  total: BigInt(total),
});
const stats = (count: number, total: number): MapValue =>
  ({ ...avg(count, total), kind: "stats" }) as MapValue;
const hist = (...counts: number[]): MapValue => ({ kind: "hist", counts: counts.map(BigInt) });

describe("order of a map's entries", () => {
  const letters = [of(str("c"), plain(int(30))), of(str("a"), plain(int(10))), of(str("b"), plain(int(20)))];
  const averages = [of(int(1), avg(1, 100)), of(int(2), avg(3, 9)), of(int(3), avg(2, 120))];
  const cases: readonly {
    readonly name: string;
    readonly entries: readonly MapEntry[];
    readonly top?: number;
    readonly keys: string;
  }[] = [
    { name: "nothing", entries: [], keys: "" },
    { name: "integers ascend", entries: letters, keys: "[a][b][c]" },
    {
      name: "negative integers come first",
      entries: [of(int(1), plain(int(2))), of(int(2), plain(int(-1))), of(int(3), plain(int(-7)))],
      keys: "[3][2][1]",
    },
    {
      name: "unsigned integers above 2^63 come last",
      entries: [
        of(int(1), plain({ kind: "integer", value: 2n ** 64n - 1n, signed: false })),
        of(int(2), plain({ kind: "integer", value: 1n, signed: false })),
      ],
      keys: "[2][1]",
    },
    {
      name: "equal integers ascend by key",
      entries: [of(int(3), plain(int(1))), of(int(1), plain(int(1))), of(int(2), plain(int(1)))],
      keys: "[1][2][3]",
    },
    { name: "the largest two", entries: letters, top: 2, keys: "[b][c]" },
    { name: "more than there are", entries: letters, top: 9, keys: "[a][b][c]" },
    { name: "top 0 is all", entries: letters, top: 0, keys: "[a][b][c]" },
    { name: "averages by average", entries: averages, keys: "[2][3][1]" },
    { name: "the largest average", entries: averages, top: 1, keys: "[1]" },
    {
      name: "statistics by average, never cut",
      entries: [of(int(1), stats(1, 100)), of(int(2), stats(3, 9)), of(int(3), stats(2, 120))],
      top: 1,
      keys: "[2][3][1]",
    },
    {
      name: "histograms by total",
      entries: [of(str("a"), hist(0, 1, 1)), of(str("b"), hist(0, 0, 0, 0, 1))],
      keys: "[b][a]",
    },
    {
      name: "strings by key",
      entries: [
        of(str("b"), plain(str("aa"))),
        of(str("a"), plain(str("bb"))),
        of(str("aa"), plain(str("a"))),
      ],
      keys: "[a][aa][b]",
    },
    {
      name: "integer keys ascend as unsigned",
      entries: [of(int(5), plain(str("f"))), of(int(-1), plain(str("g"))), of(int(30), plain(str("h")))],
      keys: "[5][30][-1]",
    },
    {
      name: "several keys, the first decides",
      entries: [
        of([int(3), int(1)], plain(str(""))),
        of([int(1), int(5)], plain(str(""))),
        of([int(1), int(2)], plain(str(""))),
      ],
      keys: "[1, 2][1, 5][3, 1]",
    },
    {
      name: "symbols by address",
      entries: [
        of({ kind: "symbol", address: 2n, text: "a" }, plain(int(1))),
        of({ kind: "symbol", address: 1n, text: "b" }, plain(int(1))),
      ],
      keys: "[b][a]",
    },
  ];
  it.each(cases)("$name", ({ entries, top, keys }) => {
    expect(
      topEntries(entries, top)
        .map((entry) => printKeys(entry.keys))
        .join(""),
    ).toBe(keys);
  });
});
