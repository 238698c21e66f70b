/** Probes that come and go in one session, through the library as it is built: every change is exact, and leaves no trace. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type * as Trapline from "../../src/index.ts";
import { buildFixture } from "../support/fixtures.ts";
import { expectNoTrace, readProcessState } from "../support/process-state.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const library = new URL("../../dist/index.js", import.meta.url);
const { attach, parseProgram } = (await import(library.href)) as typeof Trapline;

const CALLS = 1000;

async function start() {
  const child = await UnmanagedChild.start([buildFixture("stages"), `${CALLS}`]);
  const call = async () => {
    child.send("\n");
    return await child.line();
  };
  const expected = await call();
  return {
    child,
    before: readProcessState(child.pid),
    /** One round of calls, which must compute what it does without probes. */
    round: async () => expect(await call()).toBe(expected),
    [Symbol.dispose]: () => child[Symbol.dispose](),
  };
}

const count = "{ @ = count(); }";

describe.each(["auto", "jump", "int3"] as const)("a session, %s", (mechanism) => {
  it("adds probes to a point, and takes one of several away", async () => {
    using target = await start();
    const session = await attach(target.child.pid, { mechanism });
    const a = await session.probe("uprobe:stages:first", count);
    await target.round();
    const b = await session.probe("uprobe:stages:first", count);
    const c = await session.probe("uretprobe:stages:first", "{ @ = sum(retval); @n = count(); }");
    await target.round();
    await a.remove();
    await target.round();
    const d = await session.probe("uprobe:stages:first", "/ arg0 < 10 / { @[arg0] = count(); }");
    await target.round();
    const hits = [a, b, c, d].map((probe) => Number(probe.counts.hits) / CALLS);
    expect(hits).toEqual([2, 3, 3, 1]);
    expect([a.map("@"), b.map("@"), c.map("@n")]).toEqual([2000n, 3000n, 3000n]);
    expect(d.counts).toMatchObject({ run: 10n, filtered: 990n });
    expect(d.map("@")).toHaveLength(10);
    expect(d.map("@")).toContainEqual({ key: [7n], value: 1n });
    await session.close();
    await target.round();
    expect(b.counts.hits).toBe(3000n);
    expect(b.map("@")).toBe(3000n);
    expectNoTrace(target.child.pid, target.before);
  });

  it("disables and enables probes, alone on their point or not", async () => {
    using target = await start();
    await using session = await attach(target.child.pid, { mechanism });
    const a = await session.probe("uprobe:stages:second", count);
    const b = await session.probe("uprobe:stages:second", count);
    await target.round();
    await a.disable();
    await target.round();
    await b.disable();
    expect(a.mechanisms).toEqual(["none"]);
    await target.round();
    await a.enable();
    await target.round();
    await b.enable();
    await target.round();
    expect([a.counts.hits, b.counts.hits]).toEqual([3000n, 3000n]);
    expect(a.mechanisms).toEqual([mechanism === "int3" ? "int3" : "jump"]);
  });
});

it("a probe in the region of another one's jump", async () => {
  using target = await start();
  const session = await attach(target.child.pid);
  const entry = await session.probe("uprobe:stages:first", count);
  await target.round();
  expect(entry.mechanisms).toEqual(["jump"]);
  const inside = await session.probe("uprobe:stages:first+3", count);
  expect(entry.mechanisms).toEqual(["int3"]);
  await target.round();
  await entry.disable();
  await target.round();
  await entry.enable();
  await inside.remove();
  await target.round();
  expect([entry.counts.hits, inside.counts.hits]).toEqual([3000n, 2000n]);
  await session.close();
  await target.round();
  expectNoTrace(target.child.pid, { ...target.before, sigtrap: [false, false, false] });
});

it("changes under load lose no hit of the probes that stay", async () => {
  using child = await UnmanagedChild.start([buildFixture("accounted"), "4", "0", "400000"]);
  await using session = await attach(child.pid);
  const stays = await session.probe("uprobe:accounted:probed", count);
  const comes = await session.probe("uprobe:accounted:probed", count);
  let [changes, calls] = [0, 0];
  while (changes < 20) {
    let line: string | undefined;
    const ended = child.line(60_000).then((text) => {
      line = text;
    });
    child.send("\n");
    for (; line === undefined; changes++) {
      await comes.disable();
      await comes.enable();
    }
    await ended;
    calls += Number(line.split(" ")[0]);
  }
  expect(stays.counts.hits).toBe(BigInt(calls));
  expect(comes.counts.hits).toBeLessThan(stays.counts.hits);
  expect(comes.counts.hits).toBeGreaterThan(0n);
});

it("events come through an iterator that ends with the session", async () => {
  using target = await start();
  const session = await attach(target.child.pid);
  const events = session.events();
  await session.probe("uprobe:stages:first", '/ arg0 < 3 / { printf("call %d\\n", arg0); }');
  await target.round();
  const texts: string[] = [];
  for await (const event of events) {
    if (event.kind === "text") texts.push(event.text);
    if (texts.length === 3) break;
  }
  expect(texts).toEqual(["call 0\n", "call 1\n", "call 2\n"]);
  await session.close();
  for await (const event of session.events()) throw new Error(`an event after the end: ${event.kind}`);
});

it("raw instructions are verified and run, and have their maps", async () => {
  using target = await start();
  await using session = await attach(target.child.pid);
  const program = parseProgram("r1 = map[0][0]+0\nr2 = 1\nlock *(u64 *)(r1 +0) += r2\nr0 = 0\nexit\n");
  if (program.kind === "bad") throw new Error(program.message);
  const maps = [{ name: "calls", kind: "array", keyBytes: 4, valueBytes: 8, maxEntries: 1 }] as const;
  const probe = await session.probe("uprobe:stages:first", { insns: program.insns, maps });
  await target.round();
  const calls = probe.rawMap("calls");
  if (calls.kind !== "array") throw new Error(`a map of kind ${calls.kind}`);
  const { value } = [...calls.entries()][0]!;
  expect(new DataView(value.buffer, value.byteOffset).getBigUint64(0, true)).toBe(BigInt(CALLS));
  expect(probe.counts.run).toBe(BigInt(CALLS));
  await expect(session.probe("uprobe:stages:first", { insns: program.insns })).rejects.toThrow(
    /verifier rejects/,
  );
});

it("what is wrong is said, and changes nothing", async () => {
  using target = await start();
  await using session = await attach(target.child.pid);
  await expect(session.probe("uprobe:stages:third", count)).rejects.toThrow(/third/);
  await expect(session.probe("uprobe:stages:first", "{ @ = cunt(); }")).rejects.toThrow(/cunt/);
  await expect(session.probe("interval:s:1", count)).rejects.toThrow(/only uprobe and uretprobe/);
  await expect(attach(4_194_303)).rejects.toMatchObject({ code: "no-such-process" });
  await target.round();
});

it("the example counts, looks closer, and leaves", async () => {
  using child = await UnmanagedChild.start([buildFixture("spawner"), "2"]);
  const before = { ...readProcessState(child.pid), sigtrap: [false, false, false] };
  const example = new URL("../../examples/session.mjs", import.meta.url).pathname;
  const args = [example, `${child.pid}`, "spawner:probed", "0.2"];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  expect(stdout).toMatch(
    /^counting the calls of spawner:probed in process \d+\n\d+ calls\nthread \d+ made \d+ in the same time\nno calls are counted now\n$/,
  );
  expectNoTrace(child.pid, before);
});

it("a program that imports the package is checked against its types", () => {
  const folder = mkdtempSync(join(tmpdir(), "trapline-types-"));
  try {
    const source =
      'import { attach, type Probe } from "trapline";\nconst session = await attach(1);\n' +
      'const probe: Probe = await session.probe("uprobe:a:b", "{ }");\nconst hits: bigint = probe.counts.hits;\nexport { hits };\n';
    writeFileSync(join(folder, "use.ts"), source);
    const root = new URL("../..", import.meta.url).pathname;
    const config = {
      compilerOptions: {
        module: "nodenext",
        target: "es2022",
        lib: ["es2022", "esnext.disposable"],
        strict: true,
        noEmit: true,
        types: ["node"],
        typeRoots: [join(root, "node_modules/@types")],
        paths: { trapline: [join(root, "dist/types/index.d.ts")] },
      },
      files: ["use.ts"],
    };
    writeFileSync(join(folder, "package.json"), '{"type": "module"}');
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(config));
    const tsc = join(root, "node_modules/.bin/tsc");
    const { status, stdout } = spawnSync(tsc, ["-p", folder], { encoding: "utf8" });
    expect({ status, stdout }).toEqual({ status: 0, stdout: "" });
  } finally {
    rmSync(folder, { recursive: true });
  }
}, 30_000);
