/**
 * What can be done to a program and its tracer from within, and what stands against it. Beside what is here:
 *
 *     memory that helpers are given      src/bpf/verifier/attacks.test.ts
 *     forged words of maps               src/bpf/jit/routines/damaged-maps.test.ts, "of maps" in map-kinds.test.ts, calls.test.ts
 *     stack that is too deep             test-function-cases.ts, src/gate/gate-frame.test.ts
 *     memory of ours that is written over    hostile-memory.test.ts, src/session/leave/sound-journal.test.ts
 *     signals and siglongjmp in the gate     gate.test.ts; faults of programs: faulting.test.ts
 *
 * Not defended against: a process that makes our code writable by mprotect, or unmaps it. It can do that with its own, too.
 */
import { describe, expect, it } from "vitest";
import { accountingOf, isBalanced } from "../support/accounting.ts";
import { buildFixture } from "../support/fixtures.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const program = "uprobe:attacker:probed { @ = count(); @by[arg1, tid & 7] = count(); }";
const RESULT = 1 * 31 + 1;
const levels = ["none", "stack", "strict"] as const;

async function attack(way: string, args: readonly string[]) {
  const child = await UnmanagedChild.start([buildFixture("attacker"), way]);
  const tracing = await Tracing.armed([...args, "-p", `${child.pid}`], program);
  child.send("\n");
  return { child, tracing };
}

describe.each(levels)("gate %s", (level) => {
  it.each([
    { way: "exit", name: "threads that end in a handler, in the middle of a program" },
    { way: "unwind", name: "threads that unwind out of a handler, in the middle of a program" },
    { way: "cancel", name: "threads that are cancelled in the middle of a program" },
    { way: "longjmp", name: "handlers that leave the middle of a program" },
  ])("$name: others go on, and every hit is accounted for", async ({ way }) => {
    const { child, tracing } = await attack(way, ["--gate", level]);
    using _ = child;
    await using __ = tracing;
    expect(await child.line(60_000)).toMatch(new RegExp(`^ended [1-9]\\d*, result ${RESULT}$`));
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    const [probed] = accountingOf(result.lines);
    expect(isBalanced(probed!)).toBe(true);
    expect(probed!.hits).toBeGreaterThan(100);
    child.send("\n");
    expect(await child.line()).toBe("status 0");
  });

  it("all threads end while some are in a program: the tracer ends in order", async () => {
    const { child, tracing } = await attack("group", ["--gate", level]);
    using _ = child;
    await using __ = tracing;
    expect(await child.line()).toBe("leaving");
    expect(await child.line()).toBe("status 3");
    const result = await tracing.ended();
    expect({ code: result.code, isInternal: result.err.includes("internal error") }).toEqual({
      code: 0,
      isInternal: false,
    });
  });

  it("text and detours are not to be written by the process", async () => {
    const { child, tracing } = await attack("code", ["--gate", level, "--mechanism", "jump"]);
    using _ = child;
    await using __ = tracing;
    expect(await child.line()).toBe(`text 1, detour 1, result ${RESULT}`);
    expect((await tracing.ended()).code).toBe(0);
  });
});
