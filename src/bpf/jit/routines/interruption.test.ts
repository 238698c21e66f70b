/**
 * Programs that are interrupted at every single instruction: something else happens to the map there, or the
 * process dies there.
 */
import { describe, expect, it } from "vitest";
import { NativeBpf } from "../../../../test/support/native-bpf.ts";
import { CONTROL_BYTES, forkedMemory, SteppedProgram } from "../../../../test/support/stepped-program.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
  type Insn,
  InsnBuilder,
  type MapSpec,
  r0,
  r1,
  r2,
  r3,
  r4,
  r10,
} from "../../index.ts";
import { type HashMap, layoutMap, RingConsumer, type RingMap } from "../../maps/index.ts";
import { hashOf } from "../../maps/key-hash.ts";

const ENTRIES = 8;

interface Shape {
  readonly keyBytes: number;
}

const build = (write: (b: InsnBuilder) => void): readonly Insn[] => {
  const b = new InsnBuilder();
  write(b);
  return b.exit().build().insns;
};

/** The key of the context, in as many words as a key has. */
const loadKey = (b: InsnBuilder, { keyBytes }: Shape) => {
  b.ldx(8, r2, r1, 0);
  for (let at = -keyBytes; at < 0; at += 8) b.stx(8, r10, at, r2);
  b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -keyBytes);
};

const lookupProgram = (shape: Shape) =>
  build((b) => {
    const [none, done] = [b.label(), b.label()];
    loadKey(b, shape);
    b.call(HELPER_MAP_LOOKUP_ELEM).jmp("eq", r0, 0, none).ldx(8, r0, r0, 0).goto(done);
    b.bind(none).mov64(r0, -1).bind(done);
  });

const NEW_VALUE = 4242n;
const DEAD_VALUE = 6666n;
const insertProgram = (shape: Shape) =>
  build((b) => {
    loadKey(b, shape);
    b.st(8, r10, -64, Number(NEW_VALUE)).mov64(r3, r10).alu64("add", r3, -64).mov64(r4, 1);
    b.call(HELPER_MAP_UPDATE_ELEM);
  });

const deleteProgram = (shape: Shape) =>
  build((b) => {
    loadKey(b, shape);
    b.call(HELPER_MAP_DELETE_ELEM);
  });

function openTable(shape: Shape) {
  const spec: MapSpec = {
    name: "h",
    kind: "hash",
    keyBytes: shape.keyBytes,
    valueBytes: 8,
    maxEntries: ENTRIES,
  };
  const memory = forkedMemory(layoutMap(spec).totalBytes + 64 + CONTROL_BYTES);
  const control = memory.bytes.length - CONTROL_BYTES;
  const native = new NativeBpf({ maps: [spec], memory });
  return { memory, control, native, table: new Table(native.maps[0] as HashMap, shape) };
}

const word = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);

/** The map with keys and values as numbers. Key k is k in every word; its value is 100 + k. */
class Table {
  readonly map: HashMap;
  readonly #shape: Shape;
  /** Keys of one bucket, and of another. */
  readonly here: readonly bigint[];
  readonly elsewhere: readonly bigint[];

  constructor(map: HashMap, shape: Shape) {
    this.map = map;
    this.#shape = shape;
    const buckets = new Map<bigint, bigint[]>();
    for (let key = 1n; key < 200n; key++) {
      const bucket = hashOf(new BigInt64Array(this.#key(key).buffer)) >> BigInt(map.layout.hashShift);
      buckets.set(bucket, [...(buckets.get(bucket) ?? []), key]);
    }
    const [here, elsewhere] = [...buckets.values()].filter((keys) => keys.length >= ENTRIES);
    this.here = here!;
    this.elsewhere = elsewhere!;
  }

  #key(key: bigint): Uint8Array {
    return new Uint8Array(new BigInt64Array(this.#shape.keyBytes / 8).fill(key).buffer);
  }

  insert(key: bigint): boolean {
    return this.map.update(this.#key(key), new Uint8Array(new BigInt64Array([100n + key]).buffer), 1n) === 0;
  }

  delete(key: bigint): boolean {
    return this.map.delete(this.#key(key)) === 0;
  }

  /** The first half of a deletion, as a thread that dies leaves it. */
  mark(key: bigint): void {
    const { words } = this.map.memory;
    const element = (this.map.lookup(this.#key(key))! - this.map.layout.valueOffset) / 8;
    words[element] = BigInt.asIntN(64, words[element]! + (1n << 32n)) | 0x8000_0000n;
  }

  /** An insertion by a thread that dies right before it links the element; the value is DEAD_VALUE. */
  prepare(key: bigint): void {
    const { words } = this.map.memory;
    // The map begins where its memory does: word 0 is the head of the free list.
    const ref = Number(words[0]! & 0x7fff_ffffn);
    words[0] = (((words[0]! >> 32n) + 1n) << 32n) | words[ref + 1]!;
    words.fill(key, ref + 1, ref + 1 + this.map.layout.keyWords);
    words[ref + this.map.layout.valueOffset / 8] = DEAD_VALUE;
  }

  contents(): Map<bigint, bigint> {
    return new Map([...this.map.entries()].map(({ key, value }) => [word(key), word(value)]));
  }

  /** Empty, then `keys` in one bucket; the first is deepest. The pool is used from both of its ends. */
  reset(keys: readonly bigint[]): void {
    this.map.clear();
    for (const key of keys) this.insert(key);
  }

  /** How many elements the pool still has, all being free. */
  room(): number {
    this.map.clear();
    let room = 0;
    while (
      room <= ENTRIES &&
      this.insert(this.elsewhere[room % this.elsewhere.length]! + BigInt(room) * 1000n)
    )
      room++;
    this.map.clear();
    return room;
  }
}

/** What happens to the map in the middle. `k` is the program's key, `n` its neighbours, from the head on. */
interface Interference {
  readonly name: string;
  readonly touchesKey: boolean;
  /** Elements that it takes away for good. */
  readonly loses?: number;
  readonly run: (table: Table, k: bigint, n: readonly bigint[]) => void;
}

const interferences: readonly Interference[] = [
  { name: "nothing", touchesKey: false, run: () => {} },
  {
    name: "the first neighbour is deleted",
    touchesKey: false,
    run: (table, _, n) => void table.delete(n[0]!),
  },
  {
    name: "the neighbour before it is deleted and its element goes to another bucket",
    touchesKey: false,
    run: (table, _, n) => {
      table.delete(n[1]!);
      table.insert(table.elsewhere[0]!);
    },
  },
  {
    name: "all neighbours before it are deleted and inserted again",
    touchesKey: false,
    run: (table, _, n) => {
      table.delete(n[0]!);
      table.delete(n[1]!);
      table.insert(n[0]!);
      table.insert(n[1]!);
    },
  },
  {
    name: "the neighbours around it are deleted and their elements change places",
    touchesKey: false,
    run: (table, _, n) => {
      table.delete(n[1]!);
      table.delete(n[2]!);
      table.insert(n[1]!);
      table.insert(table.elsewhere[0]!);
    },
  },
  {
    name: "a new neighbour is inserted",
    touchesKey: false,
    run: (table) => void table.insert(table.here[7]!),
  },
  {
    name: "all other keys go, and others come in another bucket",
    touchesKey: false,
    run: (table, _, n) => {
      for (const key of n) table.delete(key);
      for (let i = 0; i < 3; i++) table.insert(table.elsewhere[i]!);
    },
  },
  {
    name: "the neighbour before it is deleted, and a thread dies that was inserting its key into that element",
    touchesKey: false,
    loses: 1,
    run: (table, k, n) => {
      table.delete(n[1]!);
      table.prepare(k);
    },
  },
  {
    name: "the neighbour before it is marked by a thread that dies",
    touchesKey: false,
    run: (table, _, n) => table.mark(n[1]!),
  },
  { name: "its key is deleted", touchesKey: true, run: (table, k) => void table.delete(k) },
  { name: "its key is inserted", touchesKey: true, run: (table, k) => void table.insert(k) },
  {
    name: "its key is deleted and inserted again",
    touchesKey: true,
    run: (table, k) => {
      table.delete(k);
      table.insert(k);
    },
  },
  {
    name: "its key is deleted and its element goes to another bucket",
    touchesKey: true,
    run: (table, k) => {
      table.delete(k);
      table.insert(table.elsewhere[0]!);
    },
  },
];

/** Runs `program` again and again, with the interference one instruction later each time; returns how often. */
function interruptEverywhere(
  shape: Shape,
  program: readonly Insn[],
  isKeyThere: boolean,
  interference: Interference,
  check: (
    result: bigint,
    before: ReadonlyMap<bigint, bigint>,
    after: ReadonlyMap<bigint, bigint>,
    table: Table,
    key: bigint,
  ) => void,
): number {
  const { memory, control, native, table } = openTable(shape);
  const [k, ...neighbours] = [2, 0, 1, 3].map((i) => table.here[i]!) as [bigint, bigint, bigint, bigint];
  const byDistance = [neighbours[2]!, neighbours[1]!, neighbours[0]!];
  try {
    using stepped = new SteppedProgram(native, memory, control, program, k);
    // Every element was used before, so the last one that is freed is the next one that is taken.
    table.reset(table.here.slice(0, ENTRIES));
    // From the head: n[0] n[1] k n[2].
    table.reset([byDistance[2]!, ...(isKeyThere ? [k] : []), byDistance[1]!, byDistance[0]!]);
    stepped.save();
    for (let at = 0; ; at++) {
      if (at > 0 && !stepped.advance()) return at;
      const before = table.contents();
      interference.run(table, k, byDistance);
      const between = table.contents();
      const result = stepped.finish();
      const where = `instruction ${at}`;
      const after = table.contents();
      try {
        check(result, before, between, table, k);
        // No key but the program's own is there or gone because of it.
        const others = (contents: ReadonlyMap<bigint, bigint>) =>
          [...contents].filter(([key]) => key !== k).sort();
        expect(others(after)).toEqual(others(between));
        expect(table.room()).toBe(ENTRIES - (interference.loses ?? 0));
      } catch (error) {
        throw new Error(`${where}: result ${result}`, { cause: error });
      }
    }
  } finally {
    native[Symbol.dispose]();
    memory[Symbol.dispose]();
  }
}

/** Every interference with the short routines; for keys of several words those that move elements about. */
const cases = interferences.flatMap((interference, i) =>
  [8, ...(i % 3 === 2 ? [16] : [])].map((keyBytes) => ({
    name: `${interference.name}, ${keyBytes}-byte keys`,
    shape: { keyBytes },
    interference,
  })),
);

describe("hash map, interrupted at every instruction", () => {
  describe.each(cases)("$name", ({ shape, interference }) => {
    it.each([{ isKeyThere: true }, { isKeyThere: false }])(
      "lookup, key there: $isKeyThere",
      ({ isKeyThere }) => {
        const steps = interruptEverywhere(
          shape,
          lookupProgram(shape),
          isKeyThere,
          interference,
          (result, before, after, table, k) => {
            // The last is what the next user of the element stored, where the value's address was known already: a
            // program that holds a value while its key is deleted sees that, as with the kernel's preallocated maps.
            if (interference.touchesKey)
              expect([-1n, 100n + k, 100n + table.elsewhere[0]!]).toContain(result);
            else expect(result).toBe(before.get(k) ?? -1n);
            expect(after.get(k) ?? 100n + k).toBe(100n + k);
          },
        );
        expect(steps).toBeGreaterThan(15);
      },
    );

    it.each([{ isKeyThere: true }, { isKeyThere: false }])(
      "insertion, key there: $isKeyThere",
      ({ isKeyThere }) => {
        interruptEverywhere(
          shape,
          insertProgram(shape),
          isKeyThere,
          interference,
          (result, before, between, table, k) => {
            const value = table.contents().get(k);
            if (result === 0n) expect(value === NEW_VALUE || interference.touchesKey).toBe(true);
            else {
              expect(result).toBe(-17n);
              expect(value === undefined || value === 100n + k).toBe(true);
              expect(before.has(k) || between.has(k)).toBe(true);
            }
            if (!interference.touchesKey) expect(result).toBe(isKeyThere ? -17n : 0n);
          },
        );
      },
    );

    it.each([{ isKeyThere: true }, { isKeyThere: false }])(
      "deletion, key there: $isKeyThere",
      ({ isKeyThere }) => {
        interruptEverywhere(
          shape,
          deleteProgram(shape),
          isKeyThere,
          interference,
          (result, _, between, table, k) => {
            expect([0n, -2n]).toContain(result);
            if (!interference.touchesKey) expect(result).toBe(isKeyThere ? 0n : -2n);
            if (!between.has(k)) expect(table.contents().has(k)).toBe(false);
          },
        );
      },
    );
  });
});
/**
 * Lets the program stop for ever at one instruction after the other, as when its thread dies there; returns how many
 * there were.
 */
function dieEverywhere(stepped: SteppedProgram, check: () => void): number {
  stepped.save();
  for (let at = 0; ; at++) {
    if (at > 0 && !stepped.advance()) return at;
    try {
      check();
    } catch (error) {
      throw new Error(`instruction ${at}`, { cause: error });
    }
  }
}

describe("death at every instruction", () => {
  it.each([
    { name: "insertion into unused memory", program: insertProgram, isKeyThere: false, isPoolUsed: false },
    { name: "insertion into a used element", program: insertProgram, isKeyThere: false, isPoolUsed: true },
    { name: "deletion", program: deleteProgram, isKeyThere: true, isPoolUsed: false },
  ])("$name loses at most one element and no other key", ({ program, isKeyThere, isPoolUsed }) => {
    const shape = { keyBytes: 8 };
    const { native, memory, control, table } = openTable(shape);
    const [a, b, k, other] = table.here as [bigint, bigint, bigint, bigint];
    if (isPoolUsed) table.reset(table.here.slice(0, ENTRIES));
    table.reset([a, ...(isKeyThere ? [k] : []), b]);
    using stepped = new SteppedProgram(native, memory, control, program(shape), k);
    const steps = dieEverywhere(stepped, () => {
      const contents = table.contents();
      expect(contents.get(a)).toBe(100n + a);
      expect(contents.get(b)).toBe(100n + b);
      expect([undefined, isKeyThere ? 100n + k : NEW_VALUE]).toContain(contents.get(k));
      expect(table.insert(other)).toBe(true);
      expect(table.delete(a)).toBe(true);
      expect(table.room()).toBeGreaterThanOrEqual(ENTRIES - 1);
    });
    expect(steps).toBeGreaterThan(30);
    native[Symbol.dispose]();
    memory[Symbol.dispose]();
  });

  it("a record that is being written holds up the reader for a while only", () => {
    const spec: MapSpec = { name: "r", kind: "ringbuf", keyBytes: 0, valueBytes: 16, maxEntries: 4 };
    const memory = forkedMemory(layoutMap(spec).totalBytes + 64 + CONTROL_BYTES);
    const native = new NativeBpf({ maps: [spec], memory });
    const program = build((b) => {
      const full = b.label();
      b.ldMapFd(r1, 0).mov64(r2, 16).mov64(r3, 0).call(HELPER_RINGBUF_RESERVE).jmp("eq", r0, 0, full);
      b.st(8, r0, 0, 7)
        .st(8, r0, 8, 8)
        .mov64(r1, r0)
        .mov64(r2, 0)
        .call(HELPER_RINGBUF_SUBMIT)
        .mov64(r0, 0)
        .bind(full);
    });
    const outcomes = new Set<string>();
    using stepped = new SteppedProgram(native, memory, memory.bytes.length - CONTROL_BYTES, program, 0n);
    dieEverywhere(stepped, () => {
      const map = native.maps[0] as RingMap;
      const clock = { ms: 0 };
      const consumer = new RingConsumer(map.layout, native.memory, map.byteOffset, {
        nowMs: () => clock.ms,
        retireAfterMs: 10,
      });
      const put = () => {
        const offset = map.reserve(16);
        if (offset !== undefined) map.submit(offset);
        return offset !== undefined;
      };
      put();
      const first = consumer.poll(10, () => {});
      clock.ms = 10;
      const second = consumer.poll(10, () => {});
      expect(first + second).toBe(consumer.retired === 1 ? 1 : first);
      outcomes.add(`${first} then ${second}`);
      for (let lap = 0; lap < 4; lap++) {
        expect([put(), put(), put()]).toEqual([true, true, true]);
        expect(consumer.poll(10, () => {})).toBe(3);
      }
      expect(consumer.corrupt).toBe(0);
    });
    // Before the reservation, between it and the commit, after the commit.
    expect([...outcomes].sort()).toEqual(["0 then 1", "1 then 0", "2 then 0"]);
    native[Symbol.dispose]();
    memory[Symbol.dispose]();
  });
});
