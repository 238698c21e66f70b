/**
 * A queue or stack in shared memory, as the tracer sees it: the same steps as the routines of the JIT
 * (queue-layout.ts has the invariants). What makes no sense reads as empty or busy; loops are bounded.
 */
import { BPF_ANY, BPF_EXIST, E2BIG, EBUSY, EINVAL } from "../error-numbers.ts";
import type { MapSpec } from "../program.ts";
import {
  QUEUE_CELLS,
  QUEUE_STATE,
  type QueueLayout,
  RECORD_BOUNDS,
  RECORD_CELL_AFTER,
  RECORD_CELL_BEFORE,
} from "./queue-layout.ts";
import { SharedMap } from "./shared-map.ts";
import type { SharedMemory } from "./shared-memory.ts";
import { ElementPool, retarget } from "./tagged-words.ts";
import { copyToWords, readValue } from "./value-access.ts";

/** Exchanges that fail before the tracer gives up; each time a program got something done. */
const MAX_TRIES = 100_000;

/** One state of the whole map; the cell that it leaves to be written is written. */
interface Settled {
  readonly word: bigint;
  /** Position of the oldest. */
  readonly oldest: number;
  readonly count: number;
}

interface Change {
  readonly oldest: number;
  readonly count: number;
  readonly before: bigint;
  readonly after: bigint;
}

export class QueueMap extends SharedMap<QueueLayout> {
  readonly kind = "queue";
  readonly #base: number;
  readonly #words: BigInt64Array;
  readonly #nodes: ElementPool;
  readonly #records: ElementPool;

  constructor(spec: MapSpec, layout: QueueLayout, memory: SharedMemory, byteOffset: number) {
    super(spec, layout, memory, byteOffset);
    this.#base = byteOffset / 8;
    this.#words = memory.words;
    this.#nodes = new ElementPool(layout.nodes, memory, this.#base);
    this.#records = new ElementPool(layout.records, memory, this.#base);
  }

  /** How many values there are. */
  get length(): number {
    return this.#settle()?.count ?? 0;
  }

  /** With BPF_EXIST the oldest value makes room if there is none. */
  push(value: Uint8Array, flags: bigint = BPF_ANY): number {
    if (flags !== BPF_ANY && flags !== BPF_EXIST) return EINVAL;
    const { maxEntries } = this.spec;
    const words = this.#words;
    const node = this.#nodes.take()?.element;
    if (node === undefined) return EBUSY;
    copyToWords(this.memory, node * 8, value, this.spec.valueBytes);
    const result = this.#exchange((state) => {
      const isFull = state.count >= maxEntries;
      if (isFull && flags !== BPF_EXIST) return E2BIG;
      const place = this.#base + QUEUE_CELLS / 8 + this.#wrap(state.oldest + state.count);
      const before = Atomics.load(words, place);
      const after = retarget(before, BigInt(node - this.#base));
      return isFull
        ? { oldest: this.#wrap(state.oldest + 1), count: maxEntries, before, after, frees: before }
        : { oldest: state.oldest, count: state.count + 1, before, after, frees: 0n };
    });
    if (result !== 0) this.#nodes.release(node);
    return result;
  }

  /** A copy of the value that comes out next, which goes; undefined if there is none. */
  pop(): Uint8Array | undefined {
    let value: Uint8Array | undefined;
    const result = this.#exchange((state) => {
      const cell = this.#first(state);
      value = state.count === 0 ? undefined : this.#valueAt(cell);
      if (value === undefined) return EBUSY;
      const oldest = this.layout.isStack ? state.oldest : this.#wrap(state.oldest + 1);
      return { oldest, count: state.count - 1, before: 0n, after: 0n, frees: cell };
    });
    return result === 0 ? value : undefined;
  }

  /** A copy of the value that comes out next; undefined if there is none. */
  peek(): Uint8Array | undefined {
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const state = this.#settle();
      if (state === undefined || state.count === 0) return undefined;
      const value = this.#valueAt(this.#first(state));
      if (Atomics.load(this.#words, this.#base + QUEUE_STATE / 8) === state.word) return value;
    }
    return undefined;
  }

  /** All values at one moment, in the order in which they would come out; as far as programs let them be read. */
  values(): Uint8Array[] {
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const state = this.#settle();
      if (state === undefined) return [];
      const cells = Array.from({ length: state.count }, (_, i) =>
        Atomics.load(this.#words, this.#base + QUEUE_CELLS / 8 + this.#wrap(state.oldest + i)),
      );
      const values = cells.map((cell) => this.#valueAt(cell) ?? new Uint8Array(this.spec.valueBytes));
      if (Atomics.load(this.#words, this.#base + QUEUE_STATE / 8) === state.word)
        return this.layout.isStack ? values.reverse() : values;
    }
    return [];
  }

  clear(): void {
    for (let i = 0; i <= this.spec.maxEntries; i++) if (this.pop() === undefined) break;
    // What is left then comes out for nobody: its first cell names no value.
    this.#exchange(({ count }) =>
      count === 0 ? EBUSY : { oldest: 0, count: 0, before: 0n, after: 0n, frees: 0n },
    );
  }

  /** Puts the state that `change` makes of the current one in its place; 0 or an error. */
  #exchange(change: (state: Settled) => number | (Change & { readonly frees: bigint })): number {
    const words = this.#words;
    const record = this.#records.take()?.element;
    if (record === undefined) return EBUSY;
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const state = this.#settle();
      const next = state === undefined ? EBUSY : change(state);
      if (state === undefined || typeof next === "number") {
        this.#records.release(record);
        return typeof next === "number" ? next : EBUSY;
      }
      const bounds = BigInt(next.oldest) | (BigInt(next.count) << 32n);
      Atomics.store(words, record + RECORD_BOUNDS / 8, bounds);
      Atomics.store(words, record + RECORD_CELL_BEFORE / 8, next.before);
      Atomics.store(words, record + RECORD_CELL_AFTER / 8, next.after);
      const word = retarget(state.word, BigInt(record - this.#base));
      const place = this.#base + QUEUE_STATE / 8;
      if (Atomics.compareExchange(words, place, state.word, word) !== state.word) continue;
      this.#release(this.#records, state.word);
      this.#release(this.#nodes, next.frees);
      return 0;
    }
    this.#records.release(record);
    return EBUSY;
  }

  #release(pool: ElementPool, word: bigint): void {
    const element = pool.elementAt(word);
    if (element !== undefined) pool.release(element);
  }

  /** The current state; one that makes no sense is empty. Undefined: programs change it all the time. */
  #settle(): Settled | undefined {
    const words = this.#words;
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const word = Atomics.load(words, this.#base + QUEUE_STATE / 8);
      const record = this.#records.elementAt(word);
      if (record === undefined) return { word, oldest: 0, count: 0 };
      const bounds = BigInt.asUintN(64, Atomics.load(words, record + RECORD_BOUNDS / 8));
      const before = Atomics.load(words, record + RECORD_CELL_BEFORE / 8);
      const after = Atomics.load(words, record + RECORD_CELL_AFTER / 8);
      if (Atomics.load(words, this.#base + QUEUE_STATE / 8) !== word) continue;
      const oldest = Number(bounds & 0xffff_ffffn);
      const count = Number(bounds >> 32n);
      if (oldest >= this.spec.maxEntries || count > this.spec.maxEntries)
        return { word, oldest: 0, count: 0 };
      if (after !== 0n && count !== 0) {
        const cell = this.#base + QUEUE_CELLS / 8 + this.#wrap(oldest + count - 1);
        Atomics.compareExchange(words, cell, before, after);
      }
      return { word, oldest, count };
    }
    return undefined;
  }

  /** The cell of the value that comes out next. */
  #first({ oldest, count }: Settled): bigint {
    const position = this.layout.isStack ? this.#wrap(oldest + count - 1) : oldest;
    return Atomics.load(this.#words, this.#base + QUEUE_CELLS / 8 + position);
  }

  #valueAt(cell: bigint): Uint8Array | undefined {
    const node = this.#nodes.elementAt(cell);
    return node === undefined ? undefined : readValue(this.memory, node * 8, this.spec.valueBytes);
  }

  #wrap(position: number): number {
    return position >= this.spec.maxEntries ? position - this.spec.maxEntries : position;
  }
}
