/** Targets that end, are stopped or are traced by somebody else while probes are put into them and taken out. */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { readStatus } from "../../src/target/process/proc-fs.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const sleepMs = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const deadline = Date.now() + 10_000; !condition(); await sleepMs(2))
    if (Date.now() > deadline) throw new Error(`it never came to be: ${what}`);
}

it.each(["jump", "int3"])("a process whose first thread has ended, %s", async (mechanism) => {
  using child = await UnmanagedChild.start([buildFixture("leaderless")]);
  await until(() => readStatus(child.pid).state === "Z", "the first thread ends");
  child.send("\n");
  const line = await child.line();
  await using tracing = await Tracing.armed(
    ["--mechanism", mechanism, "-p", `${child.pid}`],
    "uprobe:leaderless:probed { @[pid] = count(); } uretprobe:leaderless:probed { @out = count(); }",
  );
  child.send("\n");
  expect(await child.line()).toBe(line);
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err, in: map("@"), out: map("@out") }).toEqual({
    code: 0,
    err: "",
    in: { [child.pid]: 1000 },
    out: 1000,
  });
  child.send("\n");
  expect(await child.line()).toBe(line);
});

it("a first thread that ends during the session", async () => {
  using child = await UnmanagedChild.start([buildFixture("leaderless"), "later"]);
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`],
    "uprobe:leaderless:probed { @ = count(); }",
  );
  child.send("x");
  await until(() => readStatus(child.pid).state === "Z", "the first thread ends");
  child.send("\n");
  await child.line();
  const { code, err, map } = await tracing.interrupt();
  expect({ code, err, count: map("@") }).toEqual({ code: 0, err: "", count: 1000 });
  child.send("\n");
  await child.line();
});

describe("job control", () => {
  it("a process that was stopped stays stopped, and is traced when it goes on", async () => {
    using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
    child.kill("SIGSTOP");
    await until(() => readStatus(child.pid).state === "T", "it stops");
    const before = readProcessState(child.pid);
    await using tracing = await Tracing.armed(
      ["-p", `${child.pid}`],
      "uprobe:lifecycle:probed { @ = count(); }",
    );
    await until(() => readStatus(child.pid).state === "T", "it is stopped again");
    child.send("w");
    await sleepMs(50);
    expect(child.pending).toEqual([]);
    child.kill("SIGCONT");
    expect(await child.line()).toMatch(/^parent /);
    child.kill("SIGSTOP");
    await until(() => readStatus(child.pid).state === "T", "it stops");
    const { code, err, map } = await tracing.interrupt();
    expect({ code, err, count: map("@") }).toEqual({ code: 0, err: "", count: 1000 });
    expect(readStatus(child.pid).state).toBe("T");
    expectUnchanged(child.pid, before);
    child.kill("SIGCONT");
    child.send("w");
    expect(await child.line()).toMatch(/^parent /);
  });

  it.each(["SIGCONT", "SIGSTOP"] as const)("a storm of stops that ends with %s", async (last) => {
    using child = await UnmanagedChild.start([buildFixture("spawner"), "4"]);
    const before = { ...readProcessState(child.pid), sigtrap: [false, false, false] };
    // A process of its own: this one waits for the command most of the time.
    const script = `while kill -STOP ${child.pid} 2>/dev/null; do kill -CONT ${child.pid}; done`;
    const storm = spawn("/bin/sh", ["-c", script]);
    try {
      for (let round = 0; round < 3; round++) {
        await using tracing = await Tracing.armed(
          ["-p", `${child.pid}`],
          "uprobe:spawner:probed,uretprobe:spawner:probed { @ = count(); }",
        );
        const { code, err } = await tracing.interrupt();
        expect({ code, err }).toEqual({ code: 0, err: "" });
      }
    } finally {
      storm.kill("SIGKILL");
    }
    await new Promise((resolve) =>
      storm.exitCode === null && storm.signalCode === null ? storm.once("exit", resolve) : resolve(0),
    );
    child.kill(last);
    if (last === "SIGSTOP") {
      await until(() => readStatus(child.pid).state === "T", "it stops");
      const { code, err } = await runTracing([
        "-p",
        `${child.pid}`,
        "-e",
        "uprobe:spawner:probed { @ = count(); } interval:ms:1 { exit(); }",
      ]);
      expect({ code, err }).toEqual({ code: 0, err: "" });
      expect(readStatus(child.pid).state).toBe("T");
      child.kill("SIGCONT");
    }
    child.send("\n");
    expect(await child.line()).toMatch(/^alive \d+$/);
    expectNoTrace(child.pid, before);
  });
});

const otherTracers: readonly { readonly name: string; readonly argv: (pid: number) => string[] }[] = [
  { name: "strace", argv: (pid) => ["strace", "-f", "-qq", "-o", "/dev/null", "-p", `${pid}`] },
  { name: "gdb", argv: (pid) => ["gdb", "-q", "-nx", "-p", `${pid}`] },
];
describe.each(otherTracers)("$name comes during the session", ({ name, argv }) => {
  const path = ["/usr/bin", "/usr/local/bin"].map((folder) => `${folder}/${name}`).find(existsSync);
  it.skipIf(path === undefined)("the session names it, and detach takes the probes out later", async () => {
    using child = await UnmanagedChild.start([buildFixture("kin")]);
    const before = readProcessState(child.pid);
    await using tracing = await Tracing.armed(["-p", `${child.pid}`], "uprobe:kin:probed { @ = count(); }");
    child.send("w");
    const line = await child.line();
    const [program, ...args] = argv(child.pid);
    const other = spawn(program!, args, { stdio: ["pipe", "ignore", "ignore"] });
    try {
      await until(() => readStatus(child.pid).tracerPid === other.pid, `${name} traces it`);
      const refused = await runTracing(["-p", `${child.pid}`, "-e", "uprobe:kin:probed { @ = count(); }"]);
      expect({ code: refused.code, err: refused.err }).toEqual({
        code: 1,
        err: `trapline: attach to process ${child.pid}: process ${other.pid} (${name}) traces it already; end that debugger first\n`,
      });
      const { code, err, map } = await tracing.interrupt();
      expect(code).toBe(1);
      expect(err).toBe(
        `trapline: restore process ${child.pid}: stop process ${child.pid}: process ${other.pid} (${name}) traces it; end that one first\n` +
          `hint: take the probes out later with: trapline detach -p ${child.pid}\n`,
      );
      // What was counted is not lost.
      expect(map("@")).toBe(1000);
    } finally {
      other.kill("SIGKILL");
    }
    await until(() => readStatus(child.pid).tracerPid === 0, `${name} has left`);
    child.kill("SIGCONT");
    const detached = await runTracing(["detach", "-p", `${child.pid}`]);
    expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
    expectNoTrace(child.pid, before);
    child.send("w");
    expect(await child.line()).toBe(line);
  });
});

const freezer = "/sys/fs/cgroup/freezer";
const canFreeze = process.getuid?.() === 0 && existsSync(`${freezer}/cgroup.procs`);
it.skipIf(!canFreeze)("a process in a frozen control group", async () => {
  using child = await UnmanagedChild.start([buildFixture("kin")]);
  const group = `${freezer}/trapline-test-${process.pid}`;
  mkdirSync(group);
  try {
    writeFileSync(`${group}/cgroup.procs`, `${child.pid}`);
    writeFileSync(`${group}/freezer.state`, "FROZEN");
    await until(() => readFileSync(`${group}/freezer.state`, "latin1") === "FROZEN\n", "it is frozen");
    const { code, err } = await runTracing([
      "-p",
      `${child.pid}`,
      "-e",
      "uprobe:kin:probed { @ = count(); }",
    ]);
    expect(code).toBe(1);
    expect(err).toMatch(
      /^trapline: stop process \d+: thread \d+ cannot be interrupted: its control group \/trapline-test-\d+ is frozen\n$/,
    );
    writeFileSync(`${group}/freezer.state`, "THAWED");
    child.send("w");
    expect(await child.line()).toMatch(/^parent /);
    expect(readStatus(child.pid).tracerPid).toBe(0);
  } finally {
    writeFileSync(`${group}/freezer.state`, "THAWED");
    writeFileSync(`${freezer}/cgroup.procs`, `${child.pid}`);
    rmdirSync(group);
  }
});
