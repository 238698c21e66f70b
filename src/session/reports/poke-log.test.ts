import { describe, expect, test } from "vitest";
import type { SiteOutcome, SitePoke, Transaction } from "../../target/target.ts";
import { printPokes } from "./poke-log.ts";

const site = (at: bigint, change: Partial<SitePoke> = {}): SitePoke => ({
  at,
  expect: Uint8Array.of(0x55, 0x48, 0x89, 0xe5, 0x90, 0xc3),
  write: Uint8Array.of(0xe9, 1, 2, 3, 4),
  fallback: undefined,
  moves: [],
  ...change,
});

const cases: readonly {
  readonly name: string;
  readonly why?: Transaction["why"];
  readonly sites: readonly SitePoke[];
  readonly outcomes: readonly SiteOutcome[];
  readonly lines: readonly object[];
}[] = [
  {
    name: "a jump: as many old bytes as new ones, not what is compared behind them",
    sites: [site(0x1000n)],
    outcomes: ["written"],
    lines: [{ why: "arm", at: "0x1000", symbol: "f", old: "554889e590", new: "e901020304", ns: "70" }],
  },
  {
    name: "a site that is left is not in it, one that gets its fallback is with that",
    why: "restore",
    sites: [site(0x1000n), site(0x2000n, { fallback: Uint8Array.of(0xcc) })],
    outcomes: ["left", "fallback"],
    lines: [{ why: "restore", at: "0x2000", old: "55", new: "cc", ns: "71" }],
  },
  {
    name: "text beside a site says so whatever the transaction is for",
    why: "optimize",
    sites: [site(0x1000n, { isSide: true }), site(0x2000n)],
    outcomes: ["written", "written"],
    lines: [
      { why: "side", at: "0x1000" },
      { why: "optimize", at: "0x2000" },
    ],
  },
];

describe("log of text pokes", () => {
  for (const { name, why, sites, outcomes, lines } of cases)
    test(name, () => {
      const transaction: Transaction = {
        sites,
        moves: [],
        trapSites: [],
        returnTables: [],
        vacate: [],
        usesTraps: false,
        finalCalls: [],
        ...(why === undefined ? {} : { why }),
      };
      const printed = printPokes({
        pid: 7,
        number: 3,
        transaction,
        report: {
          kind: "committed",
          outcomes,
          occupants: [],
          callResults: [],
          stoppedNs: 0n,
          threads: 1,
          returnsRestored: 0,
          writtenNs: sites.map((_, index) => 70n + BigInt(index)),
        },
        describe: () => "f",
      });
      expect(printed.map((line) => JSON.parse(line))).toMatchObject(
        lines.map((line) => ({ pid: 7, transaction: 3, ...line })),
      );
      expect(printed.every((line) => line.endsWith("}\n"))).toBe(true);
    });
});
