/**
 * The newer kinds of maps: programs that are interrupted at every single instruction. Something else happens to
 * the map there, and what everybody got must be what they get one after the other in some order; or the process dies
 * there, and the map must go on.
 */
import { describe, expect, it } from "vitest";
import { NativeBpf } from "../../../../test/support/native-bpf.ts";
import { CONTROL_BYTES, forkedMemory, SteppedProgram } from "../../../../test/support/stepped-program.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_POP_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
} from "../../helpers.ts";
import { type Insn, InsnBuilder, type MapSpec, r0, r1, r2, r3, r4, r10 } from "../../index.ts";
import {
  type HashMap,
  layoutMap,
  type OpenedMap,
  type PerCpuHashMap,
  type QueueMap,
} from "../../maps/index.ts";

const build = (write: (b: InsnBuilder) => void): readonly Insn[] => {
  const b = new InsnBuilder();
  write(b);
  return b.exit().build().insns;
};

/** One step on the map and on a model of it; both return what the caller gets. */
interface Action<Map, Model> {
  readonly onMap: (map: Map) => unknown;
  readonly onModel: (model: Model) => unknown;
}

interface Interruption<Map, Model> {
  readonly spec: MapSpec;
  readonly program: readonly Insn[];
  readonly onModel: (model: Model) => unknown;
  readonly prepare: (map: Map) => void;
  readonly model: () => Model;
  /** The contents, as something to compare. */
  readonly contentsOf: (map: Map) => unknown;
  readonly contentsOfModel: (model: Model) => unknown;
  /** What others do meanwhile: each of these lists, in turn. */
  readonly interferences: readonly (readonly Action<Map, Model>[])[];
  /** After it is over, with an empty or full map: nothing is lost. */
  readonly checkRest: (map: Map) => void;
}

/** All that can have come out, the program being done before, between or after the actions. */
function outcomes<Map, Model>(
  input: Interruption<Map, Model>,
  actions: readonly Action<Map, Model>[],
): string[] {
  return Array.from({ length: actions.length + 1 }, (_, position) => {
    const model = input.model();
    const results: unknown[] = [];
    let own: unknown;
    for (let i = 0; i <= actions.length; i++) {
      if (i === position) own = input.onModel(model);
      if (i < actions.length) results.push(actions[i]!.onModel(model));
    }
    return text([own, results, input.contentsOfModel(model)]);
  });
}

const text = (value: unknown) =>
  JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${part}` : part));

function open(spec: MapSpec) {
  const memory = forkedMemory(layoutMap(spec).totalBytes + 64 + CONTROL_BYTES);
  const control = memory.bytes.length - CONTROL_BYTES;
  const native = new NativeBpf({ maps: [spec], memory });
  return {
    memory,
    control,
    native,
    [Symbol.dispose]() {
      native[Symbol.dispose]();
      memory[Symbol.dispose]();
    },
  };
}

/** Interrupts the program at every instruction; returns how many there are. */
function interruptEverywhere<M extends OpenedMap, Model>(input: Interruption<M, Model>, word = 0n): number {
  using place = open(input.spec);
  const map = place.native.maps[0] as M;
  using stepped = new SteppedProgram(place.native, place.memory, place.control, input.program, word);
  input.prepare(map);
  stepped.save();
  const possible = input.interferences.map((actions) => outcomes(input, actions));
  for (let at = 0; ; at++) {
    if (at > 0 && !stepped.advance()) return at;
    for (const [i, actions] of input.interferences.entries()) {
      if (i > 0) stepped.restore();
      const results = actions.map((action) => action.onMap(map));
      const own = stepped.finish();
      const got = text([own, results, input.contentsOf(map)]);
      if (!possible[i]!.includes(got))
        throw new Error(`instruction ${at}: ${got} is none of ${possible[i]!.join(" ")}`);
      try {
        input.checkRest(map);
      } catch (error) {
        throw new Error(`instruction ${at}, interference ${i}`, { cause: error });
      }
    }
  }
}

/** Lets the program die at every instruction. */
function dieEverywhere<M extends OpenedMap, Model>(
  input: Omit<Interruption<M, Model>, "interferences">,
  word = 0n,
): number {
  using place = open(input.spec);
  const map = place.native.maps[0] as M;
  using stepped = new SteppedProgram(place.native, place.memory, place.control, input.program, word);
  input.prepare(map);
  stepped.save();
  const after = input.model();
  input.onModel(after);
  const possible = [input.model(), after].map((model) => text(input.contentsOfModel(model)));
  for (let at = 0; ; at++) {
    if (at > 0 && !stepped.advance()) return at;
    try {
      expect(possible).toContain(text(input.contentsOf(map)));
      input.checkRest(map);
    } catch (error) {
      throw new Error(`instruction ${at}`, { cause: error });
    }
  }
}

const pairOf = (value: bigint) => new Uint8Array(new BigInt64Array([value, ~value]).buffer);
const numberOf = (bytes: Uint8Array | undefined) => {
  if (bytes === undefined) return undefined;
  const [value, inverse] = new BigInt64Array(bytes.buffer, 0, 2);
  if (inverse !== ~value!) throw new Error(`torn: ${value} and ${inverse}`);
  return value;
};

/** The value, or -1 for none, or -2 for a torn one. */
const takeProgram = (helper: number) =>
  build((b) => {
    const [none, torn, done] = [b.label(), b.label(), b.label()];
    b.st(8, r10, -16, 0).st(8, r10, -8, 0);
    b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -16).call(helper).jmp("ne", r0, 0, none);
    b.ldx(8, r0, r10, -16).ldx(8, r1, r10, -8).alu64("xor", r1, -1).jmp("ne", r0, r1, torn).goto(done);
    b.bind(none).mov64(r0, -1).goto(done).bind(torn).mov64(r0, -2).bind(done);
  });
const keyOf = (key: bigint) => new Uint8Array(new BigInt64Array([key]).buffer);
const first = (bytes: Uint8Array) => new BigInt64Array(bytes.slice().buffer, 0, 1)[0]!;
const sorted = (entries: Iterable<readonly [bigint, bigint]>) =>
  [...entries].sort(([a], [b]) => Number(a - b));

const QUEUE_ENTRIES = 3;

class List {
  readonly values: bigint[];
  readonly #isStack: boolean;

  constructor(isStack: boolean, values: readonly bigint[]) {
    this.#isStack = isStack;
    this.values = [...values];
  }

  push(value: bigint, replaces = false): number {
    if (this.values.length === QUEUE_ENTRIES) {
      if (!replaces) return -7;
      this.values.shift();
    }
    this.values.push(value);
    return 0;
  }

  pop(): bigint | undefined {
    return this.#isStack ? this.values.pop() : this.values.shift();
  }

  get inOrder(): bigint[] {
    return this.#isStack ? this.values.toReversed() : this.values;
  }
}

const push = (value: bigint, replaces = false): Action<QueueMap, List> => ({
  onMap: (map) => map.push(pairOf(value), replaces ? 2n : 0n),
  onModel: (list) => list.push(value, replaces),
});

describe("queue and stack", () => {
  const [A, B, C] = [1001n, 1002n, 1003n];
  const MINE = 4242n;
  const pop: Action<QueueMap, List> = {
    onMap: (map) => numberOf(map.pop())?.toString(),
    onModel: (list) => list.pop()?.toString(),
  };
  const many = Array.from({ length: 4 }, (_, i) => i);
  /** The same nodes and records come back again and again. */
  const cycle: Action<QueueMap, List> = {
    onMap: (map) => many.map((i) => [map.push(pairOf(BigInt(i)), 2n), numberOf(map.pop())?.toString()]),
    onModel: (list) => many.map((i) => [list.push(BigInt(i), true), list.pop()?.toString()]),
  };

  const pushProgram = (flags: number) =>
    build((b) => {
      b.st(8, r10, -16, Number(MINE)).st(8, r10, -8, Number(~MINE));
      b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -16).mov64(r3, flags).call(HELPER_MAP_PUSH_ELEM);
    });
  const programs = [
    { name: "push", insns: pushProgram(0), onModel: (list: List) => BigInt(list.push(MINE)) },
    {
      name: "push that replaces",
      insns: pushProgram(2),
      onModel: (list: List) => BigInt(list.push(MINE, true)),
    },
    { name: "pop", insns: takeProgram(HELPER_MAP_POP_ELEM), onModel: (list: List) => list.pop() ?? -1n },
    {
      name: "peek",
      insns: takeProgram(HELPER_MAP_PEEK_ELEM),
      onModel: (list: List) => list.inOrder[0] ?? -1n,
    },
  ];
  const situations = [
    { name: "empty", values: [] },
    { name: "two values", values: [A, B] },
    { name: "full", values: [A, B, C] },
  ];
  const interferences: readonly (readonly Action<QueueMap, List>[])[] = [
    [],
    [push(7n)],
    [pop],
    [pop, push(7n)],
    [push(8n, true), pop],
    [pop, pop, pop, push(7n), push(8n), push(9n)],
    [cycle],
  ];

  const inputFor = (
    kind: "queue" | "stack",
    program: (typeof programs)[number],
    values: readonly bigint[],
  ) => ({
    spec: { name: "q", kind, keyBytes: 0, valueBytes: 16, maxEntries: QUEUE_ENTRIES },
    program: program.insns,
    onModel: program.onModel,
    prepare: (map: QueueMap) => {
      for (const value of values) map.push(pairOf(value));
    },
    model: () => new List(kind === "stack", values),
    contentsOf: (map: QueueMap) => map.values().map((value) => numberOf(value)),
    contentsOfModel: (list: List) => list.inOrder,
    checkRest: (map: QueueMap) => {
      map.clear();
      for (let i = 0; i < QUEUE_ENTRIES; i++) expect(map.push(pairOf(BigInt(i)))).toBe(0);
      expect(map.push(pairOf(1n))).toBe(-7);
      expect(map.push(pairOf(99n), 2n)).toBe(0);
      expect(map.values().map((value) => numberOf(value))).toEqual(
        kind === "queue" ? [1n, 2n, 99n] : [99n, 2n, 1n],
      );
    },
  });

  describe.each([{ kind: "queue" as const }, { kind: "stack" as const }])("$kind", ({ kind }) => {
    describe.each(programs)("$name", (program) => {
      it.each(situations)("$name: what others do meanwhile comes before or after it", ({ values }) => {
        const steps = interruptEverywhere({ ...inputFor(kind, program, values), interferences });
        expect(steps).toBeGreaterThan(25);
      });

      it("a death leaves all of it or nothing, and the map goes on with all its room", () => {
        for (const { values } of situations) dieEverywhere(inputFor(kind, program, values));
      });
    });
  });
});

type Table = Map<bigint, bigint>;

const remove = (key: bigint): Action<HashMap, Table> => ({
  onMap: (map) => map.delete(keyOf(key)),
  onModel: (table) => (table.delete(key) ? 0 : -2),
});

describe("hash maps", () => {
  const ENTRIES = 4;
  const MINE = 4242n;
  const K = 5n;
  const hashSpec: MapSpec = { name: "h", kind: "hash", keyBytes: 8, valueBytes: 16, maxEntries: ENTRIES };

  const updateProgram = (flags: number) =>
    build((b) => {
      b.st(8, r10, -24, Number(K)).st(8, r10, -16, Number(MINE)).st(8, r10, -8, Number(~MINE));
      b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -24).mov64(r3, r10);
      b.alu64("add", r3, -16).mov64(r4, flags).call(HELPER_MAP_UPDATE_ELEM);
    });
  const deleteProgram = build((b) => {
    b.st(8, r10, -24, Number(K))
      .ldMapFd(r1, 0)
      .mov64(r2, r10)
      .alu64("add", r2, -24)
      .call(HELPER_MAP_DELETE_ELEM);
  });
  const modelUpdate = (table: Table, key: bigint, value: bigint, flags: number): bigint => {
    if (flags === 1 && table.has(key)) return -17n;
    if (flags === 2 && !table.has(key)) return -2n;
    if (!table.has(key) && table.size === ENTRIES) return -7n;
    table.set(key, value);
    return 0n;
  };
  const update = (key: bigint, value: bigint, flags = 0): Action<HashMap, Table> => ({
    onMap: (map) => BigInt(map.update(keyOf(key), pairOf(value), BigInt(flags))),
    onModel: (table) => modelUpdate(table, key, value, flags),
  });
  /** Whatever the map holds: all of it goes, and all its room is there again. */
  const checkRoom = (map: HashMap, lost: number) => {
    map.clear();
    const { words } = map.memory;
    const freeOf = (place: number) => {
      let count = 0;
      for (let ref = Number(words[place / 8]! & 0x7fff_ffffn); ref !== 0; count++)
        ref = Number(words[ref + 1]!);
      return count;
    };
    const { poolBytes, spareBytes, stride } = map.layout;
    const usedBytes = Math.min(Number(words[8]!) * 8, poolBytes);
    const entries = freeOf(0) + (poolBytes - usedBytes) / stride;
    const spares = freeOf(8) + spareBytes / stride - Number(words[9]!) / (stride / 8);
    const missing = ENTRIES + spareBytes / stride - entries - spares;
    expect(entries).toBeLessThanOrEqual(ENTRIES);
    expect(spares).toBeLessThanOrEqual(spareBytes / stride);
    expect(missing).toBeLessThanOrEqual(lost);
  };

  const programs = [
    { name: "update", insns: updateProgram(0), onModel: (t: Table) => modelUpdate(t, K, MINE, 0) },
    {
      name: "update of what exists",
      insns: updateProgram(2),
      onModel: (t: Table) => modelUpdate(t, K, MINE, 2),
    },
    { name: "insertion", insns: updateProgram(1), onModel: (t: Table) => modelUpdate(t, K, MINE, 1) },
    { name: "deletion", insns: deleteProgram, onModel: (t: Table) => (t.delete(K) ? 0n : -2n) },
  ];
  const situations = [
    { name: "key there", keys: [1n, K, 2n] },
    { name: "key not there", keys: [1n, 2n] },
    { name: "key there, full", keys: [1n, K, 2n, 3n] },
  ];
  const interferences: readonly (readonly Action<HashMap, Table>[])[] = [
    [],
    [update(K, 71n)],
    [update(K, 71n), update(K, 72n), update(K, 73n)],
    [remove(K)],
    [remove(K), update(K, 74n, 1)],
    [remove(K), update(8n, 75n)],
    [remove(1n), remove(2n), update(1n, 76n)],
    [update(1n, 77n), update(2n, 78n), update(1n, 79n)],
  ];

  const inputFor = (program: (typeof programs)[number], keys: readonly bigint[], lost: number) => ({
    spec: hashSpec,
    program: program.insns,
    onModel: program.onModel,
    prepare: (map: HashMap) => {
      // Elements and spares were used before, so the last one that is freed is the next one that is taken.
      for (let i = 0; i < 60; i++) map.update(keyOf(BigInt(i % ENTRIES)), pairOf(BigInt(i)));
      map.clear();
      for (const key of keys) map.update(keyOf(key), pairOf(100n + key));
    },
    model: () => new Map(keys.map((key) => [key, 100n + key])),
    contentsOf: (map: HashMap) =>
      sorted(
        [...map.entries()].map(({ key, value }) => {
          const [one, inverse] = new BigInt64Array(value.buffer, 0, 2);
          if (inverse !== ~one!) throw new Error(`torn: ${one} and ${inverse}`);
          return [first(key), one!] as const;
        }),
      ),
    contentsOfModel: (table: Table) => sorted(table),
    checkRest: (map: HashMap) => checkRoom(map, lost),
  });

  describe.each(programs)("$name, values that are replaced", (program) => {
    it.each(situations)("$name: what others do meanwhile comes before or after it", ({ keys }) => {
      // A full map stays full until who deleted something has given its element back.
      const isTight = program.insns === deleteProgram && keys.length === ENTRIES;
      const steps = interruptEverywhere({
        ...inputFor(program, keys, 0),
        interferences: isTight ? [[], [remove(1n)]] : interferences,
      });
      expect(steps).toBeGreaterThan(20);
    });

    it("a death leaves all of it or nothing, and costs one element at most", () => {
      for (const { keys } of situations) dieEverywhere(inputFor(program, keys, 1));
    });
  });

  describe("lru", () => {
    const spec: MapSpec = { name: "l", kind: "lru_hash", keyBytes: 8, valueBytes: 16, maxEntries: ENTRIES };
    const fill = (map: HashMap) => {
      for (let i = 0; i < 20; i++) map.update(keyOf(BigInt(i % ENTRIES)), pairOf(BigInt(i)));
      map.clear();
      for (let key = 20n; key < 24n; key++) map.update(keyOf(key), pairOf(100n + key));
    };
    const check = (map: HashMap, lost: number) => {
      const keys = [...map.entries()].map(({ key, value }) => {
        const [one, inverse] = new BigInt64Array(value.buffer, 0, 2);
        expect(inverse).toBe(~one!);
        return first(key);
      });
      expect(new Set(keys).size).toBe(keys.length);
      expect(keys.length).toBeLessThanOrEqual(ENTRIES);
      checkRoom(map, lost);
    };
    const interference: readonly { readonly name: string; readonly run: (map: HashMap) => void }[] = [
      { name: "nothing", run: () => {} },
      { name: "an insertion", run: (map) => void map.update(keyOf(50n), pairOf(1n)) },
      {
        name: "the same key is inserted",
        run: (map) => void map.update(keyOf(K), pairOf(2n)),
      },
      {
        name: "everything is replaced by other keys",
        run: (map) => {
          for (let key = 60n; key < 68n; key++) map.update(keyOf(key), pairOf(key));
        },
      },
      { name: "everything is deleted", run: (map) => map.clear() },
      {
        name: "everything is touched",
        run: (map) => {
          for (let key = 20n; key < 24n; key++) map.lookup(keyOf(key));
        },
      },
    ];

    it.each(interference)("insertion into a full map, $name meanwhile", ({ run }) => {
      using place = open(spec);
      const map = place.native.maps[0] as HashMap;
      const program = updateProgram(0);
      using stepped = new SteppedProgram(place.native, place.memory, place.control, program, 0n);
      fill(map);
      stepped.save();
      for (let at = 0; at === 0 || stepped.advance(); at++) {
        run(map);
        const result = stepped.finish();
        try {
          expect(result).toBe(0n);
          check(map, 0);
        } catch (error) {
          throw new Error(`instruction ${at}`, { cause: error });
        }
      }
    });

    it("a death at any instruction costs one element at most", () => {
      using place = open(spec);
      const map = place.native.maps[0] as HashMap;
      const program = updateProgram(0);
      using stepped = new SteppedProgram(place.native, place.memory, place.control, program, 0n);
      fill(map);
      stepped.save();
      let steps = 0;
      for (; steps === 0 || stepped.advance(); steps++) {
        expect(map.update(keyOf(70n), pairOf(1n))).toBe(0);
        expect(map.read(keyOf(70n))).toEqual(pairOf(1n));
        check(map, 1);
      }
      expect(steps).toBeGreaterThan(100);
    });
  });

  it("per-CPU: a death during an insertion leaves the key with its value or not at all", () => {
    const spec: MapSpec = {
      name: "p",
      kind: "percpu_hash",
      keyBytes: 8,
      valueBytes: 16,
      maxEntries: 2,
      cpus: 3,
    };
    using place = open(spec);
    const map = place.native.maps[0] as PerCpuHashMap;
    const program = updateProgram(0);
    using stepped = new SteppedProgram(place.native, place.memory, place.control, program, 0n);
    const dirty = [pairOf(1n), pairOf(2n), pairOf(3n)];
    for (const key of [1n, 2n]) map.updateCopies(keyOf(key), dirty);
    map.clear();
    stepped.save();
    const seen = new Set<string>();
    for (let at = 0; at === 0 || stepped.advance(); at++) {
      const values = map.read(keyOf(K));
      if (values === undefined) seen.add("absent");
      else {
        const written = values.filter((value) => first(value) === MINE);
        const zeros = values.filter((value) => value.every((byte) => byte === 0));
        expect([written.length, zeros.length]).toEqual([1, 2]);
        seen.add("there");
      }
      expect(map.update(keyOf(1n), pairOf(1n))).toBe(0);
    }
    expect([...seen].sort()).toEqual(["absent", "there"]);
  });
});
