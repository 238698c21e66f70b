/**
 * Stops and borrowed calls on real programs. These tests are the tracer: ptrace belongs to this thread.
 */
import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { buildFixture } from "../../../test/support/fixtures.ts";
import { UnmanagedChild } from "../../../test/support/unmanaged-child.ts";
import type { RemoteCall, Transaction } from "../target.ts";
import { setRealTime } from "./libc.ts";
import { TracedProcess } from "./traced-process.ts";

const nothing: Transaction = {
  sites: [],
  moves: [],
  trapSites: [],
  returnTables: [],
  vacate: [],
  usesTraps: false,
  finalCalls: [],
};
const getpid: RemoteCall = { name: "getpid", number: 39, args: [] };

for (const variant of ["all threads sleep", "one thread runs"]) {
  test(`stops and borrowed calls are not seen by sleeping system calls: ${variant}`, async () => {
    const argv = [buildFixture("blocked"), ...(variant === "one thread runs" ? ["spin"] : [])];
    using child = await UnmanagedChild.start(argv);
    const traced = TracedProcess.open(child.pid);
    for (let round = 0; round < 100; round++) {
      const report = traced.commit({ ...nothing, finalCalls: [getpid, getpid] });
      expect(report).toMatchObject({
        kind: "committed",
        callResults: [BigInt(child.pid), BigInt(child.pid)],
      });
    }
    traced.close();
    expect(child.pending).toEqual([]);
  });
}

test("memory that is created and unmapped leaves no mapping and no descriptor", async () => {
  using child = await UnmanagedChild.start([buildFixture("blocked")]);
  const maps = () => readFileSync(`/proc/${child.pid}/maps`, "latin1");
  const descriptors = () => readdirSync(`/proc/${child.pid}/fd`);
  const [mapsBefore, descriptorsBefore] = [maps(), descriptors()];
  const traced = TracedProcess.open(child.pid);
  const shared = traced.createShared("trapline", 1 << 20);
  const own = shared.at - 0x1000_0000n;
  traced.createPrivate(own, 8192);
  expect(maps()).toContain("/memfd:trapline (deleted)");
  traced.write(shared.at, Uint8Array.of(1, 2, 3));
  expect([...traced.read(shared.at, 4)]).toEqual([1, 2, 3, 0]);
  const unmap = (at: bigint, lenBytes: number): RemoteCall => ({
    name: "munmap",
    number: 11,
    args: [at, BigInt(lenBytes)],
  });
  expect(traced.call([unmap(shared.at, 1 << 20), unmap(own, 8192)])).toEqual([0n, 0n]);
  traced.close();
  expect(maps()).toBe(mapsBefore);
  expect(descriptors()).toEqual(descriptorsBefore);
});

test("a thread that cannot be interrupted is passed over, and goes on when it can", async () => {
  using child = await UnmanagedChild.start([buildFixture("vfork")]);
  const traced = TracedProcess.open(child.pid);
  child.send("\n");
  expect(await child.line()).toBe("forking");
  // The first call finds out that the main thread does not stop; the second meets it still seized.
  for (let round = 0; round < 2; round++) expect(traced.call([getpid])).toEqual([BigInt(child.pid)]);
  expect(await child.line()).toBe("back");
  expect(traced.commit({ ...nothing, finalCalls: [getpid] })).toMatchObject({
    kind: "committed",
    threads: 2,
  });
  traced.close();
});

/** Field 41 of proc(5)'s stat: 0 for an ordinary thread, 1 for SCHED_FIFO. */
function ownPolicy(): number {
  const stat = readFileSync("/proc/thread-self/stat", "latin1");
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[38]);
}

test("the tracer runs before other threads while a process stands, and only then", async () => {
  // Root in a container may lack the capability.
  const isAllowed = setRealTime(true) && setRealTime(false);
  using child = await UnmanagedChild.start([buildFixture("blocked")]);
  const traced = TracedProcess.open(child.pid);
  const seen: number[] = [];
  const report = traced.commit({
    ...nothing,
    get sites() {
      seen.push(ownPolicy());
      return [];
    },
  });
  expect(report.kind).toBe("committed");
  expect(new Set(seen)).toEqual(new Set([isAllowed ? 1 : 0]));
  expect(ownPolicy()).toBe(0);
  traced.call([getpid]);
  expect(ownPolicy()).toBe(0);
  traced.close();
});

test("every thread's id is found behind its fs base", async () => {
  using child = await UnmanagedChild.start([buildFixture("blocked")]);
  const traced = TracedProcess.open(child.pid);
  expect(traced.findTidOffset([0x30, 0x2d0])).toBe(0x2d0);
  expect(traced.findTidOffset([0x30])).toBeUndefined();
  traced.close();
});

test("text that is not as expected is refused and stays as it is", async () => {
  using child = await UnmanagedChild.start([buildFixture("blocked")]);
  const traced = TracedProcess.open(child.pid);
  const line = readFileSync(`/proc/${child.pid}/maps`, "latin1")
    .split("\n")
    .find((text) => text.includes("r-xp"))!;
  const at = BigInt(`0x${line.split("-")[0]}`);
  const before = traced.read(at, 8);
  const wrong = before.slice();
  wrong[3]! ^= 1;
  const report = traced.commit({
    ...nothing,
    sites: [
      { at, expect: before.subarray(0, 2), write: Uint8Array.of(0x90, 0x90), fallback: undefined, moves: [] },
      { at, expect: wrong, write: new Uint8Array(8), fallback: undefined, moves: [] },
    ],
  });
  expect(report).toMatchObject({ kind: "refused", reason: { kind: "text-differs", at } });
  expect(traced.read(at, 8)).toEqual(before);
  traced.close();
});

test.each([
  ["a number that no process has", 4_194_303, "no-such-process"],
  ["a kernel thread", 2, "kernel-thread"],
  ["the tracer itself", process.pid, "ourselves"],
])("attaching is refused: %s", (_, pid, code) => {
  expect(() => TracedProcess.open(pid)).toThrow(expect.objectContaining({ code }));
});
