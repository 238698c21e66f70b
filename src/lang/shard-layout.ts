/**
 * What lies in one shard of an aggregated value, in words of 8 bytes:
 *
 *   count        count
 *   sum          sum, mark
 *   avg, stats   sum, count, mark
 *   min, max     value, mark; the value is changed so that 0 means nothing and more always wins: see extremeMask
 *   hist         buckets: below 0, 0, then [2^i, 2^(i+1)) for i from 0 to 63; mark
 *   lhist        buckets: below min, then one per step, then max and above; mark
 *
 * The mark says that the value is to be shown although it is 0. Programs set it to MARK_ADDED where nothing else
 * shows that something was added; `zero()` sets it to MARK_ZEROED.
 */
import type { Aggregate, AggregateName } from "./types.ts";

/** Index of the bucket of 1 in a log2 histogram. */
export const HIST_FIRST_POWER = 2;
export const HIST_BUCKETS = HIST_FIRST_POWER + 64;
export const MARK_ADDED = 1;
export const MARK_ZEROED = 2;
/** Shards do not share cache lines. */
const SHARD_ALIGN_BYTES = 64;

export function shardWords(aggregate: Aggregate): number {
  switch (aggregate.fn) {
    case "count":
      return 1;
    case "sum":
    case "min":
    case "max":
      return 2;
    case "avg":
    case "stats":
      return 3;
    case "hist":
      return HIST_BUCKETS + 1;
    case "lhist":
      return linearSteps(aggregate.linear!) + 3;
  }
}

/** Index of the mark in a shard; a count has none. */
export function findMarkWord(value: {
  readonly fn: AggregateName;
  readonly words: number;
}): number | undefined {
  return value.fn === "count" ? undefined : value.words - 1;
}

export function shardStrideBytes(aggregate: Aggregate): number {
  return Math.ceil((shardWords(aggregate) * 8) / SHARD_ALIGN_BYTES) * SHARD_ALIGN_BYTES;
}

/** Buckets between min and max. */
export function linearSteps(linear: {
  readonly min: bigint;
  readonly max: bigint;
  readonly step: bigint;
}): number {
  return Number((linear.max - linear.min + linear.step - 1n) / linear.step);
}

/**
 * A minimum or maximum is stored xored with this, so that an unsigned maximum of stored words that begin as 0
 * gives the result for signed and unsigned values, and for the minimum too.
 */
export function extremeMask(fn: "min" | "max", signed: boolean): bigint {
  const sign = signed ? 1n << 63n : 0n;
  return BigInt.asIntN(64, fn === "max" ? sign : ~sign);
}
