/** Hundreds of different lists of programs at one point: the code of those that are gone is used again. */
import { expect, it } from "vitest";
import { Attached } from "../support/attached.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const TOGGLED = 8;
/** After so many changes hardly any more code memory may be handed out: a detour may be in use when it is asked for. */
const SETTLED = 128;

it("256 lists need no more code memory than 128", async () => {
  using child = await UnmanagedChild.start([buildFixture("accounted"), "3", "0", "100000"]);
  const before = readProcessState(child.pid);
  const action = "uprobe:accounted:probed { @ = count(); }";
  const attached = await Attached.to(
    child.pid,
    Array(TOGGLED + 1)
      .fill(action)
      .join(" "),
  );
  const { attachment } = attached;
  const { livePoints } = attachment;
  const hits = (probe: number) => attached.counts(probe).hits;
  const plans = Array.from({ length: TOGGLED + 1 }, (_, index) => attached.plan(index));
  for (const points of plans) await livePoints.add(points);
  const all = plans.map((points) => new Set(points.flatMap(({ probes }) => probes)));

  let calls = 0;
  const rounds = async () => {
    child.send("\n");
    calls += Number((await child.line(60_000)).split(" ")[0]);
  };
  let running: Promise<void> | undefined;
  const isOff = all.map(() => false);
  let settled = 0;
  for (let change = 1; change < 1 << TOGGLED; change++) {
    running ??= rounds().then(() => {
      running = undefined;
    });
    // One probe a time, and each list once (a Gray code). Number 0 stays.
    const index = 32 - Math.clz32(change & -change);
    if (isOff[index]) await livePoints.enable(all[index]!);
    else await livePoints.disable(all[index]!);
    isOff[index] = !isOff[index];
    if (change === SETTLED) settled = attachment.codeBytes;
  }
  await running;
  expect(settled).toBeGreaterThan(0);
  expect(attachment.codeBytes - settled).toBeLessThan(1024);
  expect(hits(0)).toBe(BigInt(calls));

  await livePoints.enable(new Set(all.flatMap((probes) => [...probes])));
  const was = { calls, hits: all.map((_, index) => hits(index)) };
  await rounds();
  const more = all.map((_, index) => hits(index) - was.hits[index]!);
  expect(more).toEqual(all.map(() => BigInt(calls - was.calls)));
  const report = await attached.restore();
  expect(report).toMatchObject({ foreign: [], occupants: [] });
  expectNoTrace(child.pid, before);
});
