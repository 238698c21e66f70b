/**
 * Several sessions on one process: each counts every call, whoever came before or after it, and takes out only its own, in
 * whatever order they leave; in the end the process is as it was.
 */
import { afterEach, describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 4;
const CALLS = 20_000;
const ALL = THREADS * CALLS;

const tracings: Tracing[] = [];
let child: UnmanagedChild | undefined;
afterEach(async () => {
  for (const tracing of tracings.splice(0)) await tracing[Symbol.asyncDispose]();
  child?.[Symbol.dispose]();
});

async function startCounter(calls = CALLS): Promise<UnmanagedChild> {
  child = await UnmanagedChild.start([buildFixture("counter"), `${THREADS}`, `${calls}`]);
  return child;
}

async function startShort(): Promise<UnmanagedChild> {
  child = await UnmanagedChild.start([buildFixture("short-sites"), `${THREADS}`, `${CALLS}`]);
  return child;
}

async function arm(target: UnmanagedChild, program: string, args: readonly string[] = []): Promise<Tracing> {
  const tracing = await Tracing.armed([...args, "-p", `${target.pid}`], program);
  tracings.push(tracing);
  return tracing;
}

async function work(target: UnmanagedChild): Promise<string> {
  target.send("\n");
  return await target.line(60_000);
}

async function leave(tracing: Tracing): Promise<unknown> {
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  return result.map("@");
}

interface Case {
  readonly name: string;
  readonly start: () => Promise<UnmanagedChild>;
  /** One session each: arguments, program, and what one round of work adds. */
  readonly sessions: readonly (readonly [args: readonly string[], program: string, perRound: number])[];
}

const entry = "uprobe:counter:probed { @ = count(); }";
const returned = "uretprobe:counter:probed { @ = count(); }";
const jump = ["--mechanism", "jump"];
const int3 = ["--mechanism", "int3"];
const stack = ["--return", "stack"];

const cases: readonly Case[] = [
  {
    name: "the same jump",
    start: startCounter,
    sessions: [
      [jump, entry, ALL],
      [[], entry, ALL],
      [jump, entry, ALL],
    ],
  },
  {
    name: "the same int3",
    start: startCounter,
    sessions: [
      [int3, entry, ALL],
      [int3, entry, ALL],
      [[], entry, ALL],
    ],
  },
  {
    name: "int3 at different sites, so that handlers are chained",
    start: startShort,
    sessions: [
      [int3, "uprobe:short-sites:behind { @ = count(); }", THREADS],
      [int3, "uprobe:short-sites:padded { @ = count(); }", ALL],
      [int3, "uprobe:short-sites:beside { @ = count(); }", ALL],
    ],
  },
  {
    name: "returns at the same exits",
    start: startCounter,
    sessions: [
      [[], returned, ALL],
      [[], returned, ALL],
      [[], `${entry} ${returned}`, 2 * ALL],
    ],
  },
  {
    name: "returns by replaced return addresses",
    start: startCounter,
    sessions: [
      [stack, returned, ALL],
      [stack, returned, ALL],
      [stack, returned, ALL],
    ],
  },
  {
    name: "the same site that is too short for a jump",
    start: startShort,
    sessions: [
      [[], "uprobe:short-sites:site_four { @ = count(); }", ALL - 2],
      [[], "uprobe:short-sites:site_four { @ = count(); }", ALL - 2],
      [[], "uprobe:short-sites:site_four { @ = count(); }", ALL - 2],
    ],
  },
  {
    name: "neighbouring sites",
    start: startShort,
    sessions: [
      [[], "uprobe:short-sites:site_three { @ = count(); }", ALL - 1],
      [[], "uprobe:short-sites:site_two { @ = count(); }", ALL - 2],
      [[], "uprobe:short-sites:site_one { @ = count(); }", ALL - 3],
    ],
  },
];

/** Who leaves first, second and last. */
const orders = [
  [0, 2, 1],
  [1, 0, 2],
] as const;
const moreOrders = [
  [0, 1, 2],
  [2, 1, 0],
] as const;

describe("three sessions count exactly and leave in any order", () => {
  for (const { name, start, sessions } of cases) {
    const all = name === "the same jump" ? [...orders, ...moreOrders] : orders;
    it.each(all.map((order) => [order.join(" "), order] as const))(`${name}, %s`, async (_, order) => {
      const target = await start();
      const expected = await work(target);
      const before = readProcessState(target.pid);
      const armed: Tracing[] = [];
      for (const [args, program] of sessions) armed.push(await arm(target, program, args));
      let rounds = 0;
      for (const index of order) {
        expect(await work(target)).toBe(expected);
        rounds++;
        expect([index, await leave(armed[index]!)]).toEqual([index, rounds * sessions[index]![2]]);
      }
      expectUnchanged(target.pid, before);
      expect(await work(target)).toBe(expected);
    });
  }
});
