/** Targets that fork, become another program, end, or are traced by several sessions one after the other. */
import { existsSync, readlinkSync } from "node:fs";
import { expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { readMaps } from "../../src/target/process/proc-fs.ts";
import { outputOf } from "../support/build-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import {
  expectNoTrace,
  expectUnchanged,
  findOurMappings,
  readProcessState,
} from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const start = () => UnmanagedChild.start([buildFixture("lifecycle")]);
const mechanisms = ["jump", "int3"] as const;
const program =
  "uprobe:lifecycle:probed { @[pid] = count(); @tids[pid, tid] = count(); } uretprobe:lifecycle:probed { @out = count(); }";

/** The line "child PID SUM" apart. */
function parseChild(line: string): { pid: number; sum: string } {
  const [word, pid, sum] = line.split(" ");
  expect(word).toBe("child");
  return { pid: Number(pid), sum: sum! };
}

it.each(mechanisms)(
  "a forked child goes on, is counted, and is put back with its parent, %s",
  async (mechanism) => {
    using parent = await start();
    parent.send("w");
    const sum = (await parent.line()).replace("parent ", "");
    const before = readProcessState(parent.pid);
    await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${parent.pid}`], program);
    parent.send("f");
    const child = parseChild(await parent.line());
    expect(child.sum).toBe(sum);
    parent.send("w");
    expect(await parent.line()).toBe(`parent ${sum}`);
    expect(findOurMappings(child.pid)).not.toEqual([]);
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    expect(result.map("@")).toEqual({ [parent.pid]: 1000, [child.pid]: 1000 });
    expect(result.map("@tids")).toEqual({
      [`${parent.pid},${parent.pid}`]: 1000,
      [`${child.pid},${child.pid}`]: 1000,
    });
    expect(result.map("@out")).toBe(2000);
    expectUnchanged(parent.pid, before);
    expectNoTrace(child.pid, before);
    parent.send("c");
    expect(await parent.line()).toBe(`child again ${sum}`);
    parent.send("w");
    expect(await parent.line()).toBe(`parent ${sum}`);
  },
);

it.each(mechanisms)(
  "a forked child is put back after the death of tracer and parent, %s",
  async (mechanism) => {
    using parent = await start();
    const before = readProcessState(parent.pid);
    await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${parent.pid}`], program);
    parent.send("f");
    const child = parseChild(await parent.line());
    tracing.signal("SIGKILL");
    await tracing.ended();
    parent.send("c");
    expect(await parent.line()).toBe(`child again ${child.sum}`);
    const detached = await runTracing(["detach", "-p", `${parent.pid},${child.pid}`]);
    expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
    expectUnchanged(parent.pid, before);
    expectNoTrace(child.pid, before);
    parent.send("cw");
    const lines = [await parent.line(), await parent.line()].sort();
    expect(lines).toEqual([`child again ${child.sum}`, `parent ${child.sum}`]);
  },
);

it.each(mechanisms)(
  "a child of vfork, in its parent's memory, comes through a probe, %s",
  async (mechanism) => {
    using parent = await start();
    await using tracing = await Tracing.armed(
      ["--mechanism", mechanism, "-p", `${parent.pid}`],
      "uprobe:lifecycle:probed { @ = count(); }",
    );
    parent.send("v");
    expect(await parent.line()).toBe("vforked");
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err, count: result.map("@") }).toEqual({
      code: 0,
      err: "",
      count: 1,
    });
  },
);

it.each(mechanisms)("the session ends when its target ends, with what was counted, %s", async (mechanism) => {
  using target = await start();
  await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${target.pid}`], program);
  target.send("wx");
  expect(await target.line()).toMatch(/^parent /);
  expect(await target.line()).toBe("status 7");
  const result = await tracing.ended();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(result.map("@")).toEqual({ [target.pid]: 1000 });
  expect(result.map("@out")).toBe(1000);
});

it("the session ends when its target is killed", async () => {
  using target = await start();
  await using tracing = await Tracing.armed(["-p", `${target.pid}`], program);
  target.send("w");
  await target.line();
  target.kill("SIGKILL");
  const result = await tracing.ended();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(result.map("@out")).toBe(1000);
});

it.each(mechanisms)("a target that executes a program is attached to again, %s", async (mechanism) => {
  using target = await start();
  const before = readProcessState(target.pid);
  const original = firstByte(target.pid)();
  await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${target.pid}`], program);
  target.send("w");
  const line = await target.line();
  // A child carries the probes of what its parent was.
  target.send("f");
  const child = parseChild(await target.line());
  for (let times = 1; times <= 2; times++) {
    target.send("e");
    expect(await target.line()).toBe("ready");
    const first = firstByte(target.pid);
    await until(() => first() !== original);
    target.send("w");
    expect(await target.line()).toBe(line);
  }
  const { code, err, map } = await tracing.interrupt();
  const exe = readlinkSync(`/proc/${target.pid}/exe`);
  const note = `note: process ${target.pid} has executed ${exe}; attaching to it again\n`;
  expect({ code, err }).toEqual({ code: 0, err: note.repeat(2) });
  const counts = map("@") as Record<string, number>;
  expect(counts[child.pid]).toBe(1000);
  expect(counts[target.pid]! % 1000).toBe(0);
  expect(counts[target.pid]).toBeGreaterThanOrEqual(3000);
  expect(findOurMappings(target.pid)).toEqual([]);
  expectNoTrace(child.pid, before);
  target.send("w");
  expect(await target.line()).toBe(line);
});

it("a second session counts beside the first, and is no obstacle to it", async () => {
  using target = await start();
  await using tracing = await Tracing.armed(["-p", `${target.pid}`], program);
  await using second = await Tracing.armed(["-p", `${target.pid}`], program);
  const detached = await runTracing(["detach", "-p", `${target.pid}`]);
  expect(detached.code).toBe(1);
  expect(detached.err).toMatch(new RegExp(`its tracer, process (${tracing.pid}|${second.pid}), is alive`));
  target.send("w");
  await target.line();
  for (const session of [tracing, second]) {
    const result = await session.interrupt();
    expect({ code: result.code, count: result.map("@") }).toEqual({ code: 0, count: { [target.pid]: 1000 } });
  }
});

it("ps names the tracer while it lives and when it has died", async () => {
  using target = await start();
  await using tracing = await Tracing.armed(["-p", `${target.pid}`], program);
  const entry = async () =>
    (await runTracing(["ps"])).lines
      .map(({ data }) => data as Record<string, unknown>)
      .find(({ pid }) => pid === target.pid);
  expect(await entry()).toEqual({
    pid: target.pid,
    comm: "lifecycle",
    tracer: tracing.pid,
    tracer_alive: true,
    // The entry, and the exit.
    sites: { jump: 2 },
  });
  tracing.signal("SIGKILL");
  await tracing.ended();
  expect(await entry()).toMatchObject({ tracer: tracing.pid, tracer_alive: false });
  await runTracing(["detach", "-p", `${target.pid}`]);
  expect(await entry()).toBeUndefined();
  expect(existsSync(`/proc/${target.pid}`)).toBe(true);
});

it("the end of the reader of its output ends a session cleanly", async () => {
  using target = await start();
  const before = readProcessState(target.pid);
  const talkative = `${program} interval:ms:10 { printf("still here\\n"); }`;
  await using tracing = await Tracing.armed(["-p", `${target.pid}`], talkative);
  tracing.closeOutput();
  await tracing.ended();
  expectUnchanged(target.pid, before);
});

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = Date.now() + 10_000; !condition(); expect(Date.now()).toBeLessThan(deadline))
    await new Promise((resolve) => setTimeout(resolve, 5));
}

/** The first byte of `probed` as the process has it now. */
function firstByte(pid: number): () => number {
  const path = buildFixture("lifecycle");
  const symbol = outputOf("nm", [path])
    .split("\n")
    .find((line) => line.endsWith(" T probed"))!;
  const { start } = readMaps(pid).find((map) => map.path === path)!;
  const at = start + BigInt(`0x${symbol.split(" ")[0]}`);
  return () => {
    const memory = MemoryFile.open(pid, "r");
    try {
      return memory.read(at, 1)[0]!;
    } finally {
      memory.close();
    }
  };
}
