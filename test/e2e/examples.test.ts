/** The examples, compiled as their README says, in a process that does known things: their results are exact. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { buildBpfObject } from "../support/bpf-objects.ts";
import { buildFixture } from "../support/fixtures.ts";
import { type ObjectRunResult, runObject } from "../support/object-run.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const examples = fileURLToPath(new URL("../../examples/", import.meta.url));

const build = (name: string) =>
  buildBpfObject(name, readFileSync(join(examples, `${name}.bpf.c`), "utf8"), ["-g", "-Wall", "-Werror"]);

/** Has the process do something twice: unseen, then seen. */
async function runExample(
  name: string,
  command: string,
  attach: readonly string[] = [],
): Promise<ObjectRunResult & { readonly pid: number }> {
  const target = buildFixture("example-target", { flags: ["-fno-omit-frame-pointer"] });
  using child = await UnmanagedChild.start([target]);
  const perform = async () => {
    child.send(`${command}\n`);
    expect(await child.line()).toBe("done");
  };
  await perform();
  const args = attach.flatMap((place) => ["--attach", place]);
  const result = await runObject([build(name), "-f", "json", "-p", `${child.pid}`, ...args], perform);
  await perform();
  expect({ code: result.code, err: result.err }).toEqual({
    code: 0,
    err: expect.stringMatching(/^attached \d probes; Ctrl-C takes them out and shows the maps\n$/),
  });
  return { ...result, pid: child.pid };
}

describe("examples", () => {
  it("malloc_sizes counts allocations by their size", async () => {
    const { map } = await runExample("malloc_sizes", "m");
    expect(map("sizes")).toEqual({ 0: 1, 4: 100, 12: 10 });
    expect(map("total_bytes")).toBe(100 * 24 + 10 * 5000);
  });

  it("latency measures each call", async () => {
    const { map, pid } = await runExample("latency", "n", [
      "entered=example-target:nap",
      "returned=example-target:nap",
    ]);
    expect(map("starts")).toEqual({});
    const latencies = map("latencies") as Record<
      string,
      { calls: number; total_ns: number; slots: number[] }
    >;
    expect(Object.keys(latencies)).toEqual([`${pid}`]);
    const { calls, total_ns, slots } = latencies[pid]!;
    expect(calls).toBe(5);
    expect(total_ns).toBeGreaterThanOrEqual(5 * 2_000_000);
    // Slot 10 is from 1024 us on.
    expect(slots.slice(0, 10)).toEqual(Array.from({ length: 10 }, () => 0));
    expect(slots.reduce((sum, count) => sum + count, 0)).toBe(5);
  });

  it("getenv sends each call with its strings", async () => {
    const { lines, map, pid } = await runExample("getenv", "g");
    const event = (name: string, value: string) => ({
      map: "events",
      value: { pid, tid: pid, comm: "example-target", name, value },
    });
    const pair = [event("FIXTURE_SET", "is set"), event("FIXTURE_UNSET", "")];
    expect(lines.filter(({ type }) => type === "record").map(({ data }) => data)).toEqual([
      ...pair,
      ...pair,
      ...pair,
    ]);
    expect(map("dropped")).toBe(0);
    expect(map("names")).toEqual({});
  });

  it("stacks counts each way to a function", async () => {
    const { map, pid } = await runExample("stacks", "s", ["count_stack=example-target:leaf"]);
    const counts = map("counts") as Record<string, number>;
    const stacks = map("stacks") as Record<string, string[]>;
    expect(map("failed")).toBe(0);
    expect(Object.keys(stacks).length).toBe(2);
    const found = Object.entries(counts).map(([key, count]) => {
      const [, inProcess, id] = /^\{pid: (\d+), stack: (\d+)\}$/.exec(key) ?? [];
      expect(inProcess).toBe(`${pid}`);
      return { count, frames: stacks[id!]!.slice(0, 3).map((frame) => frame.replace(/\+0x[0-9a-f]+/, "")) };
    });
    const way = (caller: string) => ["leaf", caller, "main"].map((name) => `${name} (example-target)`);
    expect(found.sort((a, b) => a.count - b.count)).toEqual([
      { count: 12, frames: way("caller_two") },
      { count: 30, frames: way("caller_one") },
    ]);
  });
});
