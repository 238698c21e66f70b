/**
 * Sessions that share functions which begin with NOPs: the first one has made calls of them, later ones make jumps of the calls.
 * Each counts every call of a function, in whatever order they leave or are killed; in the end the process is as it was.
 */
import { afterEach, describe, expect, it } from "vitest";
import { Attached } from "../support/attached.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const THREADS = 3;
const CALLS = 5000;
const ALL = THREADS * CALLS;

const tracings: Tracing[] = [];
let child: UnmanagedChild | undefined;
afterEach(async () => {
  for (const tracing of tracings.splice(0)) await tracing[Symbol.asyncDispose]();
  child?.[Symbol.dispose]();
});

const builds = {
  "nops behind endbr64": {
    variant: "nop5",
    flags: ["-fcf-protection", "-pg", "-mfentry", "-mnop-mcount", "-fno-pie", "-no-pie"],
  },
  "sleds of five": { variant: "sled5", flags: ["-fpatchable-function-entry=5", "-fcf-protection=none"] },
  "no nops": { variant: "plain", flags: ["-fcf-protection=none"] },
} as const;
type BuildName = keyof typeof builds;

const programOf = (name: BuildName) =>
  ["first", "second", "many"]
    .map(
      (symbol) =>
        `uprobe:patchable-${builds[name].variant}:${symbol} { @[func] = count(); @sum = sum(arg0); }`,
    )
    .join(" ");

async function start(name: BuildName): Promise<UnmanagedChild> {
  const { flags, variant } = builds[name];
  child = await UnmanagedChild.start([buildFixture("patchable", { flags, variant }), `${THREADS}`]);
  return child;
}

async function arm(target: UnmanagedChild, program: string): Promise<Tracing> {
  const tracing = await Tracing.armed(["-p", `${target.pid}`], program);
  tracings.push(tracing);
  return tracing;
}

/** Starts the threads' work; they are through when the answer is read. */
async function work(target: UnmanagedChild): Promise<string> {
  target.send(`${CALLS}\n`);
  return await target.line(60_000);
}

/** What a session has counted that was there for so many rounds. */
function countsOf(rounds: number) {
  const all = rounds * ALL;
  return { first: all, second: all, many: all };
}

async function leave(tracing: Tracing, rounds: number): Promise<void> {
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err, counts: result.map("@") }).toEqual({
    code: 0,
    err: "",
    counts: countsOf(rounds),
  });
  // `second` and `outer` are called with 0 .. CALLS - 1, `many` with 1.
  expect(result.map("@sum")).toBe(rounds * THREADS * (CALLS * (CALLS - 1) + CALLS));
}

const cases = [
  ["nops behind endbr64", [2, 0, 1]],
  ["sleds of five", [0, 2, 1]],
  ["sleds of five", [1, 0, 2]],
  ["sleds of five", [2, 1, 0]],
] as const;

describe("three sessions leave in any order", () => {
  it.each(cases.map(([name, order]) => [name, order.join(" "), order] as const))(
    "%s: %s",
    async (name, _, order) => {
      const target = await start(name);
      const before = readProcessState(target.pid);
      const sessions: Tracing[] = [];
      for (let index = 0; index < 3; index++) sessions.push(await arm(target, programOf(name)));
      let rounds = 0;
      for (const index of order) {
        await work(target);
        await leave(sessions[index]!, ++rounds);
      }
      expectUnchanged(target.pid, before);
      await work(target);
    },
  );
});

describe("a session is killed", () => {
  it.each([
    ["the one with the calls", 0],
    ["the one in the middle", 1],
  ] as const)("%s, and the next one takes it out", async (_, killed) => {
    const name = "nops behind endbr64";
    const target = await start(name);
    const before = readProcessState(target.pid);
    const sessions: Tracing[] = [];
    for (let index = 0; index < 3; index++) sessions.push(await arm(target, programOf(name)));
    const dead = sessions[killed]!;
    dead.signal("SIGKILL");
    await dead.ended();
    await work(target);
    const late = await arm(target, programOf(name));
    expect(late.result.err).toContain(`took out the probes of process ${dead.pid}, which has died`);
    await work(target);
    for (const session of sessions) if (session !== dead) await leave(session, 2);
    await work(target);
    const last = await late.interrupt();
    expect([last.code, last.map("@")]).toEqual([0, countsOf(2)]);
    expectUnchanged(target.pid, before);
  });

  it.each([
    ["below", 0],
    ["above", 1],
  ] as const)("the one %s, and the other leaves before anybody else comes", async (_, killed) => {
    const name = "sleds of five";
    const target = await start(name);
    const before = readProcessState(target.pid);
    const sessions = [await arm(target, programOf(name)), await arm(target, programOf(name))];
    const dead = sessions[killed]!;
    dead.signal("SIGKILL");
    await dead.ended();
    await work(target);
    const result = await sessions[1 - killed]!.interrupt();
    expect([result.code, result.map("@")]).toEqual([0, countsOf(1)]);
    await work(target);
    const detached = await runTracing(["detach", "-p", `${target.pid}`]);
    expect(detached.code).toBe(0);
    expectUnchanged(target.pid, before);
    await work(target);
  });
});

it("sessions come and go while threads run through the calls, and one that stays counts everything", async () => {
  const name = "sleds of five";
  const target = await start(name);
  const before = readProcessState(target.pid);
  const first = await arm(target, programOf(name));
  const stays = await arm(target, programOf(name));
  const rounds = 100;
  target.send(`${CALLS}\n`.repeat(rounds));
  const third = await arm(target, programOf(name));
  await first.interrupt();
  const fourth = await arm(target, programOf(name));
  await third.interrupt();
  for (let round = 0; round < rounds; round++) await target.line(60_000);
  await leave(stays, rounds);
  await fourth.interrupt();
  expectUnchanged(target.pid, before);
});

describe("a point that a later session has hooked cannot be changed, which names that one", () => {
  it.each([
    ["a call", "sleds of five", "patchable-sled5"],
    ["a jump", "no nops", "patchable-plain"],
  ] as const)("%s", async (_, name, image) => {
    const target = await start(name);
    const before = readProcessState(target.pid);
    const probe = `uprobe:${image}:second { @ = count(); }`;
    const attached = await Attached.to(target.pid, probe);
    const { attachment } = attached;
    const points = attached.plan(0);
    const { at } = points[0]!.plan;
    await attachment.arm(points);
    const later = await arm(target, probe);
    await work(target);
    await expect(attachment.livePoints.disarm([at])).rejects.toThrow(
      `process ${later.pid} traces it, too, and has come later`,
    );
    await work(target);
    const result = await later.interrupt();
    expect([result.code, result.map("@")]).toEqual([0, 2 * ALL]);
    expect(attached.counts(0).run).toBe(2n * BigInt(ALL));
    await attachment.livePoints.disarm([at]);
    await work(target);
    expect(attached.counts(0).run).toBe(2n * BigInt(ALL));
    await attached.restore();
    expectUnchanged(target.pid, before);
  });
});

async function siteOf(args: readonly string[]): Promise<Record<string, unknown>> {
  const { lines } = await runTracing(args);
  return lines.find(({ type }) => type === "site")!.data as Record<string, unknown>;
}

describe("what would be done where another session is, is said and nothing changes", () => {
  it.each([
    ["a call", "nops behind endbr64", "patchable-nop5", "by a call; the call becomes a jump", "trampoline"],
    ["a jump", "no nops", "patchable-plain", "chained: the text stays", "detour"],
  ] as const)("%s", async (_, name, image, held, code) => {
    const target = await start(name);
    const probe = `uprobe:${image}:second`;
    const explainArgs = ["explain", "-p", `${target.pid}`, probe];
    const before = await siteOf(explainArgs);
    const first = await arm(target, `${probe} { @ = count(); }`);
    const armed = readProcessState(target.pid);
    const explained = runCommand(explainArgs);
    expect(explained.code).toBe(0);
    expect(explained.out).toContain(`held by process ${first.pid}`);
    expect(explained.out).toContain(held);
    expect(explained.out).toContain(`-> ${code} of process ${first.pid}`);
    const planned = runCommand(["--dry-run", "-p", `${target.pid}`, "-e", `${probe} { @ = count(); }`]);
    expect(planned.code).toBe(0);
    expect(planned.out).toContain(`held by process ${first.pid}`);
    const after = await siteOf(explainArgs);
    expect(after).toMatchObject({ before: before.before, held: { tracer: first.pid } });
    expectUnchanged(target.pid, armed);
    expect((await first.interrupt()).code).toBe(0);
  });
});
