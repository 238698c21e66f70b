/**
 * Compiled programs in several threads, and in processes that are killed in the middle, on the same maps.
 *
 * Every program keeps its own account in an array, one element per thread; at the end the accounts and the maps must
 * agree exactly.
 */
import koffi, { type KoffiFunc } from "koffi";
import { describe, expect, it } from "vitest";
import { CODE_BYTES, contextOf, NativeBpf } from "../../../../test/support/native-bpf.ts";
import { nativeMemory, randomWords } from "../../../../test/support/native-code.ts";
import { callSpawn, forkedMemory, killAndWait } from "../../../../test/support/stepped-program.ts";
import type { Assembler, Label } from "../../../x86/assembler.ts";
import { RAX, RDI, RSI } from "../../../x86/registers.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_RINGBUF_DISCARD,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
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
import { type ArrayMap, type HashMap, layoutMap, RingConsumer, type RingMap } from "../../maps/index.ts";

/** Slots of the context that the programs read. */
const CALL = 0;
const THREAD = 8;
/** Columns of a thread's account. */
const COUNTED = 0;
const INSERTED = 8;
const DELETED = 16;
const REFUSED = 24;
const SENT = 32;
const DISCARDED = 40;
const DROPPED = 48;
const MAX_THREADS = 64;

const ACCOUNT = 0;
const TABLE = 1;
const RING = 2;
const STABLE_KEYS = 16n;
const CHURN_KEYS = 64n;

function mapSpecs(tableEntries: number, ringEntries: number): readonly MapSpec[] {
  return [
    { name: "account", kind: "array", keyBytes: 4, valueBytes: 64, maxEntries: MAX_THREADS },
    { name: "table", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: tableEntries },
    { name: "ring", kind: "ringbuf", keyBytes: 0, valueBytes: 16, maxEntries: ringEntries },
  ];
}

/** r6 = number of the call, r7 = a pseudo-random number, r8 = this thread's account. */
function begin(b: InsnBuilder): void {
  const found = b.label();
  b.ldx(8, r6, r1, CALL).ldx(8, r7, r1, THREAD);
  b.stx(8, r10, -8, r7).ldMapFd(r1, ACCOUNT).mov64(r2, r10).alu64("add", r2, -8).call(HELPER_MAP_LOOKUP_ELEM);
  b.jmp("ne", r0, 0, found).exit().bind(found).mov64(r8, r0);
  b.alu64("lsh", r7, 32).alu64("add", r7, r6).ldImm64(r1, 0x9e37_79b9_7f4a_7c15n).alu64("mul", r7, r1);
  b.mov64(r1, r7)
    .alu64("rsh", r1, 29)
    .alu64("xor", r7, r1)
    .ldImm64(r1, 0xbf58_476d_1ce4_e5b9n)
    .alu64("mul", r7, r1);
  b.alu64("rsh", r7, 20);
}

const account = (b: InsnBuilder, column: number) => b.mov64(r1, 1).atomic("add", 8, r8, column, r1);
const tableAndKey = (b: InsnBuilder) => b.ldMapFd(r1, TABLE).mov64(r2, r10).alu64("add", r2, -16);

/**
 * Every other call counts a key that is never deleted; the others insert or delete keys around it. The value of a key
 * is its count, or its key.
 */
function tableProgram() {
  const b = new InsnBuilder();
  const [churn, remove, add, retry, leave, refused] = [
    "churn",
    "remove",
    "add",
    "retry",
    "leave",
    "refused",
  ].map((name) => b.label(name)) as [
    ReturnType<InsnBuilder["label"]>,
    ReturnType<InsnBuilder["label"]>,
    ReturnType<InsnBuilder["label"]>,
    ReturnType<InsnBuilder["label"]>,
    ReturnType<InsnBuilder["label"]>,
    ReturnType<InsnBuilder["label"]>,
  ];
  begin(b);
  b.mov64(r1, r6).alu64("and", r1, 1).jmp("ne", r1, 0, churn);
  // count
  b.mov64(r1, r7).alu64("mod", r1, Number(STABLE_KEYS)).stx(8, r10, -16, r1);
  b.bind(retry);
  tableAndKey(b).call(HELPER_MAP_LOOKUP_ELEM).jmp("ne", r0, 0, add);
  b.st(8, r10, -24, 1);
  tableAndKey(b).mov64(r3, r10).alu64("add", r3, -24).mov64(r4, 1).call(HELPER_MAP_UPDATE_ELEM);
  const counted = b.label();
  b.jmp("eq", r0, 0, counted);
  // Somebody else was first.
  tableAndKey(b).call(HELPER_MAP_LOOKUP_ELEM).jmp("eq", r0, 0, leave);
  b.bind(add).mov64(r1, 1).atomic("add", 8, r0, 0, r1);
  b.bind(counted);
  account(b, COUNTED).goto(leave);
  // insert or delete
  b.bind(churn)
    .mov64(r1, r7)
    .alu64("mod", r1, Number(CHURN_KEYS))
    .alu64("add", r1, 1000)
    .stx(8, r10, -16, r1)
    .stx(8, r10, -24, r1);
  b.alu64("rsh", r7, 17).alu64("and", r7, 1).jmp("ne", r7, 0, remove);
  tableAndKey(b).mov64(r3, r10).alu64("add", r3, -24).mov64(r4, 1).call(HELPER_MAP_UPDATE_ELEM);
  b.jmp("eq", r0, -7, refused).jmp("ne", r0, 0, leave);
  account(b, INSERTED).goto(leave);
  b.bind(refused);
  account(b, REFUSED).goto(leave);
  b.bind(remove);
  tableAndKey(b).call(HELPER_MAP_DELETE_ELEM).jmp("ne", r0, 0, leave);
  account(b, DELETED);
  b.bind(leave).mov64(r0, 0).exit();
  return b.build().insns;
}

/** Sends (thread, number of the call), and discards every eighth record. */
function ringProgram() {
  const b = new InsnBuilder();
  const [full, discard, leave] = [b.label(), b.label(), b.label()];
  b.ldx(8, r7, r1, THREAD).stx(8, r10, -32, r7);
  begin(b);
  b.ldMapFd(r1, RING).mov64(r2, 16).mov64(r3, 0).call(HELPER_RINGBUF_RESERVE).jmp("eq", r0, 0, full);
  b.ldx(8, r1, r10, -32).stx(8, r0, 0, r1).stx(8, r0, 8, r6).mov64(r1, r0).mov64(r2, 0);
  b.alu64("and", r7, 7).jmp("eq", r7, 0, discard);
  b.call(HELPER_RINGBUF_SUBMIT);
  account(b, SENT).goto(leave).bind(discard).call(HELPER_RINGBUF_DISCARD);
  account(b, DISCARDED).goto(leave).bind(full);
  account(b, DROPPED).bind(leave).mov64(r0, 0).exit();
  return b.build().insns;
}

const loopType = koffi.proto("void Loop(intptr_t ctx, int64_t count)");

/** Calls the loop at `run` in several threads, each with a context of its own; `meanwhile` again and again. */
async function runThreads(run: bigint, threads: number, calls: number, meanwhile: () => void): Promise<void> {
  using contexts = nativeMemory(threads * 256);
  const loop = koffi.decode(run, loopType) as KoffiFunc<(context: bigint, calls: number) => void>;
  const running = new Set<number>();
  for (let thread = 0; thread < threads; thread++) {
    contexts.bytes.set(
      contextOf((offset) => (offset === THREAD ? BigInt(thread) : 0n)),
      thread * 256,
    );
    running.add(thread);
    loop.async(contexts.at + BigInt(thread * 256), calls, () => running.delete(thread));
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

function totals(map: ArrayMap) {
  const sum = (column: number) => {
    let total = 0n;
    for (const { value } of map.entries()) total += new DataView(value.buffer).getBigUint64(column, true);
    return total;
  };
  return {
    counted: sum(COUNTED),
    inserted: sum(INSERTED),
    deleted: sum(DELETED),
    refused: sum(REFUSED),
    sent: sum(SENT),
    discarded: sum(DISCARDED),
    dropped: sum(DROPPED),
  };
}

const word = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);

/** Entries by key; fails if a key is there twice. */
function tableContents(map: HashMap): ReadonlyMap<bigint, bigint> {
  const contents = new Map<bigint, bigint>();
  for (const { key, value } of map.entries()) {
    expect(contents.has(word(key))).toBe(false);
    contents.set(word(key), word(value));
  }
  return contents;
}

function openAll(specs: readonly MapSpec[], memory?: { readonly at: bigint; readonly bytes: Uint8Array }) {
  const native = new NativeBpf(memory === undefined ? { maps: specs } : { maps: specs, memory });
  const [accounts, table, ring] = native.maps as [ArrayMap, HashMap, RingMap];
  return { native, accounts, table, ring };
}

/** As many as there are threads for asynchronous calls. */
const THREADS = 4;

describe("threads", () => {
  it.each([
    { name: "room for all keys", entries: 128 },
    { name: "hardly any room: the pool runs empty all the time", entries: 24 },
  ])("hash map, $name: counts are exact, no key is there twice", async ({ entries }) => {
    const { native, accounts, table } = openAll(mapSpecs(entries, 2));
    const run = native.compileLoop(tableProgram());
    // The stable keys first, so that a small table has room for them.
    const seed = native.compile(tableProgram(), false);
    for (let i = 0n; i < 400n; i++)
      native.run(
        seed,
        contextOf((offset) => (offset === CALL ? i * 2n : 0n)),
      );
    const calls = 1_000_000;
    let reads = 0;
    let tracerInserted = 0n;
    let tracerRefused = 0n;
    await runThreads(run, THREADS, calls, () => {
      // The tracer reads, inserts and deletes while they do.
      const key = new Uint8Array(8);
      for (let i = 0; i < 200; i++) {
        new DataView(key.buffer).setUint32(0, 1000 + ((i * 7 + reads) % Number(CHURN_KEYS)), true);
        if (i % 2 === 0) {
          const result = table.update(key, key, 1n);
          if (result === 0) tracerInserted++;
          if (result === -7) tracerRefused++;
        } else if (table.delete(key) === 0) tracerInserted--;
      }
      const contents = tableContents(table);
      for (let stable = 0n; stable < STABLE_KEYS; stable++) expect(contents.has(stable)).toBe(true);
      reads++;
    });
    const total = totals(accounts);
    const contents = tableContents(table);
    const stable = [...contents].filter(([key]) => key < STABLE_KEYS);
    expect(stable.reduce((sum, [, count]) => sum + count, 0n)).toBe(total.counted);
    expect(total.counted).toBe(BigInt((THREADS * calls) / 2 + 400));
    expect(BigInt(contents.size - stable.length)).toBe(total.inserted - total.deleted + tracerInserted);
    expect(total.refused + tracerRefused).toBe(table.refused);
    expect(reads).toBeGreaterThan(0);
    for (const [key, value] of contents) if (key >= STABLE_KEYS) expect(value).toBe(key);
    if (entries === 24) expect(total.refused).toBeGreaterThan(0n);
    // Nothing leaked: deleting all of it gives all of the pool back.
    table.clear();
    const key = new Uint8Array(8);
    for (let i = 0; i < entries; i++) {
      new DataView(key.buffer).setUint32(0, i, true);
      expect(table.update(key, key)).toBe(0);
    }
    native[Symbol.dispose]();
  });

  it("ring buffer: every record once and in order per thread, drops exact", async () => {
    const { native, accounts, ring } = openAll(mapSpecs(1, 256));
    const consumer = new RingConsumer(ring.layout, native.memory, ring.byteOffset, {
      nowMs: () => performance.now(),
      retireAfterMs: 10_000,
    });
    const last = Array.from({ length: THREADS }, () => 0n);
    let received = 0n;
    const take = (record: Uint8Array) => {
      const view = new DataView(record.buffer);
      const thread = Number(view.getBigUint64(0, true));
      const call = view.getBigUint64(8, true);
      if (!(call > last[thread]!)) expect.fail(`thread ${thread}: call ${call} after ${last[thread]}`);
      last[thread] = call;
      received++;
    };
    const calls = 1_000_000;
    await runThreads(native.compileLoop(ringProgram()), THREADS, calls, () => consumer.poll(1000, take));
    consumer.poll(1000, take);
    const total = totals(accounts);
    expect(total.sent + total.discarded + total.dropped).toBe(BigInt(THREADS * calls));
    expect(received).toBe(total.sent);
    expect(BigInt(consumer.discarded)).toBe(total.discarded);
    expect(consumer.dropped).toBe(total.dropped);
    expect(consumer.retired).toBe(0);
    expect(consumer.corrupt).toBe(0);
    expect(total.sent).toBeGreaterThan(0n);
    native[Symbol.dispose]();
  });
});

/**
 * A C function `int spawn()` that forks a process which calls the loops in turn until it is killed; returns its id.
 * The child runs nothing but generated code, and dies with the thread that forked it.
 */
function emitSpawn(a: Assembler, runs: readonly bigint[], context: bigint): Label {
  const [SYS_FORK, SYS_PRCTL, PR_SET_PDEATHSIG, SIGKILL] = [57, 157, 1, 9];
  const entry = a.here("spawn");
  const child = a.label("child");
  a.movImm(RAX, SYS_FORK);
  a.syscall();
  a.test(RAX, RAX);
  a.jcc("e", child);
  a.ret();
  a.bind(child);
  a.movImm(RAX, SYS_PRCTL);
  a.movImm(RDI, PR_SET_PDEATHSIG);
  a.movImm(RSI, SIGKILL);
  a.syscall();
  const again = a.here("again");
  for (const run of runs) {
    a.movImm(RDI, context);
    a.movImm(RSI, 100);
    a.movImm(RAX, run);
    a.callTo(RAX);
  }
  a.jmp(again);
  return entry;
}

describe("processes that are killed in the middle", () => {
  it("lose at most what they had in their hands: one element, one record, one count each", async () => {
    const kills = 60;
    const specs = mapSpecs(100, 64);
    const mapBytes = specs.reduce((at, spec) => at + layoutMap(spec).totalBytes, 64);
    using memory = forkedMemory(mapBytes + MAX_THREADS * 256);
    const { native, accounts, table, ring } = openAll(specs, memory);
    const runs = [native.compileLoop(tableProgram()), native.compileLoop(ringProgram())];
    const contexts = CODE_BYTES + mapBytes;
    const spawns = Array.from({ length: MAX_THREADS }, (_, thread) => {
      const context = contextOf((offset) => (offset === THREAD ? BigInt(thread) : 0n));
      memory.bytes.set(context, contexts + thread * 256);
      const { asm, written } = native.place((a) =>
        emitSpawn(a, runs, memory.at + BigInt(contexts + thread * 256)),
      );
      return asm.addressOf(written);
    });
    const consumer = new RingConsumer(ring.layout, native.memory, ring.byteOffset, {
      nowMs: () => performance.now(),
      retireAfterMs: 5,
    });
    let received = 0n;
    const poll = () => {
      received += BigInt(consumer.poll(10_000, () => {}));
    };
    const wait = randomWords(Date.now());
    const spawn = (thread: number) => {
      const pid = callSpawn(spawns[thread]!);
      expect(pid).toBeGreaterThan(0);
      return pid;
    };
    // Two at a time, so that one dies while the other works.
    let second = spawn(0);
    for (let i = 1; i < kills; i++) {
      const first = second;
      second = spawn(i);
      const until = performance.now() + Number(wait() % 6000n) / 1000;
      while (performance.now() < until) poll();
      killAndWait(first);
    }
    killAndWait(second);
    consumer.drain(() => received++);

    const total = totals(accounts);
    const contents = tableContents(table);
    const stable = [...contents].filter(([key]) => key < STABLE_KEYS);
    const counts = stable.reduce((sum, [, count]) => sum + count, 0n);
    // A program does something and then writes it into its account: each death can come in between.
    const expectAhead = (value: bigint, accounted: bigint, behind = 0n) => {
      expect(value - accounted).toBeGreaterThanOrEqual(-behind);
      expect(value - accounted).toBeLessThanOrEqual(BigInt(kills));
    };
    expect(total.counted).toBeGreaterThan(1000n);
    expect(total.sent).toBeGreaterThan(1000n);
    expectAhead(counts, total.counted);
    expectAhead(BigInt(contents.size - stable.length), total.inserted - total.deleted, BigInt(kills));
    expectAhead(received, total.sent);
    expectAhead(BigInt(consumer.discarded), total.discarded);
    expectAhead(consumer.dropped, total.dropped);
    expect(consumer.retired).toBeLessThanOrEqual(kills);
    expect(consumer.corrupt).toBe(0);

    // What the pool lost is at most one element per death.
    table.clear();
    expect(tableContents(table).size).toBe(0);
    let room = 0;
    for (const key = new Uint8Array(8); room < 200; room++) {
      new DataView(key.buffer).setUint32(0, room, true);
      if (table.update(key, key) !== 0) break;
    }
    expect(room).toBeLessThanOrEqual(100);
    expect(room).toBeGreaterThanOrEqual(100 - kills);
    native[Symbol.dispose]();
  });
});
