/**
 * Order and choice of a map's entries when it is printed.
 *
 * Integers, averages and histograms (by their total) ascend, so that the largest come last, next to the prompt.
 * Entries that are equal in this, and maps of other values, ascend by key; integers in keys as unsigned, as bpftrace
 * does.
 */
import { histogramTotal } from "./histogram.ts";
import type { MapEntry, MapValue, OutputValue } from "./value.ts";
import { averageOf, printValue } from "./value-text.ts";

/** The entries in order: all, or the `top` last. Statistics are never cut: `print` ignores its arguments for them. */
export function topEntries(entries: readonly MapEntry[], top = 0): MapEntry[] {
  const ranked = entries.map((entry) => ({ entry, rank: rankOf(entry.value) }));
  ranked.sort((a, b) => compareBigInts(a.rank, b.rank) || compareKeys(a.entry.keys, b.entry.keys));
  const sorted = ranked.map(({ entry }) => entry);
  const isCut = top > 0 && sorted.length > top && sorted[0]?.value.kind !== "stats";
  return isCut ? sorted.slice(-top) : sorted;
}

function rankOf(value: MapValue): bigint {
  switch (value.kind) {
    case "plain":
      return value.value.kind === "integer" ? value.value.value : 0n;
    case "avg":
    case "stats":
      return averageOf(value);
    case "hist":
    case "lhist":
      return histogramTotal(value);
  }
}

function compareKeys(left: readonly OutputValue[], right: readonly OutputValue[]): number {
  for (const [index, value] of left.entries()) {
    const other = right[index];
    if (other === undefined) return 1;
    const order = compareValues(value, other);
    if (order !== 0) return order;
  }
  return left.length - right.length;
}

function compareValues(left: OutputValue, right: OutputValue): number {
  if (left.kind === "integer" && right.kind === "integer") {
    return compareBigInts(BigInt.asUintN(64, left.value), BigInt.asUintN(64, right.value));
  }
  if (left.kind === "symbol" && right.kind === "symbol") return compareBigInts(left.address, right.address);
  if (left.kind === "tuple" && right.kind === "tuple") return compareKeys(left.elements, right.elements);
  const [leftText, rightText] = [printValue(left), printValue(right)];
  return leftText < rightText ? -1 : leftText > rightText ? 1 : 0;
}

function compareBigInts(left: bigint, right: bigint): number {
  return left < right ? -1 : left > right ? 1 : 0;
}
