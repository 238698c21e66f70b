/** Exceptions, forced unwinding and longjmp through replaced return addresses: the program notices nothing, and all is counted. */
import { expect, it } from "vitest";
import { outputOf } from "../support/build-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { Tracing, type TracingResult } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const functions =
  "first second thrower middle catcher outer rethrower last waits_below exits_below jumps".split(" ");
const letters = ["e", "n", "x", "c", "p", "l"];

async function answers(child: UnmanagedChild): Promise<string[]> {
  const lines: string[] = [];
  for (const letter of letters) {
    child.send(`${letter}\n`);
    lines.push(await child.line());
  }
  return lines;
}

interface Account {
  readonly probe: string;
  readonly hits: number;
  readonly unwound: number;
}

function accountsOf(result: TracingResult): Account[] {
  return (result.lines.find(({ type }) => type === "accounting")!.data as { probes: Account[] }).probes;
}

/** Entries, returns and unwound calls of each function. */
function balance(result: TracingResult, name: string) {
  const accounts = accountsOf(result);
  const of = (kind: string, fn: string) => accounts.find(({ probe }) => probe === `${kind}:${name}:${fn}`)!;
  return functions.map((fn) => {
    const [entry, exit] = [of("uprobe", fn), of("uretprobe", fn)];
    return { fn, entries: entry.hits, returns: exit.hits, unwound: exit.unwound };
  });
}

function programFor(name: string): string {
  const probes = (kind: string) => functions.map((fn) => `${kind}:${name}:${fn}`).join(",");
  return `${probes("uprobe")} { @in[func] = count(); } ${probes("uretprobe")} { @out = count(); }`;
}

for (const { name, variant, flags } of [
  { name: "with libgcc_s", variant: "shared", flags: [] },
  { name: "linked statically", variant: "static", flags: ["-static"] },
])
  for (const ways of ["stack", "auto"])
    it(`nothing is lost in a program ${name}, returns by ${ways}`, async () => {
      const path = buildFixture("unwinding", { compiler: "g++", variant, flags });
      const image = `unwinding-${variant}`;
      using reference = await UnmanagedChild.start([path]);
      using child = await UnmanagedChild.start([path]);
      const before = readProcessState(child.pid);
      await using tracing = await Tracing.armed(
        ["-p", `${child.pid}`, "--return", ways, "--verify"],
        programFor(image),
      );
      expect(await answers(child)).toEqual(await answers(reference));
      const result = await tracing.interrupt();
      expect(result.err).toBe("");
      expect(result.code).toBe(0);
      const counts = balance(result, image);
      const unwound = Object.fromEntries(counts.map((count) => [count.fn, count.unwound]));
      if (ways === "stack") {
        expect(counts.filter(({ entries, returns, unwound: lost }) => entries !== returns + lost)).toEqual(
          [],
        );
        expect(unwound).toMatchObject({
          thrower: 10333,
          catcher: 0,
          outer: 0,
          waits_below: 50,
          exits_below: 40,
        });
      } else {
        // Only what ends in a tail call has a replaced return address.
        const tails = counts.filter(({ fn }) => fn === "first" || fn === "second");
        expect(tails.filter(({ entries, returns, unwound: lost }) => entries !== returns + lost)).toEqual([]);
        expect(unwound).toMatchObject({ first: 10333, second: 10333 });
      }
      // Threads come and go, and with them their stacks: but text, descriptors and signals are as before.
      expectNoTrace(child.pid, before);
    });

it("tracers come and go while four threads throw all the time", async () => {
  const path = buildFixture("unwinding", { compiler: "g++", variant: "shared" });
  using child = await UnmanagedChild.start([path]);
  child.send("f\n");
  expect(await child.line()).toBe("f begun");
  for (let round = 0; round < 3; round++) {
    await using tracing = await Tracing.armed(
      ["-p", `${child.pid}`, "--return", "stack"],
      programFor("unwinding-shared"),
    );
    const result = await tracing.interrupt();
    expect(
      accountsOf(result).find(({ probe }) => probe.endsWith("uretprobe:unwinding-shared:middle"))!.unwound,
    ).toBeGreaterThan(0);
    // A thread that waits for a processor in the middle of an unwinding may keep the code for a while.
    if (result.err !== "") {
      expect(result.err).toMatch(/still in our code/);
      const detached = await Tracing.start(["detach", "-p", `${child.pid}`]).ended();
      expect(detached.err).toBe("");
    }
  }
  child.send("r\n");
  expect(await child.line()).toMatch(/^r [1-9]/);
});

it("the fixture has an unwinder of its own when it is linked statically", () => {
  const path = buildFixture("unwinding", { compiler: "g++", variant: "static", flags: ["-static"] });
  expect(outputOf("nm", [path])).toContain(" _Unwind_Find_FDE\n");
});
