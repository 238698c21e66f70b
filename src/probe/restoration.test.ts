import { expect, test } from "vitest";
import type { JournalContents, JournalSite } from "./journal.ts";
import { planRestoration, siteState } from "./restoration.ts";

const site: JournalSite = {
  kind: "site",
  at: 0x1000n,
  mechanism: "jump",
  state: "armed",
  oldBytes: Uint8Array.of(0x55, 0x48, 0x89, 0xe5, 0x53),
  newBytes: Uint8Array.of(0xe9, 1, 2, 3, 4),
  detour: 0x9000n,
  leadsTo: 0n,
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
  privateMemory: { at: 0x5000n, lenBytes: 0x1000 },
  returnTable: undefined,
  trapAction: { previous: new Uint8Array(32).fill(3), handler: 0x9900n },
  sites: [site, { ...site, at: 0x2000n }, { ...site, at: 0x3000n }],
  memory: [
    { kind: "code", at: 0x9000n, lenBytes: 0x1000, state: "planned" },
    { kind: "memory", at: 0x7000n, lenBytes: 0x1000, state: "planned" },
  ],
};
const journalMemory = { start: 0x6000n, end: 0x7000n };

function plan(trapHandler: bigint) {
  const found = [site.newBytes, site.oldBytes, Uint8Array.of(0x90, 0x90, 0x90, 0x90, 0x90)];
  return planRestoration({ journal, journalMemory, found, trapHandler, moves: [] });
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

test("the journal is unmapped last", () => {
  const calls = plan(0x9900n).transaction.finalCalls;
  expect(calls.map(({ name, args }) => [name, args[0]])).toEqual([
    ["rt_sigaction", 5n],
    ["munmap", 0x9000n],
    ["munmap", 0x7000n],
    ["munmap", 0x5000n],
    ["munmap", 0x6000n],
  ]);
});

test("a SIGTRAP handler that the application has set meanwhile stays", () => {
  const calls = plan(0x1234n).transaction.finalCalls;
  expect(calls.map(({ name }) => name)).not.toContain("rt_sigaction");
});
