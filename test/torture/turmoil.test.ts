/**
 * A target in turmoil: its threads come and go, it forks, loads and unloads libraries and gets signals, while sessions attach to
 * it and leave it. One session is there all the time, and its counts are exact. TRAPLINE_CYCLES sets how often others come and
 * go (`npm run torture:attach`).
 */
import { expect, it } from "vitest";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const cycles = Number(process.env.TRAPLINE_CYCLES ?? 6);

const library = () =>
  buildFixture("library", {
    variant: "turmoil.so",
    flags: ["-shared", "-fPIC", "-Wl,-soname,library-turmoil.so"],
  });

it(`counts are exact while other sessions come and go, ${cycles} times`, {
  timeout: 120_000 + cycles * 10_000,
}, async () => {
  using child = await UnmanagedChild.start([buildFixture("turmoil"), library()]);
  const before = { ...readProcessState(child.pid), sigtrap: [false, false, false] };
  await using tracing = await Tracing.armed(
    ["-q", "-p", `${child.pid}`],
    `uprobe:turmoil:probed { @ = count(); } uretprobe:turmoil:probed { @out = count(); } uprobe:${library()}:library_step { @library = count(); }`,
  );
  child.send("+");
  expect(await child.line()).toBe("going");
  for (let cycle = 0; cycle < cycles; cycle++) {
    const program =
      cycle % 2 === 0
        ? "uprobe:turmoil:probed,uprobe:libc:waitpid { @ = count(); }"
        : "uretprobe:turmoil:probed,uprobe:libc:dlopen { @ = count(); }";
    const { code, err } = await runTracing([
      "-q",
      "-p",
      `${child.pid}`,
      "-e",
      `${program} interval:ms:10 { exit(); }`,
    ]);
    expect({ cycle, code, err: withoutWaiting(err) }).toEqual({ cycle, code: 0, err: "" });
  }
  child.send("-");
  const [probed, steps] = (await child.line()).replace("calls ", "").split(" ").map(Number);
  const { code, err, map } = await tracing.interrupt();
  expect({
    code,
    err: withoutWaiting(err),
    in: map("@"),
    out: map("@out"),
    library: map("@library"),
  }).toEqual({
    code: 0,
    err: "",
    in: probed,
    out: probed,
    library: steps,
  });
  expectNoTrace(child.pid, before);
});

/** Sessions change a process one after the other, and say for whom they wait. */
function withoutWaiting(err: string): string {
  return err.replace(
    /^trapline: process \d+: waiting for (?:process \d+|another tracer), which is changing it\n/gm,
    "",
  );
}
