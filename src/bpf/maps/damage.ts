/**
 * What of a map's memory makes no sense, when no program works on it any more: only the process can have written it. That nothing
 * is found says little: values can be anything, and so can all of an array.
 */
import {
  ELEMENT_FREE_LINK,
  HASH_BUCKETS,
  HASH_FREE,
  type HashLayout,
  hashPool,
  REF_IS_SPARE,
} from "./hash-layout.ts";
import { hashOf } from "./key-hash.ts";
import type { OpenedMap } from "./open-map.ts";
import { QUEUE_CELLS, QUEUE_STATE, type QueueLayout, RECORD_BOUNDS } from "./queue-layout.ts";
import type { SharedMemory } from "./shared-memory.ts";
import { STACK_COUNT, STACK_SLOTS, type StackTraceLayout } from "./stack-trace-layout.ts";
import { ElementPool, LOW_HALF, MARK, type PoolLayout, REF_MASK } from "./tagged-words.ts";

/** Undefined: nothing was found. */
export function findMapDamage(map: OpenedMap): string | undefined {
  switch (map.kind) {
    case "hash":
    case "percpu_hash":
    case "hash_of_maps":
      return hashDamage(map.layout, map.memory, (map.byteOffset + map.layout.headerBytes) / 8);
    case "queue":
      return queueDamage(map.layout, map.spec.maxEntries, map.memory, map.byteOffset / 8);
    case "stack_trace":
      return stackDamage(map.layout, map.memory, map.byteOffset / 8);
    default:
      return undefined;
  }
}

/** Index of the element that a word names; false: it names none, and is not empty either. */
function named(
  word: bigint,
  pool: PoolLayout,
  elements: ElementPool,
  base: number,
): number | false | undefined {
  if ((word & LOW_HALF) === 0n) return undefined;
  const element = elements.elementAt(word);
  if (element === undefined) return false;
  return ((element - base) * 8 - pool.region.offset) % pool.stride === 0 ? element : false;
}

function hashDamage(layout: HashLayout, memory: SharedMemory, base: number): string | undefined {
  const { words } = memory;
  const pool = hashPool(layout);
  const elements = new ElementPool(pool, memory, base);
  const most = pool.region.lenBytes / pool.stride;
  const listDamage = (first: bigint, link: number, bucket: number | undefined): string | undefined => {
    let word = first;
    for (let steps = 0; ; steps++) {
      const element = named(word, pool, elements, base);
      if (element === undefined) return undefined;
      if (element === false) return "a list in it leads out of it";
      if (steps > most) return "a list in it has no end";
      if (bucket !== undefined) {
        const key = words.slice(element + 1, element + 1 + layout.keyWords);
        if (Number(hashOf(key) >> BigInt(layout.hashShift)) !== bucket) return "a key is in the wrong list";
      }
      word = Atomics.load(words, element + link / 8);
      // In the word of an element that is deleted and still in its list.
      if (bucket !== undefined && (word & MARK) !== 0n) word &= REF_MASK & ~REF_IS_SPARE;
    }
  };
  for (let bucket = 0; bucket < layout.buckets; bucket++) {
    const first = Atomics.load(words, base + HASH_BUCKETS / 8 + bucket);
    if (first === 0n) continue;
    const damage = listDamage(first, 0, bucket);
    if (damage !== undefined) return damage;
  }
  return listDamage(Atomics.load(words, base + HASH_FREE / 8), ELEMENT_FREE_LINK, undefined);
}

function queueDamage(
  { records, nodes }: QueueLayout,
  maxEntries: number,
  memory: SharedMemory,
  base: number,
): string | undefined {
  const { words } = memory;
  const state = Atomics.load(words, base + QUEUE_STATE / 8);
  const record = named(state, records, new ElementPool(records, memory, base), base);
  if (record === undefined) return undefined;
  if (record === false) return "what it holds is not known any more";
  const bounds = BigInt.asUintN(64, Atomics.load(words, record + RECORD_BOUNDS / 8));
  const oldest = Number(bounds & LOW_HALF);
  const count = Number(bounds >> 32n);
  if (oldest >= maxEntries || count > maxEntries) return "what it holds is not known any more";
  const values = new ElementPool(nodes, memory, base);
  // The youngest may be written by whoever comes next.
  for (let index = 0; index < count - 1; index++) {
    const cell = Atomics.load(words, base + QUEUE_CELLS / 8 + ((oldest + index) % maxEntries));
    if (typeof named(cell, nodes, values, base) !== "number") return "a value in it is not known any more";
  }
  return undefined;
}

function stackDamage(
  { ids, frames, pool }: StackTraceLayout,
  memory: SharedMemory,
  base: number,
): string | undefined {
  const { words } = memory;
  const elements = new ElementPool(pool, memory, base);
  for (let id = 0; id < ids; id++) {
    const element = named(Atomics.load(words, base + STACK_SLOTS / 8 + id), pool, elements, base);
    if (element === undefined) continue;
    if (element === false) return "a stack in it is not known any more";
    if (BigInt.asUintN(64, Atomics.load(words, element + STACK_COUNT / 8)) > BigInt(frames))
      return "a stack in it is longer than any";
  }
  return undefined;
}
