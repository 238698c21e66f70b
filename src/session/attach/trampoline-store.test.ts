import { describe, expect, test } from "vitest";
import type { GateProgram } from "../../gate/index.ts";
import type { SitePlan } from "../../patch/plan.ts";
import { Journal, journalBytes } from "../../probe/journal.ts";
import { PT_REGS_COOKIE, RAX, RCX, regSet } from "../../x86/registers.ts";
import { CodeSpaces } from "./code-space.ts";
import { type TrampolineNeed, TrampolineStore } from "./trampoline-store.ts";

const IMAGE = { name: "made", range: { start: 0x40_0000n, end: 0x41_0000n } };

function setUp() {
  const journal = new Journal(new Uint8Array(journalBytes(64)), 64, {
    tracerPid: 1,
    tracerStart: 0n,
    targetPid: 2,
    sharedBytes: 0,
  });
  const port = { createCode: async () => {}, createCodeWhereFree: async () => [] };
  const store = new TrampolineStore(new CodeSpaces(port, journal, () => [IMAGE.range]));
  const written: { at: bigint; bytes: Uint8Array }[] = [];
  return { store, written, write: (at: bigint, bytes: Uint8Array) => void written.push({ at, bytes }) };
}

const program = (entry: bigint, cookie = 0n, reads: readonly number[] = []): GateProgram => ({
  name: "p",
  entry,
  clobbers: regSet(RAX),
  ctxReads: new Set(reads),
  stackBytes: 16,
  cookie,
});

function need(at: bigint, programs: readonly GateProgram[], regs = regSet(RCX)): TrampolineNeed {
  const plan = {
    at,
    region: { start: at, lenBytes: 5, insns: [], paddingBytes: 0, fallsThrough: true },
    liveness: { regs, flagsLive: false },
  } as unknown as SitePlan;
  return { plan, image: IMAGE, programs };
}

const withCookie = (cookie: bigint) => [program(0x1000n, cookie, [PT_REGS_COOKIE])];

describe("one trampoline", () => {
  test("serves all functions with the same programs, and saves what is live at any of them", async () => {
    const { store, written, write } = setUp();
    const a = program(0x1000n);
    const [one, two] = await store.provide(
      [need(0x40_1000n, [a], regSet(RCX)), need(0x40_2000n, [a], regSet(RAX))],
      write,
    );
    expect(one).toBe(two);
    expect(written.length).toBe(1);
    const [later] = await store.provide([need(0x40_3000n, [a], regSet(RAX, RCX))], write);
    expect(later).toBe(one);
  });

  test("does not serve a function in which more is live", async () => {
    const { store, write } = setUp();
    const a = program(0x1000n);
    const [one] = await store.provide([need(0x40_1000n, [a], regSet(RCX))], write);
    const [two] = await store.provide([need(0x40_2000n, [a], regSet(RAX))], write);
    expect(two).not.toBe(one);
  });

  test("is taken up again as long as its memory was not taken back", async () => {
    const { store, written, write } = setUp();
    const [one] = await store.provide([need(0x40_1000n, [program(0x1000n)])], write);
    store.hold(one!);
    store.release(one!);
    const [again] = await store.provide([need(0x40_1000n, [program(0x1000n)])], write);
    expect(again).toBe(one);
    expect(written.length).toBe(1);
  });
});

describe("memory of trampolines that nothing leads to", () => {
  async function retireMany(count: number) {
    const made = setUp();
    for (let i = 0; i < count; i++) {
      const [one] = await made.store.provide([need(0x40_1000n, withCookie(BigInt(i)))], made.write);
      made.store.hold(one!);
      made.store.release(one!);
    }
    return made;
  }

  test("is asked for when there is enough of it", async () => {
    const few = await retireMany(8);
    expect(few.store.retirement([])).toBeUndefined();
    const many = await retireMany(400);
    expect(many.store.retirement([])?.of.length).toBe(400);
  });

  test("is used again where nobody is, and only there", async () => {
    const { store, written, write } = await retireMany(400);
    const { of, retire } = store.retirement([])!;
    expect(retire.ranges).toEqual(of.map(({ block }) => block));
    store.reclaim(
      of,
      of.map((_, index) => index === 7),
    );
    expect(store.statistics).toMatchObject({ used: 0, retired: 399, reclaimed: 1 });
    const [fresh] = await store.provide([need(0x40_1000n, withCookie(1000n))], write);
    expect(fresh!.block).toEqual(of[7]!.block);
    expect(written.at(-1)!.at).toBe(of[7]!.block.start);
    // What was there is made anew.
    const [back] = await store.provide([need(0x40_1000n, withCookie(7n))], write);
    expect(back).not.toBe(of[7]);
  });

  test("is kept while a site leads there, is about to, or a trap may", async () => {
    const { store, write } = await retireMany(400);
    const all = store.retirement([])!.of;
    const [held, wanted, trapped] = all;
    store.hold(held!);
    await store.approach(need(0x40_1000n, withCookie(2n)), trapped!, write);
    expect(store.retirement([wanted!])!.of).toEqual(all.slice(3));
  });
});
