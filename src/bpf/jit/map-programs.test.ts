/** Programs on all kinds of maps: compiled and interpreted, on maps of their own, they get the same results. */
import { describe, expect, it } from "vitest";
import { contextOf, NativeBpf } from "../../../test/support/native-bpf.ts";
import { randomWords } from "../../../test/support/native-code.ts";
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
} from "../helpers.ts";
import { type Insn, InsnBuilder, type MapSpec, r0, r1, r2, r3, r4, r5, r6, r7, r8, r10 } from "../index.ts";
import type { ArrayOfMaps, HashOfMaps, OpenedMap } from "../maps/index.ts";
import type { MapKind } from "../program.ts";

/** Slots of the context: the key, the flags or another number, the value. */
const [KEY, FLAGS, VALUE] = [0, 8, 16];
const [KEY_AT, VALUE_AT] = [-32, -24];

const build = (write: (b: InsnBuilder) => void): readonly Insn[] => {
  const b = new InsnBuilder();
  write(b);
  return b.exit().build().insns;
};

/** r6 = the context, r7 = flags; key and value are in the stack. */
const begin = (b: InsnBuilder) => {
  b.mov64(r6, r1).ldx(8, r2, r1, KEY).stx(8, r10, KEY_AT, r2).ldx(8, r2, r1, VALUE);
  b.stx(8, r10, VALUE_AT, r2)
    .stx(8, r10, VALUE_AT + 8, r2)
    .ldx(8, r7, r1, FLAGS);
};
type LoadMap = (b: InsnBuilder) => void;
const key = (b: InsnBuilder) => b.mov64(r2, r10).alu64("add", r2, KEY_AT);
const orNone = (b: InsnBuilder, load: () => void) => {
  const [none, done] = [b.label(), b.label()];
  b.jmp("eq", r0, 0, none);
  load();
  b.goto(done).bind(none).mov64(r0, -1).bind(done);
};

/** Programs by name; `map` puts the map into r1. */
const programs: Readonly<Record<string, (b: InsnBuilder, map: LoadMap) => void>> = {
  lookup: (b, map) => {
    map(b);
    key(b).call(HELPER_MAP_LOOKUP_ELEM);
    orNone(b, () => b.ldx(8, r0, r0, 0));
  },
  "lookup of a slot": (b, map) => {
    map(b);
    key(b).mov64(r3, r7).call(HELPER_MAP_LOOKUP_PERCPU_ELEM);
    orNone(b, () => b.ldx(8, r0, r0, 0));
  },
  update: (b, map) => {
    map(b);
    key(b).mov64(r3, r10).alu64("add", r3, VALUE_AT).mov64(r4, r7).call(HELPER_MAP_UPDATE_ELEM);
  },
  delete: (b, map) => {
    map(b);
    key(b).call(HELPER_MAP_DELETE_ELEM);
  },
  push: (b, map) => {
    map(b);
    b.mov64(r2, r10).alu64("add", r2, VALUE_AT).mov64(r3, r7).call(HELPER_MAP_PUSH_ELEM);
  },
  pop: (b, map) => {
    map(b);
    b.mov64(r2, r10).alu64("add", r2, VALUE_AT).call(HELPER_MAP_POP_ELEM);
    b.ldx(8, r1, r10, VALUE_AT + 8)
      .alu64("lsh", r1, 8)
      .alu64("xor", r0, r1);
  },
  peek: (b, map) => {
    map(b);
    b.mov64(r2, r10).alu64("add", r2, VALUE_AT).call(HELPER_MAP_PEEK_ELEM);
    b.ldx(8, r1, r10, VALUE_AT + 8)
      .alu64("lsh", r1, 8)
      .alu64("xor", r0, r1);
  },
  output: (b, map) => {
    map(b);
    b.mov64(r2, r10).alu64("add", r2, VALUE_AT).mov64(r3, 13).mov64(r4, r7).call(HELPER_RINGBUF_OUTPUT);
  },
  query: (b, map) => {
    map(b);
    b.mov64(r2, r7).call(HELPER_RINGBUF_QUERY);
  },
  "event output": (b, map) => {
    map(b);
    b.mov64(r2, r1).mov64(r1, r6).mov64(r3, r7).mov64(r4, r10).alu64("add", r4, VALUE_AT).mov64(r5, 13);
    b.call(HELPER_PERF_EVENT_OUTPUT);
  },
};
const keyed = ["lookup", "update", "update", "delete"];
const keyedPerCpu = [...keyed, "lookup of a slot"];

const cases: readonly {
  readonly kind: MapKind;
  readonly names: readonly string[];
  readonly keyBytes: number;
}[] = [
  { kind: "array", names: keyed, keyBytes: 4 },
  { kind: "hash", names: keyed, keyBytes: 8 },
  { kind: "hash", names: keyed, keyBytes: 5 },
  { kind: "lru_hash", names: keyed, keyBytes: 8 },
  { kind: "percpu_array", names: keyedPerCpu, keyBytes: 4 },
  { kind: "percpu_hash", names: keyedPerCpu, keyBytes: 8 },
  { kind: "lru_percpu_hash", names: keyedPerCpu, keyBytes: 3 },
  { kind: "queue", names: ["push", "push", "pop", "peek"], keyBytes: 0 },
  { kind: "stack", names: ["push", "push", "pop", "peek"], keyBytes: 0 },
  { kind: "bloom_filter", names: ["push", "peek", "peek"], keyBytes: 0 },
  { kind: "ringbuf", names: ["output", "query"], keyBytes: 0 },
  { kind: "perf_event_array", names: ["event output"], keyBytes: 4 },
];

const specOf = (kind: MapKind, keyBytes: number): MapSpec => ({
  name: kind,
  kind,
  keyBytes,
  valueBytes: 16,
  maxEntries: 4,
  // One slot, whichever processor runs it.
  ...(kind.includes("percpu") ? { cpus: 1 } : {}),
});

const outerSpec: MapSpec = { name: "o", kind: "array_of_maps", keyBytes: 4, valueBytes: 4, maxEntries: 4 };

/** What the tracer sees of a map. */
const view = (map: OpenedMap): unknown => {
  if ("values" in map) return map.values();
  if (!("entries" in map)) return undefined;
  const entries = [...map.entries()].map((entry) =>
    JSON.stringify("key" in entry ? [entry.key, "value" in entry ? entry.value : entry.values] : entry),
  );
  return entries.toSorted();
};

/** Random calls of the programs, compiled on the one and interpreted on the other. */
function compare(
  maps: readonly MapSpec[],
  prepare: (native: NativeBpf) => void,
  names: readonly string[],
  write: (name: string, b: InsnBuilder) => void,
): void {
  using compiled = new NativeBpf({ maps });
  using interpreted = new NativeBpf({ maps });
  prepare(compiled);
  prepare(interpreted);
  const insns = new Map(names.map((name) => [name, build((b) => write(name, b))]));
  const code = new Map([...insns].map(([name, list]) => [name, compiled.compile(list)]));
  const random = randomWords(maps[0]!.kind.length * 100 + maps.length);
  const results = new Set<bigint>();
  for (let i = 0; i < 150; i++) {
    const name = names[Number(random() % BigInt(names.length))]!;
    const words = [random() % 6n, [0n, 0n, 1n, 2n, 3n, 1n << 33n][Number(random() % 6n)]!, random() % 9n];
    const context = contextOf((offset) => words[offset / 8] ?? 0n);
    const got = compiled.run(code.get(name)!, context);
    expect([i, name, got]).toEqual([i, name, interpreted.interpret(insns.get(name)!, context)]);
    results.add(got);
  }
  expect(results.size).toBeGreaterThan(1);
  expect(compiled.maps.map(view)).toEqual(interpreted.maps.map(view));
}

/** Visits all elements; the result holds how many there are and a sum of all. */
const walk = (b: InsnBuilder, map: LoadMap) => {
  const visit = b.label();
  b.st(8, r10, -8, 0);
  map(b);
  b.ldFunction(r2, visit).mov64(r3, r10).alu64("add", r3, -8).mov64(r4, 0);
  b.call(HELPER_FOR_EACH_MAP_ELEM).ldx(8, r1, r10, -8).alu64("lsh", r1, 8).alu64("or", r0, r1).exit();
  // The sum of what is in the values and the keys, and of the map's value for that key.
  b.bind(visit).mov64(r6, r4).mov64(r7, r3).mov64(r8, r2);
  b.call(HELPER_MAP_LOOKUP_ELEM);
  const [found, leave] = [b.label(), b.label()];
  b.jmp("ne", r0, 0, found).goto(leave).bind(found);
  b.ldx(8, r5, r6, 0).ldx(8, r1, r7, 8).alu64("add", r5, r1).ldx(1, r1, r8, 0).alu64("add", r5, r1);
  b.ldx(8, r1, r0, 0).alu64("add", r5, r1).stx(8, r6, 0, r5).bind(leave).mov64(r0, 0);
};

describe("JIT and interpreter", () => {
  it.each(cases)("$kind with keys of $keyBytes bytes", ({ kind, names, keyBytes }) => {
    compare(
      [specOf(kind, keyBytes)],
      () => {},
      names,
      (name, b) => {
        begin(b);
        programs[name]!(b, (to) => to.ldMapFd(r1, 0));
      },
    );
  });

  const innerCases = cases.filter(({ kind }) => kind !== "perf_event_array");
  it.each(innerCases)("inner $kind with keys of $keyBytes bytes", ({ kind, names, keyBytes }) => {
    const inner = specOf(kind, keyBytes);
    for (const outerKind of ["array_of_maps", "hash_of_maps"] as const) {
      const outer: MapSpec = { name: "o", kind: outerKind, keyBytes: 4, valueBytes: 4, maxEntries: 4, inner };
      compare(
        [outer, inner, inner],
        ({ maps }) => {
          const map = maps[0] as ArrayOfMaps | HashOfMaps;
          for (const [slot, index] of [1, 2, 1].entries())
            map.set(Uint8Array.of(slot, 0, 0, 0), maps[index]!.byteOffset);
        },
        names,
        (name, b) => {
          const [found, end] = [b.label(), b.label()];
          begin(b);
          b.ldx(8, r2, r6, VALUE).stx(8, r10, -40, r2);
          b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -40).call(HELPER_MAP_LOOKUP_ELEM);
          b.jmp("ne", r0, 0, found).mov64(r0, -100).goto(end).bind(found);
          programs[name]!(b, (to) => to.mov64(r1, r0));
          b.bind(end);
        },
      );
    }
  });

  it.each(cases.filter(({ names }) => names.includes("lookup")))(
    "walk through $kind with keys of $keyBytes bytes",
    ({ kind, keyBytes }) => {
      const names = ["update", "delete", "walk"];
      const spec = specOf(kind, keyBytes);
      compare(
        [spec],
        () => {},
        names,
        (name, b) => {
          begin(b);
          (programs[name] ?? walk)(b, (to) => to.ldMapFd(r1, 0));
        },
      );
      const outer: MapSpec = { ...outerSpec, inner: spec };
      compare(
        [outer, spec],
        ({ maps }) => void (maps[0] as ArrayOfMaps).set(Uint8Array.of(0, 0, 0, 0), maps[1]!.byteOffset),
        names,
        (name, b) => {
          const found = b.label();
          begin(b);
          b.st(8, r10, -40, 0)
            .ldMapFd(r1, 0)
            .mov64(r2, r10)
            .alu64("add", r2, -40)
            .call(HELPER_MAP_LOOKUP_ELEM);
          b.jmp("ne", r0, 0, found).mov64(r0, -100).exit().bind(found);
          (programs[name] ?? walk)(b, (to) => to.mov64(r1, r0));
        },
      );
    },
  );
});
