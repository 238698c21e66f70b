/** Sessions that share a process under load: they come and go while threads run through their sites, and are in tail calls. */
import { afterEach, describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 4;

let child: UnmanagedChild | undefined;
const tracings: Tracing[] = [];
afterEach(async () => {
  for (const tracing of tracings.splice(0)) await tracing[Symbol.asyncDispose]();
  child?.[Symbol.dispose]();
});

async function start(
  fixture: string,
  how: Parameters<typeof buildFixture>[1],
  ...args: string[]
): Promise<UnmanagedChild> {
  child = await UnmanagedChild.start([buildFixture(fixture, how), ...args]);
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

async function leave(tracing: Tracing) {
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  return result;
}

const entry = "uprobe:counter:probed { @ = count(); }";
const returned = "uretprobe:counter:probed { @ = count(); }";

describe("while threads run through the site", () => {
  it.each([
    ["jump", entry, ["--mechanism", "jump"], 100_000, 100],
    ["int3", entry, ["--mechanism", "int3"], 5_000, 15],
    ["replaced return addresses", returned, ["--return", "stack"], 50_000, 40],
  ] as const)("one that stays counts everything, others come and go, %s", async (...row) => {
    const [, program, args, calls, rounds] = row;
    const target = await start("counter", {}, `${THREADS}`, `${calls}`);
    const expected = await work(target);
    const before = readProcessState(target.pid);
    const first = await arm(target, program, args);
    const stays = await arm(target, program, args);
    target.send("\n".repeat(rounds));
    const third = await arm(target, program, args);
    await leave(first);
    const fourth = await arm(target, program, args);
    await leave(third);
    for (let round = 0; round < rounds; round++) expect(await target.line(60_000)).toBe(expected);
    expect((await leave(stays)).map("@")).toBe(THREADS * calls * rounds);
    expect(await work(target)).toBe(expected);
    expect(Number((await leave(fourth)).map("@"))).toBeGreaterThanOrEqual(THREADS * calls);
    expectUnchanged(target.pid, before);
  });
});

describe("tail calls whose return addresses two sessions replace", () => {
  const counts = { target: 2876, tail_direct: 1000, tail_indirect: 1000, tail_if: 1750, tail_long: 1000 };
  const program = Object.keys(counts)
    .map((name) => `uretprobe:exits:${name} { @out["${name}"] = count(); }`)
    .join(" ");
  it.each([
    ["by the stack", ["--return", "stack"], ["--return", "stack"]],
    ["at the exits", [], []],
    ["in both ways", ["--return", "stack"], []],
  ] as const)("%s", async (_, firstArgs, secondArgs) => {
    const target = await start("exits", { compiler: "g++" });
    target.send("t");
    const expected = await target.line();
    const before = readProcessState(target.pid);
    const first = await arm(target, program, firstArgs);
    const second = await arm(target, program, secondArgs);
    target.send("t");
    expect(await target.line()).toBe(expected);
    expect((await leave(first)).map("@out")).toEqual(counts);
    target.send("t");
    expect(await target.line()).toBe(expected);
    const twice = Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, 2 * count]));
    expect((await leave(second)).map("@out")).toEqual(twice);
    expectUnchanged(target.pid, before);
  });
});

describe("exceptions through return addresses that two sessions replace", () => {
  const program = "uretprobe:exits:guarded { @ = count(); } uretprobe:exits:between { @between = count(); }";
  it.each([
    [0, 1],
    [1, 0],
  ] as const)("%i leaves first", async (...order) => {
    const target = await start("exits", { compiler: "g++" });
    target.send("e");
    const expected = await target.line();
    const before = readProcessState(target.pid);
    const sessions = [
      await arm(target, program, ["--return", "stack"]),
      await arm(target, program, ["--return", "stack"]),
    ];
    for (const [rounds, index] of order.entries()) {
      target.send("e");
      expect(await target.line()).toBe(expected);
      const result = await sessions[index]!.interrupt();
      // Two of three calls return; the others are left by the exception.
      expect([result.code, result.map("@"), result.map("@between")]).toEqual([
        0,
        999 * (rounds + 1),
        666 * (rounds + 1),
      ]);
    }
    expectUnchanged(target.pid, before);
    target.send("e");
    expect(await target.line()).toBe(expected);
  });
});
