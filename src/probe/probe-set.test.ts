import { expect, test } from "vitest";
import type { CommitReport, SiteOutcome, Transaction } from "../target/target.ts";
import { Journal, journalBytes, parseJournal } from "./journal.ts";
import { ArmError, type PointCode, ProbeSet } from "./probe-set.ts";

/** A target that answers as told, and remembers what the journal said at the moment of each commit. */
class ScriptedTarget {
  readonly transactions: Transaction[] = [];
  readonly journalAtCommit: string[][] = [];
  readonly #outcomes: (readonly SiteOutcome[])[];
  readonly #memory: Uint8Array;

  constructor(memory: Uint8Array, outcomes: (readonly SiteOutcome[])[]) {
    this.#memory = memory;
    this.#outcomes = outcomes;
  }

  async commit(transaction: Transaction): Promise<CommitReport> {
    this.transactions.push(transaction);
    this.journalAtCommit.push(
      parseJournal(this.#memory).sites.map((site) => `${site.mechanism} ${site.state}`),
    );
    const outcomes = this.#outcomes.shift();
    if (outcomes === undefined) return { kind: "refused", reason: { kind: "target-gone" } };
    return {
      kind: "committed",
      outcomes,
      occupants: [],
      callResults: [],
      stoppedNs: 5n,
      threads: 1,
      returnsRestored: 0,
    };
  }
}

const point: PointCode = {
  at: 0x1000n,
  oldBytes: Uint8Array.of(0x41, 0x54, 0x55, 0x53, 0x48, 0x89, 0xfb),
  jumpBytes: Uint8Array.of(0xe9, 1, 2, 3, 4, 0x89, 0xfb),
  detour: 0x9000n,
  twins: [
    { from: 0x1000n, to: 0x9020n },
    { from: 0x1002n, to: 0x9022n },
    { from: 0x1003n, to: 0x9023n },
    { from: 0x1007n, to: 0x9027n },
  ],
};

function setUp(outcomes: (readonly SiteOutcome[])[]) {
  const memory = new Uint8Array(journalBytes(8));
  const journal = new Journal(memory, 8, { tracerPid: 1, tracerStart: 0n, targetPid: 2, sharedBytes: 0 });
  const target = new ScriptedTarget(memory, outcomes);
  return { memory, target, set: new ProbeSet(target, journal) };
}

test("the journal knows a site before it is written", async () => {
  const { memory, target, set } = setUp([["written"]]);
  await set.arm([point]);
  expect(target.journalAtCommit).toEqual([["jump planned"]]);
  expect(parseJournal(memory).sites[0]).toMatchObject({ mechanism: "jump", state: "armed" });
});

test("threads inside the region are moved, one at its first byte is not", async () => {
  const { target, set } = setUp([["written"]]);
  await set.arm([point]);
  expect(target.transactions[0]!.sites[0]!.moves).toEqual([
    { from: 0x1002n, to: 0x9022n },
    { from: 0x1003n, to: 0x9023n },
  ]);
});

test("a point that may be returned into gets int3 first and the jump in a later batch", async () => {
  const { target, set } = setUp([["left"], ["written"], ["left"], ["written"]]);
  await set.arm([point]);
  expect(set.points[0]!.mechanism).toBe("none");
  await set.armTraps(set.points);
  expect(set.points[0]!.mechanism).toBe("int3");
  expect(target.transactions[1]!.sites[0]).toMatchObject({
    expect: Uint8Array.of(0x41),
    write: Uint8Array.of(0xcc),
  });
  expect(target.transactions[1]!.usesTraps).toBe(true);
  expect(await set.optimize()).toBe(0);
  expect(await set.optimize()).toBe(1);
  expect(set.points[0]!.mechanism).toBe("jump");
  expect(target.transactions[3]).toMatchObject({ trapSites: [0x1000n] });
  expect(target.transactions[3]!.sites[0]!.expect).toEqual(
    Uint8Array.of(0xcc, 0x54, 0x55, 0x53, 0x48, 0x89, 0xfb),
  );
  expect(set.unoptimized).toEqual([]);
});

test("a refused transaction arms nothing", async () => {
  const { set } = setUp([]);
  await expect(set.arm([point])).rejects.toBeInstanceOf(ArmError);
  expect(set.points).toEqual([]);
});
