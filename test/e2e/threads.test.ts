/** Processes whose threads come and go while they are stopped, armed and put back. */
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

async function callsOf(child: UnmanagedChild): Promise<number> {
  child.send("\n");
  const line = await child.line();
  expect(line).toMatch(/^alive \d+$/);
  return Number(line.slice("alive ".length));
}

// While glibc starts a thread, its starter blocks all signals: that is no reason to refuse an int3.
it.each(["jump", "int3"])("threads are started all the time, %s", async (mechanism) => {
  using child = await UnmanagedChild.start([buildFixture("spawner"), "4"]);
  const before = { ...readProcessState(child.pid), sigtrap: [false, false, false] };
  for (let round = 0; round < 3; round++) {
    await using tracing = await Tracing.armed(
      ["--mechanism", mechanism, "-p", `${child.pid}`],
      "uprobe:spawner:probed { @in = count(); } uretprobe:spawner:probed { @out = count(); }",
    );
    const first = await callsOf(child);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const last = await callsOf(child);
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    const entered = result.map("@in") as number;
    // Both moments lay between arming and putting back.
    expect(entered).toBeGreaterThanOrEqual(last - first - 4 * 10);
    expect(last).toBeGreaterThan(first);
    expect(Math.abs(entered - (result.map("@out") as number))).toBeLessThanOrEqual(5);
    expectNoTrace(child.pid, before);
  }
  await callsOf(child);
});
