/** Walks over made-up stacks: compiled code and interpreter against the chain that was laid. */
import koffi from "koffi";
import { afterAll, describe, expect, it } from "vitest";
import { HelperCases } from "../../../../test/support/helper-case.ts";
import { contextOf } from "../../../../test/support/native-bpf.ts";
import { nativeMemory } from "../../../../test/support/native-code.ts";
import { GATE_OVERRIDE_VALUE, GATE_OVERRIDES, GATE_SITE } from "../../../gate/index.ts";
import { R10, R11 } from "../../../x86/registers.ts";
import { CTX_OVERRIDE_VALUE, CTX_OVERRIDES, CTX_SITE } from "../../context.ts";
import { HELPER_GET_STACK, HELPER_GET_STACKID } from "../../helpers.ts";
import { StackTraceMap } from "../../maps/index.ts";
import type { MapSpec } from "../../program.ts";
import { returnLookupWrites } from "./return-lookup.ts";

const PAGE = 4096;
const PAGES = 4;
const IP = 0x40_1000n;
const libc = koffi.load("libc.so.6");
const munmap = libc.func("int munmap(intptr_t addr, size_t len)");

/** Stacks of up to 20 addresses in `STACKS`, 200 in `DEEP`, 1 in `SHALLOW`. */
const [STACKS, DEEP, SHALLOW] = [1, 2, 3];
const stacksOf = (frames: number): MapSpec => ({
  name: "stacks",
  kind: "stack_trace",
  keyBytes: 4,
  valueBytes: 8 * frames,
  maxEntries: 64,
});
const cases = new HelperCases([stacksOf(20), stacksOf(200), stacksOf(1)]);
/** A stack of its own, with a hole behind it. */
const stack = nativeMemory((PAGES + 1) * PAGE);
munmap(stack.at + BigInt(PAGES * PAGE), PAGE);
afterAll(() => {
  cases[Symbol.dispose]();
  stack[Symbol.dispose]();
});

/** Writes frames at these offsets, the address of frame i being 0x500000 + i; the last one's saved rbp is `end`. */
function lay(offsets: readonly number[], end = 0n): void {
  new Uint8Array(koffi.view(stack.at, PAGES * PAGE)).fill(0);
  offsets.forEach((offset, i) => {
    const next = offsets[i + 1];
    if (offset + 8 <= PAGES * PAGE)
      stack.view.setBigUint64(offset, next === undefined ? end : stack.at + BigInt(next), true);
    if (offset + 16 <= PAGES * PAGE) stack.view.setBigUint64(offset + 8, 0x50_0000n + BigInt(i), true);
  });
}

const readMade = (addr: bigint, into: Uint8Array) => {
  const at = addr - stack.at;
  if (at < 0n || at + BigInt(into.length) > BigInt(PAGES * PAGE)) return false;
  into.set(new Uint8Array(koffi.view(stack.at, PAGES * PAGE)).subarray(Number(at), Number(at) + into.length));
  return true;
};

interface Walk {
  readonly fp: bigint;
  readonly sp?: bigint;
  readonly size?: number;
  readonly flags?: bigint;
  readonly isEntry?: boolean;
  readonly readUser?: typeof readMade;
}

function contextAt({ fp, sp = stack.at, isEntry = false }: Walk): Uint8Array {
  const slots = new Map([
    [32, fp],
    [128, IP],
    [152, sp],
  ]);
  const ctx = new Uint8Array(CTX_SITE + 8);
  ctx.set(contextOf((offset) => slots.get(offset) ?? 0n));
  ctx[CTX_SITE] = isEntry ? 1 : 0;
  return ctx;
}

function walk(input: Walk) {
  const { size = 256, flags = 1n << 8n, readUser = readMade } = input;
  const { result, memory } = cases.run({
    helper: HELPER_GET_STACK,
    args: ["ctx", { memory: 0 }, size, flags],
    ctx: contextAt(input),
    host: { readUser },
  });
  const view = new DataView(memory.buffer);
  const filled = Array.from({ length: size / 8 }, (_, i) => view.getBigUint64(8 * i, true));
  expect(memory[size]).toBe(0xee);
  const count = result < 0n ? 0 : Number(result) / 8;
  expect(filled.slice(count).every((frame) => frame === 0n)).toBe(true);
  return { result, frames: filled.slice(0, count) };
}

const spaced = (count: number, step: number, from = 64) =>
  Array.from({ length: count }, (_, i) => from + i * step);
const addresses = (count: number) => [IP, ...Array.from({ length: count }, (_, i) => 0x50_0000n + BigInt(i))];

it("helpers and gate mean the same words behind the context", () => {
  expect([GATE_SITE, GATE_OVERRIDES, GATE_OVERRIDE_VALUE]).toEqual([
    CTX_SITE,
    CTX_OVERRIDES,
    CTX_OVERRIDE_VALUE,
  ]);
});

describe("get_stack", () => {
  it("of the thread that the program runs on: loaded up to the end of its page, read behind it", () => {
    const { at, bytes } = cases.native.machine.stack;
    // The context lies 8 KiB and a little above the beginning; its page ends at the next multiple of 4 KiB.
    const first = 9 * 1024;
    const toPageEnd = PAGE - Number((at + BigInt(first)) % BigInt(PAGE));
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const offsets = [0, 64, toPageEnd - 16, toPageEnd + 32, toPageEnd + 3000].map((offset) => first + offset);
    offsets.forEach((offset, i) => {
      const next = offsets[i + 1];
      view.setBigUint64(offset, next === undefined ? 0n : at + BigInt(next), true);
      view.setBigUint64(offset + 8, 0x50_0000n + BigInt(i), true);
    });
    const fromMachine = (addr: bigint, into: Uint8Array) => {
      into.set(bytes.subarray(Number(addr - at), Number(addr - at) + into.length));
      return addr !== 0n;
    };
    const fp = at + BigInt(first);
    expect(walk({ fp, sp: fp - 64n, readUser: fromMachine }).frames).toEqual(addresses(5));
  });

  it.each([
    { name: "one frame", offsets: [64], want: 1 },
    { name: "small frames in one window", offsets: spaced(12, 32), want: 12 },
    { name: "frames larger than a window", offsets: spaced(9, 1600), want: 9 },
    { name: "a frame across a page boundary", offsets: [64, PAGE - 8, PAGE + 400], want: 3 },
    { name: "a frame at the end of a window", offsets: [64, 64 + 2048 - 8, 64 + 2048 + 64], want: 3 },
    { name: "the last readable bytes", offsets: [64, PAGES * PAGE - 16], want: 2 },
    { name: "a frame that is half there", offsets: [64, PAGES * PAGE - 8], want: 1 },
  ])("$name", ({ offsets, want }) => {
    lay(offsets);
    expect(walk({ fp: stack.at + BigInt(offsets[0]!) }).frames).toEqual(addresses(want));
  });

  it.each([
    { name: "no frame pointer", fp: 0n, want: 0 },
    { name: "a small number", fp: 8n, want: 0 },
    { name: "no address", fp: 0x1234_5678_9abc_def0n, want: 0 },
    { name: "the end of the address space", fp: 0xffff_ffff_ffff_fff8n, want: 0 },
    { name: "not aligned", fp: stack.at + 65n, want: 0 },
    { name: "the next one is not aligned", fp: stack.at + 64n, end: stack.at + 131n, want: 1 },
    { name: "the next one is itself", fp: stack.at + 64n, end: stack.at + 64n, want: 1 },
    { name: "the next one is below", fp: stack.at + 64n, end: stack.at, want: 1 },
    { name: "the next one is in a hole", fp: stack.at + 64n, end: stack.at + BigInt(PAGES * PAGE), want: 1 },
  ])("ends: $name", ({ fp, end, want }) => {
    lay([64], end);
    expect(walk({ fp }).frames).toEqual(addresses(want));
  });

  it.each([
    { name: "the return address is on top of the stack", sp: 32, want: [IP, 0x77n, 0x50_0000n] },
    { name: "the stack cannot be read", sp: PAGES * PAGE, want: [IP] },
  ])("at a function's entry: $name", ({ sp, want }) => {
    lay([64]);
    stack.view.setBigUint64(32, 0x77n, true);
    const got = walk({ fp: stack.at + 64n, sp: stack.at + BigInt(sp), isEntry: true });
    expect(got.frames).toEqual(want);
  });

  it.each([
    { name: "less room than frames", size: 24, flags: 0n, want: { result: 24n, frames: addresses(2) } },
    { name: "no room", size: 0, flags: 0n, want: { result: 0n, frames: [] } },
    { name: "frames left out", size: 64, flags: 3n, want: { result: 64n, frames: addresses(10).slice(3) } },
    { name: "all left out", size: 64, flags: 13n, want: { result: 0n, frames: [] } },
    { name: "more left out than there are", size: 64, flags: 14n, want: { result: -14n, frames: [] } },
    { name: "far more left out", size: 64, flags: 255n, want: { result: -14n, frames: [] } },
    { name: "a flag that there is not", size: 64, flags: 1n << 12n, want: { result: -22n, frames: [] } },
    { name: "build ids", size: 64, flags: (3n << 8n) << 2n, want: { result: -22n, frames: [] } },
    { name: "high flags", size: 64, flags: 1n << 63n, want: { result: -22n, frames: [] } },
    { name: "no whole addresses", size: 60, flags: 0n, want: { result: -22n, frames: [] } },
  ])("$name", ({ size, flags, want }) => {
    lay(spaced(12, 48));
    const got = walk({ fp: stack.at + 64n, size, flags });
    expect(got).toEqual({ ...want, frames: want.frames.slice(0, Number(want.result) / 8) });
  });

  it("127 frames are the most, with those that are left out", () => {
    lay(spaced(200, 64));
    const all = walk({ fp: stack.at + 64n, size: 2048 });
    expect(all.frames).toEqual(addresses(126));
    expect(walk({ fp: stack.at + 64n, size: 2048, flags: 100n }).frames).toEqual(addresses(126).slice(100));
    expect(walk({ fp: stack.at + 64n, size: 2048, flags: 127n }).result).toBe(0n);
    expect(walk({ fp: stack.at + 64n, size: 2048, flags: 128n }).result).toBe(-14n);
  });
});

function idOf(map: number, input: Walk): number {
  const { flags = 1n << 8n, readUser = readMade } = input;
  const args = ["ctx", { map }, flags] as const;
  const call = { helper: HELPER_GET_STACKID, args, ctx: contextAt(input), host: { readUser } };
  return Number(cases.run(call).result);
}

function kept(map: number, id: number): readonly bigint[] | undefined {
  const stacks = cases.native.maps[map];
  return stacks instanceof StackTraceMap ? stacks.get(id) : undefined;
}

it("where a return probe has put a stub, what was there counts", () => {
  const { native } = cases;
  const stubs = { start: 0x7000_0000n, end: 0x7001_0000n };
  lay([64, 256, 400]);
  // Slot 264 holds a stub, slot 408 the third one of a chain; that of slot 72 nobody knows.
  const [known, third, unknown] = [stubs.start + 0x80n, stubs.start + 0xa0n, stubs.start + 0x100n];
  const table: readonly (readonly [key: bigint, address: bigint])[] = [
    [stack.at + 264n, 0x1111n],
    [(stack.at + 408n) | 2n, stubs.start + 0x190n],
    [(stack.at + 408n) | 1n, stubs.start + 0x200n],
    [stack.at + 408n, 0x2222n],
  ];
  for (const [slot, stub] of [
    [72, unknown],
    [264, known],
    [408, third],
  ] as const)
    stack.view.setBigUint64(slot, stub, true);
  const { asm, written } = native.place((a) => {
    const routine = a.here("lookup");
    for (const [key, address] of table) {
      const other = a.label();
      a.movImm(R11, key);
      a.cmp(R10, R11);
      a.jcc("ne", other);
      a.movImm(R11, address);
      a.ret();
      a.bind(other);
    }
    a.zero(R11);
    a.ret();
    return routine;
  });
  const read = () => {
    const { program, entry } = cases.compile({
      helper: HELPER_GET_STACK,
      args: ["ctx", { memory: 0 }, 32, 0n],
    });
    const bytes = native.run({ program, entry }, contextAt({ fp: stack.at + 64n }));
    return Array.from({ length: Number(bytes) / 8 }, (_, i) => native.memory.view.getBigUint64(8 * i, true));
  };
  expect(read()).toEqual([IP, unknown, known, third]);
  const cache = Number(native.env.pidCache - native.env.mapAddr(0));
  for (const { at, bytes } of returnLookupWrites(0n, { stubs, routine: asm.addressOf(written) }))
    native.memory.bytes.set(bytes, cache + Number(at));
  expect(read()).toEqual([IP, unknown, 0x1111n, 0x2222n]);
  native.memory.bytes.fill(0, cache + 16, cache + 40);
});

describe("get_stackid", () => {
  const fp = stack.at + 64n;

  it("one id for one stack, and others for others", () => {
    const ids = [1, 5, 9, 12].map((count) => {
      lay(spaced(count, 48));
      const id = idOf(STACKS, { fp });
      expect(kept(STACKS, id)).toEqual(addresses(count));
      expect(idOf(STACKS, { fp })).toBe(id);
      return id;
    });
    expect(new Set(ids).size).toBe(4);
  });

  it("as many addresses as the map holds, behind those that are left out", () => {
    lay(spaced(150, 48));
    expect(kept(STACKS, idOf(STACKS, { fp }))).toEqual(addresses(19));
    expect(kept(STACKS, idOf(STACKS, { fp, flags: 7n }))).toEqual(addresses(26).slice(7));
    expect(kept(DEEP, idOf(DEEP, { fp }))).toEqual(addresses(126));
    expect(kept(DEEP, idOf(DEEP, { fp, flags: 120n }))).toEqual(addresses(126).slice(120));
  });

  it("at a function's entry with the caller", () => {
    lay([64]);
    stack.view.setBigUint64(32, 0x77n, true);
    const id = idOf(STACKS, { fp, sp: stack.at + 32n, isEntry: true });
    expect(kept(STACKS, id)).toEqual([IP, 0x77n, 0x50_0000n]);
  });

  it.each([
    { name: "nothing is left", flags: 2n, want: -14 },
    { name: "more is left out than there is", flags: 200n, want: -14 },
    { name: "a flag that there is not", flags: 1n << 11n, want: -22 },
    { name: "high flags", flags: 1n << 40n, want: -22 },
  ])("$name", ({ flags, want }) => {
    lay([64]);
    expect(idOf(STACKS, { fp, flags })).toBe(want);
  });

  it("two stacks of one id: the second is refused, or takes the place of the first", () => {
    const run = (ip: bigint, flags: bigint) => {
      const ctx = contextAt({ fp: 0n });
      new DataView(ctx.buffer).setBigUint64(128, ip, true);
      const args = ["ctx", { map: SHALLOW }, flags] as const;
      return Number(cases.run({ helper: HELPER_GET_STACKID, args, ctx }).result);
    };
    expect(kept(SHALLOW, run(1n, 0n))).toEqual([1n]);
    // There are 64 ids.
    let other = 2n;
    while (run(other, 0n) !== -17) other++;
    expect(kept(SHALLOW, run(other, 1n << 10n))).toEqual([other]);
  });
});
