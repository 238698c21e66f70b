/**
 * Maps of the newer kinds under several threads. Every program keeps its own account in an array, one element per
 * thread; at the end the accounts and the maps must agree exactly.
 */
import koffi, { type KoffiFunc } from "koffi";
import { describe, expect, it } from "vitest";
import { contextOf, NativeBpf } from "../../../../test/support/native-bpf.ts";
import { nativeMemory } from "../../../../test/support/native-code.ts";
import { R12, RAX, RBX, RCX, RDI, RDX, RSI, RSP } from "../../../x86/registers.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_POP_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
} from "../../helpers.ts";
import {
  type BpfReg,
  type Insn,
  InsnBuilder,
  type MapSpec,
  r0,
  r1,
  r2,
  r3,
  r4,
  r6,
  r7,
  r8,
  r10,
} from "../../index.ts";
import type { ArrayMap, HashMap, PerCpuHashMap, QueueMap, StackTraceMap } from "../../maps/index.ts";
import { stackTraceInput } from "./map-routines.ts";
import { RoutineSet } from "./routine.ts";
import { stackInsert } from "./stack-trace-routines.ts";

/** Slots of the context that the programs read. */
const CALL = 0;
const THREAD = 8;
const THREADS = 4;
const CALLS = 300_000;

const ACCOUNT: MapSpec = { name: "account", kind: "array", keyBytes: 4, valueBytes: 64, maxEntries: THREADS };
/** Columns of a thread's account. */
const [IN, OUT, SUM_IN, SUM_OUT, TORN, FULL] = [0, 8, 16, 24, 32, 40];

/** r6 = number of the call, r7 = a pseudo-random number, r8 = this thread's account. */
function begin(b: InsnBuilder): void {
  const found = b.label();
  b.ldx(8, r6, r1, CALL).ldx(8, r7, r1, THREAD);
  b.stx(4, r10, -8, r7).ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -8).call(HELPER_MAP_LOOKUP_ELEM);
  b.jmp("ne", r0, 0, found).mov64(r0, 0).exit().bind(found).mov64(r8, r0);
  b.alu64("lsh", r7, 32).alu64("add", r7, r6).ldImm64(r1, 0x9e37_79b9_7f4a_7c15n).alu64("mul", r7, r1);
  b.mov64(r1, r7).alu64("rsh", r1, 29).alu64("xor", r7, r1).alu64("rsh", r7, 8);
}

const account = (b: InsnBuilder, column: number, by: BpfReg | number = 1) =>
  b.mov64(r1, by).atomic("add", 8, r8, column, r1);

/** A value of two words that belong together: r7, and r7 with all bits the other way round. */
function storePair(b: InsnBuilder, at: number): void {
  b.stx(8, r10, at, r7)
    .mov64(r1, r7)
    .alu64("xor", r1, -1)
    .stx(8, r10, at + 8, r1);
}

/** Counts a pair of words that do not belong together; r1 is the first word afterwards. */
function checkPair(b: InsnBuilder, base: BpfReg, at: number): void {
  const whole = b.label();
  b.ldx(8, r1, base, at)
    .ldx(8, r2, base, at + 8)
    .alu64("xor", r2, -1)
    .jmp("eq", r1, r2, whole);
  b.mov64(r3, r1);
  account(b, TORN).mov64(r1, r3).bind(whole);
}

const program = (write: (b: InsnBuilder) => void): readonly Insn[] => {
  const b = new InsnBuilder();
  begin(b);
  write(b);
  return b.mov64(r0, 0).exit().build().insns;
};

const loopType = koffi.proto("void KindsLoop(intptr_t ctx, int64_t count)");

/** Calls the loop at `run` in several threads, each with a context of its own; `meanwhile` again and again. */
async function runThreads(run: bigint, meanwhile: () => void): Promise<void> {
  using contexts = nativeMemory(THREADS * 256);
  const loop = koffi.decode(run, loopType) as KoffiFunc<(context: bigint, calls: number) => void>;
  const running = new Set<number>();
  for (let thread = 0; thread < THREADS; thread++) {
    contexts.bytes.set(
      contextOf((offset) => (offset === THREAD ? BigInt(thread) : 0n)),
      thread * 256,
    );
    running.add(thread);
    loop.async(contexts.at + BigInt(thread * 256), CALLS, () => running.delete(thread));
  }
  // Whatever happens, the threads must end before their memory goes.
  const failures: unknown[] = [];
  while (running.size > 0) {
    try {
      meanwhile();
    } catch (error) {
      failures.push(error);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (failures.length > 0) throw failures[0];
}

const total = (map: ArrayMap, column: number) =>
  [...map.entries()].reduce(
    (sum, { value }) => BigInt.asUintN(64, sum + new DataView(value.buffer).getBigUint64(column, true)),
    0n,
  );

const words = (bytes: Uint8Array) => {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return [view.getBigUint64(0, true), bytes.length > 8 ? view.getBigUint64(8, true) : 0n] as const;
};
const pairOf = (value: bigint) => {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, value, true);
  view.setBigUint64(8, BigInt.asUintN(64, ~value), true);
  return bytes;
};
const key = (k: number | bigint) => new Uint8Array(new BigUint64Array([BigInt(k)]).buffer);
const isPair = (bytes: Uint8Array) => words(bytes)[1] === BigInt.asUintN(64, ~words(bytes)[0]);

describe("queue and stack", () => {
  const TARGET = 1;
  const map = (b: InsnBuilder) => b.ldMapFd(r1, TARGET).mov64(r2, r10).alu64("add", r2, -32);
  const turn = program((b) => {
    const [takes, peeks, leave, full, none] = [b.label(), b.label(), b.label(), b.label(), b.label()];
    storePair(b, -32);
    b.mov64(r1, r6).alu64("and", r1, 3).jmp("eq", r1, 3, peeks).alu64("and", r1, 1).jmp("ne", r1, 0, takes);
    map(b).mov64(r3, 0).call(HELPER_MAP_PUSH_ELEM).jmp("ne", r0, 0, full);
    account(b, IN);
    account(b, SUM_IN, r7).goto(leave).bind(full);
    account(b, FULL).goto(leave);
    b.bind(takes);
    map(b).call(HELPER_MAP_POP_ELEM).jmp("ne", r0, 0, leave);
    checkPair(b, r10, -32);
    b.mov64(r3, r1);
    account(b, SUM_OUT, r3);
    account(b, OUT).goto(leave);
    b.bind(peeks);
    map(b).call(HELPER_MAP_PEEK_ELEM).jmp("ne", r0, 0, none);
    checkPair(b, r10, -32);
    b.goto(leave).bind(none).bind(leave);
  });

  it.each([
    { kind: "queue" as const, entries: 3 },
    { kind: "queue" as const, entries: 1000 },
    { kind: "stack" as const, entries: 3 },
    { kind: "stack" as const, entries: 1000 },
  ])("$kind of $entries: every value comes out once, and whole", async ({ kind, entries }) => {
    using native = new NativeBpf({
      maps: [ACCOUNT, { name: "q", kind, keyBytes: 0, valueBytes: 16, maxEntries: entries }],
    });
    const [accounts, queue] = native.maps as [ArrayMap, QueueMap];
    let [sumIn, sumOut, ins, outs] = [0n, 0n, 0n, 0n];
    let next = 1n;
    await runThreads(native.compileLoop(turn), () => {
      for (let i = 0; i < 50; i++) {
        if (queue.push(pairOf(next)) === 0) {
          sumIn += next++;
          ins++;
        }
        const seen = queue.peek();
        if (seen !== undefined) expect(isPair(seen)).toBe(true);
        const out = queue.pop();
        if (out === undefined) continue;
        expect(isPair(out)).toBe(true);
        sumOut += words(out)[0];
        outs++;
      }
      for (const value of queue.values()) expect(isPair(value)).toBe(true);
    });
    expect(total(accounts, TORN)).toBe(0n);
    const rest = queue.values();
    expect(BigInt(rest.length)).toBe(total(accounts, IN) + ins - total(accounts, OUT) - outs);
    const restSum = rest.reduce((sum, value) => sum + words(value)[0], 0n);
    const went = total(accounts, SUM_IN) + sumIn - total(accounts, SUM_OUT) - sumOut;
    expect(BigInt.asUintN(64, restSum)).toBe(BigInt.asUintN(64, went));
    expect(total(accounts, OUT)).toBeGreaterThan(0n);
    // Nothing leaked.
    queue.clear();
    for (let i = 0; i < entries; i++) expect(queue.push(pairOf(1n))).toBe(0);
    expect(queue.push(pairOf(1n))).toBe(-7);
    for (let i = 0; i < 200; i++) expect(queue.push(pairOf(1n), 2n)).toBe(0);
  });
});

describe("hash maps", () => {
  const TABLE = 1;
  const KEY = -48;
  const VALUE = -32;
  const table = (b: InsnBuilder) => b.ldMapFd(r1, TABLE).mov64(r2, r10).alu64("add", r2, KEY);

  /** Updates, deletes or reads one of `keys` keys. */
  const turn = (keys: number) =>
    program((b) => {
      const [removes, reads, leave] = [b.label(), b.label(), b.label()];
      b.mov64(r1, r7).alu64("mod", r1, keys).stx(8, r10, KEY, r1);
      storePair(b, VALUE);
      b.mov64(r1, r6).alu64("and", r1, 7).jmp("eq", r1, 7, removes).jmp("ge", r1, 5, reads);
      table(b).mov64(r3, r10).alu64("add", r3, VALUE).mov64(r4, 0).call(HELPER_MAP_UPDATE_ELEM);
      b.jmp("ne", r0, 0, leave);
      account(b, IN).goto(leave);
      b.bind(reads);
      table(b).call(HELPER_MAP_LOOKUP_ELEM).jmp("eq", r0, 0, leave).ldx(8, r1, r0, 0);
      account(b, OUT).goto(leave);
      b.bind(removes);
      table(b).call(HELPER_MAP_DELETE_ELEM).jmp("ne", r0, 0, leave);
      account(b, FULL).bind(leave);
    });

  it.each([
    { kind: "hash" as const, valueBytes: 16, entries: 16, keys: 8 },
    { kind: "hash" as const, valueBytes: 16, entries: 6, keys: 12 },
    { kind: "lru_hash" as const, valueBytes: 8, entries: 32, keys: 100 },
    { kind: "lru_hash" as const, valueBytes: 16, entries: 8, keys: 100 },
  ])(
    "$kind, $entries entries of $valueBytes bytes for $keys keys: no key twice, no value torn, no leak",
    async (shape) => {
      const { kind, valueBytes, entries, keys } = shape;
      using native = new NativeBpf({
        maps: [ACCOUNT, { name: "t", kind, keyBytes: 8, valueBytes, maxEntries: entries }],
      });
      const [accounts, map] = native.maps as [ArrayMap, HashMap];
      let wasRead = 0;
      const check = () => {
        const seen = new Set<bigint>();
        for (const entry of map.entries()) {
          const [k] = words(entry.key);
          expect(seen.has(k)).toBe(false);
          expect(k).toBeLessThan(BigInt(keys));
          if (valueBytes > 8) expect(isPair(entry.value)).toBe(true);
          seen.add(k);
          wasRead++;
        }
        return seen.size;
      };
      let turns = 0;
      await runThreads(native.compileLoop(turn(keys)), () => {
        check();
        map.update(key(turns % keys), pairOf(BigInt(turns)));
        map.delete(key((turns * 7) % keys));
        turns++;
      });
      // Only now it is a picture of one moment.
      expect(check()).toBeLessThanOrEqual(entries);
      expect(wasRead).toBeGreaterThan(0);
      expect(total(accounts, IN)).toBeGreaterThan(BigInt(CALLS));
      expect(total(accounts, FULL)).toBeGreaterThan(0n);
      // Nothing leaked: neither entries nor what replacements use.
      map.clear();
      for (let k = 0; k < entries; k++) expect(map.update(key(1000 + k), pairOf(BigInt(k)))).toBe(0);
      expect([...map.entries()].length).toBe(entries);
      if (valueBytes === 8) return;
      for (let k = 0; k < 100; k++) {
        const before = map.lookup(key(1000));
        expect(map.update(key(1000), pairOf(BigInt(k)))).toBe(0);
        expect(map.lookup(key(1000))).not.toBe(before);
      }
    },
  );

  it("per-CPU hash: counts without atomic instructions are exact", async () => {
    using native = new NativeBpf({
      maps: [
        ACCOUNT,
        { name: "t", kind: "percpu_hash", keyBytes: 8, valueBytes: 8, maxEntries: 64, cpus: THREADS + 2 },
      ],
    });
    const [accounts, map] = native.maps as [ArrayMap, PerCpuHashMap];
    const count = program((b) => {
      const [found, leave] = [b.label(), b.label()];
      b.mov64(r1, r7).alu64("mod", r1, 50).stx(8, r10, KEY, r1).st(8, r10, VALUE, 0);
      table(b).call(HELPER_MAP_LOOKUP_ELEM).jmp("ne", r0, 0, found);
      table(b).mov64(r3, r10).alu64("add", r3, VALUE).mov64(r4, 1).call(HELPER_MAP_UPDATE_ELEM);
      table(b).call(HELPER_MAP_LOOKUP_ELEM).jmp("eq", r0, 0, leave).bind(found);
      b.ldx(8, r1, r0, 0).alu64("add", r1, 1).stx(8, r0, 0, r1);
      account(b, IN).bind(leave);
    });
    await runThreads(native.compileLoop(count), () => {
      for (const { values } of map.entries()) expect(values.length).toBe(THREADS + 2);
    });
    const counted = [...map.entries()].flatMap(({ values }) => values.map((value) => words(value)[0]));
    expect(counted.reduce((sum, one) => sum + one, 0n)).toBe(BigInt(THREADS * CALLS));
    expect(total(accounts, IN)).toBe(BigInt(THREADS * CALLS));
  });
});

describe("stack traces", () => {
  const FRAMES = 3;
  const STACKS = 64n;
  const M = 0x5851_f42d_4c95_7f2dn;

  it("whoever reads an id sees one whole stack, and no memory is lost", async () => {
    using native = new NativeBpf({
      maps: [{ name: "s", kind: "stack_trace", keyBytes: 4, valueBytes: FRAMES * 8, maxEntries: 16 }],
    });
    const map = native.maps[0] as StackTraceMap;
    const { asm, written } = native.place((a) => {
      const routines = new RoutineSet(a);
      const input = stackTraceInput(
        { routines, env: native.env, bundle: native.bundle },
        { mapIndex: 0, outerMapIndex: undefined },
      );
      const insert = stackInsert(input!);
      // run(context, count): each time a stack of the same address three times, with BPF_F_REUSE_STACKID.
      const run = a.here("run");
      a.push(RBX);
      a.push(R12);
      a.mov(R12, { base: RDI, disp: THREAD });
      a.mov(RBX, RSI);
      const next = a.here("next");
      a.movImm(RAX, M);
      a.imul(R12, RAX);
      a.addImm(R12, 1);
      a.mov(RAX, R12);
      a.shr(RAX, 58);
      for (let i = 0; i < FRAMES; i++) a.push(RAX);
      a.mov(RSI, RSP);
      a.movImm(RDX, FRAMES);
      a.movImm(RCX, 1 << 10);
      a.call(insert.label);
      a.addImm(RSP, FRAMES * 8);
      a.dec(RBX);
      a.jcc("ne", next);
      a.pop(R12);
      a.pop(RBX);
      a.ret();
      routines.emitPending();
      return run;
    });
    let seen = 0;
    await runThreads(asm.addressOf(written), () => {
      for (const { addresses } of map.entries()) {
        expect(addresses.length).toBe(FRAMES);
        expect(addresses[0]).toBeLessThan(STACKS);
        expect(new Set(addresses).size).toBe(1);
        seen++;
      }
      map.insert([1n, 1n, 1n], 1n << 10n);
    });
    expect(seen).toBeGreaterThan(0);
    // As many more as there are elements: each takes one and gives one back.
    for (let i = 0n; i < 200n; i++) expect(map.insert([i, i, i], 1n << 10n)).toBeGreaterThanOrEqual(0);
    const { free, stride, poolBytes, link } = map.layout.pool;
    const load = (place: number) => Number(map.memory.words[map.byteOffset / 8 + place]! & 0x7fff_ffffn);
    let unused = (poolBytes - Math.min(load(8) * 8, poolBytes)) / stride;
    for (let ref = load(free / 8); ref !== 0; ref = load(ref + link / 8)) unused++;
    expect(unused + [...map.entries()].length).toBe(poolBytes / stride);
  });
});
