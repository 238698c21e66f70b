/**
 * Counts are exact: every call of a probed function is counted once, on every thread, by every mechanism, and what the
 * program computes is what it computes without probes.
 */
import { describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { instructionOffsets } from "../support/instructions.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

/** Lets the program do its work once without probes and once with, and returns what the maps held. */
async function traceWork(
  argv: readonly string[],
  args: readonly string[],
  program: string,
  expectedErr = /^$/,
) {
  using child = await UnmanagedChild.start(argv);
  child.send("\n");
  const expected = await child.line();
  await using tracing = await Tracing.armed([...args, "-p", `${child.pid}`], program);
  child.send("\n");
  expect(await child.line(120_000)).toBe(expected);
  const result = await tracing.interrupt();
  expect(result.err).toMatch(expectedErr);
  expect(result.code).toBe(0);
  child.send("\n");
  expect(await child.line()).toBe(expected);
  expect(child.pending).toEqual([]);
  return { result, expected };
}

const counter = (threads: number, calls: number) => [buildFixture("counter"), `${threads}`, `${calls}`];

describe("counts of calls on threads", () => {
  const cases: readonly {
    readonly name: string;
    readonly args: readonly string[];
    readonly program: string;
    readonly threads: number;
    readonly calls: number;
    readonly maps: Readonly<Record<string, number>>;
  }[] = [
    {
      name: "8 threads, a million calls each, jump",
      args: ["--mechanism", "jump"],
      program: "uprobe:counter:probed { @ = count(); }",
      threads: 8,
      calls: 1_000_000,
      maps: { "@": 8_000_000 },
    },
    {
      name: "8 threads, int3",
      args: ["--mechanism", "int3"],
      program: "uprobe:counter:probed { @ = count(); }",
      threads: 8,
      calls: 100_000,
      maps: { "@": 800_000 },
    },
    {
      name: "entry and return, jump",
      args: ["--mechanism", "jump"],
      program: "uprobe:counter:probed { @in = count(); } uretprobe:counter:probed { @out = count(); }",
      threads: 8,
      calls: 200_000,
      maps: { "@in": 1_600_000, "@out": 1_600_000 },
    },
    {
      name: "entry and return, by a replaced return address",
      args: ["--return", "stack"],
      program: "uprobe:counter:probed { @in = count(); } uretprobe:counter:probed { @out = count(); }",
      threads: 8,
      calls: 200_000,
      maps: { "@in": 1_600_000, "@out": 1_600_000 },
    },
    {
      name: "entry and return, int3",
      args: ["--mechanism", "int3"],
      program: "uprobe:counter:probed { @in = count(); } uretprobe:counter:probed { @out = count(); }",
      threads: 8,
      calls: 20_000,
      maps: { "@in": 160_000, "@out": 160_000 },
    },
    {
      name: "three probes on one address, two of them with predicates",
      args: [],
      program:
        "uprobe:counter:probed { @all = count(); } " +
        "uprobe:counter:probed / arg1 % 2 == 0 / { @even = count(); } " +
        "uprobe:counter:probed / arg1 < 10 / { @first = sum(arg1); }",
      threads: 4,
      calls: 100_000,
      maps: { "@all": 400_000, "@even": 200_000, "@first": 180 },
    },
    {
      name: "count, sum, avg, min and max of an argument",
      args: [],
      program:
        "uprobe:counter:probed { @n = count(); @s = sum(arg1); @a = avg(arg1); @l = min(arg1); @h = max(arg1); }",
      threads: 3,
      calls: 10_001,
      maps: { "@n": 30_003, "@s": 3 * 50_005_000, "@a": 5000, "@l": 0, "@h": 10_000 },
    },
    {
      name: "more threads than shards or processors",
      args: [],
      program: "uprobe:counter:probed { @ = count(); }",
      threads: 200,
      calls: 5_000,
      maps: { "@": 1_000_000 },
    },
  ];
  it.each(cases)("$name", async ({ args, program, threads, calls, maps }) => {
    const { result } = await traceWork(counter(threads, calls), args, program);
    expect(Object.fromEntries(Object.keys(maps).map((name) => [name, result.map(name)]))).toEqual(maps);
  });

  it("every thread has its own sum under its id", async () => {
    const { result } = await traceWork(
      counter(8, 10_000),
      [],
      "uprobe:counter:probed { @calls[tid] = count(); @sums[tid, pid] = sum(arg1); }",
    );
    const calls = result.map("@calls") as Record<string, number>;
    expect(Object.values(calls)).toEqual(Array.from({ length: 8 }, () => 10_000));
    const sums = Object.values(result.map("@sums") as Record<string, number>);
    expect(sums).toEqual(Array.from({ length: 8 }, () => 49_995_000));
  });

  it("a histogram holds every call in its power of two", async () => {
    const { result } = await traceWork(counter(4, 1024), [], "uprobe:counter:probed { @ = hist(arg1); }");
    const powers = [1, 2, 3, 4, 5, 6, 7, 8, 9].map((power) => 2 ** power);
    expect(result.map("@")).toEqual([
      { min: 0, max: 0, count: 4 },
      { min: 1, max: 1, count: 4 },
      ...powers.map((min) => ({ min, max: 2 * min - 1, count: 4 * min })),
    ]);
  });

  it("a linear histogram holds every call, those outside its range too", async () => {
    const { result } = await traceWork(
      counter(2, 100),
      [],
      "uprobe:counter:probed { @ = lhist(arg1, 20, 60, 20); }",
    );
    expect(result.map("@")).toEqual([
      { max: 19, count: 40 },
      { min: 20, max: 39, count: 40 },
      { min: 40, max: 59, count: 40 },
      { min: 60, count: 80 },
    ]);
  });

  it("events are printed or counted as lost, each once", async () => {
    const { result } = await traceWork(
      counter(4, 20_000),
      [],
      'uprobe:counter:probed { printf("%d %d\\n", tid, arg1); @ = count(); }',
    );
    const printed = result.lines.filter(({ type, data }) => type === "printf" && data !== "armed\n");
    const lost = result.lines
      .filter(({ type }) => type === "lost_events")
      .map(({ data }) => (data as { events: number }).events);
    expect(new Set(printed.map(({ data }) => data)).size).toBe(printed.length);
    expect(printed.length + lost.reduce((sum, events) => sum + events, 0)).toBe(80_000);
    expect(result.map("@")).toBe(80_000);
  });
});

/** What `counter THREADS CALLS` returns from `probed`, added up; and how many results are odd. */
function returnedBy(threads: number, calls: number): { sum: bigint; odd: number } {
  let sum = 0n;
  let odd = 0;
  for (let thread = 1; thread <= threads; thread++) {
    let value = BigInt(thread);
    for (let i = 0; i < calls; i++) {
      value = BigInt.asUintN(64, value * 31n + (BigInt(i) ^ (value >> 7n)));
      sum += value;
      if ((value & 1n) === 1n) odd++;
    }
  }
  return { sum: BigInt.asUintN(64, sum), odd };
}

/** Calls of `fib` in `fib(n)` by the slow way. */
const fibCalls = (n: number): number => (n < 2 ? 1 : 1 + fibCalls(n - 1) + fibCalls(n - 2));

describe("return probes", () => {
  it.each(["jump", "int3"])("the value returned is right, %s", async (mechanism) => {
    const { result } = await traceWork(
      counter(4, 5000),
      ["--mechanism", mechanism],
      "uretprobe:counter:probed { @sum = sum(retval); @odd = sum(retval & 1); @ = count(); }",
    );
    const { sum, odd } = returnedBy(4, 5000);
    expect(result.map("@")).toBe(20_000);
    expect(result.map("@odd")).toBe(odd);
    const printed = /"@sum": (-?\d+)/.exec(result.out)?.[1];
    expect(BigInt.asUintN(64, BigInt(printed!))).toBe(sum);
  });

  it.each([
    { mechanism: "auto", way: "sites" },
    { mechanism: "jump", way: "stack" },
    { mechanism: "int3", way: "sites" },
    { mechanism: "int3", way: "stack" },
  ])("every call of a recursion on threads returns once: $way, $mechanism", async ({ mechanism, way }) => {
    const n = mechanism === "int3" ? 16 : 22;
    const { result } = await traceWork(
      [buildFixture("recursion"), "8", `${n}`],
      ["--mechanism", mechanism, "--return", way],
      "uprobe:recursion:fib { @in[tid] = count(); } uretprobe:recursion:fib { @out[tid] = count(); }",
    );
    const eachThread = Array.from({ length: 8 }, () => fibCalls(n));
    expect(Object.values(result.map("@in") as object)).toEqual(eachThread);
    expect(result.map("@out")).toEqual(result.map("@in"));
  });

  it("calls beyond maxactive are missed, counted, and disturb nothing", async () => {
    const { result } = await traceWork(
      [buildFixture("recursion"), "8", "18"],
      ["--return", "stack", "--maxactive", "4"],
      "uprobe:recursion:fib { @in = count(); } uretprobe:recursion:fib { @out = count(); }",
      /^missed \d+ returns: /,
    );
    const missed = Number(/^missed (\d+) returns/.exec(result.err)![1]);
    expect(missed).toBeGreaterThan(0);
    expect(result.map("@in")).toBe(8 * fibCalls(18));
    expect(result.map("@out")).toBe(8 * fibCalls(18) - missed);
  });

  it("latencies by thread are measured for every call", async () => {
    const { result } = await traceWork(
      counter(4, 5000),
      [],
      "uprobe:counter:probed { @start[tid] = nsecs; } " +
        "uretprobe:counter:probed / @start[tid] / { @ns = hist(nsecs - @start[tid]); delete(@start[tid]); }",
    );
    const rows = result.map("@ns") as { count: number }[];
    expect(rows.reduce((sum, { count }) => sum + count, 0)).toBe(20_000);
    expect(result.map("@start")).toBeUndefined();
  });
});

it("probes inside a function count each time that their instruction is reached", async () => {
  const path = buildFixture("counter");
  const offset = instructionOffsets(path, "probed")[1];
  const { result } = await traceWork(
    counter(4, 10_000),
    [],
    `uprobe:counter:probed { @a = count(); } uprobe:counter:probed+${offset} { @b = count(); }`,
  );
  expect({ a: result.map("@a"), b: result.map("@b") }).toEqual({ a: 40_000, b: 40_000 });
});
