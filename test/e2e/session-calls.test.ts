/** Probes of a session at patchable entries: many functions by a pattern, in one transaction and one trampoline. */
import { expect, it, vi } from "vitest";
import type * as Trapline from "../../src/index.ts";
import { Attached } from "../support/attached.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const library = new URL("../../dist/index.js", import.meta.url);
const { attach } = (await import(library.href)) as typeof Trapline;

const THREADS = 3;
/** Functions of the fixture that each thread calls once in each round. */
const FUNCTIONS = 4;
const builds = {
  nop5: ["-fcf-protection", "-pg", "-mfentry", "-mnop-mcount", "-fno-pie", "-no-pie"],
  sled5: ["-fpatchable-function-entry=5"],
} as const;
const variants = Object.keys(builds) as (keyof typeof builds)[];

const start = (variant: keyof typeof builds) =>
  UnmanagedChild.start([buildFixture("patchable", { flags: builds[variant], variant }), `${THREADS}`]);

async function calls(child: UnmanagedChild, each: number): Promise<string> {
  child.send(`${each}\n`);
  return await child.line(60_000);
}

const count = "{ @ = count(); }";

it.each(variants)("a pattern counts every call while another probe comes and goes, %s", async (variant) => {
  using child = await start(variant);
  const plain = await calls(child, 1000);
  const before = readProcessState(child.pid);
  const session = await attach(child.pid);
  const pattern = `uprobe:patchable-${variant}:[fsmo]*`;
  const stays = await session.probe(pattern, count);
  expect(stays.mechanisms).toContain("call");
  const comes = await session.probe(pattern, count);

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
  for (let round = 0; round < 40; round++) {
    keepBusy();
    await comes.disable();
    keepBusy();
    await comes.enable();
    if (round % 10 > 0) continue;
    const seen = comes.counts.hits;
    while (comes.counts.hits === seen) {
      keepBusy();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  await running;
  await comes.remove();
  const atEnd = comes.counts.hits;
  const again = await session.probe(pattern, "/ arg0 == 5 / { @[func] = count(); }");
  const text = await calls(child, 1000);
  const total = BigInt(FUNCTIONS * THREADS * (BATCH * batches + 1000));
  expect(stays.counts.hits).toBe(total);
  expect(stays.map("@")).toBe(total);
  expect(comes.counts.hits).toBe(atEnd);
  expect(atEnd).toBeGreaterThan(0n);
  expect(atEnd).toBeLessThan(total);
  expect(again.counts.hits).toBe(BigInt(FUNCTIONS * THREADS * 1000));
  // `first`, `second` and `outer` are called with each number, `many` always with 1.
  const elements = again.map("@") as readonly Trapline.Element[];
  expect(elements.map(({ key, value }) => [...key, value]).sort()).toEqual([
    ["first", BigInt(THREADS)],
    ["outer", BigInt(THREADS)],
    ["second", BigInt(THREADS)],
  ]);
  await again.remove();
  await stays.remove();
  expect(await calls(child, 1000)).not.toBe(plain);
  expect(text).not.toBe(plain);
  expect(stays.counts.hits).toBe(total);
  await session.close();
  expectNoTrace(child.pid, before);
});

it.each(variants)("live points and ops share their functions' calls, %s", async (variant) => {
  using child = await start(variant);
  const before = readProcessState(child.pid);
  const image = `patchable-${variant}`;
  const script = ["{ @a = count(); }", "{ @b = count(); }", "{ @c = count(); }"]
    .map((action) => `uprobe:${image}:[fsmo]* ${action}`)
    .join(" ");
  const attached = await Attached.to(child.pid, script);
  const { attachment } = attached;
  const { functionOps: ops, livePoints } = attachment;
  const change = vi.spyOn(attachment.probes, "change");
  const { sites } = ops.find({ kind: "symbols", image, symbol: "[fsmo]*" }, attached.codes);
  const hits = () => [0, 1, 2].map((probe) => Number(attached.counts(probe).hits) / (FUNCTIONS * THREADS));
  const callsOf = (probe: number) => attached.plan(probe).filter(({ plan }) => plan.mechanism === "call");

  // The ops come first here, so that the live points find the calls in place.
  const op = await ops.register(attached.consumer(0), sites);
  await calls(child, 100);
  const [b, c] = [callsOf(1), callsOf(2)];
  expect(b.length).toBeGreaterThanOrEqual(FUNCTIONS);
  await livePoints.add(b);
  await calls(child, 100);
  expect(change).toHaveBeenCalledTimes(2);
  expect(attachment.trampolines).toMatchObject({ used: 1 });
  await livePoints.add(c);
  await calls(child, 100);
  expect(change).toHaveBeenCalledTimes(3);
  expect(attachment.trampolines).toMatchObject({ used: 1, retired: 2 });
  const all = (points: typeof b) => new Set(points.flatMap(({ probes }) => probes));
  await livePoints.disable(all(b));
  await calls(child, 100);
  expect(hits()).toEqual([400, 200, 200]);
  await ops.unregister(op);
  await calls(child, 100);
  expect(hits()).toEqual([400, 200, 300]);
  await livePoints.enable(all(b));
  await livePoints.remove(all(c));
  await calls(child, 100);
  expect(hits()).toEqual([400, 300, 300]);
  await livePoints.remove(all(b));
  await calls(child, 100);
  expect(hits()).toEqual([400, 300, 300]);
  expect(attachment.trampolines).toMatchObject({ used: 0 });
  expect(change).toHaveBeenCalledTimes(8);
  // All of them hold what they were built with.
  await attached.restore();
  expectNoTrace(child.pid, before);
});
