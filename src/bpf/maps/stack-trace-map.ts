/** Stack traces in shared memory, as the tracer sees them (stack-trace-layout.ts has the invariants). */
import { EBUSY, EEXIST, ENOENT, ENOMEM } from "../error-numbers.ts";
import type { MapSpec } from "../program.ts";
import { hashOf } from "./key-hash.ts";
import { SharedMap } from "./shared-map.ts";
import type { SharedMemory } from "./shared-memory.ts";
import {
  STACK_ADDRESSES,
  STACK_COUNT,
  STACK_HASH,
  STACK_ID_SHIFT,
  STACK_SLOTS,
  type StackTraceLayout,
} from "./stack-trace-layout.ts";
import { ElementPool, retarget } from "./tagged-words.ts";

const MAX_TRIES = 2000;

/** Flags of bpf_get_stackid that concern the map: compare hashes only; use the id again if another stack has it. */
export const STACK_FAST_COMPARE = 1n << 9n;
export const STACK_REUSE_ID = 1n << 10n;

export class StackTraceMap extends SharedMap<StackTraceLayout> {
  readonly kind = "stack_trace";
  readonly #base: number;
  readonly #words: BigInt64Array;
  readonly #pool: ElementPool;

  constructor(spec: MapSpec, layout: StackTraceLayout, memory: SharedMemory, byteOffset: number) {
    super(spec, layout, memory, byteOffset);
    this.#base = byteOffset / 8;
    this.#words = memory.words;
    this.#pool = new ElementPool(layout.pool, memory, this.#base);
  }

  /** The addresses of a stack, the innermost first; undefined if there is none with this id. */
  get(id: number): bigint[] | undefined {
    if (!(Number.isInteger(id) && id >= 0 && id < this.layout.ids)) return undefined;
    const words = this.#words;
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const slot = Atomics.load(words, this.#slot(id));
      const element = this.#pool.elementAt(slot);
      if (element === undefined) return undefined;
      const stack = this.#stackAt(element);
      if (Atomics.load(words, this.#slot(id)) === slot) return stack.addresses;
    }
    return undefined;
  }

  /**
   * The id of a stack, which is kept if it is new: the innermost address first, no more than `frames` of them. -EEXIST:
   * another stack has the id.
   */
  insert(addresses: readonly bigint[], flags = 0n): number {
    const words = this.#words;
    const kept = addresses.slice(0, this.layout.frames).map((address) => BigInt.asUintN(64, address));
    const hash = hashOf([BigInt(kept.length), ...kept]);
    const id = Number((hash >> BigInt(STACK_ID_SHIFT)) & BigInt(this.layout.ids - 1));
    let element: number | undefined;
    const finish = (result: number) => {
      if (element !== undefined) this.#pool.release(element);
      return result;
    };
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const slot = Atomics.load(words, this.#slot(id));
      const old = this.#pool.elementAt(slot);
      if (old !== undefined) {
        const there = this.#stackAt(old);
        if (Atomics.load(words, this.#slot(id)) !== slot) continue;
        const isSame =
          there.hash === hash &&
          ((flags & STACK_FAST_COMPARE) !== 0n || there.addresses?.join() === kept.join());
        if (isSame) return finish(id);
        if ((flags & STACK_REUSE_ID) === 0n) return finish(EEXIST);
      }
      if (element === undefined) {
        element = this.#pool.take()?.element;
        if (element === undefined) return ENOMEM;
        Atomics.store(words, element + STACK_HASH / 8, BigInt.asIntN(64, hash));
        Atomics.store(words, element + STACK_COUNT / 8, BigInt(kept.length));
        for (const [i, address] of kept.entries())
          Atomics.store(words, element + STACK_ADDRESSES / 8 + i, BigInt.asIntN(64, address));
      }
      const word = retarget(slot, BigInt(element - this.#base));
      if (Atomics.compareExchange(words, this.#slot(id), slot, word) !== slot) continue;
      element = old;
      return finish(id);
    }
    return finish(EBUSY);
  }

  delete(id: number): number {
    if (!(Number.isInteger(id) && id >= 0 && id < this.layout.ids)) return ENOENT;
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const slot = Atomics.load(this.#words, this.#slot(id));
      const element = this.#pool.elementAt(slot);
      if (element === undefined) return ENOENT;
      const none = retarget(slot, 0n);
      if (Atomics.compareExchange(this.#words, this.#slot(id), slot, none) !== slot) continue;
      this.#pool.release(element);
      return 0;
    }
    return EBUSY;
  }

  *entries(): Generator<{ readonly id: number; readonly addresses: readonly bigint[] }> {
    for (let id = 0; id < this.layout.ids; id++) {
      const addresses = this.get(id);
      if (addresses !== undefined) yield { id, addresses };
    }
  }

  clear(): void {
    for (let id = 0; id < this.layout.ids; id++) this.delete(id);
  }

  #slot(id: number): number {
    return this.#base + STACK_SLOTS / 8 + id;
  }

  /** What an element holds; no addresses where their number makes no sense. */
  #stackAt(element: number): { readonly hash: bigint; readonly addresses: bigint[] | undefined } {
    const load = (at: number) => BigInt.asUintN(64, Atomics.load(this.#words, element + at));
    const count = load(STACK_COUNT / 8);
    const hash = load(STACK_HASH / 8);
    if (count > BigInt(this.layout.frames)) return { hash, addresses: undefined };
    return {
      hash,
      addresses: Array.from({ length: Number(count) }, (_, i) => load(STACK_ADDRESSES / 8 + i)),
    };
  }
}
