/** The accessors against simple models, and against states that only a dead, slow or hostile writer leaves. */
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { MapSpec } from "../program.ts";
import { HASH_BUCKETS, HASH_USED } from "./hash-layout.ts";
import { ArrayMap, HashMap, layoutMap, openMap, RingConsumer, RingMap, sharedMemoryOf } from "./index.ts";
import { RING_CELLS, RING_TAIL } from "./ring-layout.ts";

function spec(kind: MapSpec["kind"], keyBytes: number, valueBytes: number, maxEntries: number): MapSpec {
  return { name: "m", kind, keyBytes, valueBytes, maxEntries };
}

/** A map behind some other bytes. */
function open(mapSpec: MapSpec) {
  const layout = layoutMap(mapSpec);
  const memory = sharedMemoryOf(new SharedArrayBuffer(128 + layout.totalBytes + 64));
  return { map: openMap(mapSpec, memory, 128), memory, layout };
}

function openHash(keyBytes: number, valueBytes: number, maxEntries: number) {
  const { map, memory } = open(spec("hash", keyBytes, valueBytes, maxEntries));
  if (!(map instanceof HashMap)) throw new Error("not a hash map");
  return { map, memory };
}

function openRing(valueBytes: number, maxEntries: number, retireAfterMs = 100) {
  const { map, memory } = open(spec("ringbuf", 0, valueBytes, maxEntries));
  if (!(map instanceof RingMap)) throw new Error("not a ring");
  const clock = { ms: 0 };
  const consumer = new RingConsumer(map.layout, memory, map.byteOffset, {
    nowMs: () => clock.ms,
    retireAfterMs,
  });
  return { map, memory, clock, consumer };
}

const bytes = (...values: number[]) => Uint8Array.from(values);
const u64 = (value: number | bigint) => {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt(value), true);
  return out;
};

const collect = (consumer: RingConsumer, max = 1000) => {
  const got: number[] = [];
  consumer.poll(max, (record) => got.push(record[0]!));
  return got;
};
const put = (map: RingMap, memory: { bytes: Uint8Array }, value: number, lenBytes = 8) => {
  const offset = map.reserve(lenBytes);
  if (offset === undefined) return false;
  memory.bytes.fill(value, offset, offset + lenBytes);
  map.submit(offset);
  return true;
};

describe("layout", () => {
  const cases = [
    {
      name: "array strides are whole words",
      spec: spec("array", 4, 12, 5),
      expected: { stride: 16, totalBytes: 128 },
    },
    {
      name: "small hash elements do not straddle cache lines",
      spec: spec("hash", 8, 8, 100),
      expected: { stride: 32, valueOffset: 16, buckets: 128, hashShift: 57 },
    },
    {
      name: "values of whole cache lines begin on one",
      spec: spec("hash", 8, 512, 4),
      expected: { stride: 576, valueOffset: 64, buckets: 8 },
    },
    {
      name: "odd keys are padded",
      spec: spec("hash", 13, 4, 8),
      expected: { keyWords: 2, valueOffset: 24, stride: 32 },
    },
    {
      name: "values of more than 8 bytes have spares",
      spec: spec("hash", 8, 16, 10),
      expected: { stride: 32, valueOffset: 16, poolBytes: 320, spareBytes: 1024 },
    },
    {
      name: "per-CPU copies lie behind the elements, slot by slot",
      spec: { ...spec("percpu_hash", 8, 12, 10), cpus: 3 },
      expected: {
        headerBytes: 192,
        stride: 16,
        spareBytes: 0,
        copies: { cpus: 3, slotBytes: 192, stride: 16, elementShift: 4, offset: 512 },
      },
    },
    {
      name: "a ring of events is a ring",
      spec: spec("perf_event_array", 4, 20, 5),
      expected: { kind: "ringbuf", cells: 8, cellBytes: 48 },
    },
    {
      name: "ring has a power of two of cells",
      spec: spec("ringbuf", 0, 20, 5),
      expected: { cells: 8, cellBytes: 48 },
    },
    {
      name: "ring of one record has two cells",
      spec: spec("ringbuf", 0, 16, 1),
      expected: { cells: 2, cellBytes: 32 },
    },
  ];
  it.each(cases)("$name", ({ spec: mapSpec, expected }) => {
    const layout = layoutMap(mapSpec);
    expect(layout).toMatchObject(expected);
    expect(layout.totalBytes % 64).toBe(0);
  });

  it.each([
    { name: "array with an 8-byte key", spec: spec("array", 8, 8, 1) },
    { name: "hash without a key", spec: spec("hash", 0, 8, 1) },
    { name: "queue with a key", spec: spec("queue", 4, 8, 1) },
    { name: "per-CPU array without a number of copies", spec: spec("percpu_array", 4, 8, 1) },
    { name: "stack trace of half an address", spec: spec("stack_trace", 4, 12, 1) },
    { name: "bloom filter of 16 functions", spec: { ...spec("bloom_filter", 0, 8, 1), hashFunctions: 16 } },
    { name: "queue of more values than code can reach", spec: spec("queue", 0, 8, 1 << 28) },
    { name: "no entries", spec: spec("hash", 8, 8, 0) },
    { name: "no value", spec: spec("array", 4, 0, 1) },
    { name: "more than refs can name", spec: spec("hash", 8, 1 << 20, 1 << 20) },
  ])("refused: $name", ({ spec: mapSpec }) => {
    expect(() => layoutMap(mapSpec)).toThrow(RangeError);
  });

  it("a map that does not fit its memory is refused", () => {
    const memory = sharedMemoryOf(new ArrayBuffer(128));
    expect(() => openMap(spec("array", 4, 8, 9), memory, 64)).toThrow(/64 of 128/);
  });
});

describe("array", () => {
  it("reads, updates, refuses like the kernel", () => {
    const { map } = open(spec("array", 4, 12, 3));
    if (!(map instanceof ArrayMap)) throw new Error("not an array");
    const value = bytes(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    expect(map.update(bytes(2, 0, 0, 0), value, 0n)).toBe(0);
    expect(map.update(bytes(3, 0, 0, 0), value, 0n)).toBe(-7);
    expect(map.update(bytes(0, 0, 0, 0), value, 1n)).toBe(-17);
    expect(map.update(bytes(0, 0, 0, 0), value, 3n)).toBe(-22);
    expect(map.delete(bytes(0, 0, 0, 0))).toBe(-22);
    expect(map.lookup(bytes(2, 0, 0, 0))).toBe(128 + 32);
    expect(map.lookup(bytes(3, 0, 0, 0))).toBeUndefined();
    expect(map.read(2)).toEqual(value);
    expect([...map.entries()].map((entry) => entry.value[0])).toEqual([0, 0, 1]);
    map.clear();
    expect(map.read(2)).toEqual(new Uint8Array(12));
  });
});

describe("hash", () => {
  it("behaves like a Map under random operations, for keys of many sizes", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(1, 3, 4, 8, 11, 16, 33),
        fc.integer({ min: 1, max: 12 }),
        fc.array(
          fc.record({
            op: fc.constantFrom("update", "noexist", "exist", "delete", "lookup", "clear"),
            key: fc.integer({ min: 0, max: 15 }),
            value: fc.integer({ min: 0, max: 255 }),
          }),
          { maxLength: 80 },
        ),
        (keyBytes, maxEntries, steps) => {
          const { map, memory } = openHash(keyBytes, 12, maxEntries);
          const model = new Map<number, number>();
          for (const { op, key: k, value: v } of steps) {
            const key = new Uint8Array(keyBytes).fill(k);
            const value = new Uint8Array(12).fill(v);
            const full = model.size >= maxEntries && !model.has(k);
            if (op === "clear") {
              map.clear();
              model.clear();
            } else if (op === "delete") {
              expect(map.delete(key)).toBe(model.delete(k) ? 0 : -2);
            } else if (op === "lookup") {
              const offset = map.lookup(key);
              expect(offset === undefined ? undefined : memory.bytes[offset]).toBe(model.get(k));
            } else {
              const flags = { update: 0n, noexist: 1n, exist: 2n }[op];
              const result = map.update(key, value, flags);
              if (op === "noexist" && model.has(k)) expect(result).toBe(-17);
              else if (op === "exist" && !model.has(k)) expect(result).toBe(-2);
              else if (full) expect(result).toBe(-7);
              else {
                expect(result).toBe(0);
                model.set(k, v);
              }
            }
          }
          const seen = new Map([...map.entries()].map((entry) => [entry.key[0]!, entry.value[11]!]));
          expect(seen).toEqual(model);
        },
      ),
      { numRuns: 200 },
    );
  });

  it("overwrites a value where it lies, and only one that is there", () => {
    const { map, memory } = openHash(8, 24, 4);
    map.update(u64(1), new Uint8Array(24).fill(1));
    const at = map.lookup(u64(1))!;
    expect(map.overwrite(u64(1), new Uint8Array(24).fill(2))).toBe(0);
    expect(map.lookup(u64(1))).toBe(at);
    expect(memory.bytes.slice(at, at + 24)).toEqual(new Uint8Array(24).fill(2));
    expect(map.overwrite(u64(2), new Uint8Array(24))).toBe(-2);
  });

  it("counts updates that it refused because it was full", () => {
    const { map } = openHash(8, 8, 2);
    for (let i = 0; i < 5; i++) map.update(u64(i), u64(i));
    expect(map.refused).toBe(3n);
    expect(map.update(u64(1), u64(9))).toBe(0);
    expect(map.delete(u64(0))).toBe(0);
    expect(map.update(u64(7), u64(7))).toBe(0);
  });

  it("elements of deleted keys are used again without end", () => {
    const { map } = openHash(8, 8, 4);
    for (let i = 0; i < 1000; i++) {
      expect(map.update(u64(i), u64(i))).toBe(0);
      if (i >= 3) expect(map.delete(u64(i - 3))).toBe(0);
    }
    expect([...map.entries()].length).toBe(3);
  });

  it("memory of elements that were never used stays zero", () => {
    const { map, memory } = openHash(8, 8, 1000);
    map.update(u64(1), u64(1));
    const { elementsOffset, stride } = map.layout;
    expect(memory.bytes.subarray(128 + elementsOffset + stride).every((byte) => byte === 0)).toBe(true);
  });

  const damages: readonly { name: string; damage: (words: BigInt64Array, map: HashMap) => void }[] = [
    { name: "garbage everywhere", damage: (words) => words.fill(0x5a5a5a5a_5a5a5a5an) },
    { name: "all ones", damage: (words) => words.fill(-1n) },
    {
      name: "an element that leads to itself",
      damage: (words, map) => {
        const { elementsOffset, buckets } = map.layout;
        words[(128 + HASH_USED) / 8] = 1000n;
        const ref = BigInt(elementsOffset / 8);
        for (let i = 0; i < buckets; i++) words[(128 + HASH_BUCKETS) / 8 + i] = ref;
        words[(128 + elementsOffset) / 8] = ref;
      },
    },
    {
      name: "refs between elements",
      damage: (words, map) => {
        for (let i = 0; i < map.layout.buckets; i++) {
          words[(128 + HASH_BUCKETS) / 8 + i] = BigInt(map.layout.elementsOffset / 8 + 1);
        }
      },
    },
  ];
  it.each(damages)("$name: reads end and do not throw", ({ damage }) => {
    const { map, memory } = openHash(16, 24, 50);
    for (let i = 0; i < 50; i++) map.update(new Uint8Array(16).fill(i), new Uint8Array(24).fill(i));
    damage(memory.words, map);
    expect(map.lookup(new Uint8Array(16).fill(60))).toBeUndefined();
    expect(map.update(new Uint8Array(16).fill(60), new Uint8Array(24), 0n)).toBeLessThanOrEqual(0);
    expect(map.delete(new Uint8Array(16).fill(60))).toBeLessThanOrEqual(0);
    expect([...map.entries()].length).toBeLessThanOrEqual(50);
    map.clear();
  });
});

describe("ring buffer", () => {
  it("delivers in order over many laps, with the length of each record", () => {
    const { map, memory, consumer } = openRing(32, 8);
    for (let i = 0; i < 100; i++) {
      const lenBytes = 1 + (i % 32);
      expect(put(map, memory, i, lenBytes)).toBe(true);
      const got: Uint8Array[] = [];
      expect(consumer.poll(10, (record) => got.push(record))).toBe(1);
      expect(got[0]).toEqual(new Uint8Array(lenBytes).fill(i));
    }
  });

  it("drops exactly what does not fit", () => {
    const { map, memory, consumer } = openRing(8, 8);
    const stored = Array.from({ length: 11 }, (_, i) => put(map, memory, i)).filter(Boolean).length;
    expect(stored).toBe(8);
    expect(consumer.dropped).toBe(3n);
    expect(collect(consumer, 5)).toEqual([0, 1, 2, 3, 4]);
    expect(put(map, memory, 50)).toBe(true);
    expect(collect(consumer)).toEqual([5, 6, 7, 50]);
  });

  it("discarded records are skipped and counted", () => {
    const { map, memory, consumer } = openRing(8, 4);
    put(map, memory, 1);
    map.discard(map.reserve(8)!);
    put(map, memory, 3);
    expect(collect(consumer)).toEqual([1, 3]);
    expect(consumer.discarded).toBe(1);
  });

  it("a record that is never committed holds up the reader only until it is retired", () => {
    const { map, memory, consumer, clock } = openRing(8, 4);
    map.reserve(8);
    put(map, memory, 2);
    expect(collect(consumer)).toEqual([]);
    clock.ms = 99;
    expect(collect(consumer)).toEqual([]);
    clock.ms = 100;
    expect(collect(consumer)).toEqual([2]);
    expect(consumer.retired).toBe(1);
  });

  it("many abandoned records are waited for once", () => {
    const { map, memory, consumer, clock } = openRing(8, 8);
    for (let i = 0; i < 3; i++) {
      map.reserve(8);
      put(map, memory, i);
    }
    expect(collect(consumer)).toEqual([]);
    clock.ms = 100;
    expect(collect(consumer)).toEqual([0, 1, 2]);
  });

  it("an abandoned cell is lost, the others go on lap after lap, drops stay exact", () => {
    const { map, memory, consumer, clock } = openRing(8, 4);
    map.reserve(8);
    collect(consumer);
    clock.ms = 100;
    let delivered = 0;
    let refused = 0;
    for (let i = 0; i < 50; i++) {
      for (let k = 0; k < 4; k++) if (!put(map, memory, i)) refused++;
      delivered += collect(consumer).length;
    }
    expect(delivered + refused).toBe(200);
    expect(delivered).toBeGreaterThanOrEqual(150);
    expect(consumer.dropped).toBe(BigInt(refused));
  });

  it("a record committed after it was retired is delivered once, and its cell comes back", () => {
    const { map, memory, consumer, clock } = openRing(8, 4);
    const late = map.reserve(8)!;
    memory.bytes.fill(77, late, late + 8);
    put(map, memory, 1);
    collect(consumer);
    clock.ms = 100;
    expect(collect(consumer)).toEqual([1]);
    map.submit(late);
    expect(collect(consumer)).toEqual([77]);
    for (let lap = 0; lap < 5; lap++) {
      for (let k = 0; k < 3; k++) put(map, memory, k);
      expect(collect(consumer)).toEqual([0, 1, 2]);
    }
    const stored = Array.from({ length: 5 }, (_, i) => put(map, memory, i)).filter(Boolean).length;
    expect(stored).toBe(4);
    expect(collect(consumer)).toEqual([0, 1, 2, 3]);
    expect(consumer.corrupt).toBe(0);
  });

  it("a late record is delivered by the reader that passes it, if a new reader knows nothing of it", () => {
    const { map, memory, consumer, clock } = openRing(8, 4);
    const late = map.reserve(8)!;
    memory.bytes.fill(77, late, late + 8);
    collect(consumer);
    clock.ms = 100;
    collect(consumer);
    map.submit(late);
    const second = new RingConsumer(map.layout, memory, map.byteOffset, { nowMs: () => 0 });
    for (let k = 0; k < 4; k++) put(map, memory, k);
    expect(collect(second)).toContain(77);
  });

  it("drain waits for nothing", () => {
    const { map, memory, consumer } = openRing(8, 4);
    map.reserve(8);
    put(map, memory, 5);
    const got: number[] = [];
    consumer.drain((record) => got.push(record[0]!));
    expect(got).toEqual([5]);
  });

  it.each([
    {
      name: "garbage in all cells",
      damage: (words: BigInt64Array) => words.fill(0x1234567n, (128 + RING_CELLS) / 8),
    },
    {
      name: "a tail far ahead",
      damage: (words: BigInt64Array) =>
        words.fill(1n << 60n, (128 + RING_TAIL) / 8, (128 + RING_TAIL) / 8 + 1),
    },
    {
      name: "a negative tail",
      damage: (words: BigInt64Array) => words.fill(-5n, (128 + RING_TAIL) / 8, (128 + RING_TAIL) / 8 + 1),
    },
    { name: "all ones", damage: (words: BigInt64Array) => words.fill(-1n) },
  ])("$name: reading ends and does not throw", ({ damage }) => {
    const { map, memory, consumer, clock } = openRing(8, 8);
    for (let i = 0; i < 5; i++) put(map, memory, i);
    damage(memory.words);
    for (let round = 0; round < 5; round++) {
      clock.ms += 1000;
      expect(collect(consumer).length).toBeLessThanOrEqual(1000);
    }
  });
});
