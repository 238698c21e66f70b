/**
 * Maps whose memory the process has written over: every routine ends, touches nothing outside of its map, and does
 * what the tracer's accessor does with the same bytes.
 */
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { NativeBpf } from "../../../../test/support/native-bpf.ts";
import { RoutineCaller } from "../../../../test/support/routine-caller.ts";
import {
  HELPER_FOR_EACH_MAP_ELEM,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_POP_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_RINGBUF_OUTPUT,
} from "../../helpers.ts";
import {
  type HashMap,
  layoutMap,
  type OpenedMap,
  type PerCpuHashMap,
  type QueueMap,
  type RingMap,
  type StackTraceMap,
} from "../../maps/index.ts";
import type { MapKind, MapSpec } from "../../program.ts";

const opened: Disposable[] = [];
afterAll(() => {
  for (const one of opened) one[Symbol.dispose]();
});

const spec = (kind: MapKind, keyBytes: number, valueBytes: number, maxEntries = 5): MapSpec => ({
  name: kind,
  kind,
  keyBytes,
  valueBytes,
  maxEntries,
  ...(kind.includes("percpu") ? { cpus: 3 } : {}),
});

/** Before and behind the map: nobody may write there. What goes further is a fault, and the end of the test. */
const guard: MapSpec = { name: "guard", kind: "array", keyBytes: 4, valueBytes: 8, maxEntries: 1 << 13 };
const GUARD_WORD = 0x5ca1_ab1e_5ca1_ab1en;

interface Arena {
  readonly native: NativeBpf;
  readonly caller: RoutineCaller;
  readonly map: OpenedMap;
  /** The words of the map. */
  readonly words: BigInt64Array;
}

function openArena(one: MapSpec): Arena {
  const native = new NativeBpf({ maps: [guard, one, guard] });
  const caller = new RoutineCaller(native);
  opened.push(caller, native);
  const map = native.maps[1]!;
  const first = map.byteOffset / 8;
  const words = native.memory.words.subarray(first, first + layoutMap(one).totalBytes / 8);
  return { native, caller, map, words };
}

/** What a helper does, once by its routine and once by the tracer: what it returns, and what it put out. */
interface Operation {
  readonly name: string;
  readonly native: (arena: Arena) => unknown;
  readonly tracer: (arena: Arena) => unknown;
}

const bytes = (seed: number, lenBytes: number) =>
  Uint8Array.from({ length: lenBytes }, (_, i) => (i === 0 ? seed : seed * 7 + i));

const ENOENT = -2;

function operationsOf(one: MapSpec): Operation[] {
  const { keyBytes, valueBytes } = one;
  const keys = [0, 1, 2, 3, 4, 5, 6].map((seed) => bytes(seed, keyBytes));
  const slot = 1;
  const perKey = (key: Uint8Array): Operation[] => [
    {
      name: `lookup ${key[0]}`,
      native: ({ caller, map, native }) => {
        const at = caller.call(HELPER_MAP_LOOKUP_ELEM, 1, [key], { slot });
        return at === 0n ? undefined : Number(at - native.env.mapAddr(1)) + map.byteOffset;
      },
      tracer: ({ map }) => (map as HashMap | PerCpuHashMap).lookup(key, slot),
    },
    {
      name: `delete ${key[0]}`,
      native: ({ caller }) => Number(caller.call(HELPER_MAP_DELETE_ELEM, 1, [key])),
      tracer: ({ map }) => (map as HashMap).delete(key),
    },
    ...[0n, 1n, 2n].map((flags): Operation => {
      const value = bytes(Number(flags) + key[0]!, valueBytes);
      return {
        name: `update ${key[0]}, flags ${flags}`,
        native: ({ caller }) => Number(caller.call(HELPER_MAP_UPDATE_ELEM, 1, [key, value, flags], { slot })),
        tracer: ({ map }) => (map as HashMap | PerCpuHashMap).update(key, value, flags, slot),
      };
    }),
  ];
  switch (one.kind) {
    case "queue":
    case "stack": {
      const out = (helper: number): Operation["native"] => {
        return ({ caller }) => {
          const value = new Uint8Array(valueBytes);
          const result = Number(caller.call(helper, 1, [value]));
          return { result, value: [...value] };
        };
      };
      const read = (value: Uint8Array | undefined) => ({
        result: value === undefined ? ENOENT : 0,
        value: [...(value ?? new Uint8Array(valueBytes))],
      });
      return [
        {
          name: "peek",
          native: out(HELPER_MAP_PEEK_ELEM),
          tracer: ({ map }) => read((map as QueueMap).peek()),
        },
        ...[0n, 2n].map(
          (flags): Operation => ({
            name: `push, flags ${flags}`,
            native: ({ caller }) =>
              Number(caller.call(HELPER_MAP_PUSH_ELEM, 1, [bytes(9, valueBytes), flags])),
            tracer: ({ map }) => (map as QueueMap).push(bytes(9, valueBytes), flags),
          }),
        ),
        {
          name: "pop",
          native: ({ caller }) => {
            const value = new Uint8Array(valueBytes);
            const result = Number(caller.call(HELPER_MAP_POP_ELEM, 1, [value]));
            // Where no record is left the routine says busy.
            return { result: result === 0 ? 0 : ENOENT, value: [...value] };
          },
          tracer: ({ map }) => read((map as QueueMap).pop()),
        },
      ];
    }
    case "stack_trace":
      return [1, 2, 3, 4].flatMap((count) =>
        [0n, 1n << 9n, 1n << 10n, 3n << 9n].map((flags): Operation => {
          const addresses = Array.from({ length: count }, (_, i) => BigInt(0x1000 * count + i));
          return {
            name: `insert ${count} addresses, flags ${flags}`,
            native: ({ caller }) => Number(caller.insertStack(1, addresses, flags)),
            tracer: ({ map }) => (map as StackTraceMap).insert(addresses, flags),
          };
        }),
      );
    case "ringbuf":
      return [1, valueBytes].map((length) => ({
        name: `output ${length} bytes`,
        native: ({ caller }) =>
          Number(caller.call(HELPER_RINGBUF_OUTPUT, 1, [bytes(3, length), BigInt(length), 0n])),
        tracer: ({ map }) => ((map as RingMap).output(bytes(3, length)) ? 0 : -11),
      }));
    default:
      return keys.flatMap(perKey);
  }
}

/** Where two images differ: the word, by the routine, by the tracer. */
const differences = (a: BigInt64Array, b: BigInt64Array) =>
  [...a].flatMap((word, index) =>
    word === b[index] ? [] : [`${index}: ${word.toString(16)} ${b[index]!.toString(16)}`],
  );

/** Words as a process may leave them: numbers that are nearly right most of all. */
const damagedWord = (words: number) =>
  fc.oneof(
    fc.constantFrom(0n, -1n, 1n << 31n, 1n << 62n, -(1n << 63n)),
    fc.bigInt({ min: 0n, max: BigInt(words) + 8n }),
    fc
      .tuple(fc.bigInt({ min: 0n, max: 5n }), fc.nat(1), fc.bigInt({ min: 0n, max: BigInt(words) }))
      .map(([tag, mark, ref]) => (tag << 32n) | (BigInt(mark) << 31n) | ref),
    fc.bigInt({ min: -1000n, max: -1n }),
    fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n }),
  );

const specs: readonly MapSpec[] = [
  spec("hash", 8, 8),
  spec("hash", 4, 24),
  spec("hash", 20, 40),
  spec("hash", 100, 8),
  spec("lru_hash", 8, 8),
  spec("lru_hash", 12, 24),
  spec("percpu_hash", 8, 12),
  spec("lru_percpu_hash", 8, 8),
  spec("queue", 0, 24),
  spec("stack", 0, 13),
  spec("stack_trace", 4, 32),
  spec("ringbuf", 0, 24),
];

const RUNS = 400;

describe.each(
  specs.map((one) => ({
    name: `${one.kind}, ${one.keyBytes}-byte keys, ${one.valueBytes}-byte values`,
    one,
  })),
)("$name", ({ one }) => {
  it("damaged memory: routine and tracer do the same, and nothing outside of the map", () => {
    const arena = openArena(one);
    const { native, words } = arena;
    const operations = operationsOf(one);
    // The others write what nobody reads in another order.
    const isSameToTheWord = arena.map.kind === "hash" || arena.map.kind === "percpu_hash";
    const all = native.memory.words;
    const first = arena.map.byteOffset / 8;
    const scenario = fc.record({
      before: fc.array(fc.nat(operations.length - 1), { maxLength: 12 }),
      damage: fc.array(fc.tuple(fc.nat(words.length - 1), damagedWord(words.length)), { maxLength: 24 }),
      everywhere: fc.option(damagedWord(words.length)),
      after: fc.array(fc.nat(operations.length - 1), { minLength: 1, maxLength: 6 }),
    });
    fc.assert(
      fc.property(scenario, ({ before, damage, everywhere, after }) => {
        all.fill(GUARD_WORD);
        words.fill(0n);
        for (const each of before) operations[each]!.tracer(arena);
        if (everywhere !== null) words.fill(everywhere);
        for (const [index, word] of damage) words[index] = word;
        for (const each of after) {
          const operation = operations[each]!;
          const image = words.slice();
          const byRoutine = operation.native(arena);
          const left = words.slice();
          words.set(image);
          const byTracer = operation.tracer(arena);
          expect(byRoutine, operation.name).toEqual(byTracer);
          if (isSameToTheWord) expect(differences(left, words), operation.name).toEqual([]);
        }
        const around = [
          ...all.subarray(0, first),
          ...all.subarray(first + words.length, first + words.length + 64),
        ];
        expect(around.every((word) => word === GUARD_WORD)).toBe(true);
      }),
      { numRuns: RUNS },
    );
  });
});

describe.each([spec("hash", 8, 8), spec("hash", 8, 24), spec("percpu_hash", 8, 8)])(
  "walk of a damaged $kind",
  (one) => {
    it("ends, with addresses of the map", () => {
      const arena = openArena(one);
      const { native, words, caller } = arena;
      const operations = operationsOf(one).filter(({ name }) => name.startsWith("update"));
      const scenario = fc.record({
        before: fc.array(fc.nat(operations.length - 1), { maxLength: 12 }),
        damage: fc.array(fc.tuple(fc.nat(words.length - 1), damagedWord(words.length)), { maxLength: 24 }),
        everywhere: fc.option(damagedWord(words.length)),
      });
      const start = native.env.mapAddr(1);
      const end = start + BigInt(words.length * 8);
      fc.assert(
        fc.property(scenario, ({ before, damage, everywhere }) => {
          words.fill(0n);
          for (const each of before) operations[each]!.tracer(arena);
          if (everywhere !== null) words.fill(everywhere);
          for (const [index, word] of damage) words[index] = word;
          let cursor = 0n;
          for (let visited = 0; visited < 10_000; visited++) {
            const next = caller.next(HELPER_FOR_EACH_MAP_ELEM, 1, cursor, { slot: 1 });
            if (next.cursor === 0n) return;
            expect(next.key >= start && next.key + BigInt(one.keyBytes) <= end).toBe(true);
            expect(next.value >= start && next.value + BigInt(one.valueBytes) <= end).toBe(true);
            ({ cursor } = next);
          }
          throw new Error("the walk does not end");
        }),
        { numRuns: RUNS },
      );
    });
  },
);
