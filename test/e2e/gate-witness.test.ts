/**
 * Programs on private stacks change nothing of the thread that they run in: registers, flags, vector state, signal mask, alternate
 * stack, PKRU, under 10 kHz of nested signals on every thread.
 */
import { describe, expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import {
  atEachPoint,
  complaints,
  startWitness,
  testimonyOf,
  type WrongKind,
  witnessPoints,
  wrongKinds,
} from "../support/gate-witness.ts";
import { hasProtectionKeys } from "../support/protection-keys.ts";
import { Tracing } from "../support/tracing.ts";

const needsKeys = new Set(["keys", "savedKeys", "handlerKeys"]);

const savedToo: Partial<Record<WrongKind, WrongKind>> = { keys: "savedKeys", mask: "savedMask" };

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

  it.each(wrongKinds.filter((kind) => hasProtectionKeys || !needsKeys.has(kind)))(
    "finds what it has spoiled itself: %s",
    async (spoiled) => {
      using child = await startWitness({ threads: 2, rounds: 500, stack: "alt", spoiled });
      const { wrong } = await testimonyOf(child);
      const found = wrongKinds.filter((kind) => wrong[kind] > 0);
      // What is wrong for a moment is also saved for a handler that comes then.
      expect(found.filter((kind) => kind === spoiled || kind !== savedToo[spoiled])).toEqual([spoiled]);
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
    ["strict", "jump", "own", "nodefer"],
    ["strict", "jump", "alt", "nodefer"],
    ["strict", "int3", "own", "defer"],
    ["strict", "int3", "alt", "nodefer"],
  ] as const)(
    "at --gate %s by %s, handlers on the %s stack, %s: finds nothing wrong",
    async (gate, mechanism, stack, nesting) => {
      using child = await startWitness({ rounds: 300, stack, nesting });
      await using tracing = await Tracing.armed(
        ["--gate", gate, "--mechanism", mechanism, "-p", `${child.pid}`],
        atEachPoint("{ @[probe] = count(); }"),
      );
      const testimony = await testimonyOf(child);
      const result = await tracing.interrupt();
      expect(result.code).toBe(0);
      expect(complaints(testimony)).toEqual([]);
      const accounts = accountingOf(result.lines);
      for (const [i, point] of witnessPoints.entries()) {
        const account = accounts[i]!;
        expect(account).toMatchObject({
          probe: `uprobe:gate-witness:${point}`,
          hits: testimony.calls[point.replace(/\+.*/, "")],
        });
        expect(isBalanced(account)).toBe(true);
      }
    },
  );
});
