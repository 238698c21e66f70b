/** What can be seen of memory that a process has written over, and that rings go on all the same. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { MapKind, MapSpec } from "../program.ts";
import { HASH_BUCKETS, HASH_FREE } from "./hash-layout.ts";
import {
  findMapDamage,
  type HashMap,
  layoutMap,
  type OpenedMap,
  openMap,
  type QueueMap,
  RingConsumer,
  type RingMap,
  type StackTraceMap,
  sharedMemoryOf,
} from "./index.ts";
import { RING_HEAD, RING_TAIL } from "./ring-layout.ts";
import { STACK_SLOTS } from "./stack-trace-layout.ts";

const spec = (kind: MapKind, keyBytes: number, valueBytes: number): MapSpec => ({
  name: kind,
  kind,
  keyBytes,
  valueBytes,
  maxEntries: 6,
  ...(kind.includes("percpu") ? { cpus: 3 } : {}),
});

function open<Map extends OpenedMap>(one: MapSpec): Map {
  const { totalBytes } = layoutMap(one);
  return openMap(one, sharedMemoryOf(new SharedArrayBuffer(totalBytes)), 0) as Map;
}

const bytes = (seed: number, lenBytes: number) => Uint8Array.from({ length: lenBytes }, (_, i) => seed + i);

describe.each([
  spec("hash", 8, 8),
  spec("hash", 12, 40),
  spec("lru_hash", 8, 24),
  spec("lru_percpu_hash", 8, 8),
  spec("queue", 0, 8),
  spec("stack", 0, 24),
  spec("stack_trace", 4, 64),
])("a $kind that nobody has written over", (one) => {
  it("is whole, whatever was done with it", () => {
    const operation = fc.tuple(fc.nat(2), fc.nat(12));
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
        const map = open(one);
        for (const [what, seed] of operations) {
          if ("pop" in map) {
            if (what === 0) map.pop();
            else map.push(bytes(seed, one.valueBytes), what === 1 ? 0n : 2n);
          } else if ("insert" in map) {
            if (what === 0) map.delete(seed);
            else map.insert([1n, BigInt(seed)], 1n << 10n);
          } else if (what === 0) (map as HashMap).delete(bytes(seed, one.keyBytes));
          else (map as HashMap).update(bytes(seed, one.keyBytes), bytes(what, one.valueBytes));
        }
        expect(findMapDamage(map)).toBeUndefined();
      }),
    );
  });
});

describe("memory that was written over is seen", () => {
  const filled = () => {
    const map = open<HashMap>(spec("hash", 8, 8));
    for (let k = 0; k < 6; k++) map.update(bytes(k, 8), bytes(k, 8));
    map.delete(bytes(0, 8));
    return map;
  };
  const bucketOf = (map: HashMap) =>
    [...map.memory.words].findIndex((word, i) => i >= HASH_BUCKETS / 8 && word !== 0n);

  it("in a hash map: a list that leads out of it", () => {
    const map = filled();
    map.memory.words[bucketOf(map)] = 0x7000_0000n;
    expect(findMapDamage(map)).toContain("leads out of it");
  });

  it("in a hash map: a list without end", () => {
    const map = filled();
    const bucket = bucketOf(map);
    const element = Number(map.memory.words[bucket]! & 0x7fff_ffffn);
    map.memory.words[element] = BigInt(element);
    expect(findMapDamage(map)).toContain("no end");
  });

  it("in a hash map: a key in the wrong list", () => {
    const map = filled();
    const element = Number(map.memory.words[bucketOf(map)]! & 0x7fff_ffffn);
    map.memory.words[element + 1]! ^= 0x5555n;
    expect(findMapDamage(map)).toContain("wrong list");
  });

  it("in a hash map: what is free", () => {
    const map = filled();
    map.memory.words[HASH_FREE / 8] = 3n;
    expect(findMapDamage(map)).toContain("leads out of it");
  });

  it("in a queue", () => {
    const map = open<QueueMap>(spec("queue", 0, 8));
    for (let i = 0; i < 3; i++) map.push(bytes(i, 8));
    map.memory.words[0] = -1n;
    expect(findMapDamage(map)).toContain("not known any more");
  });

  it("in a map of stacks", () => {
    const map = open<StackTraceMap>(spec("stack_trace", 4, 64));
    const id = map.insert([1n, 2n]);
    map.memory.words[STACK_SLOTS / 8 + id] = 1n;
    expect(findMapDamage(map)).toContain("not known any more");
  });
});

describe("a ring whose numbers were written over", () => {
  const numbers: readonly { readonly name: string; readonly offset: number; readonly value: bigint }[] = [
    { name: "a tail far ahead", offset: RING_TAIL, value: 1n << 60n },
    { name: "a negative tail", offset: RING_TAIL, value: -5n },
    { name: "a tail behind the reader", offset: RING_TAIL, value: 1n },
    { name: "a head far ahead", offset: RING_HEAD, value: 1n << 62n },
    { name: "a head behind the reader", offset: RING_HEAD, value: -1n },
  ];
  it.each(numbers)("$name: records come through again", ({ offset, value }) => {
    const map = open<RingMap>(spec("ringbuf", 0, 16));
    let nowMs = 0;
    const consumer = new RingConsumer(map.layout, map.memory, 0, { nowMs: () => nowMs });
    const got: number[] = [];
    const poll = () => consumer.poll(100, (record) => got.push(record[0]!));
    for (let i = 0; i < 20; i++) {
      expect(map.output(bytes(i, 16))).toBe(true);
      poll();
    }
    for (let i = 20; i < 24; i++) map.output(bytes(i, 16));
    map.memory.words[offset / 8] = value;
    map.output(bytes(99, 16));
    poll();
    expect(consumer.corrupt).toBeGreaterThan(0);
    got.length = 0;
    for (let i = 100; i < 140; i++) {
      map.output(bytes(i, 16));
      nowMs += 1000;
      poll();
    }
    expect(got.slice(-20)).toEqual(Array.from({ length: 20 }, (_, i) => 120 + i));
    const { corrupt } = consumer;
    poll();
    expect(consumer.corrupt).toBe(corrupt);
  });

  it("the time that a poll takes is bounded, whatever all of its memory holds", () => {
    const word = fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n });
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(60), word), { maxLength: 40 }), (writes) => {
        const map = open<RingMap>(spec("ringbuf", 0, 16));
        const consumer = new RingConsumer(map.layout, map.memory, 0, { nowMs: () => 0 });
        for (let i = 0; i < 5; i++) map.output(bytes(i, 16));
        for (const [index, value] of writes)
          if (index < map.memory.words.length) map.memory.words[index] = value;
        let records = 0;
        consumer.poll(1000, (record) => {
          expect(record.length).toBeLessThanOrEqual(16);
          records++;
        });
        consumer.drain(() => records++);
        expect(records).toBeLessThanOrEqual(6 * map.layout.cells);
      }),
    );
  });
});
