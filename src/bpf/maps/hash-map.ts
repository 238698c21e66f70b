/**
 * A hash map in shared memory, as the tracer sees it: the same algorithm as the routines of the JIT (layout.ts has
 * the invariants), and as safe against everything that runs at the same time.
 *
 * The memory belongs to a traced process and may hold anything: refs are checked, loops are bounded, and a map
 * that makes no sense reads as empty.
 *
 * Not handled: a value of more than 8 bytes that a program writes meanwhile can be read half old and half new.
 * An update of a key that is there writes in place; if the key is deleted in the same instant the write can hit the
 * next user of the element, as with a value pointer that a program holds.
 */
import type { MapSpec } from "../program.ts";
import { BPF_ANY, BPF_EXIST, BPF_NOEXIST, E2BIG, EBUSY, EEXIST, EINVAL, ENOENT } from "./error-numbers.ts";
import {
  ELEMENT_FREE_LINK,
  ELEMENT_KEY,
  HASH_BUCKETS,
  HASH_FREE,
  HASH_MULTIPLIER,
  HASH_REFUSED,
  HASH_ROTATE,
  HASH_USED,
  type HashLayout,
  MARK,
  REF_MASK,
} from "./layout.ts";
import type { SharedMemory } from "./shared-memory.ts";
import { copyToWords, readValue, wordsOf } from "./value-access.ts";

/** Traversals that start over before the tracer gives up; programs never wait for the tracer, it may for them. */
const MAX_RESTARTS = 2000;
/**
 * Attempts at the free list. Programs that insert and delete all the time change it every few nanoseconds, so some
 * thousands can fail; giving up loses an element.
 */
const MAX_POOL_TRIES = 5_000_000;

/** Where a traversal for a key ended. Indexes are into `memory.words`. */
type Found =
  | {
      readonly kind: "found";
      readonly element: number;
      readonly next: bigint;
      /** The place of the word that leads to the element, and that word. */
      readonly from: number;
      readonly fromWord: bigint;
    }
  | { readonly kind: "absent"; readonly headWord: bigint }
  | { readonly kind: "broken" };

export class HashMap {
  readonly kind = "hash";
  readonly spec: MapSpec;
  readonly layout: HashLayout;
  readonly memory: SharedMemory;
  /** Index of the map's first word. */
  readonly #base: number;
  readonly #words: BigInt64Array;

  constructor(spec: MapSpec, layout: HashLayout, memory: SharedMemory, byteOffset: number) {
    this.spec = spec;
    this.layout = layout;
    this.memory = memory;
    this.#base = byteOffset / 8;
    this.#words = memory.words;
  }

  /** How many updates found the map full, by anyone. */
  get refused(): bigint {
    return BigInt.asUintN(64, Atomics.load(this.#words, this.#base + HASH_REFUSED / 8));
  }

  /** Byte offset of the value in `memory`. */
  lookup(key: Uint8Array): number | undefined {
    const found = this.#find(wordsOf(key, this.spec.keyBytes));
    return found.kind === "found" ? found.element * 8 + this.layout.valueOffset : undefined;
  }

  update(key: Uint8Array, value: Uint8Array, flags: bigint = BPF_ANY): number {
    if (flags > BPF_EXIST) return EINVAL;
    const words = this.#words;
    const keyWords = wordsOf(key, this.spec.keyBytes);
    const head = this.#bucketOf(keyWords);
    let element: number | undefined;
    for (let tries = 0; tries < MAX_RESTARTS; tries++) {
      const found = this.#find(keyWords);
      if (found.kind !== "absent") {
        if (element !== undefined) this.#release(element);
        if (found.kind === "broken") return EBUSY;
        if (flags === BPF_NOEXIST) return EEXIST;
        copyToWords(this.memory, found.element * 8 + this.layout.valueOffset, value, this.spec.valueBytes);
        return 0;
      }
      if (flags === BPF_EXIST) return ENOENT;
      if (element === undefined) {
        element = this.#take();
        if (element === undefined) {
          Atomics.add(words, this.#base + HASH_REFUSED / 8, 1n);
          return E2BIG;
        }
        for (let i = 0; i < keyWords.length; i++)
          Atomics.store(words, element + ELEMENT_KEY / 8 + i, keyWords[i]!);
        copyToWords(this.memory, element * 8 + this.layout.valueOffset, value, this.spec.valueBytes);
      }
      const next = Atomics.load(words, element);
      Atomics.store(words, element, retarget(next, found.headWord & REF_MASK));
      const linked = retarget(found.headWord, BigInt(element - this.#base));
      if (Atomics.compareExchange(words, head, found.headWord, linked) === found.headWord) return 0;
    }
    if (element !== undefined) this.#release(element);
    return EBUSY;
  }

  delete(key: Uint8Array): number {
    const keyWords = wordsOf(key, this.spec.keyBytes);
    for (let tries = 0; tries < MAX_RESTARTS; tries++) {
      const found = this.#find(keyWords);
      if (found.kind === "absent") return ENOENT;
      if (found.kind === "broken") return EBUSY;
      const marked = retarget(found.next, found.next & REF_MASK) | MARK;
      if (Atomics.compareExchange(this.#words, found.element, found.next, marked) !== found.next) continue;
      // The next traversal unlinks it if this one cannot.
      if (!this.#unlink(found.from, found.fromWord, found.element, marked)) this.#find(keyWords);
      return 0;
    }
    return EBUSY;
  }

  /**
   * The entries, as copies. A key that is there all the time is seen exactly once; one that comes or goes meanwhile
   * is seen once or not at all. `offset` is the byte offset of the value in `memory`.
   */
  *entries(): Generator<{ readonly key: Uint8Array; readonly value: Uint8Array; readonly offset: number }> {
    // A key that is deleted and inserted again meanwhile can turn up in two elements.
    const seen = new Set<string>();
    for (const { keyWords, element } of this.#elements()) {
      const name = keyWords.join();
      if (seen.has(name)) continue;
      seen.add(name);
      const offset = element * 8 + this.layout.valueOffset;
      const value = readValue(this.memory, offset, this.spec.valueBytes);
      const key = new Uint8Array(keyWords.buffer, 0, this.spec.keyBytes);
      yield { key, value, offset };
    }
  }

  /** Deletes every entry. One that a program inserts meanwhile may stay. */
  clear(): void {
    for (const { keyWords } of this.#elements()) this.delete(new Uint8Array(keyWords.buffer));
  }

  /** Elements that were ever used and that a traversal for their key finds; buckets that nobody used stay untouched. */
  *#elements(): Generator<{ readonly keyWords: BigInt64Array; readonly element: number }> {
    const { stride, poolBytes, elementsOffset, keyWords: keyLength } = this.layout;
    const usedWords = BigInt.asUintN(64, Atomics.load(this.#words, this.#base + HASH_USED / 8));
    const used = Math.min(Number(usedWords) * 8, poolBytes);
    for (let at = 0; at < used; at += stride) {
      const element = this.#base + (elementsOffset + at) / 8;
      const keyWords = new BigInt64Array(keyLength);
      for (let i = 0; i < keyLength; i++)
        keyWords[i] = Atomics.load(this.#words, element + ELEMENT_KEY / 8 + i);
      const found = this.#find(keyWords);
      if (found.kind === "found" && found.element === element) yield { keyWords, element };
    }
  }

  #bucketOf(keyWords: BigInt64Array): number {
    const hash = hashOf(keyWords);
    return this.#base + HASH_BUCKETS / 8 + Number(hash >> BigInt(this.layout.hashShift));
  }

  #find(keyWords: BigInt64Array): Found {
    const words = this.#words;
    const head = this.#bucketOf(keyWords);
    restart: for (let tries = 0; tries < MAX_RESTARTS; tries++) {
      const headWord = Atomics.load(words, head);
      let from = head;
      let fromWord = headWord;
      for (let steps = 0; steps <= this.spec.maxEntries; steps++) {
        const ref = Number(fromWord & REF_MASK);
        if (ref === 0) return { kind: "absent", headWord };
        if (!this.#isElement(ref)) return { kind: "broken" };
        const element = this.#base + ref;
        const next = Atomics.load(words, element);
        const isMatch = keyWords.every(
          (word, i) => Atomics.load(words, element + ELEMENT_KEY / 8 + i) === word,
        );
        if (Atomics.load(words, from) !== fromWord) continue restart;
        if ((next & MARK) !== 0n) {
          this.#unlink(from, fromWord, element, next);
          continue restart;
        }
        if (isMatch) return { kind: "found", element, next, from, fromWord };
        from = element;
        fromWord = next;
      }
      return { kind: "broken" };
    }
    return { kind: "broken" };
  }

  #isElement(ref: number): boolean {
    const at = ref * 8 - this.layout.elementsOffset;
    return at >= 0 && at < this.layout.poolBytes && at % this.layout.stride === 0;
  }

  /** Takes a marked element out of its list and gives it to the pool; false if the word before it has changed. */
  #unlink(from: number, fromWord: bigint, element: number, next: bigint): boolean {
    const skipping = retarget(fromWord, next & REF_MASK);
    if (Atomics.compareExchange(this.#words, from, fromWord, skipping) !== fromWord) return false;
    this.#release(element);
    return true;
  }

  /** An element from the pool; its index, or undefined if there is none. */
  #take(): number | undefined {
    const words = this.#words;
    const freePlace = this.#base + HASH_FREE / 8;
    for (let tries = 0; tries < MAX_POOL_TRIES; tries++) {
      const word = Atomics.load(words, freePlace);
      const ref = Number(word & REF_MASK);
      if (ref === 0 || !this.#isElement(ref)) break;
      const link = Atomics.load(words, this.#base + ref + ELEMENT_FREE_LINK / 8) & REF_MASK;
      if (Atomics.compareExchange(words, freePlace, word, retarget(word, link)) === word)
        return this.#base + ref;
    }
    const { stride, poolBytes, elementsOffset } = this.layout;
    const usedPlace = this.#base + HASH_USED / 8;
    const poolWords = BigInt(poolBytes / 8);
    if (BigInt.asUintN(64, Atomics.load(words, usedPlace)) >= poolWords) return undefined;
    const used = BigInt.asUintN(64, Atomics.add(words, usedPlace, BigInt(stride / 8)));
    return used < poolWords ? this.#base + elementsOffset / 8 + Number(used) : undefined;
  }

  #release(element: number): void {
    const words = this.#words;
    const freePlace = this.#base + HASH_FREE / 8;
    const ref = BigInt(element - this.#base);
    for (let tries = 0; tries < MAX_POOL_TRIES; tries++) {
      const word = Atomics.load(words, freePlace);
      Atomics.store(words, element + ELEMENT_FREE_LINK / 8, word & REF_MASK);
      if (Atomics.compareExchange(words, freePlace, word, retarget(word, ref)) === word) return;
    }
  }
}

/** `word` with another ref, without mark, and with the next tag. */
function retarget(word: bigint, ref: bigint): bigint {
  return BigInt.asIntN(64, (((word >> 32n) + 1n) << 32n) | ref);
}

/** The hash of a padded key, unsigned. */
export function hashOf(keyWords: BigInt64Array): bigint {
  let hash = 0n;
  for (const [i, word] of keyWords.entries()) {
    const unsigned = BigInt.asUintN(64, word);
    const mixed =
      i === 0
        ? unsigned
        : BigInt.asUintN(64, (hash << BigInt(HASH_ROTATE)) | (hash >> BigInt(64 - HASH_ROTATE))) ^ unsigned;
    hash = BigInt.asUintN(64, mixed * HASH_MULTIPLIER);
  }
  return hash;
}
