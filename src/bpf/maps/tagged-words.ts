/**
 * Words that name an element and count their own changes, so that a compare-and-exchange fails when the word was
 * changed and changed back in between:
 *
 *     63            32   31   30             0
 *    +----------------+------+----------------+
 *    |      tag       | mark |      ref       |    ref: byte offset in the map / 8; 0 is none
 *    +----------------+------+----------------+
 *
 * and pools of elements that such words lead to. An element of a pool never becomes anything else, so that whoever
 * reads one too late reads garbage, but no foreign memory. What is free is in a list; what was never used is handed
 * out from the lowest address on, so that untouched memory stays untouched.
 */
import type { SharedMemory } from "./shared-memory.ts";

export const REF_BITS = 31n;
export const REF_MASK = (1n << REF_BITS) - 1n;
export const MARK = 1n << REF_BITS;
export const TAG_ONE = 1n << 32n;

/**
 * Attempts at a list. Programs that take and release all the time change it every few nanoseconds, so some
 * thousands can fail; giving up loses an element.
 */
const MAX_POOL_TRIES = 5_000_000;

/** Where a pool lies in the storage of its map; all in bytes from the map's beginning. */
export interface PoolLayout {
  /** The word of the list of free elements. */
  readonly free: number;
  /** How many 8-byte words of the pool were ever handed out; beyond the size of the pool it means the same. */
  readonly used: number;
  readonly elementsOffset: number;
  /** Distance of elements. */
  readonly stride: number;
  readonly poolBytes: number;
  /** Where elements of the list may lie: pools that exchange elements have this in common. */
  readonly region: { readonly offset: number; readonly lenBytes: number };
  /** Offset in a free element of the ref of the next one. */
  readonly link: number;
}

/** The ref of a word and the mark above it: a word with a mark names no element. */
export const LOW_HALF = 0xffff_ffffn;

/** `word` with another ref, without mark, and with the next tag. */
export function retarget(word: bigint, ref: bigint): bigint {
  return BigInt.asIntN(64, (((word >> 32n) + 1n) << 32n) | ref);
}

/** A pool as the tracer uses it. Elements are indexes into `memory.words`. */
export class ElementPool {
  readonly #words: BigInt64Array;
  /** Index of the map's first word. */
  readonly #base: number;
  readonly #layout: PoolLayout;

  constructor(layout: PoolLayout, memory: SharedMemory, base: number) {
    this.#layout = layout;
    this.#words = memory.words;
    this.#base = base;
  }

  /**
   * Index of the element that the low half of a word names; undefined where it names nothing that lies in this pool whole: 0,
   * a mark, or whatever the process has written there.
   */
  elementAt(word: bigint): number | undefined {
    const { region, stride } = this.#layout;
    const ref = Number(word & LOW_HALF);
    const at = ref * 8 - region.offset;
    return at >= 0 && at <= region.lenBytes - stride ? this.#base + ref : undefined;
  }

  /** How many bytes of the pool were ever handed out. */
  get usedBytes(): number {
    const words = BigInt.asUintN(64, Atomics.load(this.#words, this.#base + this.#layout.used / 8));
    const { poolBytes } = this.#layout;
    return words >= BigInt(poolBytes / 8) ? poolBytes : Number(words) * 8;
  }

  /** An element, and whether it was never used before: then its memory is as it was at the beginning. */
  take(): { readonly element: number; readonly isFresh: boolean } | undefined {
    const words = this.#words;
    const { free, used, elementsOffset, stride, poolBytes, link } = this.#layout;
    const freePlace = this.#base + free / 8;
    for (let tries = 0; tries < MAX_POOL_TRIES; tries++) {
      const word = Atomics.load(words, freePlace);
      const element = this.elementAt(word);
      if (element === undefined) break;
      const next = Atomics.load(words, element + link / 8) & LOW_HALF;
      if (Atomics.compareExchange(words, freePlace, word, retarget(word, next)) === word)
        return { element, isFresh: false };
    }
    const usedPlace = this.#base + used / 8;
    /** The last place that an element can have. */
    const last = BigInt((poolBytes - stride) / 8);
    if (BigInt.asUintN(64, Atomics.load(words, usedPlace)) > last) return undefined;
    const at = BigInt.asUintN(64, Atomics.add(words, usedPlace, BigInt(stride / 8)));
    if (at > last) return undefined;
    return { element: this.#base + elementsOffset / 8 + Number(at), isFresh: true };
  }

  release(element: number): void {
    const words = this.#words;
    const freePlace = this.#base + this.#layout.free / 8;
    const ref = BigInt(element - this.#base);
    for (let tries = 0; tries < MAX_POOL_TRIES; tries++) {
      const word = Atomics.load(words, freePlace);
      Atomics.store(words, element + this.#layout.link / 8, word & LOW_HALF);
      if (Atomics.compareExchange(words, freePlace, word, retarget(word, ref)) === word) return;
    }
  }
}
