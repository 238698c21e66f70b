/** Consumers of function entries that come and go while threads call the functions all the time. */
import { describe, expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { Attached } from "../support/attached.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 3;
const ROUNDS = 200;
const CALL = 0xe8;
const INT3 = 0xcc;

const builds = [
  {
    name: "5-byte nops behind endbr64",
    variant: "nop5",
    flags: ["-fcf-protection", "-pg", "-mfentry", "-mnop-mcount", "-fno-pie", "-no-pie"],
    old: [0x0f, 0x1f, 0x44, 0, 0],
  },
  {
    name: "sleds of five",
    variant: "sled5",
    flags: ["-fpatchable-function-entry=5"],
    old: [0x90, 0x90, 0x90, 0x90, 0x90],
  },
  {
    name: "sleds of sixteen, eight of them in front, behind endbr64",
    variant: "sled16",
    flags: ["-fcf-protection", "-fpatchable-function-entry=16,8"],
    old: [0x90, 0x90, 0x90, 0x90, 0x90],
  },
] as const;

const start = (build: (typeof builds)[number]) =>
  UnmanagedChild.start([
    buildFixture("patchable", { flags: build.flags, variant: build.variant }),
    `${THREADS}`,
  ]);
const imageOf = (build: (typeof builds)[number]) => `patchable-${build.variant}`;

/** Lets all threads call all functions, and says what they computed. */
async function calls(child: UnmanagedChild, each: number): Promise<string> {
  child.send(`${each}\n`);
  return await child.line();
}

describe.each(builds)("functions that begin with $name", (build) => {
  const image = imageOf(build);
  const probes = ["first", "second", "many"]
    .map((name) => `uprobe:${image}:${name} { @${name} = count(); }`)
    .join(" ");

  it("A counts every call while B comes and goes hundreds of times", async () => {
    using child = await start(build);
    const plain = await calls(child, 1000);
    const before = readProcessState(child.pid);
    const attached = await Attached.to(child.pid, probes);
    const ops = attached.attachment.functionOps;
    const all = ops.find({ kind: "symbols", image, symbol: "[fsmo]*" }, attached.codes);
    expect(all.sites.length).toBeGreaterThanOrEqual(4);
    const some = ops.find({ kind: "symbols", image, symbol: "second" }, attached.codes).sites;
    const memory = MemoryFile.open(child.pid, "r");
    const textNow = () => [...memory.read(some[0]!.plan.region.start, 5)];
    expect(textNow()).toEqual(build.old);
    const a = await ops.register(attached.consumer(0), some);
    const aloneA = textNow();
    expect(aloneA[0]).toBe(CALL);

    const BATCH = 100_000;
    let batches = 0;
    let running: Promise<unknown> | undefined;
    const keepBusy = () => {
      if (running !== undefined) return;
      batches++;
      running = calls(child, BATCH).then(() => {
        running = undefined;
      });
    };
    for (let round = 0; round < ROUNDS; round++) {
      keepBusy();
      const b = await ops.register(attached.consumer(1), all.sites);
      expect(textNow()).not.toEqual(aloneA);
      // Now and then until B has been at work; otherwise as fast as it goes.
      const seen = attached.counts(1).hits;
      while (round % 10 === 0 && attached.counts(1).hits === seen) {
        keepBusy();
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await ops.unregister(b);
      expect(textNow()).toEqual(aloneA);
    }
    await running;
    const total = BigInt(THREADS * BATCH * batches);
    expect(attached.counts(0).hits).toBe(total);
    expect(attached.counts(1).hits).toBeGreaterThan(0n);
    expect(attached.counts(1).hits).toBeLessThanOrEqual(4n * total);
    // The two lists were made once, however often they were wanted.
    expect(attached.attachment.trampolines).toMatchObject({ used: 1, reclaimed: 0 });
    expect(attached.attachment.trampolines.retired).toBeLessThanOrEqual(2);

    await ops.unregister(a);
    expect(textNow()).toEqual(build.old);
    expect(await calls(child, 1000)).not.toBe(plain);
    expect(attached.counts(0).hits).toBe(total);
    memory.close();
    const report = await attached.restore();
    expect(report).toMatchObject({ foreign: [], occupants: [] });
    expectNoTrace(child.pid, before);
  });
});

it.each(["none", "stack"] as const)(
  "a consumer that is there from the beginning stays when others come and go, gate %s",
  async (gate) => {
    const [build] = builds;
    const image = imageOf(build);
    using child = await start(build);
    using reference = await start(build);
    const before = readProcessState(child.pid);
    const attached = await Attached.to(
      child.pid,
      `uprobe:${image}:many { @seen = sum(arg0 + arg5 + sarg0 + sarg1); } uprobe:${image}:first { @f[func] = count(); }`,
      gate,
    );
    const points = attached.plan(0);
    expect(points.map(({ plan }) => plan.mechanism)).toEqual(["call"]);
    await attached.attachment.arm(points);
    const ops = attached.attachment.functionOps;
    const { sites } = ops.find({ kind: "symbols", image, symbol: "many" }, attached.codes);
    expect(sites.map(({ plan }) => plan.at)).toEqual(points.map(({ plan }) => plan.at));
    const b = await ops.register(attached.consumer(1), sites);
    expect(ops.probesAt(sites[0]!.plan.at).length).toBe(2);
    expect(await calls(child, 5000)).toBe(await calls(reference, 5000));
    await ops.unregister(b);
    expect(await calls(child, 5000)).toBe(await calls(reference, 5000));
    expect(attached.counts(0).hits).toBe(BigInt(2 * THREADS * 5000));
    expect(attached.counts(1).hits).toBe(BigInt(THREADS * 5000));
    await attached.restore();
    expectNoTrace(child.pid, before);
  },
);

it("memory of trampolines is used again while threads run through others", async () => {
  const [build] = builds;
  const image = imageOf(build);
  using child = await start(build);
  const before = readProcessState(child.pid);
  const attached = await Attached.to(
    child.pid,
    `uprobe:${image}:second { @a = count(); } uprobe:${image}:many { @b[probe] = count(); }`,
  );
  const ops = attached.attachment.functionOps;
  const { sites } = ops.find({ kind: "symbols", image, symbol: "second" }, attached.codes);
  await ops.register(attached.consumer(0), sites);
  const CALLS = 1_000_000;
  const done = calls(child, CALLS);
  // Each has a cookie of its own that its program reads: so each needs a trampoline of its own.
  for (let round = 1; round <= 300; round++) {
    const b = await ops.register(attached.consumer(1, BigInt(round)), sites);
    await ops.unregister(b);
  }
  await done;
  const { bytes, reclaimed, retired } = attached.attachment.trampolines;
  expect(reclaimed).toBeGreaterThan(150);
  expect(retired).toBeLessThan(200);
  expect(bytes).toBe(64 << 10);
  expect(attached.counts(0).hits).toBe(BigInt(THREADS * CALLS));
  await attached.restore();
  expectNoTrace(child.pid, before);
});

it("a function that is not patchable is refused with the reason, and one address is as good as a name", async () => {
  const [build] = builds;
  const image = imageOf(build);
  using child = await start(build);
  const attached = await Attached.to(child.pid, `uprobe:${image}:first { @a = count(); }`);
  const ops = attached.attachment.functionOps;
  const { sites, refused } = ops.find({ kind: "symbols", image, symbol: "_start" }, attached.codes);
  expect(sites).toEqual([]);
  expect(refused.map(({ refused: rungs }) => rungs.map(({ refusal }) => refusal.reason))).toEqual([
    ["no-patchable-entry"],
  ]);
  const named = ops.find({ kind: "symbols", image, symbol: "first" }, attached.codes).sites;
  const addresses = named.map(({ plan }) => plan.at);
  const found = ops.find({ kind: "addresses", addresses }, attached.codes).sites;
  expect(found.map(({ plan }) => plan.at)).toEqual(addresses);
  const op = await ops.register(attached.consumer(0), found);
  expect(await ops.unregister(op)).toBeDefined();
  await expect(ops.unregister(op)).rejects.toThrow("not registered");
  const memory = MemoryFile.open(child.pid, "r");
  expect(memory.read(found[0]!.plan.region.start, 1)[0]).not.toBe(INT3);
  memory.close();
  await attached.restore();
});
