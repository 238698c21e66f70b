/**
 * A process that writes over all memory of ours that it finds in itself, at random and all the time, while it is traced: it may
 * lose what its maps held, but its text is put back, the tracer ends in order, and says what was written over.
 */
import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { readTextFingerprint } from "../../src/session/leave/fingerprint.ts";
import { commandPath } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const WORDS = 300_000;
const start = () => UnmanagedChild.start([buildFixture("scribbler"), "2", "2", `${WORDS}`]);

const probe = "uprobe:scribbler:probed";
const programs: readonly {
  readonly name: string;
  readonly args?: readonly string[];
  readonly program: string;
}[] = [
  {
    name: "counts by key, and all of them in one",
    program: `${probe} { @ = count(); @by[arg0 & 63] = count(); @h[tid] = hist(arg0); }`,
  },
  {
    name: "texts as keys and values, replaced and deleted",
    program: `${probe} { @s[str(arg1)] = str(arg1); @n[arg0 & 255] = (arg0, 1); delete(@n[arg0 & 15]); }`,
  },
  {
    name: "lines, and maps that are printed meanwhile",
    program: `${probe} /(arg0 & 31) == 0/ { printf("%d %s %p\\n", arg0, str(arg1), arg0); @m[arg0 & 31] = sum(arg0); } interval:ms:20 { print(@m); clear(@m); }`,
  },
  {
    name: "lines, through int3",
    args: ["--mechanism", "int3"],
    program: `${probe} { printf("%s %s\\n", comm, str(arg1)); @[pid, tid] = count(); }`,
  },
];

describe("memory that the process writes over all the time", () => {
  it.each(programs)("$name", async ({ args = [], program }) => {
    using child = await start();
    const before = readTextFingerprint(child.pid);
    await using tracing = await Tracing.armed([...args, "-p", `${child.pid}`], program);
    expect(readTextFingerprint(child.pid).digest).not.toBe(before.digest);
    child.send("\n");
    expect(await child.line(60_000)).toBe("scribbled");
    expect(tracing.hasEnded).toBe(false);
    const result = await tracing.interrupt();
    expect(result.err).toMatch(
      /has written over our journal \(.*\); it is put back by what the tracer remembers/,
    );
    expect(result.err).not.toMatch(/internal error/);
    expect(result.code).toBe(0);
    expect(readTextFingerprint(child.pid).digest).toBe(before.digest);
    // It goes on, without us.
    child.send("\n");
    expect(await child.line(60_000)).toMatch(/^done \d+$/);
    expect(await child.line()).toBe("status 0");
  });

  it("a tracer that dies meanwhile: ps and detach name the damage, and the process goes on", async () => {
    using child = await start();
    const tracing = await Tracing.armed(["-p", `${child.pid}`], `${probe} { @[tid] = count(); }`);
    child.send("\n");
    expect(await child.line(60_000)).toBe("scribbled");
    tracing.signal("SIGKILL");
    await tracing.ended();
    const run = (...args: string[]) =>
      spawnSync(process.execPath, [commandPath, ...args], { encoding: "utf8", timeout: 60_000 });
    const listed = run("ps");
    expect(listed.stderr + listed.stdout).toContain("journal");
    for (let round = 0; round < 2; round++) {
      const { status, stderr } = run("detach", "-p", `${child.pid}`);
      expect(stderr).not.toMatch(/internal error/);
      if (status !== 0) expect(stderr).toMatch(/journal/);
    }
    child.send("\n");
    expect(await child.line(60_000)).toMatch(/^done \d+$/);
  });
});
