/** Names for our code where perf looks for them, and the log of what is written to text. */
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const compute = () => UnmanagedChild.start([buildFixture("compute"), "2"]);
const mapOf = (pid: number) => `/tmp/perf-${pid}.map`;
const ours = (pid: number) =>
  readFileSync(mapOf(pid), "utf8")
    .split("\n")
    .filter((line) => line.includes(" trapline:"));

const program = "uprobe:compute:step,uretprobe:compute:work { @ = count(); }";

it("detours and programs are named while they are there, in a file that goes with them", async () => {
  using child = await compute();
  await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--mechanism", "int3"], program);
  const names = ours(child.pid).map((line) => /^[0-9a-f]+ [0-9a-f]+ (.*)$/.exec(line)![1]!);
  expect(names).toContain("trapline:detour:step+0x0 (compute)");
  expect(names.some((name) => name.startsWith("trapline:program:uprobe:compute:step"))).toBe(true);
  expect(names).toContain("trapline:trap-handler");
  expect(statSync(mapOf(child.pid)).mode & 0o777).toBe(0o644);
  // Each address that a site leads to is in a named range.
  expect(new Set(names).size).toBeGreaterThan(3);
  expect((await tracing.interrupt()).code).toBe(0);
  expect(existsSync(mapOf(child.pid))).toBe(false);
});

it("returns by the stack have names for where they return to, and nothing is written when not wanted", async () => {
  using child = await compute();
  await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--return", "stack"], program);
  expect(ours(child.pid).join("\n")).toMatch(/ trapline:return:work\+0x0 \(compute\)\n?/);
  expect(ours(child.pid).join("\n")).toContain(" trapline:return-table");
  await tracing.interrupt();
  await using quiet = await Tracing.armed(["-p", `${child.pid}`, "--no-perf-map"], program);
  expect(existsSync(mapOf(child.pid))).toBe(false);
  await quiet.interrupt();
});

it("of an existing file only our lines go, and it stays", async () => {
  using child = await compute();
  const theirs = "1000 20 theirs\n";
  writeFileSync(mapOf(child.pid), theirs);
  try {
    await using tracing = await Tracing.armed(["-p", `${child.pid}`], program);
    expect(readFileSync(mapOf(child.pid), "utf8").startsWith(theirs)).toBe(true);
    expect(ours(child.pid).length).toBeGreaterThan(2);
    writeFileSync(mapOf(child.pid), "2000 20 later\n", { flag: "a" });
    await tracing.interrupt();
    const lines = readFileSync(mapOf(child.pid), "utf8").split("\n");
    expect(lines.filter((line) => line !== "")).toEqual(["1000 20 theirs", "2000 20 later"]);
  } finally {
    rmSync(mapOf(child.pid));
  }
});

it("a JIT that writes the file itself loses nothing", async () => {
  // Compiles new functions all the time.
  const script =
    "let n = 0; console.log('ready'); setInterval(() => { for (let i = 0; i < 5; i++) { const f = new Function('a', " +
    "`let s = 0; for (let i = 0; i < a; i++) s += i ^ ${n++}; return s + ${n}; //written`); for (let k = 0; k < 50; k++) f(k); } }, 5);";
  using child = await UnmanagedChild.start([process.execPath, "--perf-basic-prof", "-e", script]);
  const path = mapOf(child.pid);
  try {
    await using tracing = await Tracing.armed(
      ["-p", `${child.pid}`, "-v"],
      "uprobe:libc:malloc { @ = count(); }",
    );
    if (!tracing.result.err.includes("no names for perf")) {
      expect(ours(child.pid).length).toBeGreaterThan(1);
      const sizeThen = statSync(path).size;
      for (let tries = 0; statSync(path).size === sizeThen; tries++) {
        expect(tries).toBeLessThan(200);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect(ours(child.pid).length).toBeGreaterThan(1);
    }
    await tracing.interrupt();
    expect(ours(child.pid)).toEqual([]);
    const lines = readFileSync(path, "latin1").split("\n").slice(0, -1);
    expect(lines.length).toBeGreaterThan(100);
    const bad = lines.filter((line) => line !== "" && !/^(0x)?[0-9a-f]+ [0-9a-f]+ \S/.test(line));
    // V8 writes source text behind some names.
    expect(bad.filter((line) => line.includes("trapline"))).toEqual([]);
    expect(lines.some((line) => line.includes("\0"))).toBe(false);
  } finally {
    child.kill();
    rmSync(path, { force: true });
  }
});

it("no link is followed", async () => {
  using child = await compute();
  const folder = mkdtempSync(join(tmpdir(), "perf-map-"));
  const victim = join(folder, "victim");
  writeFileSync(victim, "precious\n");
  symlinkSync(victim, mapOf(child.pid));
  try {
    await using tracing = await Tracing.armed(["-p", `${child.pid}`, "-v"], program);
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    expect(result.err).toMatch(/perf-\d+\.map: no names for perf: ELOOP/);
    expect(readFileSync(victim, "utf8")).toBe("precious\n");
  } finally {
    rmSync(mapOf(child.pid));
    rmSync(folder, { recursive: true });
  }
});

it("what a killed tracer has left is taken out by detach", async () => {
  using child = await compute();
  await using tracing = await Tracing.armed(["-p", `${child.pid}`], program);
  expect(ours(child.pid).length).toBeGreaterThan(2);
  tracing.signal("SIGKILL");
  await tracing.ended();
  expect(ours(child.pid).length).toBeGreaterThan(2);
  expect((await runTracing(["detach", "-p", `${child.pid}`])).code).toBe(0);
  expect(existsSync(mapOf(child.pid))).toBe(false);
});

it("a process that has ended leaves no file of ours", async () => {
  const result = await runTracing(["-c", "/bin/ls /", "-e", "uprobe:libc:malloc { @[pid] = count(); }"]);
  expect(result.code).toBe(0);
  const [pid] = Object.keys(result.map("@") as object);
  expect(existsSync(mapOf(Number(pid)))).toBe(false);
});

it("every write to text is logged, there and back", async () => {
  using child = await compute();
  const folder = mkdtempSync(join(tmpdir(), "poke-log-"));
  const path = join(folder, "pokes");
  try {
    await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--poke-log", path], program);
    await tracing.interrupt();
    interface Poke {
      readonly ns: string;
      readonly pid: number;
      readonly transaction: number;
      readonly why: string;
      readonly at: string;
      readonly symbol: string;
      readonly old: string;
      readonly new: string;
    }
    const pokes = readFileSync(path, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Poke);
    const text = new Map<string, string>();
    for (const poke of pokes) {
      expect(poke.pid).toBe(child.pid);
      expect(poke.old).toBe(text.get(poke.at) ?? poke.old);
      text.set(poke.at, poke.new);
    }
    // Each place ends with the bytes that it began with.
    for (const [at, bytes] of text) expect(pokes.find((poke) => poke.at === at)!.old).toBe(bytes);
    expect(pokes.filter(({ why }) => why === "arm").length).toBeGreaterThan(1);
    expect(pokes.filter(({ why }) => why === "restore").length).toBe(text.size);
    expect(pokes.find(({ symbol }) => symbol === "step (compute)")).toBeDefined();
    const times = pokes.map(({ ns }) => BigInt(ns));
    expect(times.every((ns, index) => index === 0 || ns >= times[index - 1]!)).toBe(true);
    expect(times.at(-1)! <= process.hrtime.bigint()).toBe(true);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
