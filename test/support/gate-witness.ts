/**
 * The fixture gate-witness: threads that call probed functions with random contents in all that a thread has, under a storm of
 * signals, and say what was not as before. What it checks is told in its source.
 */
import { expect } from "vitest";
import { accountingOf, isBalanced } from "./accounting.ts";
import { buildFixture } from "./fixtures.ts";
import { Tracing } from "./tracing.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export const gateWitness = buildFixture("gate-witness");

/** Its attach points: everything that can be probed in it. */
export const witnessPoints = [
  "probed_nop",
  "probed_all",
  "probed_inside+10",
  "probed_short+2",
  "probed_entry",
  "probed_patchable",
] as const;

/** A program with one action at each point. */
export function atEachPoint(action: string): string {
  return witnessPoints.map((point) => `uprobe:gate-witness:${point} ${action}`).join(" ");
}

/** What it compares; its source has the details. */
export const wrongKinds = [
  "registers",
  "flags",
  "direction",
  "vectors",
  "x87",
  "mxcsr",
  "mask",
  "altstack",
  "keys",
  "handlerMask",
  "savedMask",
  "savedKeys",
  "handlerKeys",
] as const;
export type WrongKind = (typeof wrongKinds)[number];

export interface WitnessOptions {
  readonly threads?: number;
  /** Rounds of each thread outside of its handlers; a round calls every function once. */
  readonly rounds: number;
  /** How often a thread is interrupted, in microseconds; 0: never. */
  readonly periodUs?: number;
  /** Where handlers run. */
  readonly stack?: "own" | "alt";
  /** What a handler can be interrupted by: no signal of the storm, every other one, or also its own. */
  readonly nesting?: "mask" | "defer" | "nodefer";
  /** What the fixture makes wrong itself. */
  readonly spoiled?: WrongKind;
}

/** What it says at its end. */
export interface Testimony {
  readonly calls: Readonly<Record<string, number>>;
  readonly handled: number;
  readonly queued: number;
  readonly received: number;
  /** Whether PKRU was compared. */
  readonly keys: boolean;
  readonly vectors: "sse" | "avx" | "avx512";
  readonly wrong: Readonly<Record<WrongKind, number>>;
  /** The first thing that was wrong, in words. */
  readonly first: string;
}

/** Starts it; it waits for `testimonyOf`. */
export async function startWitness(options: WitnessOptions): Promise<UnmanagedChild> {
  const { threads = 4, rounds, periodUs = 100, stack = "own", nesting = "defer", spoiled } = options;
  const args = [`${threads}`, `${rounds}`, `${periodUs}`, stack, nesting];
  return await UnmanagedChild.start([gateWitness, ...args, ...(spoiled === undefined ? [] : [spoiled])]);
}

/** Lets it run; it then waits for another line, and ends. */
export async function testimonyOf(child: UnmanagedChild): Promise<Testimony> {
  child.send("\n");
  return JSON.parse(await child.line(60_000)) as Testimony;
}

/** What was wrong, with the first thing in words; empty if nothing was, and no signal was lost. */
export function complaints({ wrong, first, queued, received }: Testimony): string[] {
  const found = wrongKinds.filter((kind) => wrong[kind] > 0).map((kind) => `${kind}: ${wrong[kind]}`);
  if (queued !== received) found.push(`${received} of ${queued} signals received`);
  return found.length > 0 && first !== "" ? [...found, first] : found;
}

/** What is wrong for a moment is also saved for a handler that comes then. */
const savedToo: Partial<Record<WrongKind, WrongKind>> = { keys: "savedKeys", mask: "savedMask" };

/** What it has found, without what may come with what it has spoiled. */
export function wrongKindsFound({ wrong }: Testimony, spoiled: WrongKind): WrongKind[] {
  return wrongKinds.filter((kind) => wrong[kind] > 0 && (kind === spoiled || kind !== savedToo[spoiled]));
}

/** Probes it at every point: it must find nothing wrong, and every call must be counted. */
export async function expectNothingWrong({
  gate,
  mechanism,
  ...options
}: Pick<WitnessOptions, "stack" | "nesting"> & {
  readonly gate: string;
  readonly mechanism: string;
}): Promise<void> {
  using child = await startWitness({ rounds: 300, ...options });
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
}
