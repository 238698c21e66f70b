/** `--verify`: the proof that a process is as it was before it was probed, and what makes it fail. */
import { expect, it } from "vitest";
import { MemoryFile } from "../../src/target/process/memory-file.ts";
import { readMaps } from "../../src/target/process/proc-fs.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { runTracing, Tracing, type TracingResult } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

interface ProofData {
  readonly pid: number;
  readonly holds: boolean;
  readonly reasons: readonly string[];
  readonly text: {
    readonly basis: string;
    readonly bytes: number;
    readonly before: string;
    readonly after: string;
    readonly equal: boolean;
    readonly differences: readonly { readonly at: string; readonly before: string; readonly after: string }[];
    readonly loaded: readonly string[];
  };
  readonly threads: readonly { readonly tid: number; readonly ip: string; readonly inside: boolean }[];
  readonly stacks: { readonly words: number; readonly lookAlikes: number };
  readonly occupants: readonly { readonly tid: number; readonly ip: string; readonly how: string }[];
  readonly memory: { readonly ranges: number; readonly left: readonly unknown[] };
  readonly descriptors: readonly number[];
  readonly otherTracers: readonly number[];
  readonly sigtrap: { readonly before: string; readonly after: string; readonly equal: boolean };
}

function proofsOf({ lines }: TracingResult): ProofData[] {
  return lines.filter(({ type }) => type === "proof").map(({ data }) => data as ProofData);
}

const compute = () => UnmanagedChild.start([buildFixture("compute"), "4"]);
const program = "uprobe:libc:*poll*,uprobe:compute:step,uretprobe:compute:work { @ = count(); }";

for (const args of [[], ["--mechanism", "int3"], ["--return", "stack"]])
  it(`holds for a process under load ${args.join(" ")}`, async () => {
    using child = await compute();
    const before = readProcessState(child.pid);
    await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--verify", ...args], program);
    const result = await tracing.interrupt();
    expect({ code: result.code, err: result.err }).toEqual({ code: 0, err: "" });
    const [proof, ...others] = proofsOf(result);
    expect(others).toEqual([]);
    expect(proof).toMatchObject({
      pid: child.pid,
      holds: true,
      reasons: [],
      text: { basis: "before", equal: true, differences: [] },
      occupants: [],
      memory: { left: [] },
      descriptors: [],
      sigtrap: { equal: true },
    });
    expect(proof!.text.bytes).toBe(before.text.totalBytes);
    expect(proof!.threads.length).toBe(before.threads.length);
    expect(proof!.threads.filter(({ inside }) => inside)).toEqual([]);
    expect(proof!.stacks.words).toBeGreaterThan(proof!.threads.length * 16);
    expectNoTrace(child.pid, before);
  });

it("says for people what was looked at", async () => {
  using child = await compute();
  const { code, out } = runCommand([
    "-p",
    `${child.pid}`,
    "--verify",
    "-e",
    "uprobe:compute:step { @ = count(); } interval:ms:50 { exit(); }",
  ]);
  expect(code).toBe(0);
  const [, ...rows] = out.slice(out.indexOf(`proof: process ${child.pid} is as it was before\n`)).split("\n");
  expect(rows[0]).toMatch(/^ {2}text {5}\d+ ranges, \d+ bytes: equal$/);
  for (const head of ["threads", "stacks", "memory", "SIGTRAP"])
    expect(rows.filter((row) => row.startsWith(`  ${head} `))).toHaveLength(1);
});

it("fails when a byte of text was written meanwhile, and says where", async () => {
  using child = await compute();
  await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--verify"], program);
  const libc = readMaps(child.pid).find(({ perms, path }) => perms === "r-xp" && path.includes("libc.so"))!;
  const at = libc.end - 16n;
  const memory = MemoryFile.open(child.pid);
  memory.write(at, Uint8Array.of(0x5a));
  memory.close();
  const result = await tracing.interrupt();
  expect(result.code).toBe(1);
  const [proof] = proofsOf(result);
  expect(proof).toMatchObject({ holds: false, text: { equal: false } });
  expect(proof!.text.differences).toMatchObject([{ at: `0x${at.toString(16)}`, before: "00", after: "5a" }]);
  expect(result.err).toMatch(
    /^trapline: process \d+ is not as before: text at 0x[0-9a-f]+ \(libc.*\) is 5a, was 00\n$/,
  );
});

it("fails when a site was patched over by another tool", async () => {
  using child = await compute();
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`, "--verify", "-v"],
    "uprobe:compute:step { @ = count(); }",
  );
  const line = /^ {2}step \(compute\) (0x[0-9a-f]+): jump, ([0-9a-f ]+) ->/m.exec(tracing.result.err)!;
  const site = BigInt(line[1]!);
  const original = Buffer.from(line[2]!.replaceAll(" ", ""), "hex");
  // mov rax, rdi by its other encoding: the process computes on as it should.
  expect(original.subarray(0, 3).toString("hex")).toBe("4889f8");
  const memory = MemoryFile.open(child.pid);
  child.kill("SIGSTOP");
  memory.write(site, Uint8Array.of(0x48, 0x8b, 0xc7, ...original.subarray(3)));
  child.kill("SIGCONT");
  const result = await tracing.interrupt();
  memory.close();
  expect(result.code).toBe(1);
  const [proof] = proofsOf(result);
  expect(proof!.holds).toBe(false);
  expect(proof!.text.differences).toMatchObject([
    { at: `0x${(site + 1n).toString(16)}`, before: "89f8", after: "8bc7" },
  ]);
  expect(proof!.reasons.join("\n")).toContain("was patched by another tool");
});

it("names a thread whose signal handler will return to our code, and holds when detach comes later", async () => {
  using child = await UnmanagedChild.start([buildFixture("parked", { flags: ["-no-pie"] }), "late"]);
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(
    ["-p", `${child.pid}`, "--verify"],
    "uprobe:parked:probed { @ = count(); }",
  );
  child.send("\n");
  expect(await child.line()).toBe("waits");
  const result = await tracing.interrupt();
  expect(result.code).toBe(1);
  const [proof] = proofsOf(result);
  expect(proof).toMatchObject({ holds: false, text: { equal: true }, occupants: [{ how: "interrupted" }] });
  expect(result.err).toMatch(
    /our code cannot be freed yet: a signal handler of thread \d+ will return to it/,
  );
  child.send("\n");
  expect(await child.line()).toBe("left 4");
  const detached = await runTracing(["detach", "-p", `${child.pid}`, "--verify"]);
  expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
  expect(proofsOf(detached)).toMatchObject([{ holds: true, text: { basis: "journal", equal: true } }]);
  expectNoTrace(child.pid, before);
});

it("detach proves what a killed tracer has left: text as the journal says, SIGTRAP as it was", async () => {
  using child = await compute();
  const before = readProcessState(child.pid);
  await using tracing = await Tracing.armed(["-p", `${child.pid}`, "--mechanism", "int3"], program);
  tracing.signal("SIGKILL");
  await tracing.ended();
  const detached = await runTracing(["detach", "-p", `${child.pid}`, "--verify"]);
  expect({ code: detached.code, err: detached.err }).toEqual({ code: 0, err: "" });
  const [proof] = proofsOf(detached);
  expect(proof).toMatchObject({
    holds: true,
    text: { basis: "journal", equal: true, bytes: before.text.totalBytes },
    memory: { left: [] },
    sigtrap: { equal: true, before: "00".repeat(32) },
  });
  expectNoTrace(child.pid, before);
});

it("what a command has loaded since is compared with its files; an ended command leaves nothing to be proved", async () => {
  const result = await runTracing(["-c", "/bin/true", "--verify", "-e", "uprobe:libc:exit { @ = count(); }"]);
  expect(result.code).toBe(0);
  expect(proofsOf(result)).toMatchObject([{ ended: true, holds: true }]);
  await using tracing = await Tracing.armed(
    ["-c", `${buildFixture("compute")} 2`, "--verify"],
    "uprobe:libc:*poll* { @ = count(); }",
  );
  const interrupted = await tracing.interrupt();
  const [proof] = proofsOf(interrupted);
  if (proof?.text !== undefined) {
    expect(proof.holds).toBe(true);
    expect(proof.text.loaded.some((path) => path.includes("libc.so"))).toBe(true);
  }
});

for (const mechanism of ["jump", "int3"])
  it(`looks past what other tracers have changed, whoever came first, ${mechanism}`, async () => {
    using child = await compute();
    const before = readProcessState(child.pid);
    const args = ["-p", `${child.pid}`, "--verify", "--mechanism", mechanism];
    const probe = "uprobe:compute:step { @ = count(); }";
    await using first = await Tracing.armed(args, probe);
    await using second = await Tracing.armed(args, `${probe} uprobe:compute:work { @work = count(); }`);
    await using third = await Tracing.armed(args, probe);
    // In an order in which each leaves others behind that came before or after it.
    const endings = [];
    for (const tracing of [second, first, third]) endings.push(await tracing.interrupt());
    const others = [[first.pid, third.pid], [third.pid], []];
    for (const [index, { code, err, ...rest }] of endings.entries()) {
      const [proof] = proofsOf({ code, err, ...rest });
      expect({ code, err, reasons: proof!.reasons }).toEqual({ code: 0, err: "", reasons: [] });
      expect([...proof!.otherTracers].sort()).toEqual(others[index]!.sort());
    }
    expectNoTrace(child.pid, before);
  });
