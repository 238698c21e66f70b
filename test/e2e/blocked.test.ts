/** Threads that sleep in system calls see nothing of a tracer: no EINTR, no early return, and nothing is left of it. */
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const cases: readonly {
  readonly name: string;
  readonly argv: readonly string[];
  readonly args: readonly string[];
  readonly program: string;
}[] = [
  {
    name: "jump, all threads sleep",
    argv: [],
    args: ["--mechanism", "jump"],
    program: "uprobe:libc:read,uprobe:libc:epoll_wait,uprobe:libc:poll { @ = count(); }",
  },
  {
    name: "int3, all threads sleep",
    argv: [],
    args: ["--mechanism", "int3"],
    program: "uprobe:libc:read,uprobe:libc:epoll_wait,uprobe:libc:poll { @ = count(); }",
  },
  {
    name: "return probes, one thread runs",
    argv: ["spin"],
    args: [],
    program: "uretprobe:libc:nanosleep,uretprobe:libc:accept { @ = count(); }",
  },
  {
    name: "probes on every function that they sleep in",
    argv: ["spin"],
    args: [],
    program: "uprobe:libc:*sleep*,uprobe:libc:wait*,uprobe:libc:accept*,uprobe:libc:*poll* { @ = count(); }",
  },
];

it.each(cases)("no system call is interrupted: $name", async ({ argv, args, program }) => {
  using child = await UnmanagedChild.start([buildFixture("blocked"), ...argv]);
  const before = readProcessState(child.pid);
  for (let round = 0; round < 3; round++) {
    await using tracing = await Tracing.armed([...args, "-p", `${child.pid}`], program);
    const { code, err } = await tracing.interrupt();
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expectUnchanged(child.pid, before);
  }
  expect(child.pending).toEqual([]);
});

it("no system call is interrupted by a tracer that dies, nor by the one that cleans up", async () => {
  using child = await UnmanagedChild.start([buildFixture("blocked"), "spin"]);
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(["-p", `${child.pid}`], "uretprobe:libc:read { @ = count(); }");
  tracing.signal("SIGKILL");
  await tracing.ended();
  const { code } = await Tracing.start(["detach", "-p", `${child.pid}`]).ended();
  expect(code).toBe(0);
  expectUnchanged(child.pid, before);
  expect(child.pending).toEqual([]);
});

it("a thread that wakes up by itself comes back through its probes", async () => {
  using child = await UnmanagedChild.start([buildFixture("compute"), "4"]);
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`],
    "uprobe:libc:epoll_wait { @in = count(); } uretprobe:libc:epoll_wait { @out = count(); @failed = sum(retval > 0); }",
  );
  await new Promise((resolve) => setTimeout(resolve, 300));
  const result = await tracing.interrupt();
  const entered = result.map("@in") as number;
  expect(entered).toBeGreaterThan(50);
  // Two threads were on their way at each end.
  expect(Math.abs(entered - (result.map("@out") as number))).toBeLessThanOrEqual(2);
  expect(result.map("@failed")).toBe(0);
  child.send("\n");
  expect(await child.line()).toMatch(/^alive \d+$/);
  expect(child.pending).toEqual([]);
});
