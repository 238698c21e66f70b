/**
 * Programs on private stacks change nothing of the thread that they run in: registers, flags, vector state, signal mask, alternate
 * stack, PKRU, under 10 kHz of nested signals on every thread.
 */
import { describe, expect, it } from "vitest";
import {
  complaints,
  expectNothingWrong,
  startWitness,
  testimonyOf,
  wrongKinds,
  wrongKindsFound,
} from "../support/gate-witness.ts";
import { hasProtectionKeys } from "../support/protection-keys.ts";

/** gate-strict.test.ts has these. */
const needsKeys = new Set(["keys", "savedKeys", "handlerKeys"]);

describe("the witness by itself", () => {
  it.each([
    ["own", "defer"],
    ["alt", "nodefer"],
  ] as const)("finds nothing wrong: handlers on the %s stack, %s", async (stack, nesting) => {
    using child = await startWitness({ rounds: 500, stack, nesting });
    const testimony = await testimonyOf(child);
    expect(complaints(testimony)).toEqual([]);
    expect(testimony.keys).toBe(hasProtectionKeys);
    expect(testimony.handled).toBeGreaterThan(100);
  });

  it.each(wrongKinds.filter((kind) => !needsKeys.has(kind)))(
    "finds what it has spoiled itself: %s",
    async (spoiled) => {
      using child = await startWitness({ threads: 2, rounds: 500, stack: "alt", spoiled });
      expect(wrongKindsFound(await testimonyOf(child), spoiled)).toEqual([spoiled]);
    },
  );
});

describe("a witness that is probed", () => {
  it.each([
    ["stack", "jump", "own", "nodefer"],
    ["stack", "jump", "alt", "nodefer"],
    ["stack", "jump", "alt", "mask"],
    ["stack", "int3", "own", "defer"],
    ["none", "jump", "alt", "nodefer"],
  ] as const)(
    "at --gate %s by %s, handlers on the %s stack, %s: finds nothing wrong",
    async (gate, mechanism, stack, nesting) => {
      await expectNothingWrong({ gate, mechanism, stack, nesting });
    },
  );
});
