/** Where a library blocks all signals an int3 would kill: threads that come and go pass by there all the time. */
import { afterEach, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { runTracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

let child: UnmanagedChild | undefined;
afterEach(() => child?.[Symbol.dispose]());

it("a thread that ends gives back its stack with blocked signals: a jump counts it, and an int3 is refused", async () => {
  child = await UnmanagedChild.start([buildFixture("storm", { compiler: "g++" })], { ready: false });
  const first = await child.line();
  const before = readProcessState(child.pid);
  const program = "uprobe:libc:madvise { @ = count(); } interval:ms:200 { exit(); }";

  const counted = await runTracing(["-p", `${child.pid}`, "-e", program]);
  expect({ code: counted.code, err: counted.err }).toEqual({ code: 0, err: "" });
  expect(counted.map("@")).toBeGreaterThan(6);

  const trapped = await runTracing(["--mechanism", "int3", "-p", `${child.pid}`, "-e", program]);
  expect(trapped.code).toBe(1);
  expect(trapped.err).toContain("while it blocks all signals");
  expectNoTrace(child.pid, before);

  // It works on, and right.
  const seen = child.pending.length;
  expect(new Set(child.pending)).toEqual(new Set([first]));
  for (let i = 0; i <= seen; i++) expect(await child.line()).toBe(first);
});
