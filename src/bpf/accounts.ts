/**
 * Where it is counted what became of the hits of one probe: one account per attach point, in memory that all targets of a
 * session share with the tracer.
 *
 *     account      ACCOUNT_SHARDS shards of one cache line each; a processor adds to shard (number & ACCOUNT_SHARDS - 1)
 *     shard    0   passed: the program has begun, and its predicate has not said no
 *              8   filtered: the predicate has said no
 *             16   dropped: hits of which at least one event found no room
 *             24   recursed: the program was not run, because it was running already
 *             32   missed: returns that were not probed
 *             40   unwound: calls that an exception, a forced unwinding or longjmp has left, so that they did not return
 *             48  faulted: hits whose program was abandoned, since it had raised a fault, or came behind one that had
 *             56  of those, the ones that were not counted as passed or filtered before
 *
 * Every hit that comes to its end adds to exactly one of passed, filtered and recursed, in one locked instruction, because threads move
 * between processors and are interrupted by signals whose handlers are probed too. So nothing is lost, and
 *
 *     hits = passed + filtered + recursed + early,   run = passed - dropped - (faulted - early).
 *
 * The last two words are the tracer's: nothing in the target writes to them.
 */
import type { SharedMemory } from "./maps/shared-memory.ts";

export const ACCOUNT_SHARDS = 8;
export const ACCOUNT_SHARD_SHIFT = 6;
export const ACCOUNT_SHARD_BYTES = 1 << ACCOUNT_SHARD_SHIFT;
export const ACCOUNT_BYTES = ACCOUNT_SHARDS * ACCOUNT_SHARD_BYTES;

/** Offsets in a shard. */
export const ACCOUNT_PASSED = 0;
export const ACCOUNT_FILTERED = 8;
export const ACCOUNT_DROPPED = 16;
export const ACCOUNT_RECURSED = 24;
export const ACCOUNT_MISSED = 32;
/** Behind the missed ones: who counts these has the address of those. */
export const ACCOUNT_UNWOUND = 40;
export const ACCOUNT_FAULTED = 48;
export const ACCOUNT_EARLY = 56;

/** What became of a probe's hits: `hits = run + filtered + recursed + dropped + faulted`. */
export interface HitCounts {
  readonly hits: bigint;
  /** Its program ran to its end, and what it sent found room. */
  readonly run: bigint;
  readonly filtered: bigint;
  readonly recursed: bigint;
  readonly dropped: bigint;
  /** Its program was abandoned. */
  readonly faulted: bigint;
  /** Returns that could not be probed; no hits. */
  readonly missed: bigint;
  /** Calls whose return address was replaced and that were left without returning; no hits. */
  readonly unwound: bigint;
}

/** What became of the hits of two probes together. */
export function addHitCounts(a: HitCounts, b: HitCounts): HitCounts {
  return {
    hits: a.hits + b.hits,
    run: a.run + b.run,
    filtered: a.filtered + b.filtered,
    recursed: a.recursed + b.recursed,
    dropped: a.dropped + b.dropped,
    faulted: a.faulted + b.faulted,
    missed: a.missed + b.missed,
    unwound: a.unwound + b.unwound,
  };
}

/**
 * Reads the account at `offset`. While programs run, a hit may be seen in one of its words and not yet in another; what is
 * returned fits together all the same.
 */
export function readAccount(memory: SharedMemory, offset: number): HitCounts {
  const sum = (word: number): bigint => {
    let total = 0n;
    for (let shard = 0; shard < ACCOUNT_SHARDS; shard++)
      total += Atomics.load(memory.words, (offset + shard * ACCOUNT_SHARD_BYTES + word) / 8);
    return BigInt.asUintN(64, total);
  };
  // What is counted last in a hit is read first, so that it is never more than what it is a part of.
  const [faulted, early] = [sum(ACCOUNT_FAULTED), sum(ACCOUNT_EARLY)];
  const dropped = sum(ACCOUNT_DROPPED);
  const passed = sum(ACCOUNT_PASSED);
  const filtered = sum(ACCOUNT_FILTERED);
  const recursed = sum(ACCOUNT_RECURSED);
  return {
    hits: passed + filtered + recursed + early,
    run: passed - dropped - (faulted - early),
    filtered,
    recursed,
    dropped,
    faulted,
    missed: sum(ACCOUNT_MISSED),
    unwound: sum(ACCOUNT_UNWOUND),
  };
}

/** Counts hits whose program was abandoned: before or after they were counted otherwise. */
export function countFaulted(memory: SharedMemory, offset: number, hits: bigint, isEarly: boolean): void {
  Atomics.add(memory.words, (offset + ACCOUNT_FAULTED) / 8, hits);
  if (isEarly) Atomics.add(memory.words, (offset + ACCOUNT_EARLY) / 8, hits);
}
