/**
 * A hash map in shared memory, as the tracer sees it: the same algorithm as the routines of the JIT (hash-layout.ts
 * has the invariants), and as safe against everything that runs at the same time.
 *
 * The memory belongs to a traced process and may hold anything: a word that names no element ends a list, and what takes more
 * steps than any list has ends as busy, here as in the routines.
 *
 * Not handled: a value of more than 8 bytes that a program writes through a pointer can be read half old and half
 * new. A program that holds such a pointer while its key is deleted or replaced can see the value of the element's
 * next user, as with the kernel's preallocated maps.
 */
import {
  BPF_ANY,
  BPF_EXIST,
  BPF_NOEXIST,
  E2BIG,
  EBUSY,
  EEXIST,
  EINVAL,
  ENOENT,
  ENOMEM,
} from "../error-numbers.ts";
import type { MapSpec } from "../program.ts";
import {
  CLOCK_MOST_STEPS,
  CLOCK_STEPS,
  ELEMENT_KEY,
  HASH_BUCKETS,
  HASH_HAND,
  HASH_REFUSED,
  type HashLayout,
  hashPool,
  mostSteps,
  REF_IS_SPARE,
  sparePool,
} from "./hash-layout.ts";
import { hashOf } from "./key-hash.ts";
import { SharedMap } from "./shared-map.ts";
import type { SharedMemory } from "./shared-memory.ts";
import { ElementPool, LOW_HALF, MARK, REF_MASK, retarget } from "./tagged-words.ts";
import { copyToWords, readValue, wordsOf } from "./value-access.ts";

/** Deletions in a full LRU map whose element another thread took. */
const MAX_EVICTIONS = 64;
/** A pass over all elements may take so many times as many steps as there are elements, where keys have one hash. */
const PASS_FACTOR = 16;

/** What is left of the steps that one operation may take. */
interface Steps {
  left: number;
}

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
  /** The steps are used up. */
  | { readonly kind: "endless" };

/** An element that is not in the map yet. */
interface NewElement {
  readonly element: number;
  readonly isSpare: boolean;
}

export interface HashEntry {
  readonly key: Uint8Array;
  readonly value: Uint8Array;
  /** Byte offset of the value in `memory`. */
  readonly offset: number;
}

export class HashMap extends SharedMap<HashLayout> {
  readonly kind = "hash";
  /** Index of the word from which offsets of the layout count. */
  readonly #base: number;
  readonly #words: BigInt64Array;
  readonly #pool: ElementPool;
  readonly #spares: ElementPool;

  constructor(spec: MapSpec, layout: HashLayout, memory: SharedMemory, byteOffset: number) {
    super(spec, layout, memory, byteOffset);
    this.#base = (byteOffset + layout.headerBytes) / 8;
    this.#words = memory.words;
    this.#pool = new ElementPool(hashPool(layout), memory, this.#base);
    this.#spares = new ElementPool(sparePool(layout), memory, this.#base);
  }

  /** How many updates found the map full, by anyone. */
  get refused(): bigint {
    return BigInt.asUintN(64, Atomics.load(this.#words, this.#base + HASH_REFUSED / 8));
  }

  /** Byte offset of the value in `memory`; of a per-CPU map that of this slot's copy. */
  lookup(key: Uint8Array, slot = 0): number | undefined {
    const found = this.#find(wordsOf(key, this.spec.keyBytes));
    if (found.kind !== "found") return undefined;
    this.#touch(found.element);
    return this.#valueOffset(found.element, slot);
  }

  /** A copy of the value, which nobody wrote over meanwhile other than through a pointer. Does not touch an LRU map. */
  read(key: Uint8Array): Uint8Array | undefined {
    return this.find(key)?.value;
  }

  /** As `read`, with the place of the value; of a per-CPU map it is that of slot 0. */
  find(key: Uint8Array): { readonly value: Uint8Array; readonly offset: number } | undefined {
    return this.#read(wordsOf(key, this.spec.keyBytes));
  }

  /** Of a per-CPU map only this slot's copy is written; the others of a new key are zeros. */
  update(key: Uint8Array, value: Uint8Array, flags: bigint = BPF_ANY, slot = 0): number {
    return this.#update(key, flags, (element, isFresh) => {
      const { copies, valueBytes } = this.layout;
      if (copies !== undefined && isFresh === false) this.#zeroCopies(element);
      copyToWords(this.memory, this.#valueOffset(element, slot), value, valueBytes);
    });
  }

  /**
   * Writes over the value of a key that is there, where it lies: who holds a pointer to it goes on with the new value.
   * A reader can see half of a value of more than 8 bytes.
   */
  overwrite(key: Uint8Array, value: Uint8Array): number {
    const found = this.#find(wordsOf(key, this.spec.keyBytes));
    if (found.kind !== "found") return found.kind === "absent" ? ENOENT : EBUSY;
    copyToWords(this.memory, this.#valueOffset(found.element, 0), value, this.layout.valueBytes);
    return 0;
  }

  /** As `update`, with a value for every slot of a per-CPU map. */
  updateCopies(key: Uint8Array, values: readonly Uint8Array[], flags: bigint = BPF_ANY): number {
    return this.#update(key, flags, (element) => {
      for (let slot = 0; slot < (this.layout.copies?.cpus ?? 1); slot++) {
        const value = values[slot] ?? new Uint8Array(0);
        copyToWords(this.memory, this.#valueOffset(element, slot), value, this.layout.valueBytes);
      }
    });
  }

  /** `write` fills the value of an element; `isFresh` is undefined where it overwrites a value. */
  #update(
    key: Uint8Array,
    flags: bigint,
    write: (element: number, isFresh: boolean | undefined) => void,
  ): number {
    if (BigInt.asUintN(64, flags) > BPF_EXIST) return EINVAL;
    const words = this.#words;
    const keyWords = wordsOf(key, this.spec.keyBytes);
    const head = this.#bucketOf(keyWords);
    const steps = this.#steps();
    let taken: NewElement | undefined;
    const { spareBytes, touchedOffset } = this.layout;
    let writesInPlace = spareBytes === 0;
    const fill = (element: number, isFresh: boolean) => {
      for (let i = 0; i < keyWords.length; i++)
        Atomics.store(words, element + ELEMENT_KEY / 8 + i, keyWords[i]!);
      write(element, isFresh);
    };
    const finish = (result: number) => {
      if (taken !== undefined) (taken.isSpare ? this.#spares : this.#pool).release(taken.element);
      return result;
    };
    for (; steps.left >= 0; steps.left--) {
      const found = this.#find(keyWords, steps);
      if (found.kind === "endless") break;
      if (found.kind === "found") {
        if (flags === BPF_NOEXIST) return finish(EEXIST);
        if (writesInPlace) {
          write(found.element, undefined);
          this.#touch(found.element);
          return finish(0);
        }
        if (taken === undefined) {
          const spare = this.#spares.take();
          const fresh = spare ?? this.#pool.take();
          if (fresh === undefined) writesInPlace = true;
          else {
            taken = { element: fresh.element, isSpare: spare !== undefined };
            fill(fresh.element, fresh.isFresh);
          }
          continue;
        }
        if (this.#replace(found, taken, keyWords, steps)) return 0;
        continue;
      }
      if (flags === BPF_EXIST) return finish(ENOENT);
      if (taken?.isSpare === true) {
        // A spare becomes no entry: the map would hold more than it may.
        this.#spares.release(taken.element);
        taken = undefined;
      }
      if (taken === undefined) {
        const fresh = this.#takeOrEvict();
        if (fresh === undefined) {
          Atomics.add(words, this.#base + HASH_REFUSED / 8, 1n);
          return this.layout.touchedOffset === undefined ? E2BIG : ENOMEM;
        }
        taken = { element: fresh.element, isSpare: false };
        fill(fresh.element, fresh.isFresh);
      }
      const { element } = taken;
      if (touchedOffset !== undefined) Atomics.store(words, element + touchedOffset / 8, 0n);
      Atomics.store(words, element, retarget(Atomics.load(words, element), found.headWord & LOW_HALF));
      const linked = retarget(found.headWord, BigInt(element - this.#base));
      if (Atomics.compareExchange(words, head, found.headWord, linked) === found.headWord) return 0;
    }
    return finish(EBUSY);
  }

  /** Puts the new element into the place of the one that was found; false if that has changed. */
  #replace(
    found: Extract<Found, { kind: "found" }>,
    taken: NewElement,
    keyWords: BigInt64Array,
    steps: Steps,
  ): boolean {
    const words = this.#words;
    const { element: old, next, from, fromWord } = found;
    const { touchedOffset } = this.layout;
    if (touchedOffset !== undefined) this.memory.bytes[taken.element * 8 + touchedOffset] = 1;
    Atomics.store(words, taken.element, retarget(Atomics.load(words, taken.element), next & REF_MASK));
    const ref = BigInt(taken.element - this.#base) | (taken.isSpare ? REF_IS_SPARE : 0n);
    const marked = retarget(next, ref) | MARK;
    if (Atomics.compareExchange(words, old, next, marked) !== next) return false;
    if (!this.#unlink(from, fromWord, old, marked)) this.#find(keyWords, steps);
    return true;
  }

  delete(key: Uint8Array): number {
    return this.#delete(wordsOf(key, this.spec.keyBytes), this.#steps());
  }

  #delete(keyWords: BigInt64Array, steps: Steps): number {
    for (; steps.left >= 0; steps.left--) {
      const found = this.#find(keyWords, steps);
      if (found.kind === "absent") return ENOENT;
      if (found.kind === "endless") return EBUSY;
      const marked = retarget(found.next, found.next & REF_MASK) | MARK;
      if (Atomics.compareExchange(this.#words, found.element, found.next, marked) !== found.next) continue;
      // The next traversal unlinks it if this one cannot.
      if (!this.#unlink(found.from, found.fromWord, found.element, marked)) this.#find(keyWords, steps);
      return 0;
    }
    return EBUSY;
  }

  /**
   * The entries, as copies; of a per-CPU map with the copy of slot 0. A key that is there all the time is seen
   * exactly once; one that comes or goes meanwhile is seen once or not at all.
   */
  *entries(): Generator<HashEntry> {
    // A key that is deleted and inserted again meanwhile can turn up in two elements.
    const seen = new Set<string>();
    const steps = this.#stepsOfAll();
    for (const keyWords of this.#keys(steps)) {
      const name = keyWords.join();
      if (seen.has(name)) continue;
      const read = this.#read(keyWords, steps);
      if (read === undefined) continue;
      seen.add(name);
      yield { key: new Uint8Array(keyWords.buffer, 0, this.spec.keyBytes), ...read };
    }
  }

  /** Deletes every entry. One that a program inserts meanwhile may stay. */
  clear(): void {
    const steps = this.#stepsOfAll();
    for (const keyWords of this.#keys(steps)) this.#delete(keyWords, steps);
  }

  /** A copy of the value that no replacement or new user of the element came into. */
  #read(
    keyWords: BigInt64Array,
    steps = this.#steps(),
  ): { readonly value: Uint8Array; readonly offset: number } | undefined {
    for (; steps.left >= 0; steps.left--) {
      const found = this.#find(keyWords, steps);
      if (found.kind !== "found") return undefined;
      const offset = this.#valueOffset(found.element, 0);
      const value = readValue(this.memory, offset, this.layout.valueBytes);
      if (Atomics.load(this.#words, found.element) === found.next) return { value, offset };
    }
    return undefined;
  }

  /**
   * The keys that are there. Where keys stay in their element the elements that were ever used are looked at, so that
   * buckets that nobody used stay untouched; where replacements move them, all buckets.
   */
  *#keys(steps: Steps): Generator<BigInt64Array> {
    if (this.layout.spareBytes > 0) {
      for (let bucket = 0; bucket < this.layout.buckets; bucket++) yield* this.#keysIn(bucket, steps);
      return;
    }
    const { stride, elementsOffset } = this.layout;
    const used = this.#pool.usedBytes;
    for (let at = 0; at < used; at += stride) {
      const element = this.#base + (elementsOffset + at) / 8;
      const keyWords = this.#keyOf(element);
      const found = this.#find(keyWords, steps);
      if (found.kind === "found" && found.element === element) yield keyWords;
    }
  }

  /** The keys of one bucket, at one moment. */
  #keysIn(bucket: number, steps: Steps): BigInt64Array[] {
    const words = this.#words;
    const head = this.#base + HASH_BUCKETS / 8 + bucket;
    const most = (this.layout.poolBytes + this.layout.spareBytes) / this.layout.stride;
    restart: for (; steps.left >= 0; steps.left--) {
      const keys: BigInt64Array[] = [];
      let from = head;
      let fromWord = Atomics.load(words, head);
      for (let seen = 0; seen <= most; seen++, steps.left--) {
        const element = this.#pool.elementAt(fromWord);
        if (element === undefined) return keys;
        const next = Atomics.load(words, element);
        const key = this.#keyOf(element);
        if (Atomics.load(words, from) !== fromWord) continue restart;
        if ((next & MARK) !== 0n) {
          this.#unlink(from, fromWord, element, next);
          continue restart;
        }
        keys.push(key);
        from = element;
        fromWord = next;
      }
      return [];
    }
    return [];
  }

  /** For all keys together. */
  #stepsOfAll(): Steps {
    const { poolBytes, spareBytes, stride, buckets } = this.layout;
    return { left: buckets + (PASS_FACTOR * (poolBytes + spareBytes)) / stride + mostSteps(this.layout) };
  }

  #keyOf(element: number): BigInt64Array {
    const keyWords = new BigInt64Array(this.layout.keyWords);
    for (let i = 0; i < keyWords.length; i++)
      keyWords[i] = Atomics.load(this.#words, element + ELEMENT_KEY / 8 + i);
    return keyWords;
  }

  /** Byte offset in `memory`. */
  #valueOffset(element: number, slot: number): number {
    const { copies, valueOffset, elementsOffset } = this.layout;
    if (copies === undefined) return element * 8 + valueOffset;
    const index = Math.floor(((element - this.#base) * 8 - elementsOffset) / 2 ** copies.elementShift);
    return this.#base * 8 + copies.offset + (slot % copies.cpus) * copies.slotBytes + index * copies.stride;
  }

  #zeroCopies(element: number): void {
    const none = new Uint8Array(0);
    for (let slot = 0; slot < this.layout.copies!.cpus; slot++)
      copyToWords(this.memory, this.#valueOffset(element, slot), none, this.layout.valueBytes);
  }

  #touch(element: number): void {
    const { touchedOffset } = this.layout;
    if (touchedOffset === undefined) return;
    // The low byte, as the routines have it.
    const place = element * 8 + touchedOffset;
    if (this.memory.bytes[place] === 0) this.memory.bytes[place] = 1;
  }

  #bucketOf(keyWords: BigInt64Array): number {
    const hash = hashOf(keyWords);
    return this.#base + HASH_BUCKETS / 8 + Number(hash >> BigInt(this.layout.hashShift));
  }

  /** Takes from `steps` what a routine takes. */
  #find(keyWords: BigInt64Array, steps: Steps = this.#steps()): Found {
    const words = this.#words;
    const head = this.#bucketOf(keyWords);
    restart: for (; steps.left >= 0; steps.left--) {
      const headWord = Atomics.load(words, head);
      let from = head;
      let fromWord = headWord;
      for (; steps.left >= 0; steps.left--) {
        const element = this.#pool.elementAt(fromWord);
        if (element === undefined) return { kind: "absent", headWord };
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
    }
    return { kind: "endless" };
  }

  #steps(): Steps {
    return { left: mostSteps(this.layout) };
  }

  /** Takes a marked element out of its list and gives it to its pool; false if the word before it has changed. */
  #unlink(from: number, fromWord: bigint, element: number, next: bigint): boolean {
    const spareBit = this.layout.spareBytes > 0 ? REF_IS_SPARE : 0n;
    const skipping = retarget(fromWord, next & REF_MASK & ~spareBit);
    if (Atomics.compareExchange(this.#words, from, fromWord, skipping) !== fromWord) return false;
    ((next & spareBit) === 0n ? this.#pool : this.#spares).release(element);
    return true;
  }

  /** An element for a new key; in a full LRU map that of another key, which is deleted. */
  #takeOrEvict(): { readonly element: number; readonly isFresh: boolean } | undefined {
    const fresh = this.#pool.take();
    if (fresh !== undefined || this.layout.touchedOffset === undefined) return fresh;
    for (let tries = 0; tries < MAX_EVICTIONS; tries++) {
      const isOver = !this.#evict();
      // Where nothing was left to delete others have given elements back.
      const element = this.#pool.take();
      if (element !== undefined || isOver) return element;
    }
    return undefined;
  }

  /** Deletes a key that was not touched lately; false if nothing can be deleted. */
  #evict(): boolean {
    const { stride, poolBytes, spareBytes, elementsOffset, touchedOffset } = this.layout;
    const count = BigInt((poolBytes + spareBytes) / stride);
    const steps = this.#steps();
    for (let looks = 0; looks < CLOCK_MOST_STEPS; looks++) {
      const hand = Atomics.add(this.#words, this.#base + HASH_HAND / 8, 1n);
      const index = Number(BigInt.asUintN(32, hand) % count);
      const element = this.#base + (elementsOffset + index * stride) / 8;
      if (looks < CLOCK_STEPS && this.memory.bytes[element * 8 + touchedOffset!] !== 0) {
        this.memory.bytes[element * 8 + touchedOffset!] = 0;
        continue;
      }
      const keyWords = this.#keyOf(element);
      const found = this.#find(keyWords, steps);
      if (found.kind === "endless") return false;
      if (found.kind !== "found" || found.element !== element) continue;
      const marked = retarget(found.next, found.next & REF_MASK) | MARK;
      if (Atomics.compareExchange(this.#words, element, found.next, marked) !== found.next) continue;
      if (!this.#unlink(found.from, found.fromWord, element, marked)) this.#find(keyWords, steps);
      return true;
    }
    return false;
  }
}
