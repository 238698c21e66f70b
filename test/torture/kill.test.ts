/**
 * The tracer is killed at random moments; the target lives, computes on, and is put back by `trapline detach`.
 * TRAPLINE_KILLS sets how often (`npm run torture:kill`); TRAPLINE_SEED repeats a run.
 */
import { expect, it } from "vitest";
import { type KillPlan, killTracer, probeChoices, Watched } from "../support/dead-tracer.ts";
import { SeededRandom } from "../support/seeded-random.ts";
import { Tracing } from "../support/tracing.ts";

const kills = Number(process.env.TRAPLINE_KILLS ?? 15);
const seed = Number(process.env.TRAPLINE_SEED ?? Date.now() % 1_000_000);

/** `startMs` is how long it takes to start and arm. */
function planKill(random: SeededRandom, round: number, startMs: number): KillPlan {
  const probes = probeChoices[round % probeChoices.length]!;
  const after = random.pick(["start", "start", "armed", "interrupt"] as const);
  const [shortestMs, longestMs] = {
    start: [Math.floor(startMs / 2), startMs],
    armed: [0, 100],
    interrupt: [0, 40],
  }[after] as [number, number];
  return { after, probes, delayMs: shortestMs + random.below(longestMs - shortestMs) };
}

async function measureStart(pid: number): Promise<number> {
  const before = performance.now();
  await using tracing = await Tracing.armed(["-p", `${pid}`], "uprobe:compute:step { @ = count(); }");
  const startMs = performance.now() - before;
  await tracing.interrupt();
  return Math.ceil(startMs);
}

it(`the tracer is killed ${kills} times (seed ${seed})`, { timeout: 60_000 + kills * 10_000 }, async () => {
  const random = new SeededRandom(seed);
  using watched = await Watched.start(6);
  const startMs = await measureStart(watched.child.pid);
  let cleaned = 0;
  for (let round = 0; round < kills; round++) {
    const plan = planKill(random, round, startMs);
    try {
      if (await killTracer(watched, plan)) cleaned++;
    } catch (cause) {
      throw new Error(`round ${round} of seed ${seed}: ${JSON.stringify(plan)}`, { cause });
    }
  }
  // The moments must have hit sessions that had something to lose.
  expect(cleaned).toBeGreaterThan(kills / 15);
  if (process.env.TRAPLINE_KILLS !== undefined)
    console.log(`${cleaned} of ${kills} kills left something to clean up`);
});

it.each(probeChoices)("the tracer is killed while probes are armed: %s", async (probes) => {
  using watched = await Watched.start(4);
  expect(await killTracer(watched, { after: "armed", delayMs: 20, probes })).toBe(true);
});
