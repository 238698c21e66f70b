/** Programs on private stacks: exact under signals that interrupt them, on small stacks, with handlers that never return. */
import { describe, expect, it } from "vitest";
import { isBalanced } from "../support/accounting.ts";
import { runCommand } from "../support/built-command.ts";
import { CALLS, gateStacks, storm, stormOfReturns, storms, THREADS } from "../support/gate-storms.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

describe("programs on private stacks", () => {
  it.each(storms)(
    "signals in a storm, %s: every call is run or counted as recursed",
    async (_, stack, mechanism) => {
      const { probedCalls, calmCalls, probed, calm, result } = await storm(stack, "stay", [
        "--gate",
        "stack",
        "--mechanism",
        mechanism,
      ]);
      expect(probedCalls).toBeGreaterThan(THREADS * CALLS);
      expect(probed.hits).toBe(probedCalls);
      expect(isBalanced(probed)).toBe(true);
      expect(result.map("@")).toBe(probed.run);
      expect(calm).toMatchObject({ hits: calmCalls, run: calmCalls, recursed: 0 });
    },
  );

  it.each(["own", "alt"] as const)(
    "handlers that leave by siglongjmp, on their %s stack: the thread gets its private stack back",
    async (stack) => {
      const { probedCalls, calmCalls, probed, calm } = await storm(stack, "leave", ["--gate", "stack"]);
      // A call that was interrupted and never came to its end is a hit all the same.
      expect(probed.hits).toBeGreaterThanOrEqual(probedCalls);
      expect(isBalanced(probed)).toBe(true);
      expect(calm).toMatchObject({ hits: calmCalls, run: calmCalls, recursed: 0 });
      expect(calmCalls).toBe(THREADS * 1000);
    },
  );
});

it.each(["sites", "stack"])(
  "returns in a storm of signals, by --return %s: as many as entries",
  async (way) => {
    const { calls, entries, returns } = await stormOfReturns("stack", way);
    expect(entries.hits).toBe(calls);
    expect(returns.hits + returns.missed).toBe(calls);
    expect(isBalanced(entries) && isBalanced(returns)).toBe(true);
  },
);

it.each([
  ["none", "kept: r10, r11\n", [], ["mov r11, fs:[0]", "syscall"]],
  ["stack", "kept: r10, r11\n", ["mov r11, fs:[0]"], ["syscall"]],
  ["strict", "kept: rcx, rdx, rsi, rdi, r10, r11, signal mask", ["mov r11, fs:[0]", "syscall"], []],
])("explain shows the gate of level %s", async (level, kept, present, absent) => {
  using child = await UnmanagedChild.start([gateStacks, "1", "1", "own", "stay"]);
  const args = ["explain", "uprobe:gate-stacks:probed", "-p", `${child.pid}`, "--gate", level];
  const { out } = runCommand(args);
  expect(out).toContain(kept);
  for (const text of present) expect(out).toContain(text);
  for (const text of absent) expect(out).not.toContain(text);
});
