/**
 * Keys of a live process. What needs a processor with keys runs in the test machine (`npm run test:pku`) where this one has none;
 * these tests are the tracer: ptrace belongs to this thread.
 */
import { closeSync } from "node:fs";
import { expect, test } from "vitest";
import { buildFixture } from "../../../test/support/fixtures.ts";
import { UnmanagedChild } from "../../../test/support/unmanaged-child.ts";
import {
  describeKeyRefusal,
  findKeyObstacle,
  isClosedIn,
  readPkruIn,
  withClosed,
  writePkruIn,
} from "./protection-keys.ts";
import { READ_WRITE, TracedProcess } from "./traced-process.ts";

const fixture = buildFixture("keyed");
const obstacle = findKeyObstacle();
const PAGE = 4096;
const KEYS = 15;

test.each([
  ["the kernel uses them", "flags\t\t: fpu pku ospke rdpid\n", undefined],
  ["the kernel does not use them", "flags\t\t: fpu pku rdpid\n", "not-switched-on"],
  ["the processor has none", "flags\t\t: fpu rdpid\n", "no-hardware"],
  ["a flag only begins like theirs", "flags\t\t: ospkeys pkus\n", "no-hardware"],
  ["nothing is said of the processor", "", "no-hardware"],
])("keys where %s", (_, cpuInfo, kind) => {
  expect(findKeyObstacle(cpuInfo)?.kind).toBe(kind);
});

test.each([
  ["the initial value", 0x5555_5554, 3, true, 0x5555_5554],
  ["everything open", 0, 3, false, 0x40],
  ["everything open, the last key", 0, 15, false, 0x4000_0000],
  ["writes alone closed", 0x80, 3, false, 0xc0],
  ["only others closed", 0x5555_5514, 3, false, 0x5555_5554],
])("PKRU with %s", (_, pkru, key, isClosed, closed) => {
  expect(isClosedIn(pkru, key)).toBe(isClosed);
  expect(withClosed(pkru, key)).toBe(closed);
});

test("a written PKRU counts: its bit in XSTATE_BV is set, and the others stay", () => {
  const state = new Uint8Array(1024);
  state[512] = 0x07;
  writePkruIn(state, 832, 0x5555_5554);
  expect(readPkruIn(state, 832)).toBe(0x5555_5554);
  expect([state[512], state[513]]).toEqual([0x07, 0x02]);
  expect(state.reduce((sum, byte) => sum + (byte === 0 ? 0 : 1), 0)).toBe(6);
});

/** A process with a page of ours, its key written at the page's beginning. */
async function prepare() {
  const child = await UnmanagedChild.start([fixture]);
  const traced = TracedProcess.open(child.pid);
  const { at, fd } = traced.createShared("trapline", PAGE);
  closeSync(fd);
  const ask = async (line: string) => {
    child.send(`${line}\n`);
    return await child.line();
  };
  const unmap = { name: "munmap", number: 11, args: [at, BigInt(PAGE)] };
  return { child, traced, at, ask, unmap, range: { start: at, end: at + BigInt(PAGE) } };
}

test.runIf(obstacle !== undefined)("without keys none is given, and it is said why", async () => {
  const { child, traced, at } = await prepare();
  using _ = child;
  const grant = traced.allocateKey(at);
  expect(grant).toEqual({ kind: "refused", refusal: obstacle });
  expect(describeKeyRefusal(obstacle!)).toMatch(/protection keys/);
  expect([...traced.read(at, 1)]).toEqual([0]);
  traced.close();
});

test.skipIf(obstacle !== undefined)(
  "memory with a key is closed to all threads, those that have opened everything, and later ones",
  async () => {
    const { child, traced, at, ask, unmap, range } = await prepare();
    using _ = child;
    const text = at.toString(16);
    expect(await ask("keys")).toBe(`${KEYS} keys`);
    expect(await ask(`read ${text}`)).toBe("main reads, opened reads");
    const grant = traced.allocateKey(at);
    if (grant.kind === "refused") throw new Error(describeKeyRefusal(grant.refusal));
    const { number } = grant;
    // The record is there before anything has the key.
    expect([...traced.read(at, 1)]).toEqual([number]);
    traced.protectWithKey(range, READ_WRITE, number);
    const closed = `main faults by key ${number}, opened faults by key ${number}`;
    expect(await ask(`read ${text}`)).toBe(closed);
    // The tracer reads and writes as before.
    traced.write(at, Uint8Array.of(number, 2, 3));
    expect([...traced.read(at, 4)]).toEqual([number, 2, 3, 0]);
    expect(await ask("keys")).toBe(`${KEYS - 1} keys`);
    // The kernel does not let a system call of a thread touch what the thread may not.
    const [result] = traced.call([{ name: "rt_sigaction", number: 13, args: [10n, 0n, at, 8n] }]);
    expect(result).toBe(-14n);

    expect(traced.call([unmap])).toEqual([0n]);
    traced.freeKey(number);
    expect(await ask("keys")).toBe(`${KEYS} keys`);
    traced.close();
  },
);

test.skipIf(obstacle !== undefined)(
  "a process without a key left is told so, and nothing is changed",
  async () => {
    const { child, traced, at, ask } = await prepare();
    using _ = child;
    expect(await ask("take")).toBe("taken");
    expect(traced.allocateKey(at)).toEqual({ kind: "refused", refusal: { kind: "none-left" } });
    expect([...traced.read(at, 1)]).toEqual([0]);
    traced.close();
  },
);
