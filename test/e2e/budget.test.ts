/** `--budget`: the hot place is disarmed and reported, the cold one stays, and the process is as fast as before. */
import { expect, it } from "vitest";
import { accountingOf } from "../support/accounting.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

interface Reading {
  readonly hot: number;
  readonly cold: number;
  readonly cpuNs: number;
}

async function read(child: UnmanagedChild): Promise<Reading> {
  child.send("\n");
  const [hot, cold, cpuNs] = (await child.line()).split(" ").map(Number);
  return { hot: hot!, cold: cold!, cpuNs: cpuNs! };
}

/** Nanoseconds of processor time that a call of `hot` takes, over some hundred thousand calls. */
async function nsPerCall(child: UnmanagedChild): Promise<number> {
  const before = await read(child);
  for (;;) {
    const after = await read(child);
    const calls = after.hot - before.hot;
    if (calls > 500_000) return (after.cpuNs - before.cpuNs) / calls;
  }
}

it.each(["auto", "int3"])("the hot function goes, the cold one stays, %s", async (mechanism) => {
  using child = await UnmanagedChild.start([buildFixture("uneven")]);
  const before = { ...readProcessState(child.pid), sigtrap: [false, false, false] };
  const bareNs = await nsPerCall(child);
  const program =
    "uprobe:uneven:hot { @hot[arg0 & 7] = count(); @h = hist(arg0); } uprobe:uneven:cold { @cold = count(); }";
  await using tracing = await Tracing.armed(
    ["--budget", "1%", "--mechanism", mechanism, "-p", `${child.pid}`],
    program,
  );
  await tracing.until('"disarmed"');
  const first = await read(child);
  const afterNs = await nsPerCall(child);
  // More calls of the cold one are counted, and none of the hot one.
  let last = await read(child);
  while (last.cold - first.cold < 20) last = await read(child);
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  const disarmed = result.lines.filter(({ type }) => type === "disarmed").map(({ data }) => data);
  expect(disarmed).toEqual([
    expect.objectContaining({ pid: child.pid, site: expect.stringMatching(/^hot \(uneven\)/) }),
  ]);
  const { share, hits_per_second: rate } = disarmed[0] as { share: number; hits_per_second: number };
  expect(share).toBeGreaterThan(0.01);
  expect(rate).toBeGreaterThan(1000);
  expect(result.err).toMatch(
    /^disarmed hot \(uneven\) in process \d+: \d+ hits per second cost an estimated [\d.]+% of/m,
  );
  const [hot, cold] = accountingOf(result.lines);
  expect(hot!.hits).toBeLessThanOrEqual(first.hot);
  expect(hot!.mechanisms).toEqual({ none: 1 });
  expect(cold!.hits).toBeGreaterThanOrEqual(last.cold - first.cold);
  expect(Math.min(afterNs, await nsPerCall(child))).toBeLessThan(bareNs * 2);
  expectNoTrace(child.pid, before);
});
