import { describe, expect, test } from "vitest";
import type { Move } from "../target/target.ts";
import type { JournalContents, JournalSite } from "./journal.ts";
import { planRestoration } from "./restoration.ts";
import { siteState } from "./site-state.ts";

const site: JournalSite = {
  kind: "site",
  record: 0,
  at: 0x1000n,
  mechanism: "jump",
  state: "armed",
  oldBytes: Uint8Array.of(0x55, 0x48, 0x89, 0xe5, 0x53),
  newBytes: Uint8Array.of(0xe9, 1, 2, 3, 4),
  detour: 0x9000n,
  leadsTo: 0n,
  copyOffset: 0,
};

test.each([
  ["old bytes", site.oldBytes, "original"],
  ["the jump", site.newBytes, "jump"],
  ["an int3 before the old bytes", Uint8Array.of(0xcc, 0x48, 0x89, 0xe5, 0x53), "int3"],
  ["another tool's jump", Uint8Array.of(0xe9, 9, 9, 9, 9), "foreign"],
  ["half a jump", Uint8Array.of(0xe9, 1, 2, 0xe5, 0x53), "foreign"],
])("a site that holds %s", (_, found, state) => {
  expect(siteState(site, found)).toBe(state);
});

const journal: JournalContents = {
  header: { tracerPid: 1, tracerStart: 0n, targetPid: 2, sharedBytes: 4096 },
  scratch: 0x5000n,
  key: 3,
  returnTable: undefined,
  trapAction: { previous: new Uint8Array(32).fill(3), handler: 0x9900n, previousAt: 0x9a00n },
  signals: [],
  isLeft: false,
  kept: [],
  unwind: [],
  debug: [],
  hooks: [],
  sites: [site, { ...site, at: 0x2000n }, { ...site, at: 0x3000n }],
  memory: [
    { kind: "code", at: 0x9000n, lenBytes: 0x1000, state: "planned" },
    { kind: "memory", at: 0x5000n, lenBytes: 0x2000, state: "planned" },
    { kind: "memory", at: 0x7000n, lenBytes: 0x1000, state: "planned" },
  ],
};
const journalMemory = { start: 0x6000n, end: 0x7000n };

function plan(trapHandler: bigint) {
  const trap = { current: trapHandler, previous: new Uint8Array(32).fill(3), chained: undefined };
  const handlers = new Map([[5, trap]]);
  const found = [site.newBytes, site.oldBytes, Uint8Array.of(0x90, 0x90, 0x90, 0x90, 0x90)];
  return planRestoration({
    journal,
    journalMemory,
    found,
    handlers,
    moves: [],
    others: [],
    read: () => undefined,
  });
}

test("only what holds our bytes is put back, and what somebody else wrote is reported", () => {
  const { transaction, restored, foreign } = plan(0x9900n);
  expect(restored).toBe(1);
  expect(transaction.sites).toEqual([
    {
      at: 0x1000n,
      expect: site.newBytes,
      write: site.oldBytes,
      fallback: site.oldBytes,
      moves: [],
      hasNoStart: false,
    },
  ]);
  expect(foreign.map(({ at }) => at)).toEqual([0x3000n]);
});

test("the range with the journal is unmapped last, and then its key is given back", () => {
  const calls = plan(0x9900n).transaction.finalCalls;
  expect(calls.map(({ name, args }) => [name, args[0]])).toEqual([
    ["rt_sigaction", 5n],
    ["munmap", 0x9000n],
    ["munmap", 0x7000n],
    ["munmap", 0x5000n],
    ["pkey_free", 3n],
  ]);
});

test("a SIGTRAP handler that the application has set meanwhile stays", () => {
  const calls = plan(0x1234n).transaction.finalCalls;
  expect(calls.map(({ name }) => name)).not.toContain("rt_sigaction");
});

function restore(sites: readonly JournalSite[], moves: readonly Move[]) {
  return planRestoration({
    journal: { ...journal, sites, trapAction: undefined },
    journalMemory,
    found: sites.map(({ newBytes }) => newBytes),
    handlers: new Map(),
    moves,
    others: [],
    read: () => undefined,
  });
}

describe("a punned site with what made way for it", () => {
  const evicted: JournalSite = {
    ...site,
    at: 0x1012n,
    mechanism: "evicted",
    oldBytes: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    newBytes: Uint8Array.of(0xe9, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0),
    detour: 0x9100n,
    leadsTo: 0x9100n,
  };
  const padding: JournalSite = {
    ...evicted,
    at: 0x3000n,
    mechanism: "padding",
    oldBytes: Uint8Array.of(0xcc, 0xcc, 0xcc, 0xcc, 0xcc),
    newBytes: Uint8Array.of(0xe9, 0, 0, 0, 0),
  };
  const punned: JournalSite = {
    ...site,
    mechanism: "punned",
    oldBytes: Uint8Array.of(0x31, 0xc0),
    newBytes: Uint8Array.of(0xeb, 0x15),
    leadsTo: 0x1017n,
  };

  test("the site is put back first, and counts as one", () => {
    const { transaction, restored } = restore([evicted, punned], []);
    expect(transaction.sites.map(({ at }) => at)).toEqual([0x1000n, 0x1012n]);
    expect(restored).toBe(1);
  });

  test("what made way stays as long as somebody may return into it, and nobody is moved into it then", () => {
    const home = [
      { from: 0x9105n, to: 0x1017n },
      { from: 0x910an, to: 0x101cn },
    ];
    const { transaction } = restore([evicted, punned], home);
    expect(transaction.sites[0]!.fallback).toEqual(punned.oldBytes);
    expect(transaction.sites[1]).toMatchObject({ fallback: undefined, moves: [home[0]] });
    expect(transaction.moves).toContainEqual(home[1]);
    expect(transaction.moves).not.toContainEqual(home[0]);
  });

  test("who is on the way to a detour goes back to the site, also without the one who made it", () => {
    const { transaction } = restore([evicted, punned], []);
    expect(transaction.moves).toContainEqual({ from: 0x1017n, to: 0x1000n });
    expect(transaction.moves).toContainEqual({ from: 0x9000n, to: 0x1000n });
    expect(transaction.moves).toContainEqual({ from: 0x9100n, to: 0x1012n });
  });

  test("nobody stands at the first byte of padding but on the way", () => {
    const { transaction } = restore([padding, { ...punned, leadsTo: padding.at }], []);
    expect(transaction.sites[1]).toMatchObject({ at: padding.at, hasNoStart: true, fallback: undefined });
    expect(transaction.moves.map(({ to }) => to)).not.toContain(padding.at);
  });
});

describe("a call at a function's entry", () => {
  const call = (to: bigint) => {
    const bytes = Uint8Array.of(0xe8, 0, 0, 0, 0);
    new DataView(bytes.buffer).setInt32(1, Number(to - 0x1005n), true);
    return bytes;
  };
  const called: JournalSite = {
    ...site,
    mechanism: "call",
    oldBytes: Uint8Array.of(0x0f, 0x1f, 0x44, 0, 0),
    newBytes: call(0x9000n),
    detour: 0x9000n,
  };
  const code = [{ start: 0x9000n, end: 0xa000n }];

  test("is ours wherever in our code it leads, and only there", () => {
    expect(siteState(called, call(0x9100n), code)).toBe("jump");
    expect(siteState(called, call(0xa000n), code)).toBe("foreign");
    expect(siteState(called, called.oldBytes, code)).toBe("original");
    expect(siteState({ ...called, mechanism: "jump" }, call(0x9100n), code)).toBe("foreign");
  });

  test("is taken out by one who does not know the trampoline, and nobody is moved out of that", () => {
    const { transaction, foreign } = planRestoration({
      journal: { ...journal, sites: [called], trapAction: undefined },
      journalMemory,
      found: [call(0x9080n)],
      handlers: new Map(),
      moves: [],
      others: [],
      read: () => undefined,
    });
    expect(foreign).toEqual([]);
    expect(transaction.sites).toMatchObject([{ expect: call(0x9080n), write: called.oldBytes }]);
    // The call has pushed its return address: only its own return gets rid of that.
    expect(transaction.moves).toEqual([]);
  });
});
