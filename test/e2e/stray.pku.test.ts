/**
 * The application touches memory under the session's key: that is killed, skipped or reported, by whatever instruction, thread
 * or child, and never a loop.
 */
import { expect, it } from "vitest";
import { readMaps } from "../../src/target/process/proc-fs.ts";
import { buildFixture } from "../support/fixtures.ts";
import { describeWithKeys } from "../support/protection-keys.ts";
import { Tracing, type TracingResult } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const fixture = buildFixture("stray");
const SITE = "uprobe:stray:probed";
const MAPERR = 1;

/** What there was in all. */
interface Totals {
  readonly pid: number;
  readonly accesses: readonly { readonly at: string; readonly count: number }[];
  readonly untold: number;
}

interface Stray {
  readonly choice?: "kill" | "skip" | "report";
  readonly args?: readonly string[];
}

async function start({ choice, args = ["handler"] }: Stray) {
  const child = await UnmanagedChild.start([fixture, ...args]);
  const options = choice === undefined ? [] : ["--on-violation", choice];
  const tracing = await Tracing.armed(
    ["--gate", "strict", "--verify", ...options, "-p", `${child.pid}`],
    `${SITE} { @ = count(); @by[arg0] = count(); }`,
  );
  const ask = async (line: string) => {
    child.send(`${line}\n`);
    return await child.line(120_000);
  };
  expect(await ask("pass")).toBe("passed 1000");
  const places = new Map<string, bigint>();
  for (const { path, perms, start: at } of readMaps(child.pid)) {
    const name = /^\/memfd:(trapline\S*)/.exec(path)?.[1];
    if (perms.startsWith("rw") && name !== undefined && !places.has(name)) places.set(name, at);
  }
  expect([...places.keys()].sort()).toEqual([
    "trapline",
    "trapline-mailbox",
    "trapline-maps",
    "trapline-stacks",
  ]);
  const end = async () => {
    // The programs still run, and the process is as before in the end.
    expect(await ask("pass")).toBe("passed 1000");
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    expect(result.map("@")).toBe(2000);
    expect(await ask("pass")).toBe("passed 1000");
    const totals = result.lines.filter(({ type }) => type === "violations").map(({ data }) => data as Totals);
    return { violations: violationsOf(result), totals, err: result.err };
  };
  return {
    child,
    tracing,
    ask,
    places,
    end,
    [Symbol.asyncDispose]: async () => {
      await tracing[Symbol.asyncDispose]();
      child[Symbol.dispose]();
    },
  };
}

const violationsOf = ({ lines }: TracingResult) =>
  lines.filter(({ type }) => type === "violation").map(({ data }) => data as Record<string, unknown>);

const hex = (at: bigint) => at.toString(16);
const kinds = ["read", "write", "push", "movs", "avx", "xchg", "lock"] as const;

describeWithKeys("an access to memory under our key", () => {
  it("is a fault for the application's own handler, everywhere and by every instruction", async () => {
    // A stack pointer in our memory leaves no room for a frame but on an alternate stack.
    await using target = await start({ choice: "kill", args: ["handler", "alt"] });
    const { ask, places } = target;
    for (const at of places.values())
      for (const kind of kinds)
        expect(await ask(`${kind} ${hex(at)}`)).toBe(`fault ${MAPERR} at it, in the handler 7, behind it 0`);
    const maps = places.get("trapline-maps")!;
    expect(await ask(`sys ${hex(maps)}`)).toBe("EFAULT EFAULT");
    // The kernel takes this for somebody else's memory, where keys do not count (mm/gup.c: FOLL_REMOTE).
    expect(await ask(`mem ${hex(maps)}`)).toBe("read");
    expect(await ask(`threads read ${hex(maps)}`)).toBe(
      `8 threads: fault ${MAPERR} at it, in the handler 7, behind it 0`,
    );
    const { violations } = await target.end();
    expect(violations).toHaveLength(kinds.length);
    expect(violations[0]).toMatchObject({
      kind: "access",
      access: "read",
      memory: expect.any(String),
      outcome: "kill",
    });
    // Emulation says "read" of those that do both.
    expect(violations.filter(({ access }) => access === "write").length).toBeGreaterThanOrEqual(3);
  });

  it("ends a process without a handler by SIGSEGV, and is reported all the same", async () => {
    await using target = await start({ args: [] });
    expect(await target.ask(`read ${hex(target.places.get("trapline")!)}`)).toBe("status 139");
    const result = await target.tracing.ended();
    expect(violationsOf(result)).toMatchObject([{ kind: "access", access: "read", outcome: "kill" }]);
    expect(result.err).toMatch(
      /violation: process \d+, thread \d+: read of 0x\w+, the journal of this tracer/,
    );
  });

  it("is left out with `skip`", async () => {
    await using target = await start({ choice: "skip", args: ["handler", "alt"] });
    const { ask, places } = target;
    for (const at of places.values()) {
      for (const kind of ["read", "write", "xchg", "lock", "avx", "push"])
        expect(await ask(`${kind} ${hex(at)}`)).toMatch(/^went on with /);
      expect(await ask(`threads write ${hex(at)}`)).toMatch(/^8 threads: went on with /);
    }
    const { violations, totals, err } = await target.end();
    expect(violations.every(({ outcome }) => outcome === "skip")).toBe(true);
    expect(violations).toHaveLength(6);
    // One line each; in all once at each place, and by eight threads once more.
    expect(totals).toMatchObject([{ pid: target.child.pid, untold: 0 }]);
    const counts = totals[0]!.accesses.map(({ count }) => count).sort((a, b) => a - b);
    expect(counts).toEqual([4, 4, 4, 4, 4, 4 + 4 * 8]);
    expect(err.match(/violation: process \d+: 4 accesses in all at /g)).toHaveLength(5);
  });

  it("takes place with `report`, and the key is closed again", async () => {
    await using target = await start({ choice: "report", args: ["handler", "alt"] });
    const { ask, places } = target;
    const journal = places.get("trapline")!;
    const MAGIC = 0x454e_494c_5041_5254n;
    for (let round = 0; round < 3; round++) {
      expect(await ask(`read ${hex(journal)}`)).toBe(`went on with ${MAGIC.toString(16)}`);
      expect(await ask(`flags ${hex(journal)}`)).toBe("went on with 0");
      expect(await ask(`avx ${hex(journal)}`)).toBe(`went on with ${MAGIC.toString(16)}`);
      // The next instruction has no right to it.
      expect(await ask(`sys ${hex(journal)}`)).toBe("EFAULT EFAULT");
    }
    expect(await ask(`threads read ${hex(journal)}`)).toBe(`8 threads: went on with ${MAGIC.toString(16)}`);
    // What moves the stack pointer is not copied.
    expect(await ask(`push ${hex(journal)}`)).toBe(`fault ${MAPERR} at it, in the handler 7, behind it 0`);
    const stacks = places.get("trapline-stacks")!;
    expect(await ask(`lock ${hex(stacks)}`)).toBe("went on with 0");
    const { violations } = await target.end();
    expect(violations.filter(({ outcome }) => outcome === "report")).toHaveLength(4);
    expect(violations.filter(({ outcome, why }) => outcome === "kill" && why !== undefined)).toHaveLength(1);
  });

  it("a fault of what is let through is the application's, where it was, with its mask", async () => {
    await using target = await start({ choice: "report" });
    const { ask, places } = target;
    // Thirty-two bytes of which sixteen lie at the end of a private stack, and sixteen in the guard page of the next one.
    const stacks = places.get("trapline-stacks")!;
    const text = await ask(`movs ${hex(stacks + 61_440n - 16n)}`);
    expect(text).toMatch(/^fault 2 at another place, in the handler 3, behind it 0$/);
    expect(await ask(`sys ${hex(stacks + 8192n)}`)).toBe("EFAULT EFAULT");
    await target.end();
  });

  it("in a child that was forked: skipped there, too, but nothing is let through", async () => {
    await using target = await start({ choice: "skip" });
    const { ask, places, child } = target;
    const maps = hex(places.get("trapline-maps")!);
    expect(await ask("fork")).toBe("forked");
    expect(await ask(`read ${maps}`)).toMatch(/^went on with /);
    expect(await ask("pass")).toBe("passed 1000");
    const result = await target.tracing.interrupt();
    expect(result.code).toBe(0);
    child.kill("SIGKILL");
  });

  it.each(["skip", "report"] as const)(
    "without its tracer a thread does not wait for ever (%s)",
    async (choice) => {
      await using target = await start({ choice });
      const { ask, places, tracing } = target;
      const maps = hex(places.get("trapline-maps")!);
      tracing.signal("SIGKILL");
      await tracing.ended();
      expect(await ask(`read ${maps}`)).toBe(`fault ${MAPERR} at it, in the handler 3, behind it 0`);
      expect(await ask(`write ${maps}`)).toBe(`fault ${MAPERR} at it, in the handler 3, behind it 0`);
      expect(await ask("pass")).toBe("passed 1000");
      await using detach = Tracing.start(["detach", "-p", `${target.child.pid}`, "--verify"]);
      const { code, err } = await detach.ended();
      expect({ code, err }).toEqual({ code: 0, err: "" });
      expect(await ask("pass")).toBe("passed 1000");
    },
  );
});
