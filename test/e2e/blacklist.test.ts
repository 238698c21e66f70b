/** Places that must not be probed: an explicit probe is refused with the reason, a wildcard leaves them out. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectUnchanged, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

/** File offset of the code that glibc lets signal handlers return to: its text is mapped at the same distance. */
function signalReturnIn(library: string): number {
  const at = readFileSync(library).indexOf(Buffer.from("48c7c00f0000000f05", "hex"));
  if (at < 0) throw new Error(`${library} has no signal return of the known form`);
  return at;
}

const library = "/lib/x86_64-linux-gnu/libc.so.6";

describe("an explicit probe is refused", () => {
  const cases: readonly { readonly name: string; readonly place: () => string; readonly reason: RegExp }[] = [
    {
      name: "inside a restartable sequence",
      place: () => "restartable:add+14",
      reason: /it is in the restartable sequence at 0x[\da-f]+, which a detour would leave before its end/,
    },
    {
      name: "the signature before an abort handler",
      place: () => "restartable:add+26",
      reason: /the kernel compares the bytes before the abort handler of the restartable sequence at 0x/,
    },
    {
      name: "the return from signal handlers",
      place: () => `libc:0x${signalReturnIn(library).toString(16)}`,
      reason: /returns from signal handlers, and unwinders know it by its bytes/,
    },
    {
      name: "what is entered with a convention of its own",
      place: () => "restartable:_dl_runtime_resolve_made",
      reason: /_dl_runtime_resolve_made is entered between a call and its function/,
    },
    {
      name: "the vDSO",
      place: () => "[vdso]:clock_gettime",
      reason: /programs themselves call the clock of \[vdso\]/,
    },
    {
      name: "the vDSO by its library name",
      place: () => "linux-vdso.so.1:time",
      reason: /programs themselves call/,
    },
  ];
  it.each(cases)("$name", async ({ place, reason }) => {
    using child = await UnmanagedChild.start([buildFixture("restartable")]);
    const before = readProcessState(child.pid);
    const { code, err } = await runTracing([
      "-p",
      `${child.pid}`,
      "-e",
      `uprobe:${place()} { @ = count(); }`,
    ]);
    expect(err).toMatch(reason);
    expect(code).toBe(1);
    expectUnchanged(child.pid, before);
  });
});

it("a wildcard leaves them out and probes the rest", async () => {
  using child = await UnmanagedChild.start([buildFixture("restartable")]);
  await using tracing = await Tracing.armed(
    ["-v", "-p", `${child.pid}`],
    "uprobe:restartable:_dl_runtime*, uprobe:restartable:ad* { @[probe] = count(); }",
  );
  child.send("\n");
  expect(await child.line()).toBe("1000");
  const { err, map } = await tracing.interrupt();
  expect(err).toMatch(
    /left out, by uprobe:restartable:_dl_runtime\*: _dl_runtime_resolve_made is entered between/,
  );
  expect(Object.values(map("@") as object)).toEqual([1000]);
});
