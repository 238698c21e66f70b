/** How soon a trace shows something. TRAPLINE_TIMES=1 prints the times measured. */
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

/** What is promised for a machine that does nothing else. Tests share theirs, so these only find what is badly slow. */
const FIRST_EVENT_MS = 400;
const SLOWER_HERE = 8;

it("the first event comes soon after the start", async () => {
  using child = await UnmanagedChild.start([buildFixture("compute"), "4"]);
  const timesMs: number[] = [];
  for (let round = 0; round < 5; round++) {
    const start = performance.now();
    await using tracing = Tracing.start([
      "-p",
      `${child.pid}`,
      "-e",
      'uprobe:compute:work { printf("first\\n"); exit(); }',
    ]);
    await tracing.until("first");
    timesMs.push(performance.now() - start);
    expect((await tracing.ended()).code).toBe(0);
  }
  const median = timesMs.sort((a, b) => a - b)[2]!;
  if (process.env.TRAPLINE_TIMES !== undefined)
    console.log(`first event: ${timesMs.map(Math.round).join(", ")} ms`);
  expect(median).toBeLessThan(FIRST_EVENT_MS * SLOWER_HERE);
});
