/** Thousands of sites are armed in one stop, or none of them is. */
import { expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { readMaps } from "../../src/target/process/proc-fs.ts";
import { outputOf } from "../support/build-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

/** A function of libc that the program does not call. */
function unusedFunction(pid: number): bigint {
  const libc = readMaps(pid).find(({ path }) => /\/libc[-.]/.test(path))!;
  const symbol = outputOf("nm", ["-D", libc.path])
    .split("\n")
    .find((line) => / [TW] a64l(@|$)/.test(line))!;
  return libc.start + BigInt(`0x${symbol.split(" ")[0]}`);
}

it("every function of libc, in one stop", async () => {
  using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(["-v", "-p", `${child.pid}`], "uprobe:libc:* { @ = count(); }");
  child.send("w");
  await child.line();
  const { code, err, map } = await tracing.interrupt();
  expect(code).toBe(0);
  expect(Number(/: (\d+) sites armed/.exec(err)?.[1])).toBeGreaterThan(1500);
  expect(err).toMatch(/sites restored, .*, 1 stop\n/);
  expect(map("@")).toBeGreaterThan(0);
  expectUnchanged(child.pid, before);
});

it("one site among thousands whose text is not what the file says: nothing is written anywhere", async () => {
  using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
  const at = unusedFunction(child.pid);
  const memory = MemoryFile.open(child.pid);
  try {
    const NOP = 0x90;
    expect(memory.read(at, 1)[0]).not.toBe(NOP);
    memory.write(at, Uint8Array.of(NOP));
  } finally {
    memory.close();
  }
  const before = readProcessState(child.pid);
  const result = await runTracing(["-p", `${child.pid}`, "-e", "uprobe:libc:* { @ = count(); }"]);
  expect(result.code).toBe(1);
  expect(result.err).toMatch(new RegExp(`text at 0x${at.toString(16)} is 90 .*another tool has patched it`));
  expectUnchanged(child.pid, before);
  child.send("w");
  expect(await child.line()).toMatch(/^parent /);
});
