/** Programs behind a strict gate: no signal interrupts them, and nothing of their thread is changed. With keys where there are some. */
import { describe, expect, it } from "vitest";
import { CALLS, storm, stormOfReturns, storms, THREADS } from "../support/gate-storms.ts";
import { expectNothingWrong, startWitness, testimonyOf, wrongKindsFound } from "../support/gate-witness.ts";
import { describeWithKeys } from "../support/protection-keys.ts";

describe("signals wait while a program runs", () => {
  it.each(storms)("signals in a storm, %s: no program is interrupted", async (_, stack, mechanism) => {
    const args = ["--gate", "strict", "--mechanism", mechanism];
    const { probedCalls, calmCalls, probed, calm } = await storm(stack, "stay", args);
    expect(probedCalls).toBeGreaterThanOrEqual(THREADS * CALLS);
    expect(probed).toMatchObject({ hits: probedCalls, run: probedCalls, recursed: 0 });
    expect(calm).toMatchObject({ hits: calmCalls, run: calmCalls, recursed: 0 });
  });

  it.each(["own", "alt"] as const)("handlers that leave by siglongjmp, on their %s stack", async (stack) => {
    const { probedCalls, calmCalls, probed, calm } = await storm(stack, "leave", ["--gate", "strict"]);
    expect(probed.hits).toBeGreaterThanOrEqual(probedCalls);
    expect(probed.recursed).toBe(0);
    expect(calm).toMatchObject({ hits: calmCalls, run: calmCalls, recursed: 0 });
  });
});

it.each(["sites", "stack"])(
  "returns in a storm of signals, by --return %s: as many as entries",
  async (way) => {
    const { calls, entries, returns } = await stormOfReturns("strict", way);
    expect(entries).toMatchObject({ hits: calls, run: calls, recursed: 0 });
    expect(returns.hits + returns.missed).toBe(calls);
    expect(returns.recursed).toBe(0);
  },
);

describe("a witness that is probed", () => {
  it.each([
    ["jump", "own", "nodefer"],
    ["jump", "alt", "nodefer"],
    ["int3", "own", "defer"],
    ["int3", "alt", "nodefer"],
  ] as const)(
    "by %s, handlers on the %s stack, %s: finds nothing wrong",
    async (mechanism, stack, nesting) => {
      await expectNothingWrong({ gate: "strict", mechanism, stack, nesting });
    },
  );
});

describeWithKeys("the witness by itself", () => {
  it.each(["keys", "savedKeys", "handlerKeys"] as const)(
    "finds what it has spoiled itself: %s",
    async (spoiled) => {
      using child = await startWitness({ threads: 2, rounds: 500, stack: "alt", spoiled });
      expect(wrongKindsFound(await testimonyOf(child), spoiled)).toEqual([spoiled]);
    },
  );
});
