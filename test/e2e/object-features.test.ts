/** What objects may hold, each in a live process with exact results: kinds of maps, helpers, kinds of programs. */
import { describe, expect, it } from "vitest";
import { buildBpfFixture, buildBpfObject, PRELUDE } from "../support/bpf-objects.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { type ObjectRunResult, runObject } from "../support/object-run.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const CALLS = 1000;

/** Runs an object while the program counter makes its calls. */
async function runOnCounter(
  object: string,
  args: readonly string[] = [],
  threads = 1,
): Promise<ObjectRunResult & { readonly pid: number }> {
  using child = await UnmanagedChild.start([buildFixture("counter"), `${threads}`, `${CALLS}`]);
  child.send("\n");
  const expected = await child.line();
  const result = await runObject([object, "-p", `${child.pid}`, ...args], async () => {
    child.send("\n");
    expect(await child.line()).toBe(expected);
  });
  expect(result.code).toBe(0);
  child.send("\n");
  expect(await child.line()).toBe(expected);
  return { ...result, pid: child.pid };
}

const sumOf = (copies: unknown, member: string) =>
  (copies as Record<string, number>[]).reduce((sum, copy) => sum + copy[member]!, 0);

describe("an object with everything", () => {
  it("calls, counts, keeps and sends exactly", async () => {
    const { map, lines, pid } = await runOnCounter(buildBpfFixture("features"), ["-f", "json"]);
    // Tail calls, functions, maps of maps.
    expect(map("even_totals")).toEqual({ 0: CALLS / 2 });
    expect(map("odd_totals")).toEqual({ 0: CALLS / 2 });
    expect(map("totals")).toEqual({ 0: "even_totals", 1: "odd_totals" });
    expect(map("steps")).toEqual({ 0: "even_step", 1: "odd_step" });
    expect(map("by_parity")).toEqual({ 0: CALLS / 2, 1: CALLS / 2 });
    const pairs = map("pairs") as Record<string, unknown>;
    expect([sumOf(pairs.EVEN, "calls"), sumOf(pairs.EVEN, "sum")]).toEqual([500, 249_500]);
    expect([sumOf(pairs.ODD, "calls"), sumOf(pairs.ODD, "sum")]).toEqual([500, 250_000]);
    // The oldest goes, or the newest is refused.
    expect(map("first")).toEqual([0, 1, 2]);
    expect(map("latest")).toEqual([999, 998, 997]);
    const recent = Object.entries(map("recent") as Record<string, number>);
    expect(recent.length).toBeLessThanOrEqual(64);
    expect(recent.length).toBeGreaterThan(32);
    for (const [key, value] of recent) expect(key).toBe(`${value}`);
    expect(map("recent")).toHaveProperty("999", 999);
    // Callbacks: 0 + ... + 9 and two elements, four times.
    expect([map("looped"), map("visited")]).toEqual([180, 8]);
    // A filter may be wrong about what it has not seen, now and then.
    expect(map("repeated")).toBeLessThan(CALLS / 20);
    const sent = lines.filter(({ type }) => type === "record").map(({ data }) => data);
    expect(sent).toEqual([
      { map: "sent", value: { tid: expect.any(Number), parity: "EVEN", number: 0 } },
      { map: "sent", value: { tid: expect.any(Number), parity: "ODD", number: 1 } },
    ]);
    const printed = lines.filter(({ type }) => type === "printk").map(({ data }) => data);
    expect(printed.map(({ text }) => text)).toEqual([
      "counter: 1 + 2 = 3, 0x0",
      "number 1",
      "counter: 1 + 2 = 3, 0x2",
      "number 3",
    ]);
    expect(new Set(printed.map((line) => `${line.comm} ${line.pid}`))).toEqual(new Set([`counter ${pid}`]));
  });

  it("counts exactly in several threads at once", async () => {
    const threads = 3;
    const { map } = await runOnCounter(buildBpfFixture("features"), ["-f", "json"], threads);
    const half = (threads * CALLS) / 2;
    expect(map("by_parity")).toEqual({ 0: half, 1: half });
    const pairs = map("pairs") as Record<string, unknown>;
    expect(sumOf(pairs.ODD, "sum")).toBe(threads * 250_000);
    expect(map("even_totals")).toEqual({ 0: half });
  });

  it("prints for people as the kernel does", async () => {
    const { out, err } = await runOnCounter(buildBpfFixture("features"));
    expect(err).toBe("attached 1 probes; Ctrl-C takes them out and shows the maps\n");
    expect(out).toMatch(
      /^ {9}counter-\d+ +\[\d{3}\] \.{5} +\d+\.\d{6}: bpf_trace_printk: counter: 1 \+ 2 = 3, 0x0$/m,
    );
    expect(out).toMatch(/^sent: \{tid: \d+, parity: ODD, number: 1\}$/m);
    expect(out).toContain("map latest (stack, 3 of 3)\n  999\n  998\n  997\n");
    expect(out).toContain("map totals (array_of_maps, 2 of 2)\n  [0]: even_totals\n  [1]: odd_totals\n");
    expect(out).toContain("map by_parity (percpu_array, 2 of 2)\n  [0]: 500\n  [1]: 500\n");
    expect(out).not.toContain("map seen");
  });

  it("is only shown by --dry-run", () => {
    const { code, out, err } = runCommand([
      "run",
      buildBpfFixture("features"),
      "--dry-run",
      "-p",
      `${process.pid}`,
      "--attach",
      "begin=libc:malloc",
    ]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(/^program begin: \d+ instructions, proved in \d+ steps$/m);
    expect(out).toMatch(new RegExp(`^process ${process.pid}: 1 sites$`, "m"));
    expect(out).toMatch(/entry: begin/);
  });
});

describe("other programs", () => {
  it("find the arguments of static probes, also where a counter guards them", async () => {
    const calls = 100;
    using child = await UnmanagedChild.start([buildFixture("static-probes"), `${calls}`]);
    const pass = async () => {
      child.send("\n");
      expect(await child.line()).toBe(`${calls}`);
    };
    await pass();
    const args = [buildBpfFixture("static-probes"), "-f", "json", "-p", `${child.pid}`];
    const run = async () =>
      (await runObject(args, pass)).lines.findLast(({ type }) => type === "globals")!.data;
    const expected = {
      hits: calls,
      counts: 5 * calls,
      sum_a: -(calls * (calls - 1)) / 2,
      sum_b: calls * 2 ** 40,
      sum_c: -7 * calls,
      sum_d: 255 * calls,
      sum_e: 1000 * calls,
      others: 76,
      reached: calls,
    };
    expect(await run()).toEqual(expected);
    // The counter is back at what it was, and can be raised again.
    expect(await run()).toEqual(expected);
    await pass();
  });

  it("may be written with the kernel's types in a header", async () => {
    const { map } = await runOnCounter(buildBpfFixture("kernel-header"), ["-f", "json"]);
    const names = ["calls", "sum", "core_sum", "copy_sum", "results", "same_place", "kernel_types"];
    const sum = (CALLS * (CALLS - 1)) / 2;
    expect(names.map(map)).toEqual([CALLS, sum, sum, sum, CALLS, CALLS, 0]);
  });

  it("show stacks with the names of libraries that the command loads later", () => {
    const source = `struct { __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 16384); __type(key, u32); __uint(value_size, 80); } stacks SEC(".maps");
      SEC("uprobe/example-target:leaf") int f(struct pt_regs *ctx) { bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK); return 0; }`;
    const target = buildFixture("example-target", { flags: ["-fno-omit-frame-pointer"] });
    const run = runCommand(["run", buildBpfObject("stacks", PRELUDE + source), "-c", target], "s\n");
    expect(run.code).toBe(0);
    expect(run.out).toMatch(
      /^ {4}leaf \(example-target\)\n {4}caller_two\+0x[0-9a-f]+ \(example-target\)\n {4}main\+0x[0-9a-f]+ \(example-target\)\n {4}.* \(libc.*\)$/m,
    );
  });

  it("share their maps in several processes", async () => {
    using first = await UnmanagedChild.start([buildFixture("counter"), "1", `${CALLS}`]);
    using second = await UnmanagedChild.start([buildFixture("counter"), "2", `${CALLS}`]);
    const pids = [first, second].flatMap(({ pid }) => ["-p", `${pid}`]);
    const args = [buildBpfFixture("probed"), "--attach", "probed_returns=counter:probed", ...pids];
    const { lines } = await runObject(["-f", "json", ...args], async () => {
      for (const child of [first, second]) {
        child.send("\n");
        await child.line();
      }
    });
    const { calls, returns } = Object.assign({}, ...lines.map(({ data }) => data));
    expect([calls, returns]).toEqual([3 * CALLS, 3 * CALLS]);
  });

  it("are loaded when they are asked for", () => {
    const object = buildBpfFixture("map-kinds");
    const counter = `${buildFixture("counter")} 1 10`;
    const places = ["last_step", "asks", "on_demand"].flatMap((name) => [
      "--attach",
      `${name}=counter:probed`,
    ]);
    const run = runCommand(["run", object, "-f", "json", ...places, "-c", counter], "\n");
    expect({ code: run.code, err: run.err }).toEqual({
      code: 0,
      err: "attached 3 probes; Ctrl-C takes them out and shows the maps\n",
    });
    const without = runCommand(["run", object, ...places.slice(0, 4), "-c", counter], "\n");
    expect(without.err).toBe("attached 2 probes; Ctrl-C takes them out and shows the maps\n");
  });
});

describe("refusing", () => {
  it.each([
    { entries: 100_000_000, err: /^trapline: run: map h: it takes \d+ MiB; there may be 2047 MiB\n$/ },
    { entries: 0xffff_ffff, err: /^trapline: run: map h: 4294967295 entries are too many\n$/ },
  ])("a map of $entries entries", ({ entries, err }) => {
    const source = `struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, ${entries}); __type(key, u64); __type(value, u64); } h SEC(".maps");
      SEC("uprobe/libc:malloc") int f(void *ctx) { u64 k = 0; return bpf_map_delete_elem(&h, &k); }`;
    const run = runCommand(["run", buildBpfObject("huge", PRELUDE + source), "-p", `${process.pid}`]);
    expect(run).toEqual({ code: 1, out: "", err: expect.stringMatching(err) });
  });

  it.each([
    {
      name: "a static probe that is not there",
      attach: "on_step=static-probes:fixture:stop",
      err: /no static probe fixture:stop; it has .*fixture:step/,
    },
    {
      name: "a static probe of an image without any",
      attach: "on_step=counter:fixture:step",
      err: /counter has no static probes/,
    },
    {
      name: "a place of another kind",
      attach: "on_step=static-probes:step",
      err: /--attach on_step=static-probes:step: it is not PROGRAM=IMAGE:PROVIDER:NAME/,
    },
  ])("$name", ({ attach, err }) => {
    const command = `${buildFixture(/=(.*?):/.exec(attach)![1]!)} 1 1`;
    const run = runCommand(
      ["run", buildBpfFixture("static-probes"), "--attach", attach, "-c", command],
      "\n",
    );
    expect(run.code).toBe(1);
    expect(run.err).toMatch(err);
  });
});
