/**
 * Instructions that are too short for a jump, in a live process: counted exactly on all threads without a trap, armed and
 * put back again and again while threads run through them, and put back by others when the tracer has died.
 */
import { afterEach, describe, expect, it } from "vitest";
import { readChangedSites } from "../../src/session/attach/changed-sites.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import {
  expectNoTrace,
  expectUnchanged,
  findOurMappings,
  readProcessState,
} from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 4;
const ROUNDS = 200_000;

const sites = ["one", "two", "three", "four", "return", "hop", "padded"] as const;
type Site = (typeof sites)[number];

/** Thread n enters the loop behind its n-th site. */
const expectedHits: Readonly<Record<Site, number>> = {
  one: THREADS * ROUNDS - 3,
  four: THREADS * ROUNDS - 2,
  two: THREADS * ROUNDS - 2,
  three: THREADS * ROUNDS - 1,
  return: THREADS,
  hop: (THREADS * ROUNDS) / 2,
  padded: (THREADS * ROUNDS) / 2,
};

/** What beside the site has to be changed, where there is no other way. */
const besides: Readonly<Partial<Record<Site, Record<string, number>>>> = {
  hop: { evicted: 1 },
  padded: { padding: 1 },
};

const probe = (site: Site) => `uprobe:short-sites:site_${site} { @${site} = count(); }`;

let child: UnmanagedChild | undefined;
afterEach(() => child?.[Symbol.dispose]());

async function start(rounds: string): Promise<UnmanagedChild> {
  child = await UnmanagedChild.start([buildFixture("short-sites"), `${THREADS}`, rounds]);
  return child;
}

async function compute(running: UnmanagedChild): Promise<string> {
  running.send("\n");
  return await running.line(60_000);
}

/** What the text holds for the sake of probes, by mechanism. */
function mechanismsIn(pid: number): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { mechanism } of readChangedSites(pid)) counts[mechanism] = (counts[mechanism] ?? 0) + 1;
  return counts;
}

describe("each site by itself is counted exactly and leaves no trace", () => {
  for (const site of sites) {
    it(`site of ${site}`, async () => {
      const running = await start(`${ROUNDS}`);
      const plain = await compute(running);
      const before = readProcessState(running.pid);
      await using tracing = await Tracing.armed(
        ["--mechanism", "punned", "-p", `${running.pid}`],
        probe(site),
      );
      expect(mechanismsIn(running.pid)).toMatchObject({ punned: 1, ...besides[site] });
      expect(await compute(running)).toBe(plain);
      const result = await tracing.interrupt();
      expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
      expect(result.map(`@${site}`)).toBe(expectedHits[site]);
      expectUnchanged(running.pid, before);
      expect(await compute(running)).toBe(plain);
    });
  }
});

it("all sites together are counted exactly, whatever each gets", async () => {
  const rounds = 2000;
  const running = await start(`${rounds}`);
  const plain = await compute(running);
  const before = readProcessState(running.pid);
  const program = sites.map(probe).join(" ");
  await using tracing = await Tracing.armed(["-p", `${running.pid}`], program);
  expect(await compute(running)).toBe(plain);
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  for (const site of sites) {
    const perRound = site === "return" ? 0 : Math.round(expectedHits[site] / ROUNDS);
    const hits = expectedHits[site] - perRound * (ROUNDS - rounds);
    expect({ site, hits: result.map(`@${site}`) }).toEqual({ site, hits });
  }
  expectUnchanged(running.pid, before);
});

it("sites are armed and put back again and again while four threads run through them", async () => {
  const running = await start("-");
  const before = readProcessState(running.pid);
  for (let cycle = 0; cycle < 6; cycle++) {
    // Neighbours exclude each other: every other cycle takes the other ones.
    const program = (
      cycle % 2 === 0 ? (["one", "two", "return", "hop"] as const) : (["four", "three", "padded"] as const)
    )
      .map(probe)
      .join(" ");
    const run = await runTracing([
      "-p",
      `${running.pid}`,
      "-e",
      `${program} interval:ms:${20 + cycle * 10} { exit(); }`,
    ]);
    expect({ code: run.code, err: run.err }).toEqual({ code: 0, err: "" });
    expect(run.map(cycle % 2 === 0 ? "@two" : "@three")).toBeGreaterThan(0);
    expectNoTrace(running.pid, before);
  }
  expect(await compute(running)).toBe("0");
});

it("a dead tracer's punned sites go on, and anybody can put them back", async () => {
  const running = await start("-");
  const before = readProcessState(running.pid);
  for (let cycle = 0; cycle < 3; cycle++) {
    const tracing = await Tracing.armed(
      ["--mechanism", "punned", "-p", `${running.pid}`],
      `${probe(cycle % 2 === 0 ? "two" : "four")} ${probe("return")}`,
    );
    tracing.signal("SIGKILL");
    await tracing.ended();
    expect(await compute(running)).toBe("0");
    expect(findOurMappings(running.pid)).not.toEqual([]);
    const detached = await runTracing(["detach", "-p", `${running.pid}`]);
    expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
    expectNoTrace(running.pid, before);
    expect(await compute(running)).toBe("0");
  }
});

describe("explain shows the way of a short site, and why there is no shorter one", () => {
  const cases: readonly { readonly site: Site; readonly tactic: string; readonly text: RegExp }[] = [
    {
      site: "four",
      tactic: "pun",
      text: /^ {2}not jump: jump into region: .*\n {2}before {2}48 8d 40 01\n {2}after {3}(2e )*e9 .*\n {2}by pun: the jump ends in the bytes that follow, .*\n {4}lands at 0x[0-9a-f]+$/m,
    },
    {
      site: "hop",
      tactic: "neighbour",
      text: /^ {2}by neighbour: hops into the instructions from 0x[0-9a-f]+ on, which make way\n.* {2}mov ecx, 0\n.* {2}mov r8d, 5\n {4}at 0x[0-9a-f]+ {2}b9 00 00 00 00 41 b8 05 00 00 -> e9 .*$/m,
    },
    {
      site: "padded",
      tactic: "padding",
      text: /^ {2}by padding: hops to 0x[0-9a-f]+, which nothing executes\n {4}at 0x[0-9a-f]+ {2}cc cc cc cc cc -> e9 .*$/m,
    },
  ];
  for (const { site, tactic, text } of cases) {
    it(tactic, async () => {
      const running = await start("1");
      const before = readProcessState(running.pid);
      const args = ["explain", `uprobe:short-sites:site_${site}`, "-p", `${running.pid}`];
      const shown = runCommand(args);
      expect(shown.err).toBe("");
      expect(shown.out).toMatch(text);
      expect(shown.out).toMatch(/^ {2}chain: .* -> 0x[0-9a-f]+ -> detour 0x[0-9a-f]+ -> /m);
      const { data } = JSON.parse(runCommand([...args, "-f", "json"]).out) as {
        data: { mechanism: string; route: { tactic: string }; refused: { mechanism: string }[] };
      };
      expect([data.mechanism, data.route.tactic, data.refused.map(({ mechanism }) => mechanism)]).toEqual([
        "punned",
        tactic,
        ["call", "jump"],
      ]);
      expectUnchanged(running.pid, before);
    });
  }
});
