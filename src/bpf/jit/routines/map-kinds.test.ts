/** The routines of all kinds of maps against the tracer's accessors on the same memory, and against models. */
import { afterAll, describe, expect, it } from "vitest";
import { NativeBpf } from "../../../../test/support/native-bpf.ts";
import { randomWords } from "../../../../test/support/native-code.ts";
import { RoutineCaller } from "../../../../test/support/routine-caller.ts";
import {
  HELPER_FOR_EACH_MAP_ELEM,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_LOOKUP_PERCPU_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_POP_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_PERF_EVENT_OUTPUT,
  HELPER_RINGBUF_OUTPUT,
  HELPER_RINGBUF_QUERY,
  HELPER_RINGBUF_RESERVE,
} from "../../helpers.ts";
import {
  type ArrayMap,
  type ArrayOfMaps,
  type BloomMap,
  type HashMap,
  type HashOfMaps,
  type OpenedMap,
  type PerCpuArrayMap,
  type PerCpuHashMap,
  type QueueMap,
  RingConsumer,
  type RingMap,
  type StackTraceMap,
} from "../../maps/index.ts";
import type { MapKind, MapSpec } from "../../program.ts";

const opened: Disposable[] = [];
afterAll(() => {
  for (const one of opened) one[Symbol.dispose]();
});

function open<Map extends OpenedMap>(...maps: MapSpec[]) {
  const native = new NativeBpf({ maps });
  const caller = new RoutineCaller(native);
  opened.push(caller, native);
  return { native, caller, map: native.maps[0] as Map };
}

const spec = (
  kind: MapKind,
  keyBytes: number,
  valueBytes: number,
  maxEntries: number,
  more: Partial<MapSpec> = {},
): MapSpec => ({ name: kind, kind, keyBytes, valueBytes, maxEntries, ...more });

/** `lenBytes` bytes that all depend on `value`. */
const bytesOf = (value: number, lenBytes: number) =>
  Uint8Array.from({ length: lenBytes }, (_, i) => ((i % 2 === 0 ? value : value >> 8) * 31 + i * 7) & 0xff);
const index = (value: number) => Uint8Array.of(value, value >> 8, value >> 16, value >> 24);
const [ANY, NOEXIST, EXIST] = [0n, 1n, 2n];

const isThere = (map: HashMap, k: number) => map.read(bytesOf(k, 8)) !== undefined;

const consume = (map: RingMap) => {
  const got: Uint8Array[] = [];
  new RingConsumer(map.layout, map.memory, map.byteOffset, { nowMs: () => 0 }).poll(1000, (record) =>
    got.push(record),
  );
  return got;
};

const stack = (seed: number, frames: number) =>
  Array.from({ length: frames }, (_, i) => 0x7f00_0000_0000n + BigInt(seed * 4096 + i * 16));

const walk = (
  caller: RoutineCaller,
  memory: Uint8Array,
  visit: (key: Uint8Array, value: bigint) => void,
  slot = 0,
) => {
  const keys: number[] = [];
  for (let cursor = 0n; keys.length < 1000; ) {
    const next = caller.next(HELPER_FOR_EACH_MAP_ELEM, 0, cursor, { slot });
    if (next.cursor === 0n) return keys;
    const at = caller.offsetOf(next.key);
    keys.push(memory[at]!);
    visit(memory.slice(at, at + 8), next.value);
    ({ cursor } = next);
  }
  throw new Error("does not end");
};

const walkKey = (k: number) => Uint8Array.of(k, 0, 0, 0, 0, 0, 0, 0);

const sorted = (keys: readonly number[]) => keys.toSorted((a, b) => a - b);

describe("hash map with values that are replaced", () => {
  it.each([
    { keyBytes: 8, valueBytes: 16 },
    { keyBytes: 5, valueBytes: 9 },
    { keyBytes: 24, valueBytes: 64 },
    { keyBytes: 100, valueBytes: 200 },
  ])(
    "$keyBytes-byte keys, $valueBytes-byte values: both sides and a Map agree",
    ({ keyBytes, valueBytes }) => {
      const entries = 5;
      const { caller, map } = open<HashMap>(spec("hash", keyBytes, valueBytes, entries));
      const model = new Map<number, number>();
      const random = randomWords(keyBytes);
      for (let i = 0; i < 600; i++) {
        const k = Number(random() % 9n);
        const v = Number(random() % 256n);
        const flags = random() % 4n;
        const key = bytesOf(k, keyBytes);
        const isNative = random() % 2n === 0n;
        if (random() % 3n === 0n) {
          const got = isNative ? caller.call(HELPER_MAP_DELETE_ELEM, 0, [key]) : BigInt(map.delete(key));
          expect(got).toBe(model.delete(k) ? 0n : -2n);
        } else {
          const want =
            flags > 2n
              ? -22n
              : flags === NOEXIST && model.has(k)
                ? -17n
                : flags === EXIST && !model.has(k)
                  ? -2n
                  : !model.has(k) && model.size >= entries
                    ? -7n
                    : 0n;
          const value = bytesOf(v, valueBytes);
          const got = isNative
            ? caller.call(HELPER_MAP_UPDATE_ELEM, 0, [key, value, flags])
            : BigInt(map.update(key, value, flags));
          expect(got).toBe(want);
          if (want === 0n) model.set(k, v);
        }
        const address = caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [key]);
        expect(address === 0n).toBe(!model.has(k));
        if (address !== 0n) {
          const at = caller.offsetOf(address);
          expect(map.memory.bytes.slice(at, at + valueBytes)).toEqual(bytesOf(model.get(k)!, valueBytes));
        }
      }
      const seen = [...map.entries()].map(({ key, value }) => [key[0], value]);
      expect(seen.length).toBe(model.size);
    },
  );

  it("a pointer from before a replacement leads to the old value", () => {
    const { caller, map } = open<HashMap>(spec("hash", 8, 16, 4));
    map.update(bytesOf(1, 8), bytesOf(1, 16));
    const before = caller.offsetOf(caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [bytesOf(1, 8)]));
    expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(1, 8), bytesOf(2, 16), ANY])).toBe(0n);
    expect(map.memory.bytes.slice(before, before + 16)).toEqual(bytesOf(1, 16));
    expect(map.read(bytesOf(1, 8))).toEqual(bytesOf(2, 16));
  });

  it("a full map still replaces, and in place when nothing is left to replace with", () => {
    const { caller, map, native } = open<HashMap>(spec("hash", 8, 16, 4));
    for (let i = 0; i < 4; i++) map.update(bytesOf(i, 8), bytesOf(i, 16));
    for (let i = 0; i < 100; i++)
      expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(i % 4, 8), bytesOf(i, 16), EXIST])).toBe(0n);
    // All spares are gone, as after so many deaths.
    native.memory.words[map.byteOffset / 8 + 1] = 0n;
    native.memory.words[map.byteOffset / 8 + 9] = 1n << 40n;
    const before = map.lookup(bytesOf(3, 8));
    expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(3, 8), bytesOf(77, 16), ANY])).toBe(0n);
    expect(map.lookup(bytesOf(3, 8))).toBe(before);
    expect(map.read(bytesOf(3, 8))).toEqual(bytesOf(77, 16));
    expect(map.update(bytesOf(3, 8), bytesOf(78, 16))).toBe(0);
    expect(map.read(bytesOf(3, 8))).toEqual(bytesOf(78, 16));
    expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(9, 8), bytesOf(9, 16), ANY])).toBe(-7n);
    expect([...map.entries()].length).toBe(4);
  });
});

describe("lru hash map", () => {
  it.each([
    { name: "routines", isNative: true },
    { name: "tracer", isNative: false },
  ])("$name: a full map makes room, and keeps what was touched", ({ isNative }) => {
    const { caller, map } = open<HashMap>(spec("lru_hash", 8, 8, 16));
    const update = (k: number, flags: bigint) =>
      isNative
        ? Number(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(k, 8), bytesOf(k, 8), flags]))
        : map.update(bytesOf(k, 8), bytesOf(k, 8), flags);
    for (let k = 0; k < 16; k++) expect(update(k, NOEXIST)).toBe(0);
    const kept = [1, 5, 9, 13];
    for (let k = 100; k < 200; k++) {
      for (const one of kept) {
        if (isNative) expect(caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [bytesOf(one, 8)])).not.toBe(0n);
        else expect(map.lookup(bytesOf(one, 8))).toBeDefined();
      }
      expect(update(k, NOEXIST)).toBe(0);
      expect(isThere(map, k)).toBe(true);
    }
    // What was touched once and not again goes all the same.
    for (let k = 300; k < 316; k++) {
      update(k, ANY);
      caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [bytesOf(k, 8)]);
    }
    for (let k = 400; k < 450; k++) {
      for (const one of kept) {
        if (!isThere(map, one)) update(one, ANY);
        map.lookup(bytesOf(one, 8));
      }
      update(k, ANY);
    }
    for (let k = 300; k < 316; k++) expect(isThere(map, k)).toBe(false);
    expect([...map.entries()].length).toBe(16);
    for (const one of kept) expect(isThere(map, one)).toBe(true);
    expect(update(1, NOEXIST)).toBe(-17);
    expect(update(5000, EXIST)).toBe(-2);
    expect(map.refused).toBe(0n);
  });

  it.each([
    { keyBytes: 8, valueBytes: 8, entries: 1 },
    { keyBytes: 3, valueBytes: 40, entries: 2 },
    { keyBytes: 20, valueBytes: 24, entries: 7 },
    { keyBytes: 90, valueBytes: 1, entries: 7 },
  ])(
    "$keyBytes-byte keys, $valueBytes-byte values, $entries entries: never more, never another key's value",
    ({ keyBytes, valueBytes, entries }) => {
      const { caller, map } = open<HashMap>(spec("lru_hash", keyBytes, valueBytes, entries));
      const random = randomWords(entries * 100 + keyBytes);
      for (let i = 0; i < 500; i++) {
        const k = Number(random() % BigInt(entries * 3));
        const [key, value] = [bytesOf(k, keyBytes), bytesOf(k, valueBytes)];
        const isNative = random() % 2n === 0n;
        if (random() % 8n === 0n) {
          const was = map.read(key) !== undefined;
          const got = isNative ? caller.call(HELPER_MAP_DELETE_ELEM, 0, [key]) : BigInt(map.delete(key));
          expect(got).toBe(was ? 0n : -2n);
        } else {
          if (isNative) expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [key, value, ANY])).toBe(0n);
          else expect(map.update(key, value)).toBe(0);
          expect(map.read(key)).toEqual(value);
        }
      }
      const all = [...map.entries()];
      expect(all.length).toBeLessThanOrEqual(entries);
      map.clear();
      for (let k = 0; k < entries; k++) map.update(bytesOf(k, keyBytes), bytesOf(k, valueBytes));
      expect([...map.entries()].length).toBe(entries);
    },
  );
});

describe("per-CPU maps", () => {
  const cpus = 5;

  it.each([
    { name: "array", make: () => spec("percpu_array", 4, 12, 7, { cpus }), key: (k: number) => index(k) },
    { name: "hash", make: () => spec("percpu_hash", 8, 12, 7, { cpus }), key: (k: number) => bytesOf(k, 8) },
    {
      name: "lru hash",
      make: () => spec("lru_percpu_hash", 20, 12, 7, { cpus }),
      key: (k: number) => bytesOf(k, 20),
    },
  ])("$name: each slot has its own copy, on both sides", ({ make, key }) => {
    const { caller, map } = open<PerCpuArrayMap | PerCpuHashMap>(make());
    const model = Array.from({ length: 7 }, () => Array.from({ length: cpus }, () => new Uint8Array(12)));
    const random = randomWords(7);
    for (let i = 0; i < 600; i++) {
      // The first seven make all keys.
      const k = i < 7 ? i : Number(random() % 7n);
      const slot = Number(random() % BigInt(cpus));
      const value = bytesOf(Number(random() % 256n), 12);
      model[k]![slot] = value;
      if (random() % 2n === 0n)
        expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [key(k), value, ANY], { slot })).toBe(0n);
      else expect(map.update(key(k), value, ANY, slot)).toBe(0);
      const address = caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [key(k)], { slot });
      expect(caller.offsetOf(address)).toBe(map.lookup(key(k), slot));
      for (let other = 0; other < cpus; other++) {
        const at = caller.call(HELPER_MAP_LOOKUP_PERCPU_ELEM, 0, [key(k), BigInt(other)], { slot });
        expect(caller.offsetOf(at)).toBe(map.lookup(key(k), other));
      }
      expect(caller.call(HELPER_MAP_LOOKUP_PERCPU_ELEM, 0, [key(k), BigInt(cpus)], { slot })).toBe(0n);
      expect(map.read(key(k))).toEqual(model[k]);
    }
    const entries = new Map([...map.entries()].map((entry) => [entry.key.join(), entry.values]));
    expect(entries.size).toBe(7);
    for (let k = 0; k < 7; k++) expect(entries.get(key(k).join())).toEqual(model[k]);
    expect(map.updateCopies(key(3), model[4]!)).toBe(0);
    expect(map.read(key(3))).toEqual(model[4]);
  });

  it.each([
    { name: "routine", isNative: true },
    { name: "tracer", isNative: false },
  ])("hash, $name: a new key in a used element begins with zeros in the other slots", ({ isNative }) => {
    const { caller, map } = open<PerCpuHashMap>(spec("percpu_hash", 8, 16, 1, { cpus }));
    const full = Array.from({ length: cpus }, () => bytesOf(9, 16));
    expect(map.updateCopies(bytesOf(1, 8), full)).toBe(0);
    expect(map.delete(bytesOf(1, 8))).toBe(0);
    const [key, value] = [bytesOf(2, 8), bytesOf(5, 16)];
    if (isNative) expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [key, value, ANY], { slot: 3 })).toBe(0n);
    else expect(map.update(key, value, ANY, 3)).toBe(0);
    expect(map.read(key)).toEqual(full.map((_, slot) => (slot === 3 ? value : new Uint8Array(16))));
    expect(caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(3, 8), value, ANY])).toBe(-7n);
    expect(map.refused).toBe(1n);
  });

  it("errors are the kernel's", () => {
    const { caller } = open(spec("percpu_array", 4, 8, 3, { cpus }));
    const update = (k: number, flags: bigint) =>
      caller.call(HELPER_MAP_UPDATE_ELEM, 0, [index(k), bytesOf(1, 8), flags]);
    expect([update(2, ANY), update(3, ANY), update(0, NOEXIST), update(0, 3n)]).toEqual([
      0n,
      -7n,
      -17n,
      -22n,
    ]);
    expect(caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [index(3)])).toBe(0n);
    expect(caller.call(HELPER_MAP_DELETE_ELEM, 0, [index(0)])).toBe(-22n);
  });

  it("the memory of copies that no slot wrote stays as it was", () => {
    const { caller, map, native } = open<PerCpuHashMap>(spec("percpu_hash", 8, 8, 100, { cpus }));
    caller.call(HELPER_MAP_UPDATE_ELEM, 0, [bytesOf(1, 8), bytesOf(1, 8), ANY], { slot: 2 });
    const { copies, headerBytes } = map.layout;
    const first = map.byteOffset + headerBytes + copies!.offset;
    const dirty = [...native.memory.bytes.subarray(first, map.byteOffset + map.layout.totalBytes).entries()]
      .filter(([, byte]) => byte !== 0)
      .map(([at]) => Math.floor(at / copies!.slotBytes));
    expect(new Set(dirty)).toEqual(new Set([2]));
  });
});

describe.each([
  { kind: "queue" as const, valueBytes: 8, entries: 1 },
  { kind: "queue" as const, valueBytes: 13, entries: 5 },
  { kind: "stack" as const, valueBytes: 8, entries: 1 },
  { kind: "stack" as const, valueBytes: 40, entries: 5 },
  { kind: "stack" as const, valueBytes: 3, entries: 6 },
])("$kind of $entries values of $valueBytes bytes", ({ kind, valueBytes, entries }) => {
  it("does on both sides what a list does", () => {
    const { caller, map } = open<QueueMap>(spec(kind, 0, valueBytes, entries));
    const model: number[] = [];
    const nextIn = () => (kind === "queue" ? model[0] : model.at(-1));
    const random = randomWords(valueBytes + entries);
    for (let i = 0; i < 1200; i++) {
      const v = Number(random() % 256n);
      const isNative = random() % 2n === 0n;
      const wanted = nextIn();
      const expected = wanted === undefined ? new Uint8Array(valueBytes) : bytesOf(wanted, valueBytes);
      switch (random() % 4n) {
        case 0n:
        case 1n: {
          const flags = [0n, 0n, 2n, 1n, 3n, 4n, 1n << 32n][Number(random() % 7n)]!;
          const isFull = model.length >= entries;
          const want = flags !== 0n && flags !== 2n ? -22n : isFull && flags === 0n ? -7n : 0n;
          const value = bytesOf(v, valueBytes);
          const got = isNative
            ? caller.call(HELPER_MAP_PUSH_ELEM, 0, [value, flags])
            : BigInt(map.push(value, flags));
          expect(got).toBe(want);
          if (want === 0n) {
            if (isFull) model.shift();
            model.push(v);
          }
          break;
        }
        case 2n: {
          const out = new Uint8Array(valueBytes).fill(0xee);
          if (isNative) {
            expect(caller.call(HELPER_MAP_PEEK_ELEM, 0, [out])).toBe(wanted === undefined ? -2n : 0n);
            expect(out).toEqual(expected);
          } else expect(map.peek()).toEqual(wanted === undefined ? undefined : expected);
          break;
        }
        default: {
          const out = new Uint8Array(valueBytes).fill(0xee);
          if (isNative) {
            expect(caller.call(HELPER_MAP_POP_ELEM, 0, [out])).toBe(wanted === undefined ? -2n : 0n);
            expect(out).toEqual(expected);
          } else expect(map.pop()).toEqual(wanted === undefined ? undefined : expected);
          if (kind === "queue") model.shift();
          else model.pop();
        }
      }
      expect(map.length).toBe(model.length);
    }
    const inOrder = kind === "queue" ? model : model.toReversed();
    expect(map.values()).toEqual(inOrder.map((v) => bytesOf(v, valueBytes)));
    // Nothing is lost when the oldest makes room.
    for (let i = 0; i < 300; i++) {
      expect(caller.call(HELPER_MAP_PUSH_ELEM, 0, [bytesOf(i, valueBytes), EXIST])).toBe(0n);
      expect(map.push(bytesOf(i, valueBytes), EXIST)).toBe(0);
    }
    expect(map.values().length).toBe(entries);
    map.clear();
    for (let i = 0; i < entries; i++)
      expect(caller.call(HELPER_MAP_PUSH_ELEM, 0, [bytesOf(i, valueBytes), 0n])).toBe(0n);
    expect(caller.call(HELPER_MAP_PUSH_ELEM, 0, [bytesOf(0, valueBytes), 0n])).toBe(-7n);
  });
});

describe("bloom filter", () => {
  it.each([
    { valueBytes: 8, hashFunctions: 5 },
    { valueBytes: 3, hashFunctions: 1 },
    { valueBytes: 20, hashFunctions: 15 },
    { valueBytes: 100, hashFunctions: 3 },
  ])(
    "$valueBytes-byte values, $hashFunctions functions: all that was put in is found, by both sides",
    (shape) => {
      const { caller, map } = open<BloomMap>(spec("bloom_filter", 0, shape.valueBytes, 200, shape));
      const value = (i: number) => {
        const bytes = new Uint8Array(shape.valueBytes).fill(i);
        bytes[1] = i >> 8;
        return bytes;
      };
      for (let i = 0; i < 200; i++) {
        if (i % 2 === 0) expect(caller.call(HELPER_MAP_PUSH_ELEM, 0, [value(i), 0n])).toBe(0n);
        else expect(map.push(value(i))).toBe(0);
      }
      let falsely = 0;
      for (let i = 0; i < 1200; i++) {
        const got = caller.call(HELPER_MAP_PEEK_ELEM, 0, [value(i)]);
        expect(got).toBe(BigInt(map.test(value(i))));
        if (i < 200) expect(got).toBe(0n);
        else if (got === 0n) falsely++;
      }
      // About 2^-k at this load, and less with the bits rounded up.
      expect(falsely).toBeLessThan(1000 * (2 ** -shape.hashFunctions * 1.3 + 0.02));
      expect(caller.call(HELPER_MAP_PUSH_ELEM, 0, [value(1), 1n])).toBe(-22n);
    },
  );
});

describe("records", () => {
  it("ringbuf_output: every length, then full, then flags", () => {
    const { caller, map } = open<RingMap>(spec("ringbuf", 0, 37, 64));
    const sent = Array.from({ length: 38 }, (_, lenBytes) => bytesOf(lenBytes, lenBytes));
    for (const record of sent)
      expect(caller.call(HELPER_RINGBUF_OUTPUT, 0, [record, BigInt(record.length), 0n])).toBe(0n);
    expect(consume(map)).toEqual(sent);
    for (let i = 0; i < 64; i++)
      expect(caller.call(HELPER_RINGBUF_OUTPUT, 0, [bytesOf(i, 8), 8n, BigInt(i % 4)])).toBe(0n);
    expect(caller.call(HELPER_RINGBUF_OUTPUT, 0, [bytesOf(1, 8), 8n, 0n])).toBe(-11n);
    expect(caller.call(HELPER_RINGBUF_OUTPUT, 0, [bytesOf(1, 8), 8n, 4n])).toBe(-22n);
    expect(caller.call(HELPER_RINGBUF_OUTPUT, 0, [bytesOf(1, 38), 38n, 0n])).toBe(-11n);
    expect(map.dropped).toBe(1n);
    expect(caller.call(HELPER_RINGBUF_RESERVE, 0, [8n, 1n])).toBe(0n);
  });

  it("ringbuf_query gives what the tracer sees", () => {
    const { caller, map } = open<RingMap>(spec("ringbuf", 0, 24, 8));
    for (let i = 0; i < 5; i++) caller.call(HELPER_RINGBUF_OUTPUT, 0, [bytesOf(i, 8), 8n, 0n]);
    consume(map);
    for (let i = 0; i < 3; i++) caller.call(HELPER_RINGBUF_OUTPUT, 0, [bytesOf(i, 8), 8n, 0n]);
    const cell = map.layout.cellBytes;
    expect([0n, 1n, 2n, 3n, 4n].map((what) => caller.call(HELPER_RINGBUF_QUERY, 0, [what]))).toEqual(
      [3, 8, 5, 8, 0].map((cells) => BigInt(cells * cell)),
    );
    for (let what = 0n; what < 5n; what++)
      expect(map.query(what)).toBe(caller.call(HELPER_RINGBUF_QUERY, 0, [what]));
  });

  it("perf_event_output: any index, the current processor, errors", () => {
    const { caller, map } = open<RingMap>(spec("perf_event_array", 4, 16, 4));
    const send = (record: Uint8Array, flags: bigint) =>
      caller.call(HELPER_PERF_EVENT_OUTPUT, 0, [0n, flags, record, BigInt(record.length)]);
    expect(send(bytesOf(1, 5), 0xffff_ffffn)).toBe(0n);
    expect(send(bytesOf(2, 16), 3n)).toBe(0n);
    expect(send(bytesOf(2, 16), 1n << 32n)).toBe(-22n);
    expect(send(bytesOf(2, 17), 0n)).toBe(-7n);
    expect(consume(map)).toEqual([bytesOf(1, 5), bytesOf(2, 16)]);
    for (let i = 0; i < 4; i++) send(bytesOf(i, 1), 0n);
    expect(send(bytesOf(1, 1), 0n)).toBe(-28n);
    expect(map.dropped).toBe(1n);
  });
});

describe("stack traces", () => {
  it("the same stack has the same id on both sides, another has another or is refused", () => {
    const { caller, map } = open<StackTraceMap>(spec("stack_trace", 4, 10 * 8, 64));
    const ids = new Map<number, string>();
    let refused = 0;
    for (let i = 0; i < 64; i++) {
      const addresses = stack(i, 1 + (i % 10));
      const id = caller.insertStack(0, addresses);
      expect(BigInt(map.insert(addresses))).toBe(id);
      expect(caller.insertStack(0, addresses)).toBe(id);
      if (id === -17n) {
        refused++;
        continue;
      }
      expect(map.get(Number(id))).toEqual(addresses);
      expect(ids.has(Number(id))).toBe(false);
      ids.set(Number(id), addresses.join());
    }
    expect(refused).toBeGreaterThan(0);
    expect([...map.entries()].map(({ id, addresses }) => [id, addresses.join()]).sort()).toEqual(
      [...ids].sort(),
    );
    // With BPF_F_REUSE_STACKID the newer stack gets the id.
    for (let i = 0; i < 500; i++) {
      const addresses = stack(1000 + i, 10);
      const id =
        i % 2 === 0 ? caller.insertStack(0, addresses, 1n << 10n) : BigInt(map.insert(addresses, 1n << 10n));
      expect(map.get(Number(id))).toEqual(addresses);
    }
    map.clear();
    expect([...map.entries()]).toEqual([]);
  });

  it("fast comparison looks at the hash only", () => {
    const { caller, map } = open<StackTraceMap>(spec("stack_trace", 4, 4 * 8, 8));
    const id = Number(caller.insertStack(0, stack(1, 4)));
    const { words } = map.memory;
    const element = Number(words[(map.byteOffset + 128) / 8 + id]! & 0x7fff_ffffn) + map.byteOffset / 8;
    words[element + 2]!++;
    expect(caller.insertStack(0, stack(1, 4), 1n << 9n)).toBe(BigInt(id));
    expect(BigInt(map.insert(stack(1, 4), 1n << 9n))).toBe(BigInt(id));
    expect(caller.insertStack(0, stack(1, 4))).toBe(-17n);
    expect(map.insert(stack(1, 4))).toBe(-17);
  });
});

describe("maps of maps", () => {
  const innerSpecs: readonly MapSpec[] = [
    spec("array", 4, 16, 3),
    spec("hash", 8, 24, 3),
    spec("hash", 5, 8, 3),
    spec("lru_hash", 8, 8, 3),
    spec("percpu_array", 4, 8, 3, { cpus: 3 }),
    spec("percpu_hash", 8, 8, 3, { cpus: 3 }),
    spec("queue", 0, 8, 3),
    spec("stack", 0, 24, 3),
    spec("bloom_filter", 0, 8, 3),
    spec("ringbuf", 0, 24, 4),
  ];

  it.each(innerSpecs.map((inner) => ({ name: `${inner.kind}, key of ${inner.keyBytes} bytes`, inner })))(
    "inner $name: every helper does in each map what it does in a map of its own",
    ({ inner }) => {
      const outer = spec("array_of_maps", 4, 4, 2, { inner });
      const { caller, native } = open(outer, inner, inner, inner);
      const { keyBytes, valueBytes } = inner;
      const state = (map: number) => {
        const { byteOffset, layout } = native.maps[map]!;
        return Buffer.from(native.memory.bytes.slice(byteOffset, byteOffset + layout.totalBytes)).toString(
          "hex",
        );
      };
      const random = randomWords(keyBytes + valueBytes);
      const helpers = [
        HELPER_MAP_LOOKUP_ELEM,
        HELPER_MAP_LOOKUP_PERCPU_ELEM,
        HELPER_MAP_UPDATE_ELEM,
        HELPER_MAP_DELETE_ELEM,
        HELPER_MAP_PUSH_ELEM,
        HELPER_MAP_POP_ELEM,
        HELPER_MAP_PEEK_ELEM,
        HELPER_RINGBUF_OUTPUT,
        HELPER_RINGBUF_QUERY,
        HELPER_RINGBUF_RESERVE,
      ];
      const kindHelpers = helpers.filter((helper) => {
        if (inner.kind === "ringbuf") return helper >= HELPER_RINGBUF_OUTPUT && helper < 195;
        if (helper === HELPER_MAP_LOOKUP_PERCPU_ELEM) return inner.cpus !== undefined;
        if (inner.kind === "bloom_filter")
          return helper === HELPER_MAP_PUSH_ELEM || helper === HELPER_MAP_PEEK_ELEM;
        const isPush = helper >= HELPER_MAP_PUSH_ELEM && helper <= HELPER_MAP_PEEK_ELEM;
        return helper < 100 && isPush === (keyBytes === 0);
      });
      const base = (map: number) => native.env.mapAddr(map);
      for (let i = 0; i < 300; i++) {
        const helper = kindHelpers[Number(random() % BigInt(kindHelpers.length))]!;
        const n = Number(random() % 5n);
        const slot = Number(random() % 3n);
        const flags = random() % 4n;
        const key = keyBytes === 4 ? index(n) : bytesOf(n, keyBytes);
        const args = () => {
          const value = bytesOf(n, valueBytes);
          if (helper === HELPER_RINGBUF_QUERY) return [flags];
          if (helper === HELPER_RINGBUF_RESERVE) return [BigInt(n), flags & 1n];
          if (helper === HELPER_RINGBUF_OUTPUT) return [value, BigInt(n), flags];
          if (keyBytes === 0) return [value, flags];
          if (helper === HELPER_MAP_LOOKUP_PERCPU_ELEM) return [key, BigInt(slot)];
          return [key, value, flags];
        };
        const own = caller.call(helper, 1, args(), { slot });
        const inside = caller.call(helper, 2, args(), { slot, outer: 0 });
        const relative = (result: bigint, map: number) =>
          result > 0x1000_0000n ? result - base(map) : result;
        expect(relative(inside, 2)).toBe(relative(own, 1));
        expect(state(2)).toBe(state(1));
      }
      expect(state(3)).toMatch(/^0*$/);
    },
  );

  it.each([
    { kind: "array_of_maps" as const, keyBytes: 4, key: index },
    { kind: "hash_of_maps" as const, keyBytes: 8, key: (k: number) => bytesOf(k, 8) },
  ])("$kind: only maps that are like the inner one are handed on", ({ kind, keyBytes, key }) => {
    const inner = spec("array", 4, 8, 4);
    const { caller, map, native } = open<ArrayOfMaps | HashOfMaps>(
      spec(kind, keyBytes, 4, 4, { inner }),
      { ...inner, name: "one" },
      { ...inner, name: "two" },
      spec("array", 4, 16, 4),
    );
    const lookup = (k: number) => caller.call(HELPER_MAP_LOOKUP_ELEM, 0, [key(k)]);
    const offsetOf = (i: number) => (native.maps[i] as ArrayMap).byteOffset;
    expect(lookup(0)).toBe(0n);
    expect(map.set(key(0), offsetOf(1))).toBe(0);
    expect(map.set(key(1), offsetOf(2))).toBe(0);
    expect([lookup(0), lookup(1)]).toEqual([native.env.mapAddr(1), native.env.mapAddr(2)]);
    expect(map.innerAt(key(1))).toBe(offsetOf(2));
    // What is no such map: another kind of value, the middle of a map, the outer map, anything.
    for (const wrong of [offsetOf(3), offsetOf(1) + 8, map.byteOffset, 1 << 30]) {
      map.set(key(2), wrong);
      expect(lookup(2)).toBe(0n);
    }
    map.set(key(0), undefined);
    expect(lookup(0)).toBe(0n);
    expect(lookup(77)).toBe(0n);
  });
});

describe("walk through a hash map", () => {
  const all = Array.from({ length: 60 }, (_, k) => k);
  const fill = (valueBytes: number, kind: "hash" | "lru_hash" = "hash") => {
    const { caller, map } = open<HashMap>(spec(kind, 8, valueBytes, 64));
    for (const k of all) map.update(walkKey(k), bytesOf(k, valueBytes));
    return { caller, map, memory: map.memory.bytes };
  };

  it("sees every key once, with its value", () => {
    const { caller, map, memory } = fill(8);
    const keys = walk(caller, memory, (k, value) => expect(caller.offsetOf(value)).toBe(map.lookup(k)));
    expect(sorted(keys)).toEqual(all);
  });

  it("of a per-CPU map with the copies of one slot", () => {
    const { caller, map } = open<PerCpuHashMap>(spec("percpu_hash", 8, 8, 64, { cpus: 4 }));
    for (const k of all) map.update(walkKey(k), bytesOf(k, 8), ANY, k % 4);
    const keys = walk(
      caller,
      map.memory.bytes,
      (k, value) => expect(caller.offsetOf(value)).toBe(map.lookup(k, 3)),
      3,
    );
    expect(sorted(keys)).toEqual(all);
  });

  it.each([
    { name: "deletes", valueBytes: 8, act: (map: HashMap, k: Uint8Array) => void map.delete(k) },
    {
      name: "replaces",
      valueBytes: 32,
      act: (map: HashMap, k: Uint8Array) => void map.update(k, bytesOf(1, 32)),
    },
    {
      name: "deletes and inserts again",
      valueBytes: 8,
      act: (map: HashMap, k: Uint8Array) => {
        map.delete(k);
        map.update(k, bytesOf(1, 8));
      },
    },
  ])("who $name what it visits sees every key once", ({ valueBytes, act }) => {
    const { caller, map, memory } = fill(valueBytes);
    expect(sorted(walk(caller, memory, (k) => act(map, k)))).toEqual(all);
  });

  it("ends when every visit inserts another key", () => {
    const { caller, map, memory } = fill(8, "lru_hash");
    let next = 100;
    expect(walk(caller, memory, () => map.update(walkKey(next++), bytesOf(1, 8))).length).toBeLessThan(300);
  });

  it("of an empty map ends at once", () => {
    const { caller, map, memory } = fill(8);
    map.clear();
    expect(walk(caller, memory, () => {})).toEqual([]);
  });
});
