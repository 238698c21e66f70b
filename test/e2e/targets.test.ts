/** Every kind of program: how it is linked, what it runs, in which namespaces it lives, and several at once. */
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { type BuildOptions, buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const linkings: readonly { readonly name: string; readonly build: BuildOptions }[] = [
  { name: "PIE", build: { variant: "pie", flags: ["-fPIE", "-pie"] } },
  { name: "fixed address", build: { variant: "fixed", flags: ["-fno-pie", "-no-pie"] } },
  { name: "stripped, dynamic symbols only", build: { variant: "stripped", flags: ["-rdynamic", "-s"] } },
  { name: "lld-like packed relocations", build: { variant: "relr", flags: ["-Wl,-z,pack-relative-relocs"] } },
  { name: "static glibc", build: { variant: "static", flags: ["-static"] } },
  { name: "static PIE", build: { variant: "static-pie", flags: ["-static-pie"] } },
  { name: "dynamic musl", build: { variant: "musl", compiler: "musl-gcc" } },
  { name: "static musl", build: { variant: "musl-static", compiler: "musl-gcc", flags: ["-static"] } },
];

describe.each(linkings)("a program linked as $name", ({ build }) => {
  it.each(["jump", "int3"])("is probed at entry and return by %s, and put back", async (mechanism) => {
    const path = buildFixture("counter", build);
    using child = await UnmanagedChild.start([path, "2", "2000"]);
    child.send("\n");
    const expected = await child.line();
    const before = readProcessState(child.pid);
    await using tracing = await Tracing.armed(
      ["--mechanism", mechanism, "-p", `${child.pid}`],
      `uprobe:${path}:probed { @in[pid] = count(); @tids[tid] = 1; } uretprobe:${path}:probed { @out = sum(retval != 0); }`,
    );
    child.send("\n");
    expect(await child.line()).toBe(expected);
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    expect(result.map("@in")).toEqual({ [child.pid]: 4000 });
    expect(result.map("@out")).toBe(4000);
    expect(Object.keys(result.map("@tids") as object)).toHaveLength(2);
    expectNoTrace(child.pid, before);
    child.send("\n");
    expect(await child.line()).toBe(expected);
  });
});

describe("programs in other languages", () => {
  const nodeWork = `
    process.stdin.on("data", () => {
      let sum = 0;
      for (let i = 0; i < 500; i++) sum += process.ppid > 0 ? 1 : 0;
      console.log("sum " + sum);
    });
    console.log("ready");`;
  const pythonWork = `import os, sys
print("ready", flush=True)
for line in sys.stdin:
    print("sum", sum(1 for i in range(500) if os.getppid() > 0), flush=True)`;
  const languages = [
    {
      name: "Node, in its own text and in libc",
      argv: [process.execPath, "-e", nodeWork],
      program:
        "uprobe:node:uv_os_getppid { @a = count(); } uretprobe:libc:getppid { @b = sum(retval == PPID); }",
    },
    {
      name: "CPython",
      argv: ["/usr/bin/python3", "-c", pythonWork],
      program: "uprobe:libc:getppid { @a = count(); } uretprobe:libc:getppid { @b = sum(retval == PPID); }",
    },
  ];
  it.each(languages)("$name", async ({ argv, program }) => {
    using child = await UnmanagedChild.start(argv);
    const before = readProcessState(child.pid);
    const parent = /^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, "latin1"))![1]!;
    await using tracing = await Tracing.armed(["-p", `${child.pid}`], program.replace("PPID", parent));
    child.send("\n");
    expect(await child.line()).toBe("sum 500");
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    expect({ a: result.map("@a"), b: result.map("@b") }).toEqual({ a: 500, b: 500 });
    expectNoTrace(child.pid, before);
    child.send("\n");
    expect(await child.line()).toBe("sum 500");
  });
});

it("several processes share one session and its maps", async () => {
  const argv = [buildFixture("counter"), "2", "3000"];
  using first = await UnmanagedChild.start(argv);
  using second = await UnmanagedChild.start(argv);
  using third = await UnmanagedChild.start([
    buildFixture("counter", { variant: "musl", compiler: "musl-gcc" }),
    "1",
    "500",
  ]);
  const children = [first, second, third];
  for (const child of children) child.send("\n");
  const expected = await Promise.all(children.map((child) => child.line()));
  const before = children.map((child) => readProcessState(child.pid));
  await using tracing = await Tracing.armed(
    ["-p", `${first.pid},${second.pid}`, "-p", `${third.pid}`],
    "uprobe:counter*:probed { @ = count(); @by[pid] = count(); }",
  );
  for (const child of children) child.send("\n");
  expect(await Promise.all(children.map((child) => child.line()))).toEqual(expected);
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expect(result.map("@")).toBe(12_500);
  expect(result.map("@by")).toEqual({ [first.pid]: 6000, [second.pid]: 6000, [third.pid]: 500 });
  for (const [index, child] of children.entries()) expectNoTrace(child.pid, before[index]!);
});

it("one process that cannot be traced leaves the others untouched", async () => {
  using child = await UnmanagedChild.start([buildFixture("counter"), "2", "3000"]);
  const before = readProcessState(child.pid);
  const { code, err } = await runTracing([
    "-p",
    `${child.pid},2`,
    "-e",
    "uprobe:counter:probed { @ = count(); }",
  ]);
  expect({ code, err }).toMatchObject({
    code: 1,
    err: expect.stringContaining("attach to process 2: it is a kernel thread"),
  });
  expectUnchanged(child.pid, before);
});

const canUnshare = spawnSync("unshare", ["--mount", "--pid", "--fork", "true"]).status === 0;
it.skipIf(process.getuid?.() !== 0)("a process in mount and pid namespaces of its own", async () => {
  expect(canUnshare, "root can make namespaces").toBe(true);
  // The program's path exists only there: a file system is mounted over an empty folder.
  const program = buildFixture("counter");
  const folder = "/run/trapline-namespace";
  const script = `mkdir -p ${folder} && mount -t tmpfs none ${folder} && cp ${program} ${folder}/inside && exec ${folder}/inside 2 1000`;
  execFileSync("mkdir", ["-p", folder]);
  using outer = await UnmanagedChild.start([
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "sh",
    "-c",
    script,
  ]);
  const inside = Number(readFileSync(`/proc/${outer.pid}/task/${outer.pid}/children`, "latin1").trim());
  outer.send("\n");
  const expected = await outer.line();
  const before = readProcessState(inside);
  for (const mechanism of ["jump", "int3"]) {
    await using tracing = await Tracing.armed(
      ["--mechanism", mechanism, "-p", `${inside}`],
      `uprobe:${folder}/inside:probed { @pids[pid] = count(); @tids[tid] = count(); } uprobe:libc:malloc { @m = count(); }`,
    );
    outer.send("\n");
    expect(await outer.line()).toBe(expected);
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    expect(result.map("@pids")).toEqual({ [inside]: 2000 });
    expect(Object.values(result.map("@tids") as object)).toEqual([1000, 1000]);
    expectNoTrace(inside, before);
  }
});
