/**
 * Return probes at the exits of functions: every return counts once with its value, whatever way a function is left, and
 * the program does not notice: exceptions, longjmp and backtrace() find the return addresses that they expect.
 */
import { describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { buildGo, findGo } from "../support/go-program.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const program = () => buildFixture("exits", { compiler: "g++" });
const guarded = () =>
  buildFixture("exits", { compiler: "g++", variant: "cet", flags: ["-fcf-protection=full"] });

/** Counts of entries and returns, and the sums of what is returned. */
function bothEnds(names: readonly string[]): string {
  return names
    .map(
      (name) =>
        `uprobe:exits*:${name} { @in["${name}"] = count(); } ` +
        `uretprobe:exits*:${name} { @out["${name}"] = count(); @sum["${name}"] = sum(retval); }`,
    )
    .join(" ");
}

/** Lets the program do a piece of work once without probes and once with. */
async function work(
  child: UnmanagedChild,
  letter: string,
  args: readonly string[],
  text: string,
): Promise<Tracing> {
  child.send(letter);
  const expected = await child.line();
  const tracing = await Tracing.armed([...args, "-p", `${child.pid}`], text);
  child.send(letter);
  expect(await child.line(60_000)).toBe(expected);
  return tracing;
}

interface Case {
  readonly name: string;
  readonly letter: string;
  readonly counts: Readonly<Record<string, readonly [entered: number, returned: number]>>;
}

const cases: readonly Case[] = [
  {
    name: "exceptions are thrown through probed functions",
    letter: "e",
    counts: { risky: [999, 666], between: [999, 666], guarded: [999, 999] },
  },
  {
    name: "exceptions on eight threads",
    letter: "x",
    counts: { risky: [7992, 5328], between: [7992, 5328], guarded: [7992, 7992] },
  },
  {
    name: "longjmp out of probed functions",
    letter: "l",
    counts: { deep: [1000, 500], middle: [1000, 500] },
  },
  {
    name: "backtrace shows the true return addresses",
    letter: "b",
    counts: { looks_back: [1, 1], looked_at: [1, 1] },
  },
  {
    name: "signal handlers inside of probed functions, every fourth with a jump out of it",
    letter: "s",
    counts: { handled: [400, 400], interrupted: [400, 300] },
  },
  {
    name: "tail calls",
    letter: "t",
    counts: {
      // From tail_if by an odd argument: 500 of its own, 250 and 126 by way of tail_long.
      target: [2876, 2876],
      tail_direct: [1000, 1000],
      tail_indirect: [1000, 1000],
      tail_if: [1750, 1750],
      tail_long: [1000, 1000],
      even_steps: [1800, 1800],
      odd_steps: [1200, 1200],
      only_returns: [1000, 1000],
      pops_two: [1000, 1000],
      popping: [1000, 1000],
    },
  },
  {
    name: "a switch with a part that is moved away",
    letter: "w",
    counts: { switching: [1000, 1000], target: [200, 200] },
  },
];

describe.each([
  { what: "", path: program, args: [] },
  { what: ", with -fcf-protection", path: guarded, args: [] },
  { what: ", by int3", path: program, args: ["--mechanism", "int3"] },
])("counts are exact and nothing is noticed$what", ({ path, args }) => {
  it.each(cases)("$name", async ({ letter, counts }) => {
    using child = await UnmanagedChild.start([path()]);
    const names = Object.keys(counts);
    await using tracing = await work(child, letter, args, bothEnds(names));
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    const [entries, returns] = ["@in", "@out"].map((map) => result.map(map) as Record<string, number>);
    const seen = names.map((name) => [name, [entries![name], returns![name]]]);
    expect(Object.fromEntries(seen)).toEqual(counts);
  });
});

/** What programs can see of a return. Behind a tail call the address returned to is one of ours. */
const everything = (names: readonly string[], letter: string) =>
  names
    .map(
      (name) =>
        `uretprobe:exits:${name} { @[probe, func, reg("sp")] = sum(retval); @n[probe] = count(); ` +
        `@saved[probe] = sum(reg("bx") + reg("bp") + reg("r12") + reg("r13") + reg("r14") + reg("r15")); ` +
        `${letter === "s" ? '@to[probe, reg("ip")] = count();' : ""} }`,
    )
    .join(" ");

it.each(["s", "t", "w"])(
  "a return looks the same at the exits and behind a replaced address: %s",
  async (letter) => {
    using child = await UnmanagedChild.start([program()]);
    // Their exits are not known, or their return address cannot be replaced.
    const names = Object.keys(cases.find((each) => each.letter === letter)!.counts).filter(
      (name) => !name.startsWith("pop"),
    );
    const seen: string[][] = [];
    for (const way of ["sites", "stack"]) {
      await using tracing = await work(child, letter, ["--return", way], everything(names, letter));
      const result = await tracing.interrupt();
      expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
      // The text, not the parsed numbers: those above 2^53 would lose digits.
      const maps = result.out.split("\n").filter((line) => /"type": "map"/.test(line));
      seen.push(maps.map((line) => [...line.matchAll(/"[^"]*": -?\d+/g)].map(String).sort().join("\n")));
    }
    expect(seen[0]).toEqual(seen[1]);
    expect(seen[0]!.join("\n").split("\n").length).toBeGreaterThan(5);
  },
);

it("a thread that sleeps in a probed function keeps nobody from leaving, and returns where it should", async () => {
  using child = await UnmanagedChild.start([program()]);
  // Everything has been mapped and started once.
  for (const answer of ["z asleep", "z awake 1033"]) {
    child.send("z");
    expect(await child.line()).toBe(answer);
  }
  const before = readProcessState(child.pid);
  const tracing = await Tracing.armed(
    ["-v", "--return", "sites", "-p", `${child.pid}`],
    "uprobe:exits:sleeper { @in = count(); } uretprobe:exits:sleeper { @out = count(); }",
  );
  child.send("z");
  expect(await child.line()).toBe("z asleep");
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  expect(result.err).toMatch(/ 0 return addresses put back, .* 1 stop$/m);
  expect([result.map("@in"), result.map("@out")]).toEqual([1, 0]);
  child.send("z");
  expect(await child.line()).toBe("z awake 1033");
  expectUnchanged(child.pid, before);
});

async function explain(child: UnmanagedChild, probe: string, args: readonly string[] = []) {
  const tracing = Tracing.start(["explain", probe, "-p", `${child.pid}`, ...args]);
  const { code, err, lines } = await tracing.ended();
  const returns = lines.map(({ data }) => (data as { returns?: Record<string, string> }).returns);
  return { code, err, returns };
}

const go = findGo();

it.skipIf(go === undefined)("goroutines whose stacks move, with panics (needs the go command)", async () => {
  using child = await UnmanagedChild.start([buildGo(go!, "stacks")]);
  const names = ["main.grow", "main.panics", "main.leaf"];
  await using tracing = await work(
    child,
    "a",
    [],
    names
      .map((name) => `uretprobe:stacks:${name} { @["${name}"] = count(); @sum["${name}"] = sum(retval); }`)
      .join(" "),
  );
  const result = await tracing.interrupt();
  expect(result.code).toBe(0);
  // Signal stacks lie side by side in Go's heap, and a dead frame in one of them looks like a live one.
  expect(result.err).toMatch(/^(trapline: restore process \d+: .* still in our code; free it later .*\n)?$/);
  expect(result.map("@")).toEqual({
    "main.grow": 16 * 50 * 201,
    "main.panics": 16 * 50,
    "main.leaf": 16 * 50,
  });
});

describe("which way is taken", () => {
  it("the exits, each for what it is", async () => {
    using child = await UnmanagedChild.start([program()]);
    const { returns } = await explain(child, "uretprobe:exits:tail_long");
    expect(returns.map((each) => `${each?.by} ${each?.exit}`).sort()).toEqual([
      "exit return",
      "exit tail-branch",
      "exit tail-jump",
    ]);
  });

  it("none, for a function that never returns", async () => {
    using child = await UnmanagedChild.start([program()]);
    const explained = await explain(child, "uretprobe:exits:gives_up");
    expect(explained).toMatchObject({ code: 0, returns: [] });
    expect(explained.err).toMatch(/it never returns, so there is nothing to change/);
    await using tracing = await work(child, "w", [], "uretprobe:exits:gives_up { @ = count(); }");
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err, n: result.map("@") }).toEqual({ code: 0, err: "", n: 0 });
  });

  it("the return address, with the reason, where the exits are not known", async () => {
    using child = await UnmanagedChild.start([program()]);
    const { returns } = await explain(child, "uretprobe:exits:popping");
    expect(returns).toEqual([expect.objectContaining({ by: "stack", reason: "return-address-unknown" })]);
    const forced = await explain(child, "uretprobe:exits:popping", ["--return", "sites"]);
    expect(forced.err).toMatch(
      /popping \(exits\): its returns cannot be probed at its exits: at popping\+0x\S+ \(exits\) the return address is not known to be on top of the stack\nhint: without --return sites/,
    );
  });

  it("the return address, where it is asked for, but not for what pops its own arguments", async () => {
    using child = await UnmanagedChild.start([program()]);
    const forced = ["--return", "stack"];
    const { returns } = await explain(child, "uretprobe:exits:risky", forced);
    expect(returns).toEqual([expect.objectContaining({ by: "stack", reason: "stack-forced" })]);
    const popping = await explain(child, "uretprobe:exits:pops_two", forced);
    expect(popping.err).toMatch(/pops_two \(exits\) takes its arguments from the stack as it returns/);
  });

  it("the exits of functions that return twice, unless they end in a tail call", async () => {
    using child = await UnmanagedChild.start([program()]);
    const { returns } = await explain(child, "uretprobe:libc:vfork");
    expect(returns[0]).toMatchObject({ by: "exit" });
    const { code, err } = await explain(child, "uretprobe:libc:_setjmp");
    expect({ code, err }).toMatchObject({ code: 1, err: expect.stringMatching(/returns more than once/) });
  });
});
