/** Targets that fork, become another program, end, or are traced by several sessions one after the other. */
import { existsSync } from "node:fs";
import { expect, it } from "vitest";
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

it.each(mechanisms)("a target that becomes another program is as that program is, %s", async (mechanism) => {
  using target = await start();
  await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${target.pid}`], program);
  target.send("w");
  const line = await target.line();
  target.send("e");
  expect(await target.line()).toBe("ready");
  expect(findOurMappings(target.pid)).toEqual([]);
  target.send("w");
  expect(await target.line()).toBe(line);
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(result.map("@")).toEqual({ [target.pid]: 1000 });
  target.send("w");
  expect(await target.line()).toBe(line);
  const again = await runTracing(["-p", `${target.pid}`, "-e", `${program} interval:ms:1 { exit(); }`]);
  expect({ code: again.code, err: again.err }).toEqual({ code: 0, err: "" });
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
