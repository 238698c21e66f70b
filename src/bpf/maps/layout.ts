/**
 * Where everything lies in the memory of a map. Both sides read it: the tracer's accessors in this folder and the
 * routines that the JIT emits. All memory begins as zeros, and a map of zeros is an empty map.
 *
 * array    elements of `stride` bytes, from the first byte on.
 *
 * hash     a head word per bucket, and a pool of elements that never move and never become anything else.
 *
 *              header       0 free-list word   64 words of pool used   128 updates refused because it was full
 *              buckets      one word each
 *              elements     0 next word   8 key, padded with zeros to a multiple of 8   then the value
 *
 *          A word names an element and counts its own changes, so that a compare-and-exchange fails when the
 *          word was changed and changed back in between:
 *
 *               63            32   31   30             0
 *              +----------------+------+----------------+
 *              |      tag       | mark |      ref       |    ref: byte offset in the map / 8; 0 is none
 *              +----------------+------+----------------+    mark: the element that holds this word is deleted
 *
 *          Invariants (after M. Michael, "High performance dynamic lock-free hash tables", 2002):
 *          - elements are inserted at the head of a bucket only, and every change of a head changes its tag: an
 *            insertion that saw no such key at a head word that is still there cannot make a duplicate;
 *          - an element is deleted by the mark in its own next word and only then unlinked; a marked next word
 *            does not change any more, so nothing is lost behind it;
 *          - whoever traverses checks after reading an element that the word that led to it is unchanged;
 *            who meets a marked element unlinks it; who unlinked it gives it back to the pool;
 *          - key and value are written while nothing leads to the element. A thread that dies with an element
 *            in its hands loses that element from the pool, and nothing else.
 *
 * ringbuf  a bounded queue of fixed cells with one reader (after D. Vyukov's bounded queue).
 *
 *              header       0 tail (positions handed out)   64 head (positions read)   128 records dropped
 *              cells        0 state   8 u32 record length   12 u32 flags   16 record
 *
 *          Position p uses cell i = p & (cells - 1) in lap p - i. The state of the cell is
 *
 *              p - i        free for position p, or handed out and not committed if tail is above p
 *              p - i + 1    committed
 *
 *          and the reader frees it for the next lap by adding `cells - 1`. A record that is never committed keeps
 *          its cell: the reader steps over it after a while (it retires the cell), and so do writers in later
 *          laps, who know it because the ring is not full and the state is not theirs.
 */
import type { MapSpec } from "../program.ts";

/** Every part that different threads write lies on a cache line of its own. */
export const CACHE_LINE_BYTES = 64;

export interface ArrayLayout {
  readonly kind: "array";
  readonly totalBytes: number;
  /** Distance of elements. */
  readonly stride: number;
}

export interface HashLayout {
  readonly kind: "hash";
  readonly totalBytes: number;
  /** A power of two, at least 8. */
  readonly buckets: number;
  /** The bucket is the hash shifted right by this. */
  readonly hashShift: number;
  /** Key size in 8-byte words. */
  readonly keyWords: number;
  readonly elementsOffset: number;
  /** Distance of elements. */
  readonly stride: number;
  /** Offset of the value in an element. */
  readonly valueOffset: number;
  /** Bytes of the pool: all elements. */
  readonly poolBytes: number;
}

export interface RingLayout {
  readonly kind: "ringbuf";
  readonly totalBytes: number;
  /** A power of two, at least 2. */
  readonly cells: number;
  /** Distance of cells. */
  readonly cellBytes: number;
}

export type MapLayout = ArrayLayout | HashLayout | RingLayout;

export const HASH_FREE = 0;
/** How many 8-byte words of the pool were ever handed out; beyond the size of the pool it means the same. */
export const HASH_USED = 64;
export const HASH_REFUSED = 128;
export const HASH_BUCKETS = 192;
export const ELEMENT_NEXT = 0;
export const ELEMENT_KEY = 8;
/** In an element of the free list the first key word is the ref of the next one. */
export const ELEMENT_FREE_LINK = ELEMENT_KEY;

export const REF_BITS = 31n;
export const REF_MASK = (1n << REF_BITS) - 1n;
export const MARK = 1n << REF_BITS;
export const TAG_ONE = 1n << 32n;

export const RING_TAIL = 0;
export const RING_HEAD = 64;
export const RING_DROPPED = 128;
export const RING_CELLS = 192;
export const CELL_STATE = 0;
export const CELL_LENGTH = 8;
export const CELL_FLAGS = 12;
export const CELL_RECORD = 16;
/** The record was given up by its writer. */
export const CELL_DISCARDED = 1;

/**
 * The hash of a key: `h = word * M` for the first word, then `h = (rol(h, R) ^ word) * M` for each further one.
 * The bucket is in the high bits.
 */
export const HASH_MULTIPLIER = 0x9e3779b97f4a7c15n;
export const HASH_ROTATE = 29;

/** An 8-byte word can name any element: refs count 8-byte words. */
const MAX_MAP_BYTES = 2 ** 31 * 8;

/** Sizes and offsets of a map. Throws RangeError for a specification that no map can have. */
export function layoutMap(spec: MapSpec): MapLayout {
  checkSpec(spec);
  switch (spec.kind) {
    case "array": {
      const stride = roundUp(spec.valueBytes, 8);
      return { kind: "array", stride, totalBytes: roundUp(stride * spec.maxEntries, CACHE_LINE_BYTES) };
    }
    case "hash":
      return layoutHash(spec);
    case "ringbuf": {
      const cells = powerOfTwo(Math.max(2, spec.maxEntries));
      const cellBytes = CELL_RECORD + roundUp(spec.valueBytes, 16);
      return {
        kind: "ringbuf",
        cells,
        cellBytes,
        totalBytes: roundUp(RING_CELLS + cells * cellBytes, CACHE_LINE_BYTES),
      };
    }
    default:
      throw new RangeError(`lay out map ${spec.name}: kind ${spec.kind} has no layout`);
  }
}

function layoutHash(spec: MapSpec): HashLayout {
  const buckets = powerOfTwo(Math.max(8, spec.maxEntries));
  const keyWords = Math.ceil(spec.keyBytes / 8);
  // A value of whole cache lines is a set of shards that different processors write.
  const valueAlign = spec.valueBytes % CACHE_LINE_BYTES === 0 ? CACHE_LINE_BYTES : 8;
  const valueOffset = roundUp(ELEMENT_KEY + keyWords * 8, valueAlign);
  const elementBytes = roundUp(valueOffset + spec.valueBytes, valueAlign);
  // Small elements do not straddle cache lines.
  const stride = elementBytes <= CACHE_LINE_BYTES ? powerOfTwo(elementBytes) : elementBytes;
  const elementsOffset = roundUp(HASH_BUCKETS + buckets * 8, CACHE_LINE_BYTES);
  const poolBytes = stride * spec.maxEntries;
  const totalBytes = roundUp(elementsOffset + poolBytes, CACHE_LINE_BYTES);
  if (totalBytes > MAX_MAP_BYTES)
    throw new RangeError(`lay out map ${spec.name}: ${totalBytes} bytes exceed ${MAX_MAP_BYTES}`);
  return {
    kind: "hash",
    totalBytes,
    buckets,
    hashShift: 64 - Math.log2(buckets),
    keyWords,
    elementsOffset,
    stride,
    valueOffset,
    poolBytes,
  };
}

function checkSpec(spec: MapSpec): void {
  const wantsKey = spec.kind === "array" ? spec.keyBytes === 4 : spec.kind === "hash" || spec.keyBytes === 0;
  if (!wantsKey || (spec.kind === "hash" && !isCount(spec.keyBytes)))
    throw new RangeError(`lay out map ${spec.name}: key of ${spec.keyBytes} bytes for kind ${spec.kind}`);
  if (!isCount(spec.valueBytes))
    throw new RangeError(`lay out map ${spec.name}: value of ${spec.valueBytes} bytes`);
  if (!isCount(spec.maxEntries)) throw new RangeError(`lay out map ${spec.name}: ${spec.maxEntries} entries`);
}

function isCount(value: number): boolean {
  return Number.isInteger(value) && value > 0 && value <= 0x7fffffff;
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

function powerOfTwo(atLeast: number): number {
  return 2 ** Math.ceil(Math.log2(atLeast));
}
