/** The accessors on memory that a process has damaged: every call ends, throws nothing, and stays inside the map. */
import { describe, expect, it } from "vitest";
import { randomWords } from "../../../test/support/native-code.ts";
import type { MapKind, MapSpec } from "../program.ts";
import { layoutMap, type OpenedMap, openMap, sharedMemoryOf } from "./index.ts";

const GUARD = 0x1234_5678_9abc_def0n;
const GUARD_WORDS = 16;

const spec = (kind: MapKind, keyBytes: number, valueBytes: number): MapSpec => ({
  name: kind,
  kind,
  keyBytes,
  valueBytes,
  maxEntries: 6,
  ...(kind.includes("percpu") ? { cpus: 3 } : {}),
});

const specs: readonly MapSpec[] = [
  spec("array", 4, 12),
  spec("hash", 8, 8),
  spec("hash", 20, 40),
  spec("lru_hash", 8, 24),
  spec("percpu_array", 4, 8),
  spec("percpu_hash", 8, 12),
  spec("lru_percpu_hash", 8, 8),
  spec("ringbuf", 0, 24),
  spec("perf_event_array", 4, 24),
  spec("queue", 0, 24),
  spec("stack", 0, 8),
  spec("stack_trace", 4, 64),
  spec("bloom_filter", 0, 12),
  spec("prog_array", 4, 4),
  spec("array_of_maps", 4, 4),
  spec("hash_of_maps", 8, 4),
];

/** Everything that can be done with a map. */
function use(map: OpenedMap): void {
  const { keyBytes, valueBytes } = map.spec;
  const value = new Uint8Array(valueBytes).fill(7);
  for (let k = 0; k < 9; k++) {
    const key = new Uint8Array(keyBytes).fill(k, 0, 1);
    if ("lookup" in map) {
      map.lookup(key);
      map.update(key, value, 0n);
      if ("updateCopies" in map) map.updateCopies(key, [value]);
      if (map.kind !== "array") map.read(key);
      map.delete(key);
      map.update(key, value, 0n);
    }
    if ("push" in map) map.push(value, k % 2 === 0 ? 0n : 2n);
    if ("pop" in map) {
      map.peek();
      map.values();
      if (k % 3 === 0) map.pop();
    }
    if ("test" in map) map.test(value);
    if ("insert" in map) {
      map.insert([1n, BigInt(k)], k % 2 === 0 ? 0n : 1n << 10n);
      map.get(k);
      map.delete(k);
    }
    if ("output" in map) {
      map.output(value);
      for (let what = 0n; what < 5n; what++) map.query(what);
    }
    if ("programAt" in map) {
      map.programAt(k);
      map.set(k, k);
    }
    if ("innerAt" in map) {
      map.innerAt(key);
      map.set(key, 64);
    }
  }
  if ("entries" in map) expect([...map.entries()].length).toBeLessThan(50);
  if ("clear" in map) map.clear();
}

const damages: readonly { readonly name: string; readonly word: (random: () => bigint) => bigint }[] = [
  { name: "zeros", word: () => 0n },
  { name: "ones", word: () => -1n },
  { name: "small numbers", word: (random) => random() % 200n },
  { name: "small numbers with tags", word: (random) => ((random() % 3n) << 32n) | (random() % 120n) },
  { name: "small numbers with marks", word: (random) => (1n << 31n) | (random() % 120n) },
  { name: "negative numbers", word: (random) => -(random() % 1000n) },
  { name: "anything", word: (random) => BigInt.asIntN(64, random()) },
];

describe.each(specs.map((one) => ({ name: `${one.kind}, ${one.valueBytes}-byte values`, one })))(
  "$name",
  ({ one }) => {
    it.each(damages)("full of $name", ({ word }) => {
      const { totalBytes } = layoutMap(one);
      const words = totalBytes / 8;
      const memory = sharedMemoryOf(new SharedArrayBuffer(totalBytes + GUARD_WORDS * 16));
      const map = openMap(one, memory, GUARD_WORDS * 8);
      const random = randomWords(words);
      for (let round = 0; round < 12; round++) {
        memory.words.fill(GUARD);
        memory.words.fill(0n, GUARD_WORDS, GUARD_WORDS + words);
        // First what is sensible; then all of it is damaged, or some.
        use(map);
        for (let i = 0; i < words; i++) {
          if (round > 2 && random() % BigInt(round) !== 0n) continue;
          memory.words[GUARD_WORDS + i] = word(random);
        }
        use(map);
        const around = [
          ...memory.words.subarray(0, GUARD_WORDS),
          ...memory.words.subarray(GUARD_WORDS + words),
        ];
        expect(around.every((guard) => guard === GUARD)).toBe(true);
      }
    });
  },
);
