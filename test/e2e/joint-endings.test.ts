/**
 * Sessions that share a process and end in other ways than in order: by SIGKILL, beside forked children, with a husk left; and
 * what is said where one cannot have what another one has.
 */
import { spawn } from "node:child_process";
import { afterEach, describe, expect, it, vi } from "vitest";
import { readChangedSites } from "../../src/session/attach/changed-sites.ts";
import { findTracedProcesses } from "../../src/session/reports/processes.ts";
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

let child: UnmanagedChild | undefined;
const tracings: Tracing[] = [];
afterEach(async () => {
  for (const tracing of tracings.splice(0)) await tracing[Symbol.asyncDispose]();
  child?.[Symbol.dispose]();
});

async function start(fixture: string, ...args: string[]): Promise<UnmanagedChild> {
  child = await UnmanagedChild.start([buildFixture(fixture), ...args]);
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

async function kill(tracing: Tracing): Promise<void> {
  tracing.signal("SIGKILL");
  await tracing.ended();
}

/** What `trapline ps` says of a process's tracers. */
const tracersOf = (pid: number) =>
  findTracedProcesses()
    .traced.filter((traced) => traced.pid === pid)
    .map(({ tracer }) => [tracer.pid, tracer.kind] as const)
    .sort((a, b) => a[0] - b[0]);

const entry = "uprobe:counter:probed { @ = count(); }";
const returned = "uretprobe:counter:probed { @ = count(); }";
const short = "uprobe:short-sites:site_four { @ = count(); }";

describe("killed", () => {
  const cases = [
    ["jump", "counter", entry, ["--mechanism", "jump"], THREADS * 1000],
    ["int3", "counter", entry, ["--mechanism", "int3"], THREADS * 1000],
    ["replaced return addresses", "counter", returned, ["--return", "stack"], THREADS * 1000],
    ["a punned site", "short-sites", short, [], THREADS * 1000 - 2],
  ] as const;

  it.each(cases)(
    "the first one is taken out by detach while the second goes on, %s",
    async (_, fixture, program, args, count) => {
      const target = await start(fixture, `${THREADS}`, "1000");
      const expected = await work(target);
      const before = readProcessState(target.pid);
      const first = await arm(target, program, args);
      const second = await arm(target, program, args);
      await kill(first);
      expect(tracersOf(target.pid)).toEqual(
        [
          [first.pid, "dead"],
          [second.pid, "alive"],
        ].sort((a, b) => Number(a[0]) - Number(b[0])),
      );
      expect(await work(target)).toBe(expected);
      const detached = await runTracing(["detach", "-p", `${target.pid}`]);
      expect(detached.code).toBe(0);
      expect(detached.err).toContain(`still carries the probes of process ${second.pid}`);
      expect(await work(target)).toBe(expected);
      expect((await leave(second)).map("@")).toBe(2 * count);
      expectUnchanged(target.pid, before);
      expect(await work(target)).toBe(expected);
    },
  );

  it.each(cases)(
    "the second one is taken out by the third that comes, %s",
    async (_, fixture, program, args, count) => {
      const target = await start(fixture, `${THREADS}`, "1000");
      const expected = await work(target);
      const before = readProcessState(target.pid);
      const first = await arm(target, program, args);
      const second = await arm(target, program, args);
      await kill(second);
      const third = await arm(target, program, args);
      expect(third.result.err).toContain(`took out the probes of process ${second.pid}, which has died`);
      expect(await work(target)).toBe(expected);
      expect((await leave(first)).map("@")).toBe(count);
      const last = await third.interrupt();
      expect([last.code, last.map("@")]).toEqual([0, count]);
      expectUnchanged(target.pid, before);
    },
  );

  it("all of them at once, and detach takes out everything", async () => {
    const target = await start("counter", `${THREADS}`, "1000");
    const expected = await work(target);
    const before = readProcessState(target.pid);
    const sessions = [
      await arm(target, entry),
      await arm(target, `${entry} ${returned}`, ["--mechanism", "int3"]),
      await arm(target, returned, ["--return", "stack"]),
    ];
    await Promise.all(sessions.map(kill));
    expect(await work(target)).toBe(expected);
    const detached = await runTracing(["detach", "-p", `${target.pid}`]);
    expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
    expectUnchanged(target.pid, before);
    expect(await work(target)).toBe(expected);
  });
});

it("what cannot change owners stays as a husk until the last one goes", async () => {
  const target = await start("short-sites", `${THREADS}`, "1000");
  await work(target);
  const before = readProcessState(target.pid);
  const first = await arm(target, short);
  const second = await arm(target, short);
  await leave(first);
  expect(tracersOf(target.pid)).toEqual(
    [
      [first.pid, "left"],
      [second.pid, "alive"],
    ].sort((a, b) => Number(a[0]) - Number(b[0])),
  );
  await work(target);
  expect((await leave(second)).map("@")).toBe(THREADS * 1000 - 2);
  expectUnchanged(target.pid, before);
});

it("bytes that another session's probe needs are refused, and its process is named", async () => {
  const target = await start("short-sites", `${THREADS}`, "1000");
  const first = await arm(target, "uprobe:short-sites:site_two { @ = count(); }");
  const [site] = readChangedSites(target.pid);
  expect(site?.mechanism).toBe("punned");
  const second = await runTracing([
    "-p",
    `${target.pid}`,
    "-e",
    "uprobe:short-sites:site_three { @ = count(); }",
  ]);
  expect(second.code).toBe(1);
  expect(second.err).toContain(`process ${first.pid} traces it, too, and its probes need the text at`);
  await leave(first);
});

describe("while another tracer is changing the process", () => {
  /** Somebody who has the lock and keeps it. */
  const holdLock = (pid: number) => {
    const holder = spawn("flock", [`/proc/${pid}/mem`, "sh", "-c", "echo held; exec cat"]);
    return new Promise<typeof holder>((resolve) => holder.stdout.once("data", () => resolve(holder)));
  };

  it("it is waited for, which is said, and Ctrl-C is no less heard", async () => {
    const target = await start("counter", `${THREADS}`, "1000");
    const before = readProcessState(target.pid);
    const holder = await holdLock(target.pid);
    const waiting = Tracing.start(["-p", `${target.pid}`, "-e", entry]);
    tracings.push(waiting);
    await vi.waitFor(() => expect(waiting.result.err).toContain("waiting for"), { timeout: 20_000 });
    expect(waiting.result.err).toContain(`process ${target.pid}: waiting for process `);
    expect((await waiting.interrupt()).code).toBe(1);
    expectUnchanged(target.pid, before);

    const patient = Tracing.start(["-p", `${target.pid}`, "-e", `${entry} interval:ms:5 { exit(); }`]);
    tracings.push(patient);
    await vi.waitFor(() => expect(patient.result.err).toContain("waiting for"), { timeout: 20_000 });
    holder.stdin.end();
    expect((await patient.ended()).code).toBe(0);
    expectUnchanged(target.pid, before);
  });
});

describe.each(["jump", "int3"] as const)("a child forked while two sessions probe it, %s", (mechanism) => {
  it.each([
    [0, 1],
    [1, 0],
  ] as const)("is put back by both, %i first", async (...order) => {
    const program = "uprobe:lifecycle:probed { @[pid] = count(); }";
    const parent = await start("lifecycle");
    parent.send("w");
    const sum = (await parent.line()).replace("parent ", "");
    const before = readProcessState(parent.pid);
    const sessions = [
      await arm(parent, program, ["--mechanism", mechanism]),
      await arm(parent, program, ["--mechanism", mechanism]),
    ];
    parent.send("f");
    const heir = Number((await parent.line()).split(" ")[1]);
    expect((await leave(sessions[order[0]]!)).map("@")).toEqual({ [heir]: 1000 });
    expect(findOurMappings(heir)).not.toEqual([]);
    parent.send("c");
    expect(await parent.line()).toBe(`child again ${sum}`);
    expect((await leave(sessions[order[1]]!)).map("@")).toEqual({ [heir]: 2000 });
    expectUnchanged(parent.pid, before);
    expectNoTrace(heir, before);
    parent.send("w");
    expect(await parent.line()).toBe(`parent ${sum}`);
  });
});
