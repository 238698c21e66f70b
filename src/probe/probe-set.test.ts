import { describe, expect, test } from "vitest";
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
      writtenNs: outcomes.map(() => 0n),
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

const punned: PointCode = {
  at: 0x1000n,
  oldBytes: Uint8Array.of(0x31, 0xc0),
  jumpBytes: Uint8Array.of(0xeb, 0x10),
  detour: 0x9000n,
  twins: [{ from: 0x1000n, to: 0x9020n }],
  route: {
    leadsTo: 0x1017n,
    kept: new Uint8Array(0),
    sides: [
      {
        kind: "evicted",
        at: 0x1012n,
        oldBytes: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        newBytes: Uint8Array.of(0xe9, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0),
        leadsTo: 0x9100n,
        detour: 0x9100n,
        twins: [
          { from: 0x1012n, to: 0x9100n },
          { from: 0x1017n, to: 0x9105n },
          { from: 0x101cn, to: 0x910an },
        ],
      },
    ],
  },
};

test("what a punned point hops into is journalled and written before the point", async () => {
  const { memory, target, set } = setUp([["written", "written"]]);
  await set.arm([punned]);
  expect(target.journalAtCommit).toEqual([["evicted planned", "punned planned"]]);
  expect(target.transactions[0]!.sites.map(({ at, requires }) => [at, requires])).toEqual([
    [0x1012n, undefined],
    [0x1000n, [0]],
  ]);
  expect(target.transactions[0]!.sites[0]!.moves).toEqual([{ from: 0x1017n, to: 0x9105n }]);
  expect(parseJournal(memory).sites.map(({ state, leadsTo }) => [state, leadsTo])).toEqual([
    ["armed", 0x9100n],
    ["armed", 0x1017n],
  ]);
  expect(set.points[0]!.mechanism).toBe("punned");
});

test("where that cannot be written the point gets int3, and both are tried again later", async () => {
  const { target, set } = setUp([["left", "left"], ["written"], ["written", "written"]]);
  await set.arm([punned]);
  expect(set.points[0]!.mechanism).toBe("none");
  await set.armTraps(set.points);
  expect(target.transactions[1]!.sites.map(({ at }) => at)).toEqual([0x1000n]);
  expect(await set.optimize()).toBe(1);
  expect(target.transactions[2]!.sites.map(({ at }) => at)).toEqual([0x1012n, 0x1000n]);
  expect(set.points[0]!.mechanism).toBe("punned");
});

test("what is written already is not written again", async () => {
  const { target, set } = setUp([["written", "left"], ["written"]]);
  await set.arm([punned]);
  expect(await set.optimize()).toBe(1);
  expect(target.transactions[1]!.sites.map(({ at, requires }) => [at, requires])).toEqual([
    [0x1000n, undefined],
  ]);
});

test("the bytes that a pun ends with are expected, and not written", async () => {
  const { target, set } = setUp([["written"]]);
  const route = { leadsTo: 0x8000n, kept: Uint8Array.of(7, 8, 9), sides: [] };
  await set.arm([{ ...punned, route }]);
  expect(target.transactions[0]!.sites[0]).toMatchObject({
    expect: Uint8Array.of(0x31, 0xc0, 7, 8, 9),
    write: Uint8Array.of(0xeb, 0x10),
  });
});

describe("a call at a function's entry", () => {
  const nops = Uint8Array.of(0x90, 0x90, 0x90, 0x90, 0x90);
  const callTo = (low: number) => Uint8Array.of(0xe8, low, 0, 0, 0);
  const called: PointCode = {
    at: 0x1004n,
    oldBytes: nops,
    jumpBytes: callTo(1),
    detour: 0x9000n,
    twins: [1n, 2n, 3n, 4n].map((offset) => ({ from: 0x1004n + offset, to: 0x1009n })),
    isCall: true,
  };
  const other = { callBytes: callTo(2), detour: 0x9100n };

  test("moves threads out of the nops, and never back into them", async () => {
    const { memory, target, set } = setUp([["written"]]);
    await set.arm([called]);
    expect(set.points[0]!.mechanism).toBe("call");
    expect(target.transactions[0]!.sites[0]!.moves).toEqual(called.twins);
    expect(set.homeMoves).toEqual([]);
    expect(parseJournal(memory).sites[0]).toMatchObject({
      mechanism: "call",
      newBytes: callTo(1),
      detour: 0x9000n,
    });
  });

  test("is led elsewhere by one write, which the journal knows before, whatever old frames say", async () => {
    const { memory, target, set } = setUp([["written"], ["written"]]);
    await set.arm([called]);
    await set.change([], [{ point: set.points[0]!, to: other }]);
    expect(target.transactions[1]!.sites).toMatchObject([
      { at: 0x1004n, expect: callTo(1), write: callTo(2), hasNoInside: true, moves: [] },
    ]);
    expect(parseJournal(memory).sites).toMatchObject([
      { newBytes: callTo(2), detour: 0x9100n, state: "armed" },
    ]);
    expect(set.points[0]).toMatchObject({ jumpBytes: callTo(2), detour: 0x9100n, mechanism: "call" });
  });

  test("is nops again while nobody wants it, and no optimizer brings it back", async () => {
    const { memory, target, set } = setUp([["written"], ["written"], ["written"]]);
    await set.arm([called]);
    const [point] = set.points;
    await set.change([], [{ point: point!, to: undefined }]);
    expect(target.transactions[1]!.sites).toMatchObject([
      { expect: callTo(1), write: nops, hasNoInside: true },
    ]);
    expect(parseJournal(memory).sites[0]!.state).toBe("removed");
    expect(point).toMatchObject({ mechanism: "none", isIdle: true });
    expect(set.unoptimized).toEqual([]);
    await set.change([], [{ point: point!, to: other }]);
    expect(target.transactions[2]!.sites).toMatchObject([
      { expect: nops, write: callTo(2), hasNoInside: false },
    ]);
    expect(target.transactions[2]!.sites[0]!.moves).toEqual(called.twins);
    expect(point).toMatchObject({ mechanism: "call", isIdle: false });
  });

  test("a refused change leaves it as it was, in the journal too", async () => {
    const { memory, set } = setUp([["written"]]);
    await set.arm([called]);
    const [point] = set.points;
    await expect(set.change([], [{ point: point!, to: other }])).rejects.toBeInstanceOf(ArmError);
    expect(point).toMatchObject({ jumpBytes: callTo(1), detour: 0x9000n, mechanism: "call" });
    expect(parseJournal(memory).sites[0]).toMatchObject({ newBytes: callTo(1), detour: 0x9000n });
  });

  test("with an int3 for the time being it is not written, and gets the new call later", async () => {
    const { memory, target, set } = setUp([["left"], ["written"], [], ["written"]]);
    await set.arm([called]);
    const [point] = set.points;
    point!.trapEntry = 0x9500n;
    await set.armTraps([point!]);
    expect(parseJournal(memory).sites[0]).toMatchObject({ mechanism: "int3", detour: 0x9500n });
    await set.change([], [{ point: point!, to: other }]);
    expect(target.transactions[2]!.sites).toEqual([]);
    expect(await set.optimize()).toBe(1);
    expect(target.transactions[3]!.sites).toMatchObject([{ write: callTo(2), moves: called.twins }]);
    expect(parseJournal(memory).sites[0]).toMatchObject({ mechanism: "call", detour: 0x9100n });
  });

  test("what is to be retired is asked in the same stop", async () => {
    const { target, set } = setUp([["written"]]);
    const retire = { ranges: [{ start: 1n, end: 2n }], callees: [], stackBytes: 64 };
    await set.change([called], [], retire);
    expect(target.transactions[0]!.retire).toBe(retire);
  });
});
