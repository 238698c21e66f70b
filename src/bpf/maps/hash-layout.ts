/**
 * Hash maps of all kinds: a head word per bucket, and a pool of elements that never move and never become anything
 * else.
 *
 *     owner words  of per-CPU kinds (percpu-header.ts); everything else counts from behind them
 *     header       0 free list   8 free list of spares   64 words of pool used   72 words of spares used
 *                  128 updates refused because it was full   136 hand of the clock
 *     buckets      one word each
 *     elements     0 next word   8 key, padded with zeros to a multiple of 8   LRU: 8 bytes, 1 if it was touched
 *                  then the value
 *     copies       per-CPU kinds have the values here: all of slot 0, all of slot 1, ...
 *
 * Invariants (after M. Michael, "High performance dynamic lock-free hash tables", 2002; words as in
 * tagged-words.ts, a mark says that the element which holds the word is deleted):
 * - elements are inserted at the head of a bucket only, and every change of a head changes its tag: an
 *   insertion that saw no such key at a head word that is still there cannot make a duplicate;
 * - an element is deleted by the mark in its own next word and only then unlinked; a marked next word
 *   does not change any more, so nothing is lost behind it;
 * - whoever traverses checks after reading an element that the word that led to it is unchanged;
 *   who meets a marked element unlinks it; who unlinked it gives it back to the pool;
 * - key and value are written while nothing leads to the element. A thread that dies with an element
 *   in its hands loses that element from the pool, and nothing else.
 *
 * A value of more than 8 bytes is replaced and not overwritten, so that nobody reads half of it: the new element
 * comes behind the old one by the same exchange that marks the old one. Replacements use a few elements that the
 * map has besides its entries (spares); the mark says by bit 0 of the ref, which is even for every element, that the
 * old element becomes the spare. Without a spare it takes one of the pool; without that it writes in place.
 *
 * LRU kinds that are full delete an element that was not touched since a hand went past it last (a clock): lookups
 * and replacements touch.
 */
import type { MapSpec } from "../program.ts";
import {
  CACHE_LINE_BYTES,
  MAX_ELEMENTS_OFFSET,
  MAX_POOL_BYTES,
  powerOfTwo,
  roundUp,
} from "./layout-sizes.ts";
import { ownerBytes } from "./percpu-header.ts";
import type { PoolLayout } from "./tagged-words.ts";

/** Where the values of a per-CPU hash map lie. */
export interface CopiesLayout {
  readonly cpus: number;
  /** From behind the owner words to the copies of slot 0. */
  readonly offset: number;
  /** Distance of the copies of two slots. */
  readonly slotBytes: number;
  /** Distance of values in one slot. */
  readonly stride: number;
  /** The number of an element is its offset in the pool shifted right by this. */
  readonly elementShift: number;
}

export interface HashLayout {
  readonly kind: "hash";
  readonly totalBytes: number;
  /** Bytes of the owner words; all other offsets count from behind them. */
  readonly headerBytes: number;
  /** A power of two, at least 8. */
  readonly buckets: number;
  /** The bucket is the hash shifted right by this. */
  readonly hashShift: number;
  /** Key size in 8-byte words. */
  readonly keyWords: number;
  readonly elementsOffset: number;
  /** Distance of elements; a multiple of 16. */
  readonly stride: number;
  /** Offset of the value in an element. */
  readonly valueOffset: number;
  /** What is stored per key. */
  readonly valueBytes: number;
  /** Bytes of the elements for entries; the spares lie behind them. */
  readonly poolBytes: number;
  /** Bytes of the spares; 0: values are written in place. */
  readonly spareBytes: number;
  /** LRU kinds: offset in the element of the word that lookups touch. */
  readonly touchedOffset: number | undefined;
  /** Per-CPU kinds. */
  readonly copies: CopiesLayout | undefined;
}

export const HASH_FREE = 0;
export const HASH_SPARE_FREE = 8;
export const HASH_USED = 64;
export const HASH_SPARE_USED = 72;
export const HASH_REFUSED = 128;
/** Counts the elements that the hand of the clock went past. */
export const HASH_HAND = 136;
export const HASH_BUCKETS = 192;
export const ELEMENT_NEXT = 0;
export const ELEMENT_KEY = 8;
/** In an element of the free list the first key word is the ref of the next one. */
export const ELEMENT_FREE_LINK = ELEMENT_KEY;
/** In the ref of a marked word: the element is a spare. */
export const REF_IS_SPARE = 1n;

/** More threads than this are rarely in the middle of a replacement. */
const SPARES = 32;
/** How many touched elements a full LRU map passes before it deletes one that was touched. */
export const CLOCK_STEPS = 128;
/** How many elements it looks at before it gives up. */
export const CLOCK_MOST_STEPS = 4096;

/** Steps that a traversal always has: as many times it can start over before another thread lets it through. */
const STEPS_FOR_RESTARTS = 16_384;

/**
 * After how many elements, and restarts, the traversals of one operation give up: nobody who keeps to the invariants makes
 * them take so many. It ends what damaged memory, such as a list that leads back to itself, would have go on for ever.
 */
export function mostSteps({ poolBytes, spareBytes, stride }: HashLayout): number {
  return Math.min(0x7fff_ffff, (4 * (poolBytes + spareBytes)) / stride + STEPS_FOR_RESTARTS);
}

const isLruKind = (spec: MapSpec) => spec.kind === "lru_hash" || spec.kind === "lru_percpu_hash";

/** `cpus` is the number of copies of per-CPU kinds; `valueBytes` what is stored per key. */
export function layoutHash(spec: MapSpec, valueBytes: number, cpus: number | undefined): HashLayout {
  const buckets = powerOfTwo(Math.max(8, spec.maxEntries));
  const keyWords = Math.ceil(spec.keyBytes / 8);
  const isLru = isLruKind(spec);
  const keyEnd = ELEMENT_KEY + keyWords * 8;
  const touchedOffset = isLru ? keyEnd : undefined;
  const inElement = cpus === undefined ? valueBytes : 0;
  // A value of whole cache lines is a set of shards that different processors write.
  const valueAlign = inElement > 0 && inElement % CACHE_LINE_BYTES === 0 ? CACHE_LINE_BYTES : 8;
  const valueOffset = roundUp(keyEnd + (isLru ? 8 : 0), valueAlign);
  const elementBytes = roundUp(valueOffset + inElement, Math.max(16, valueAlign));
  // Small elements do not straddle cache lines; the number of a per-CPU element is its offset, shifted.
  const stride =
    cpus !== undefined || elementBytes <= CACHE_LINE_BYTES ? powerOfTwo(elementBytes) : elementBytes;
  const elementsOffset = roundUp(HASH_BUCKETS + buckets * 8, CACHE_LINE_BYTES);
  const poolBytes = stride * spec.maxEntries;
  const spareBytes = inElement > 8 ? stride * SPARES : 0;
  const elementsEnd = roundUp(elementsOffset + poolBytes + spareBytes, CACHE_LINE_BYTES);
  if (elementsEnd > MAX_POOL_BYTES || elementsOffset > MAX_ELEMENTS_OFFSET)
    throw new RangeError(
      `lay out map ${spec.name}: ${elementsEnd} bytes exceed ${MAX_POOL_BYTES}, or ${spec.maxEntries} entries are too many`,
    );
  const headerBytes = cpus === undefined ? 0 : ownerBytes(cpus);
  const copies = cpus === undefined ? undefined : layoutCopies(spec, cpus, elementsEnd, stride);
  return {
    kind: "hash",
    totalBytes: headerBytes + elementsEnd + (copies === undefined ? 0 : copies.slotBytes * copies.cpus),
    headerBytes,
    buckets,
    hashShift: 64 - Math.log2(buckets),
    keyWords,
    elementsOffset,
    stride,
    valueOffset,
    valueBytes,
    poolBytes,
    spareBytes,
    touchedOffset,
    copies,
  };
}

function layoutCopies(spec: MapSpec, cpus: number, offset: number, elementStride: number): CopiesLayout {
  const stride = roundUp(spec.valueBytes, 8);
  return {
    cpus,
    offset,
    slotBytes: roundUp(stride * spec.maxEntries, CACHE_LINE_BYTES),
    stride,
    elementShift: Math.log2(elementStride),
  };
}

/** The elements for entries. */
export function hashPool(layout: HashLayout): PoolLayout {
  return {
    free: HASH_FREE,
    used: HASH_USED,
    elementsOffset: layout.elementsOffset,
    stride: layout.stride,
    poolBytes: layout.poolBytes,
    region: { offset: layout.elementsOffset, lenBytes: layout.poolBytes + layout.spareBytes },
    link: ELEMENT_FREE_LINK,
  };
}

/** The elements that replacements use. */
export function sparePool(layout: HashLayout): PoolLayout {
  return {
    ...hashPool(layout),
    free: HASH_SPARE_FREE,
    used: HASH_SPARE_USED,
    elementsOffset: layout.elementsOffset + layout.poolBytes,
    poolBytes: layout.spareBytes,
  };
}
