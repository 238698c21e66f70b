import { afterEach, describe, expect, it } from "vitest";
import { buildFixture } from "../../../test/support/fixtures.ts";
import { UnmanagedChild } from "../../../test/support/unmanaged-child.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import { differingRuns, TextSnapshot } from "./text-snapshot.ts";

const runs: readonly {
  readonly name: string;
  readonly a: readonly number[];
  readonly b: readonly number[];
  readonly found: readonly (readonly [number, number])[];
}[] = [
  { name: "equal", a: [1, 2, 3], b: [1, 2, 3], found: [] },
  { name: "the first and the last byte, near each other", a: [1, 2, 3], b: [0, 2, 0], found: [[0, 3]] },
  {
    name: "two places far from each other",
    a: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    b: [2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2],
    found: [
      [0, 1],
      [11, 12],
    ],
  },
];

describe("runs of bytes that differ", () => {
  for (const { name, a, b, found } of runs)
    it(name, () => expect(differingRuns(Uint8Array.from(a), Uint8Array.from(b))).toEqual(found));
});

describe("text snapshot", () => {
  const children: UnmanagedChild[] = [];
  afterEach(() => {
    for (const child of children.splice(0)) child[Symbol.dispose]();
  });

  async function start(): Promise<number> {
    const child = await UnmanagedChild.start([buildFixture("compute"), "2"]);
    children.push(child);
    return child.pid;
  }

  const libcText = (pid: number) =>
    readMaps(pid).find(({ perms, path }) => perms === "r-xp" && path.includes("libc.so"))!;

  function change(pid: number, at: bigint, bytes: Uint8Array): Uint8Array {
    const memory = MemoryFile.open(pid);
    const old = memory.read(at, bytes.length);
    memory.write(at, bytes);
    memory.close();
    return old;
  }

  it("is equal to itself, and finds exactly the bytes that were written, until they are put back", async () => {
    const pid = await start();
    using snapshot = TextSnapshot.take(pid);
    const same = snapshot.compare(pid);
    expect({ differences: same.differences, gone: same.gone, added: same.added }).toEqual({
      differences: [],
      gone: [],
      added: [],
    });
    expect(same.digestAfter).toBe(same.digestBefore);
    expect(same.totalBytes).toBeGreaterThan(1 << 20);
    expect(same.unlikeFilesBefore).toBe(0);

    const { start: from, path } = libcText(pid);
    const at = from + 0x5ffen; // over the end of a page
    const memory = MemoryFile.open(pid, "r");
    const written = memory.read(at, 4).map((byte) => byte ^ 0xff);
    memory.close();
    const old = change(pid, at, written);
    const other = snapshot.compare(pid);
    expect(other.digestBefore).toBe(same.digestBefore);
    expect(other.digestAfter).not.toBe(same.digestBefore);
    expect(other.differences).toEqual([{ at, path, expected: old, found: written }]);

    change(pid, at, old);
    expect(snapshot.compare(pid).digestAfter).toBe(same.digestBefore);
  });

  it("what others changed before is kept, counted and no difference", async () => {
    const pid = await start();
    const at = libcText(pid).start + 0x7100n;
    const old = change(pid, at, Uint8Array.of(0xaa, 0xbb));
    using snapshot = TextSnapshot.take(pid);
    const same = snapshot.compare(pid);
    expect(same.differences).toEqual([]);
    expect(same.unlikeFilesBefore).toBe(2);
    // Put back meanwhile, it is one.
    change(pid, at, old);
    expect(snapshot.compare(pid).differences).toMatchObject([
      { at, expected: Uint8Array.of(0xaa, 0xbb), found: old },
    ]);
  });

  it("can be taken as if bytes were put back already", async () => {
    const pid = await start();
    const at = libcText(pid).start + 0x8000n;
    const old = change(pid, at, Uint8Array.of(0xcc, 0xcc, 0xcc));
    using snapshot = TextSnapshot.take(pid, [{ at, bytes: old }]);
    expect(snapshot.compare(pid).differences).toMatchObject([{ at, expected: old }]);
    change(pid, at, old);
    const same = snapshot.compare(pid);
    expect(same.digestAfter).toBe(same.digestBefore);
  });
});
