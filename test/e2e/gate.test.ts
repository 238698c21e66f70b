/** Programs on private stacks: exact under signals that interrupt them, on small stacks, with handlers that never return. */
import { describe, expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { repeated } from "../support/patience.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 4;
const CALLS = repeated(60_000);
const PROGRAM =
  "uprobe:gate-stacks:probed { @ = count(); @last[tid] = arg1; } uprobe:gate-stacks:calm { @calm = count(); }";

const stacks = buildFixture("gate-stacks");

async function storm(stack: "own" | "alt", handlers: "stay" | "leave", args: readonly string[]) {
  using child = await UnmanagedChild.start([stacks, `${THREADS}`, `${CALLS}`, stack, handlers]);
  await using tracing = await Tracing.armed([...args, "-p", `${child.pid}`], PROGRAM);
  child.send("\n");
  const [probedCalls, calmCalls] = (await child.line(60_000)).split(" ").map(Number);
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  const [probed, calm] = accountingOf(result.lines);
  return { probedCalls: probedCalls!, calmCalls: calmCalls!, probed: probed!, calm: calm!, result };
}

const stays = [
  ["their handlers on the interrupted stack", "own", "jump"],
  ["their handlers on a small alternate stack", "alt", "jump"],
  ["their handlers on a small alternate stack, through int3", "alt", "int3"],
] as const;

describe("programs on private stacks", () => {
  it.each(stays)(
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

describe("signals wait while a program runs", () => {
  it.each(stays)("signals in a storm, %s: no program is interrupted", async (_, stack, mechanism) => {
    const args = ["--gate", "strict", "--mechanism", mechanism];
    const { probedCalls, calmCalls, probed, calm } = await storm(stack, "stay", args);
    expect(probedCalls).toBeGreaterThan(THREADS * CALLS);
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

describe.each(["stack", "strict"])("returns at level %s", (level) => {
  it.each(["sites", "stack"])("in a storm of signals, by --return %s: as many as entries", async (way) => {
    using child = await UnmanagedChild.start([
      buildFixture("gate-stacks"),
      `${THREADS}`,
      `${CALLS}`,
      "own",
      "stay",
    ]);
    const script =
      "uprobe:gate-stacks:probed { @in = count(); } uretprobe:gate-stacks:probed { @out[retval & 1] = count(); }";
    const args = ["--gate", level, "--return", way, "-p", `${child.pid}`];
    await using tracing = await Tracing.armed(args, script);
    child.send("\n");
    const [calls] = (await child.line(60_000)).split(" ").map(Number);
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    const [entries, returns] = accountingOf(result.lines);
    expect(entries!.hits).toBe(calls);
    expect(returns!.hits + returns!.missed).toBe(calls);
    expect(isBalanced(entries!) && isBalanced(returns!)).toBe(true);
    if (level === "strict") expect([entries!.recursed, returns!.recursed]).toEqual([0, 0]);
  });
});

it.each([
  ["none", "kept: r10, r11\n", [], ["mov r11, fs:[0]", "syscall"]],
  ["stack", "kept: r10, r11\n", ["mov r11, fs:[0]"], ["syscall"]],
  ["strict", "kept: rcx, rdx, rsi, rdi, r10, r11, signal mask", ["mov r11, fs:[0]", "syscall"], []],
])("explain shows the gate of level %s", async (level, kept, present, absent) => {
  using child = await UnmanagedChild.start([buildFixture("gate-stacks"), "1", "1", "own", "stay"]);
  const args = ["explain", "uprobe:gate-stacks:probed", "-p", `${child.pid}`, "--gate", level];
  const { out } = runCommand(args);
  expect(out).toContain(kept);
  for (const text of present) expect(out).toContain(text);
  for (const text of absent) expect(out).not.toContain(text);
});
