/**
 * Targets die at random moments of attaching, running and detaching: the session ends by itself, and says so if it had not
 * begun. TRAPLINE_DEATHS sets how often (`npm run torture:deaths`); TRAPLINE_SEED repeats a run.
 */
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { SeededRandom } from "../support/seeded-random.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const deaths = Number(process.env.TRAPLINE_DEATHS ?? 10);
const seed = Number(process.env.TRAPLINE_SEED ?? Date.now() % 1_000_000);

/** Milliseconds from the start of the command to its armed probes, and from an interrupt to its end. */
async function measure(): Promise<{ readonly startMs: number; readonly endMs: number }> {
  using child = await UnmanagedChild.start([buildFixture("compute"), "6"]);
  const started = performance.now();
  await using tracing = await Tracing.armed(["-p", `${child.pid}`], "uprobe:compute:* { @ = count(); }");
  const armed = performance.now();
  await tracing.interrupt();
  return { startMs: armed - started, endMs: performance.now() - armed };
}

it(`a target that dies at any moment ends its session (${deaths} times, seed ${seed})`, {
  timeout: 60_000 + deaths * 5000,
}, async () => {
  const random = new SeededRandom(seed);
  const { startMs, endMs } = await measure();
  const outcomes = new Map<string, number>();
  for (let round = 0; round < deaths; round++) {
    using child = await UnmanagedChild.start([buildFixture("compute"), "6"]);
    const signal = random.pick(["SIGKILL", "SIGKILL", "SIGTERM", "SIGSEGV"] as const);
    const mechanism = random.pick(["auto", "int3"] as const);
    const args = ["--mechanism", mechanism, "-p", `${child.pid}`];
    const program = "uprobe:compute:step,uprobe:compute:work,uretprobe:compute:work { @ = count(); }";
    const inAttach = round % 2 === 0;
    await using tracing = inAttach
      ? Tracing.start([...args, "-e", program])
      : await Tracing.armed(args, program);
    if (!inAttach) tracing.signal("SIGINT");
    // Any moment is right: this is no wait for something.
    await new Promise((resolve) => setTimeout(resolve, random.below(Math.ceil(inAttach ? startMs : endMs))));
    child.kill(signal);
    const { code, signal: killed, err } = await tracing.ended();
    const what = { round, seed, signal, mechanism, inAttach, code, killed, err };
    expect(what).toMatchObject({ killed: null });
    expect([0, 1], JSON.stringify(what)).toContain(code);
    if (code === 0) expect(what).toMatchObject({ err: "" });
    else
      expect(err, JSON.stringify(what)).toMatch(
        new RegExp(
          `^trapline: (attach|arm probes)( to)?:? process ${child.pid}: (it has ended meanwhile|there is no such process|it has ended \\(zombie\\).*)\n$`,
        ),
      );
    outcomes.set(`${inAttach} ${code}`, (outcomes.get(`${inAttach} ${code}`) ?? 0) + 1);
  }
  if (process.env.TRAPLINE_DEATHS !== undefined) console.log(outcomes);
});
