/** The fixture gate-stacks: threads on small stacks that call probed functions while signals interrupt them. */
import { expect } from "vitest";
import { accountingOf } from "./accounting.ts";
import { buildFixture } from "./fixtures.ts";
import { repeated } from "./patience.ts";
import { Tracing } from "./tracing.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export const THREADS = 4;
export const CALLS = repeated(60_000);
const PROGRAM =
  "uprobe:gate-stacks:probed { @ = count(); @last[tid] = arg1; } uprobe:gate-stacks:calm { @calm = count(); }";

export const gateStacks = buildFixture("gate-stacks");

/** Where handlers run, and how the function is probed. */
export const storms = [
  ["their handlers on the interrupted stack", "own", "jump"],
  ["their handlers on a small alternate stack", "alt", "jump"],
  ["their handlers on a small alternate stack, through int3", "alt", "int3"],
] as const;

/** Traces one storm; how often the functions were called, and the accounts of both. */
export async function storm(stack: "own" | "alt", handlers: "stay" | "leave", args: readonly string[]) {
  using child = await UnmanagedChild.start([gateStacks, `${THREADS}`, `${CALLS}`, stack, handlers]);
  await using tracing = await Tracing.armed([...args, "-p", `${child.pid}`], PROGRAM);
  child.send("\n");
  const [probedCalls, calmCalls] = (await child.line(60_000)).split(" ").map(Number);
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  const [probed, calm] = accountingOf(result.lines);
  return { probedCalls: probedCalls!, calmCalls: calmCalls!, probed: probed!, calm: calm!, result };
}

/** The same with returns: calls, and the accounts of entries and returns. */
export async function stormOfReturns(level: string, way: string) {
  using child = await UnmanagedChild.start([gateStacks, `${THREADS}`, `${CALLS}`, "own", "stay"]);
  const script =
    "uprobe:gate-stacks:probed { @in = count(); } uretprobe:gate-stacks:probed { @out[retval & 1] = count(); }";
  const args = ["--gate", level, "--return", way, "-p", `${child.pid}`];
  await using tracing = await Tracing.armed(args, script);
  child.send("\n");
  const [calls] = (await child.line(60_000)).split(" ").map(Number);
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  const [entries, returns] = accountingOf(result.lines);
  return { calls: calls!, entries: entries!, returns: returns! };
}
