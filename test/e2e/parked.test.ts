/** A thread that waits in a signal handler with its saved position inside the bytes that a jump would displace. */
import { expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { outputOf } from "../support/build-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const path = () => buildFixture("parked", { flags: ["-no-pie"] });

/** The first bytes of `probed` as the process has them now. */
function textOf(pid: number): number[] {
  const symbol = outputOf("nm", [path()])
    .split("\n")
    .find((line) => line.endsWith(" T probed"))!;
  const memory = MemoryFile.open(pid, "r");
  try {
    return [...memory.read(BigInt(`0x${symbol.split(" ")[0]}`), 6)];
  } finally {
    memory.close();
  }
}

const original = [0x48, 0x89, 0xfa, 0x48, 0x8b, 0x07];
const JUMP = 0xe9;
const INT3 = 0xcc;

/** The program when its threads have come to rest: one that is starting a thread blocks all signals for a moment. */
async function startParked(...args: string[]): Promise<UnmanagedChild> {
  const child = await UnmanagedChild.start([path(), ...args]);
  await new Promise((resolve) => setTimeout(resolve, 50));
  return child;
}

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; !condition(); tries++) {
    expect(tries).toBeLessThan(250);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

it("gets an int3 first, and a jump when the thread has left", async () => {
  using child = await startParked();
  const before = readProcessState(child.pid);
  expect(textOf(child.pid)).toEqual(original);
  await using tracing = await Tracing.armed(["-p", `${child.pid}`], "uprobe:parked:probed { @ = count(); }");
  expect(textOf(child.pid)).toEqual([INT3, ...original.slice(1)]);
  // Several batches of the optimizer pass, and none of them may write the jump.
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(textOf(child.pid)).toEqual([INT3, ...original.slice(1)]);
  child.send("\n");
  expect(await child.line()).toBe("left 4");
  await until(() => textOf(child.pid)[0] === JUMP);
  child.send("\n");
  expect(await child.line()).toBe("called 4000");
  const result = await tracing.interrupt();
  // The call that was under way had passed the probe before it was there.
  expect({ code: result.code, err: result.err, count: result.map("@") }).toEqual({
    code: 0,
    err: "",
    count: 1000,
  });
  expectNoTrace(child.pid, before);
});

it("is left as it was when the thread still waits at the end", async () => {
  using child = await startParked();
  const before = readProcessState(child.pid);
  const result = await runTracing([
    "-p",
    `${child.pid}`,
    "-e",
    "uprobe:parked:probed { @ = count(); } interval:ms:250 { exit(); }",
  ]);
  expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
  expectUnchanged(child.pid, before);
  child.send("\n");
  expect(await child.line()).toBe("left 4");
  child.send("\n");
  expect(await child.line()).toBe("called 4000");
});

it("code that a handler will return to stays until detach finds it unused", async () => {
  using child = await startParked("late");
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(["-p", `${child.pid}`], "uprobe:parked:probed { @ = count(); }");
  // Now the load faults in the detour.
  child.send("\n");
  expect(await child.line()).toBe("waits");
  const result = await tracing.interrupt();
  expect({ code: result.code, count: result.map("@") }).toEqual({ code: 0, count: 1 });
  expect(result.err).toMatch(
    /^trapline: restore process \d+: the text is restored, but thread \d+ is still in our code; free it later with: trapline detach -p \d+\n$/,
  );
  expect(textOf(child.pid)).toEqual(original);
  child.send("\n");
  expect(await child.line()).toBe("left 4");
  const detached = await runTracing(["detach", "-p", `${child.pid}`]);
  expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
  expectNoTrace(child.pid, before);
  child.send("\n");
  expect(await child.line()).toBe("called 4000");
});
