/** What a session puts into a process for data, and who may touch it. These tests are the tracer: ptrace belongs to this thread. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { describeKeyRefusal, findKeyObstacle } from "../../src/target/process/protection-keys.ts";
import { Attached } from "../support/attached.ts";
import { buildFixture } from "../support/fixtures.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const fixture = buildFixture("keyed");
const obstacle = findKeyObstacle();

interface KeyedMapping {
  readonly start: bigint;
  readonly end: bigint;
  readonly perms: string;
  readonly path: string;
  readonly key: number;
}

/** All mappings of a process with their keys. */
function readSmaps(pid: number): KeyedMapping[] {
  const text = readFileSync(`/proc/${pid}/smaps`, "latin1");
  return text.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m).map((part) => {
    const [, start, end, perms, path] = /^(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)$/m.exec(part)!;
    const key = Number(/^ProtectionKey:\s+(\d+)$/m.exec(part)?.[1] ?? "0");
    return { start: BigInt(`0x${start}`), end: BigInt(`0x${end}`), perms: perms!, path: path!, key };
  });
}

async function start() {
  const child = await UnmanagedChild.start([fixture]);
  const ask = async (line: string) => {
    child.send(`${line}\n`);
    return await child.line();
  };
  return { child, ask };
}

test("strict goes on without keys where there are none, and all memory is given back", async () => {
  const { child } = await start();
  using _ = child;
  const before = readSmaps(child.pid);
  const attached = await Attached.to(child.pid, "uprobe:keyed:try_read { @ = count(); }", "strict");
  if (obstacle === undefined) expect(attached.attachment.keyRefusal).toBeUndefined();
  else {
    expect(attached.attachment.key).toBeUndefined();
    expect(attached.attachment.keyRefusal).toEqual(obstacle);
  }
  await attached.restore();
  expect(readSmaps(child.pid)).toEqual(before);
});

test.skipIf(obstacle !== undefined)(
  "all memory for data has the key, the open memory has none, and the key is given back in the process and in its child",
  async () => {
    const { child, ask } = await start();
    using _ = child;
    const before = readSmaps(child.pid);
    expect(await ask("keys")).toBe("15 keys");
    const attached = await Attached.to(child.pid, "uprobe:keyed:try_read { @ = count(); }", "strict");
    const { attachment } = attached;
    const { key, keyRefusal } = attachment;
    if (key === undefined) throw new Error(describeKeyRefusal(keyRefusal!));
    const isNew = ({ start }: KeyedMapping) => !before.some((old) => old.start === start);
    const ours = readSmaps(child.pid).filter(isNew);
    const open = ours.filter((mapping) => mapping.key !== key);
    // Its first page is a mapping of its own: it is wiped in children.
    expect(open.map(({ perms, path }) => `${perms} ${path}`)).toEqual(["rw-p ", "rw-p "]);
    expect(open[0]!.end).toBe(open[1]!.start);
    for (const name of ["trapline", "trapline-maps", "trapline-stacks"])
      expect(ours.map(({ path }) => path)).toContain(`/memfd:${name} (deleted)`);
    expect(ours.some(({ perms, path }) => perms === "rw-p" && path === "")).toBe(true);
    for (const { start, perms } of ours.filter(
      (mapping) => mapping.key === key && mapping.perms !== "---p",
    )) {
      expect(perms).toMatch(/^rw-/);
      expect(await ask(`read ${start.toString(16)}`)).toBe(
        `main faults by key ${key}, opened faults by key ${key}`,
      );
    }
    expect(await ask("keys")).toBe("14 keys");

    const heir = Number(/\d+/.exec(await ask("fork"))![0]);
    expect(attachment.findHeirs()).toEqual([heir]);
    expect(attachment.isReplaced()).toBe(false);
    expect(await ask("keys")).toBe("14 keys");
    await attached.restore();
    expect(await ask("keys")).toBe("14 keys");
    await attached.restoreHeir(heir);
    expect(await ask("keys")).toBe("15 keys");
    expect(attachment.findHeirs()).toEqual([]);
  },
);
