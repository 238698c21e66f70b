/** Processes that a target makes: with a copy of its memory, or with its memory itself. */
import { expect, it } from "vitest";
import { readTextFingerprint } from "../../src/session/leave/fingerprint.ts";
import { readStatus } from "../../src/target/process/proc-fs.ts";
import { buildFixture } from "../support/fixtures.ts";
import {
  expectNoTrace,
  expectUnchanged,
  findOurMappings,
  readProcessState,
} from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const start = () => UnmanagedChild.start([buildFixture("kin")]);
const mechanisms = ["jump", "int3"] as const;
const program = "uprobe:kin:probed { @[pid] = count(); }";
const arm = (pid: number, mechanism = "jump") =>
  Tracing.armed(["--mechanism", mechanism, "-p", `${pid}`], program);

const total = (counts: unknown): number =>
  Object.values((counts ?? {}) as Record<string, number>).reduce((sum, count) => sum + count, 0);

async function kinOf(child: UnmanagedChild): Promise<number[]> {
  child.send("g");
  const lines = [await child.line(), await child.line(), await child.line()];
  return lines.map((line) => Number(/^kin (\d+)$/.exec(line)![1]));
}

it.each(mechanisms)("children of children are counted by themselves and put back, %s", async (mechanism) => {
  using parent = await start();
  parent.send("w");
  const line = await parent.line();
  const before = readProcessState(parent.pid);
  await using tracing = await arm(parent.pid, mechanism);
  const kin = await kinOf(parent);
  parent.send("w");
  expect(await parent.line()).toBe(line);
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(map("@")).toEqual(Object.fromEntries([parent.pid, ...kin].map((pid) => [pid, 1000])));
  expectUnchanged(parent.pid, before);
  for (const pid of kin) expectNoTrace(pid, before);
  parent.send("c");
  const sums = [await parent.line(), await parent.line(), await parent.line()];
  for (const sum of sums) expect(sum.split(" ").at(-1)).toBe(line.split(" ").at(-1));
});

it("children that outlive the target are counted until the session ends with it, and put back", async () => {
  using parent = await start();
  const before = readProcessState(parent.pid);
  await using tracing = await arm(parent.pid);
  const kin = await kinOf(parent);
  parent.send("d");
  const { code, err, map } = await tracing.ended();
  expect({ code, err, total: total(map("@")) }).toEqual({ code: 0, err: "", total: 3000 });
  for (const pid of kin) {
    expect(findOurMappings(pid)).toEqual([]);
    expectNoTrace(pid, before);
    process.kill(pid, "SIGKILL");
  }
});

it("children that are forked while the session ends leave with nothing of it", async () => {
  using parent = await start();
  const before = readProcessState(parent.pid);
  parent.send("k");
  expect(await parent.line()).toBe("forking");
  for (let round = 0; round < 5; round++) {
    await using tracing = await arm(parent.pid);
    const { code, err, map } = await tracing.interrupt();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const counts = map("@") as Record<string, number> | undefined;
    for (const count of Object.values(counts ?? {})) expect(count).toBeLessThanOrEqual(10);
    expectNoTrace(parent.pid, before);
  }
  parent.send("K");
  expect(await parent.line()).toMatch(/^forked \d+$/);
});

it("a process that shares the memory stands when the target stands", async () => {
  using parent = await start();
  parent.send("s");
  const sharer = Number(/^sharer (\d+)$/.exec(await parent.line())![1]);
  const before = readProcessState(parent.pid);
  for (let round = 0; round < 5; round++) {
    await using tracing = await arm(parent.pid);
    const { code, err, map } = await tracing.interrupt();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    // It runs in the parent's memory, which holds the parent's number.
    expect(total(map("@"))).toBeGreaterThan(0);
    expectUnchanged(parent.pid, before);
    expect(readStatus(sharer).tracerPid).toBe(0);
  }
  parent.send("q");
  expect(await parent.line()).toMatch(/^sharer called \d+$/);
});

it("every call of a process that shares the memory is counted", async () => {
  using parent = await start();
  await using tracing = await arm(parent.pid);
  parent.send("s");
  await parent.line();
  parent.send("q");
  const calls = Number(/^sharer called (\d+)$/.exec(await parent.line())![1]);
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err, total: total(map("@")) }).toEqual({ code: 0, err: "", total: calls });
});

it("an int3 is refused where another process with the same memory would die of it", async () => {
  using parent = await start();
  parent.send("s");
  const sharer = Number(/^sharer (\d+)$/.exec(await parent.line())![1]);
  const before = readProcessState(parent.pid);
  const args = ["--mechanism", "int3", "-p", `${parent.pid}`, "-e", program];
  const { code, err } = await Tracing.start(args).ended();
  expect({ code, err }).toEqual({
    code: 1,
    err:
      `trapline: arm probes: process ${sharer} shares the memory and does not handle SIGTRAP: an int3 would kill it; ` +
      "probe a place that can take a jump\n",
  });
  expectUnchanged(parent.pid, before);
  parent.send("q");
  expect(await parent.line()).toMatch(/^sharer called \d+$/);
});

it("a parent that waits in vfork is waited for", async () => {
  using parent = await start();
  const before = readProcessState(parent.pid);
  parent.send("v");
  expect(await parent.line()).toBe("vforking");
  const tracing = Tracing.start(["-p", `${parent.pid}`, "-e", `${program} interval:ms:1 { exit(); }`]);
  await until(() => readStatus(parent.pid).tracerPid !== 0);
  parent.send(".");
  const { code, err } = await tracing.ended();
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(await parent.line()).toBe("vforked");
  expectUnchanged(parent.pid, before);
});

it("a session ends while its target waits in vfork", async () => {
  using parent = await start();
  const before = readProcessState(parent.pid);
  await using tracing = await arm(parent.pid);
  parent.send("v");
  expect(await parent.line()).toBe("vforking");
  tracing.signal("SIGINT");
  // The text is put back although the only thread can be neither stopped nor asked to free anything.
  await until(() => readTextFingerprint(parent.pid).digest === before.text.digest);
  parent.send(".");
  const { code, err } = await tracing.ended();
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(await parent.line()).toBe("vforked");
  expectUnchanged(parent.pid, before);
});

it("programs that are started by posix_spawn all the time start as they would", async () => {
  using parent = await start();
  const before = readProcessState(parent.pid);
  for (let round = 0; round < 3; round++) {
    parent.send("p");
    await using during = await arm(parent.pid);
    const { code, err } = await during.interrupt();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(await parent.line()).toBe("spawned");
    expectUnchanged(parent.pid, before);
  }
  await using tracing = await arm(parent.pid);
  parent.send("p");
  expect(await parent.line()).toBe("spawned");
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err, total: total(map("@")) }).toEqual({ code: 0, err: "", total: 200 });
  expectUnchanged(parent.pid, before);
});

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = Date.now() + 10_000; !condition(); expect(Date.now()).toBeLessThan(deadline))
    await new Promise((resolve) => setTimeout(resolve, 5));
}
