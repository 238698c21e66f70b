/** A command on a machine that has protection keys: started, probed on private stacks, and counted to the last call. */
import { expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import { buildFixture } from "../support/fixtures.ts";
import { describeWithKeys } from "../support/protection-keys.ts";
import { Tracing } from "../support/tracing.ts";

const THREADS = 4;
const CALLS = 5_000;

const counter = buildFixture("counter");

describeWithKeys("a command with -c on a machine with protection keys", () => {
  it.each(["jump", "int3"] as const)("on private stacks, by %s: every call is counted", async (mechanism) => {
    const program = "uprobe:counter:probed { @ = count(); }";
    const options = ["--gate", "stack", "--mechanism", mechanism];
    await using tracing = Tracing.start([...options, "-c", `${counter} ${THREADS} ${CALLS}`, "-e", program]);
    // One round of calls, then the end of its input.
    tracing.send("\n");
    const result = await tracing.ended();
    expect(result.code).toBe(0);
    const [probed] = accountingOf(result.lines);
    expect(probed).toMatchObject({ hits: THREADS * CALLS, run: THREADS * CALLS });
    expect(isBalanced(probed!)).toBe(true);
    expect(result.map("@")).toBe(THREADS * CALLS);
  });
});
