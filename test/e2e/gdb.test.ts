/** gdb knows our code: its names, and how to walk out of it. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

function gdb(pid: number, ...commands: readonly string[]): string {
  const args = [
    "-nx",
    "-batch",
    "-p",
    `${pid}`,
    "-ex",
    "set confirm off",
    "-ex",
    "set debuginfod enabled off",
  ];
  const run = spawnSync("gdb", [...args, ...commands.flatMap((command) => ["-ex", command])], {
    encoding: "utf8",
    timeout: 20_000,
  });
  if (run.error) throw new Error("gdb cannot be run: install gdb", { cause: run.error });
  return run.stdout + run.stderr;
}

/** Addresses by name, from the perf map. */
function addressesOf(pid: number): Map<string, bigint> {
  return new Map(
    readFileSync(`/tmp/perf-${pid}.map`, "utf8")
      .split("\n")
      .filter((line) => line.includes(" trapline:"))
      .map((line) => {
        const [at, , ...name] = line.split(" ");
        return [name.join(" "), BigInt(`0x${at}`)];
      }),
  );
}

const frames = (out: string): string[] =>
  out
    .split("\n")
    .filter((line) => /^#\d/.test(line))
    .map((line) => line.replace(/^#\d+ +(0x[0-9a-f]+ in )?/, ""));

const program = "uprobe:debugged:probed { @ = count(); }";

it("by the list of the process, which is as before at the end", async () => {
  using child = await UnmanagedChild.start([buildFixture("debugged")]);
  const before = readProcessState(child.pid);
  child.send("\n");
  expect(await child.line()).toBe("list 2 whole");
  await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--verify"], program);
  child.send("\n");
  expect(await child.line()).toBe("list 3 whole");
  const addresses = addressesOf(child.pid);
  const detour = addresses.get("trapline:detour:probed+0x0 (debugged)")!;
  const [name, inProgram] = [...addresses].find(([key]) => key.startsWith("trapline:program:"))!;
  const out = gdb(
    child.pid,
    `info symbol ${detour}`,
    `break *${inProgram}`,
    "continue",
    "bt",
    "delete",
    `break *${detour}`,
    "continue",
    "bt",
    "delete",
    "detach",
  );
  expect(out).toContain("trapline:detour:probed+0x0 (debugged) in section .text");
  const walked = frames(out);
  const inside = walked.findIndex((frame) => frame.startsWith(name));
  expect(walked.slice(inside, inside + 5).map((frame) => frame.replace(/ \(.*/, ""))).toEqual([
    name,
    "trapline:detour:probed+0x0",
    "probed",
    "calls",
    "body",
  ]);
  // At the detour's first instruction, nothing is on the stack yet.
  const atEntry = walked.slice(inside + 1).findIndex((frame) => frame.startsWith("trapline:detour"));
  const second = walked.slice(
    walked.lastIndexOf(walked.findLast((frame) => frame.startsWith("trapline:detour"))!),
  );
  expect(atEntry).toBeGreaterThanOrEqual(0);
  expect(second.slice(0, 4).map((frame) => frame.replace(/ \(.*/, ""))).toEqual([
    "trapline:detour:probed+0x0",
    "probed",
    "calls",
    "body",
  ]);
  const result = await tracing.interrupt();
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  child.send("\n");
  expect(await child.line()).toBe("list 2 whole");
  expectUnchanged(child.pid, before);
});

it("what a killed tracer has linked in is taken out by detach", async () => {
  using child = await UnmanagedChild.start([buildFixture("debugged")]);
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(["-p", `${child.pid}`], program);
  tracing.signal("SIGKILL");
  await tracing.ended();
  child.send("\n");
  expect(await child.line()).toBe("list 3 whole");
  expect((await runTracing(["detach", "-p", `${child.pid}`])).code).toBe(0);
  child.send("\n");
  expect(await child.line()).toBe("list 2 whole");
  expectUnchanged(child.pid, before);
});

it("by a symbol file where there is no list", async () => {
  using child = await UnmanagedChild.start([buildFixture("compute"), "2"]);
  const folder = mkdtempSync(join(tmpdir(), "symbols-"));
  const file = join(folder, "ours");
  try {
    await using tracing = await Tracing.armed(
      ["-p", `${child.pid}`, "--symbols", file],
      "uprobe:compute:step { @ = count(); }",
    );
    const detour = addressesOf(child.pid).get("trapline:detour:step+0x0 (compute)")!;
    const out = gdb(
      child.pid,
      `add-symbol-file ${file}`,
      `info symbol ${detour}`,
      `break *${detour}`,
      "continue",
      "bt",
      "delete",
      "detach",
    );
    expect(out).toContain("trapline:detour:step+0x0 (compute) in section .text");
    expect(
      frames(out)
        .slice(0, 4)
        .map((frame) => frame.replace(/ \(.*/, "")),
    ).toEqual(["trapline:detour:step+0x0", expect.stringMatching(/^step/), "work", "compute"]);
    expect((await tracing.interrupt()).code).toBe(0);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
