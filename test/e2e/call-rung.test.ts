/** Calls over the NOPs that functions begin with: what programs see there, who else lives with them, and threads in the NOPs. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { getRegs, seize, setRegs, tryDetach, wait } from "../../src/target/process/ptrace.ts";
import { outputOf } from "../support/build-program.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const CALL = 0xe8;
const JUMP = 0xe9;
const INT3 = 0xcc;

const patchable = () =>
  buildFixture("patchable", {
    flags: ["-fcf-protection", "-pg", "-mfentry", "-mnop-mcount", "-fno-pie", "-no-pie"],
    variant: "nop5",
  });
const parked = () =>
  buildFixture("parked-sled", {
    flags: ["-fcf-protection=none", "-fpatchable-function-entry=8", "-fno-pie", "-no-pie"],
  });

function addressOf(path: string, symbol: string): bigint {
  const line = outputOf("nm", [path])
    .split("\n")
    .find((each) => each.toLowerCase().endsWith(` t ${symbol}`))!;
  return BigInt(`0x${line.split(" ")[0]}`);
}

function textAt(pid: number, at: bigint, lenBytes = 5): number[] {
  const memory = MemoryFile.open(pid, "r");
  try {
    return [...memory.read(at, lenBytes)];
  } finally {
    memory.close();
  }
}

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; !condition(); tries++) {
    expect(tries).toBeLessThan(250);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Lets the program's threads call its functions. */
async function calls(child: UnmanagedChild, count: number): Promise<string> {
  child.send(`${count}\n`);
  return await child.line();
}

it("programs see at a call what they see at a jump", async () => {
  using child = await UnmanagedChild.start([patchable(), "2"]);
  const before = readProcessState(child.pid);
  const many = "uprobe:patchable-nop5:many";
  const program = [
    `${many} { @args[arg0, arg5, sarg0, sarg1] = sum(1000); }`,
    `${many} { @stack[reg("sp"), *(uint64 *)reg("sp")] = count(); }`,
    `${many} { @place[func, probe, reg("ip")] = count(); }`,
    `${many} { @all = count(); }`,
    "uprobe:patchable-nop5:second { @other[func] = sum(arg1); }",
  ].join(" ");
  const outputs: unknown[] = [];
  for (const mechanism of ["call", "jump"]) {
    await using tracing = await Tracing.armed(["--mechanism", mechanism, "-p", `${child.pid}`], program);
    const site = addressOf(patchable(), "many");
    const isCall = mechanism === "call";
    expect(textAt(child.pid, isCall ? site + 4n : site)[0]).toBe(isCall ? CALL : JUMP);
    await calls(child, 500);
    const result = await tracing.interrupt();
    expect([result.code, result.err, result.map("@all")]).toEqual([0, "", 1000]);
    const maps = ["@args", "@stack", "@place", "@other"].map((name) =>
      Object.entries(result.map(name) as object).sort(([a], [b]) => (a < b ? -1 : 1)),
    );
    expect(maps.map((entries) => entries.length)).toEqual([8, 2, 1, 1]);
    outputs.push(maps);
  }
  expect(outputs[0]).toEqual(outputs[1]);
  expectNoTrace(child.pid, before);
});

it("entry and return of one function: the return address is replaced behind a jump, and the reason is said", () => {
  const probes =
    "uprobe:patchable-nop5:first { @e = count(); } uretprobe:patchable-nop5:first { @r = sum(retval); }";
  const run = (...args: string[]) => runCommand([...args, "-e", probes, "-c", `${patchable()} 1`], "10\n");
  const plain = run("-v");
  expect(plain.code).toBe(0);
  expect(plain.err).toMatch(/first .*: call, 0f 1f 44 00 00 -> e8/);
  const stack = run("-v", "--return", "stack");
  expect(stack.code).toBe(0);
  expect(stack.err).toMatch(/first .*: jump, /);
  expect(stack.err).toContain(
    "not call: first (patchable-nop5) is also where a return probe replaces the return address, which only a jump leaves in its place",
  );
  for (const { out } of [plain, stack]) {
    expect(out).toContain("@e: 10\n");
    expect(out).toMatch(/@r: 205\n/);
  }
});

it("a mechanism that is not possible is refused, others are found", async () => {
  using child = await UnmanagedChild.start([patchable(), "1"]);
  const probe = ["-e", "uprobe:libc:getpid { @ = count(); }", "-p", `${child.pid}`];
  const refused = runCommand(["--mechanism", "call", ...probe]);
  expect(refused.code).toBe(1);
  expect(refused.err).toMatch(/cannot take a call: getpid.* does not begin with a 5-byte nop or five nops/);
  expect(refused.err).toContain("without --mechanism call it gets what is possible there");
  const explained = runCommand(["coverage", "-f", "json", patchable()]);
  const { data } = JSON.parse(explained.out) as {
    data: { mechanisms: Record<string, number>; reasons: object };
  };
  expect(data.mechanisms.call).toBeGreaterThanOrEqual(6);
  expect(data.reasons).toHaveProperty("call.no-patchable-entry");
  // What goes without saying is not said of each function.
  const listed = runCommand(["coverage", "-v", patchable()]);
  expect(listed.out).toMatch(/call +many\n/);
  expect(listed.out).not.toContain("not call: ");
});

it("is listed by ps, and taken out when its tracer has died", async () => {
  using child = await UnmanagedChild.start([patchable(), "2"]);
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`],
    "uprobe:patchable-nop5:many,uprobe:patchable-nop5:second { @ = count(); }",
  );
  const listed = runCommand(["ps", "-f", "json"]);
  expect(listed.out).toMatch(new RegExp(`"pid":\\s*${child.pid}\\b.*"call":\\s*2`));
  tracing.signal("SIGKILL");
  await tracing.ended();
  expect(await calls(child, 100)).toMatch(/^called 200 /);
  const detached = await runTracing(["detach", "-p", `${child.pid}`]);
  expect([detached.code, detached.err]).toEqual([0, ""]);
  expectNoTrace(child.pid, before);
  expect(await calls(child, 100)).toMatch(/^called 200 /);
});

const SLED = Array.from({ length: 8 }, () => 0x90);

describe("a thread in the middle of the nops", () => {
  it("goes on behind the call", async () => {
    using child = await UnmanagedChild.start([parked(), "debugged"]);
    const probed = addressOf(parked(), "probed");
    const before = readProcessState(child.pid);
    seize(child.pid);
    child.send("\n");
    // The ud2: the thread goes on in the sled instead, and stands there.
    expect(wait(child.pid, true)).toEqual({ kind: "signal", signal: 4 });
    const regs = getRegs(child.pid);
    regs.set("rip", probed + 2n);
    setRegs(child.pid, regs);
    const SIGSTOP = 19;
    expect(tryDetach(child.pid, SIGSTOP)).toBe(true);
    const positionOf = () =>
      BigInt(readFileSync(`/proc/${child.pid}/syscall`, "latin1").trim().split(" ").at(-1)!);
    await until(() => readFileSync(`/proc/${child.pid}/stat`, "latin1").includes(") T "));
    expect(positionOf()).toBe(probed + 2n);
    await using tracing = await Tracing.armed(
      ["-p", `${child.pid}`],
      "uprobe:parked-sled:probed { @ = count(); }",
    );
    expect(textAt(child.pid, probed, 8)).toEqual([
      CALL,
      ...textAt(child.pid, probed + 1n, 4),
      ...SLED.slice(5),
    ]);
    expect(positionOf()).toBe(probed + 5n);
    child.kill("SIGCONT");
    expect(await child.line()).toBe("left 41");
    child.send("\n");
    expect(await child.line()).toBe("called 1000000");
    const result = await tracing.interrupt();
    expect([result.code, result.err, result.map("@")]).toEqual([0, "", 1000]);
    expectNoTrace(child.pid, before);
  });

  it("that will return there from a signal handler keeps the call away until it has", async () => {
    using child = await UnmanagedChild.start([parked()]);
    const probed = addressOf(parked(), "probed");
    const before = readProcessState(child.pid);
    await using tracing = await Tracing.armed(
      ["-p", `${child.pid}`],
      "uprobe:parked-sled:probed { @ = count(); }",
    );
    expect(textAt(child.pid, probed, 8)).toEqual([INT3, ...SLED.slice(1)]);
    // Several batches of the optimizer pass, and none of them may write the call.
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(textAt(child.pid, probed, 8)).toEqual([INT3, ...SLED.slice(1)]);
    child.send("\n");
    expect(await child.line()).toBe("left 41");
    // Through the int3 or already through the call: the same programs.
    child.send("\n");
    expect(await child.line()).toBe("called 1000000");
    await until(() => textAt(child.pid, probed)[0] === CALL);
    child.send("\n");
    expect(await child.line()).toBe("called 1000000");
    const result = await tracing.interrupt();
    expect([result.code, result.err, result.map("@")]).toEqual([0, "", 2000]);
    expectNoTrace(child.pid, before);
  });
});
