/** A process with handlers of its own for its own faults: with probes in it they run as they do without. */
import { describe, expect, it, vi } from "vitest";
import type * as Trapline from "../../src/index.ts";
import { faults } from "../support/faulty-program.ts";
import { buildFixture } from "../support/fixtures.ts";
import { buildGo, findGo } from "../support/go-program.ts";
import { ProgramCode } from "../support/program-code.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const library = new URL("../../dist/index.js", import.meta.url);
const { attach } = (await import(library.href)) as typeof Trapline;
const fixture = buildFixture("stray");
const go = findGo();
const NOWHERE = "read 10";

/** What comes of some lines, with the last one maybe the end. */
async function answers(child: UnmanagedChild, lines: readonly string[]): Promise<string[]> {
  const got: string[] = [];
  for (const line of lines) {
    child.send(`${line}\n`);
    got.push(await child.line());
  }
  return got;
}

describe.each(["stack", "strict"])("a fault of the application's own, level %s", (level) => {
  it.each([
    ["a handler", ["handler"], [NOWHERE, "threads read 20", NOWHERE]],
    ["on an alternate stack", ["handler", "alt"], [NOWHERE, "threads write 20", NOWHERE]],
    ["with SA_NODEFER", ["handler", "nodefer"], [NOWHERE, NOWHERE]],
    ["with SA_RESETHAND: once, and then the default action", ["handler", "once"], [NOWHERE, NOWHERE]],
    ["a handler that was installed later", ["after"], ["install", NOWHERE, "threads read 20"]],
    ["a stack pointer that leads nowhere", ["handler", "alt"], ["push 2000"]],
    ["no handler", [], [NOWHERE]],
  ] as const)("%s", async (_, args, lines) => {
    using plain = await UnmanagedChild.start([fixture, ...args]);
    const expected = await answers(plain, ["pass", ...lines]);
    using child = await UnmanagedChild.start([fixture, ...args]);
    await using tracing = await Tracing.armed(
      ["--gate", level, "-p", `${child.pid}`],
      "uprobe:stray:probed { @ = count(); }",
    );
    expect(await answers(child, ["pass", ...lines])).toEqual(expected);
    if (!expected.at(-1)!.startsWith("status"))
      expect(await answers(child, ["pass"])).toEqual(["passed 1000"]);
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    expect(result.lines.filter(({ type }) => type === "violation")).toEqual([]);
  });

  it("accesses of WebAssembly out of its memory are exceptions, as they are without", async () => {
    // (module (memory 1) (func (export "load") (param i32) (result i32) local.get 0 i32.load))
    const module = [
      0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 6, 1, 0x60, 1, 0x7f, 1, 0x7f, 3, 2, 1, 0, 5, 3, 1, 0, 1, 7, 8, 1, 4,
      0x6c, 0x6f, 0x61, 0x64, 0, 0, 10, 9, 1, 7, 0, 0x20, 0, 0x28, 2, 0, 0x0b,
    ];
    const script = `
      const { load } = new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from(${JSON.stringify(module)}))).exports;
      console.log("ready");
      process.stdin.on("data", () => {
        let caught = 0;
        for (let i = 0; i < 1000; i++) try { load(0x7fff0000 + i); } catch (error) { caught += error instanceof WebAssembly.RuntimeError; }
        console.log("caught", caught);
      });`;
    using child = await UnmanagedChild.start([process.execPath, "-e", script]);
    expect(await answers(child, ["go"])).toEqual(["caught 1000"]);
    await using tracing = await Tracing.armed(
      ["--gate", level, "-p", `${child.pid}`],
      "uprobe:libc:write { @ = count(); }",
    );
    expect(await answers(child, ["go", "go"])).toEqual(["caught 1000", "caught 1000"]);
    const result = await tracing.interrupt();
    expect(result.map("@")).toBeGreaterThan(1);
    expect(await answers(child, ["go"])).toEqual(["caught 1000"]);
  });

  it.skipIf(go === undefined)("panics of a Go program, which are faults, are recovered from", async () => {
    using child = await UnmanagedChild.start([buildGo(go!, "panics")]);
    expect(await answers(child, ["go"])).toEqual(["caught 4000"]);
    await using tracing = await Tracing.armed(
      ["--gate", level, "-p", `${child.pid}`],
      "uprobe:panics:main.follow { @ = count(); }",
    );
    expect(await answers(child, ["go", "go"])).toEqual(["caught 4000", "caught 4000"]);
    const result = await tracing.interrupt();
    expect(result.map("@")).toBeGreaterThanOrEqual(8000);
    expect(await answers(child, ["go"])).toEqual(["caught 4000"]);
  });

  it("a handler that was installed later stays in its place, and ours comes before it when probes are added", async () => {
    using child = await UnmanagedChild.start([fixture, "after"]);
    const [fault] = await answers(child, ["install", NOWHERE]).then((lines) => lines.slice(1));
    using later = await UnmanagedChild.start([fixture, "after"]);
    const session = await attach(later.pid, { gate: level as "stack" | "strict" });
    const first = await session.probe("uprobe:libc:fflush", "{ @ = count(); }");
    expect(await answers(later, ["pass", "install", NOWHERE])).toEqual(["passed 1000", "installed", fault]);
    const second = await session.probe("uprobe:stray:probed", "{ @n = sum(arg0); }");
    const code = await vi.waitFor(() => ProgramCode.find(later.pid, "uprobe:stray:probed"));
    code.spoil(faults["a read where nothing is mapped"].code, "start");
    const events = session.events();
    expect(await answers(later, ["pass", NOWHERE, "threads read 20"])).toEqual([
      "passed 1000",
      fault,
      `8 threads: ${fault}`,
    ]);
    expect((await events.next()).value).toMatchObject({
      kind: "violation",
      probe: "uprobe:stray:probed",
      text: expect.stringMatching(/raised SIGSEGV .* the probe is disarmed$/),
    });
    expect(first.counts.run).toBe(6n);
    expect(second.counts.run).toBe(0n);
    expect(second.counts.hits).toBe(second.counts.faulted);
    await session.close();
    expect(await answers(later, ["pass", NOWHERE])).toEqual(["passed 1000", fault]);
  });
});
