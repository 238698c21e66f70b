/** What a session puts into a process for data, and who may touch it. These tests are the tracer: ptrace belongs to this thread. */
import { closeSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createHugeMemory } from "../../src/target/process/huge-memory.ts";
import { describeKeyRefusal, findKeyObstacle } from "../../src/target/process/protection-keys.ts";
import { TracedProcess } from "../../src/target/process/traced-process.ts";
import { Attached } from "../support/attached.ts";
import { runCommand } from "../support/built-command.ts";
import { buildFixture } from "../support/fixtures.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const fixture = buildFixture("keyed");
const obstacle = findKeyObstacle();
/** Room for the fixture (its two threads' stacks and heaps) and 40 MiB. */
const LIMIT_KIB = 60_000;

/** Whether such memory is to be had here; it is given back at once. */
function tryHuge(pages: "thp" | "1g") {
  const made = createHugeMemory("trapline-trial", pages, 1);
  if (made.kind === "huge") {
    made.mapping.unmap();
    closeSync(made.fd);
  }
  return made;
}
const transparent = tryHuge("thp");
const hasGigabytePages = tryHuge("1g").kind === "huge";

interface KeyedMapping {
  readonly start: bigint;
  readonly end: bigint;
  readonly perms: string;
  readonly path: string;
  readonly key: number;
  /** Bytes that are mapped by huge pages, of shared memory or hugetlb. */
  readonly hugeKib: number;
}

/** All mappings of a process with their keys. */
function readSmaps(pid: number): KeyedMapping[] {
  const text = readFileSync(`/proc/${pid}/smaps`, "latin1");
  return text.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m).map((part) => {
    const [, start, end, perms, path] = /^(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)$/m.exec(part)!;
    const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(part)?.[1] ?? "0");
    return {
      start: BigInt(`0x${start}`),
      end: BigInt(`0x${end}`),
      perms: perms!,
      path: path!,
      key: field("ProtectionKey"),
      hugeKib: field("ShmemPmdMapped") + field("Shared_Hugetlb") + field("Private_Hugetlb"),
    };
  });
}

const nameOf = ({ perms, path }: KeyedMapping): string =>
  `${perms} ${/^\/memfd:(\S+) \(deleted\)$/.exec(path)?.[1] ?? path}`;

async function start() {
  const child = await UnmanagedChild.start([fixture]);
  const ask = async (line: string) => {
    child.send(`${line}\n`);
    return await child.line();
  };
  return { child, ask };
}

const SCRIPT = "uprobe:keyed:try_read { @ = count(); }";
const FAULT = "main faults by 2, opened faults by 2";
const PAGE = 4096n;

test("all data lies in one reserved range, a guard apart from each other, and all of it is given back, in a child as well", async () => {
  const { child, ask } = await start();
  using _ = child;
  const before = readSmaps(child.pid);
  const attached = await Attached.to(child.pid, SCRIPT, "stack");
  const { memory } = attached.attachment;
  const mailbox = await memory.addMailbox(5000);
  const later = await memory.addMaps(1 << 20);
  const ours = readSmaps(child.pid).filter(
    ({ path, start: at }) => path.includes("trapline") || memory.useAt(at) !== undefined,
  );
  const [first, last] = [ours[0]!, ours.at(-1)!];
  // Without a gap: nobody else is in between.
  for (const [index, mapping] of ours.entries())
    if (index > 0) expect(mapping.start).toBe(ours[index - 1]!.end);
  const { accounts } = memory;
  expect(last.end - first.start).toBe(BigInt(accounts.reservedBytes));
  const mapped = ours.filter(({ path, perms }) => perms !== "---p" || path.includes("stacks"));
  const used = [...accounts.usedBytes.values()].reduce((sum, bytes) => sum + bytes, 0);
  expect(mapped.reduce((sum, { start: at, end }) => sum + Number(end - at), 0)).toBe(used);
  expect([...accounts.usedBytes.keys()].sort()).toEqual([
    "journal",
    "later maps",
    "mailboxes",
    "maps",
    "open",
    "private",
    "stacks",
  ]);

  const places = [
    { at: mailbox.at, use: "mailboxes" },
    { at: later.at, use: "later maps" },
    { at: memory.mapsAt, use: "maps" },
    { at: memory.journalMemory.start, use: "journal" },
    { at: memory.scratchAt, use: "open" },
    { at: memory.stacksAt!, use: "stacks" },
  ];
  for (const { at, use } of places) {
    expect(memory.useAt(at)).toBe(use);
    expect(memory.useAt(at - PAGE)).toBe("guard");
    expect(await ask(`read ${(at - PAGE).toString(16)}`)).toBe(FAULT);
    if (use !== "stacks") expect(await ask(`read ${at.toString(16)}`)).toBe("main reads, opened reads");
  }
  expect(memory.useAt(first.start - 1n)).toBeUndefined();
  // What the tracer writes into a mailbox the process has, and the other way round.
  new Uint8Array(mailbox.mapping.buffer)[4999] = 7;
  expect([...(await attached.attachment.target.read(mailbox.at + 4998n, 2))]).toEqual([0, 7]);

  const heir = Number(/\d+/.exec(await ask("fork"))![0]);
  await attached.restore();
  expect(readSmaps(child.pid)).toEqual(before);
  await attached.restoreHeir(heir);
  expect(readSmaps(heir).filter(({ path }) => path.includes("trapline"))).toEqual([]);
});

test("what does not fit any more gets a further range, which is given back as well", async () => {
  const { child, ask } = await start();
  using _ = child;
  const before = readSmaps(child.pid);
  const attached = await Attached.to(child.pid, SCRIPT);
  const { memory } = attached.attachment;
  const reserved = memory.accounts.reservedBytes;
  const large = await memory.addMaps(100 << 20);
  expect(memory.accounts.reservedBytes).toBeGreaterThan(reserved + (100 << 20));
  expect(memory.useAt(large.at)).toBe("later maps");
  expect(await ask(`read ${large.at.toString(16)}`)).toBe("main reads, opened reads");
  const report = await attached.restore();
  expect(report.occupants).toEqual([]);
  expect(readSmaps(child.pid)).toEqual(before);
});

test("a process that may not have many addresses gets what is needed", async () => {
  const limited = ["/bin/sh", "-c", `ulimit -v ${LIMIT_KIB}; exec ${fixture}`];
  using child = await UnmanagedChild.start(limited);
  const attached = await Attached.to(child.pid, SCRIPT);
  const { reservedBytes, freeBytes } = attached.attachment.memory.accounts;
  expect(reservedBytes).toBeLessThan(16 << 20);
  expect(freeBytes).toBe(0);
  await attached.restore();
  await expect(Attached.to(child.pid, SCRIPT, "stack")).rejects.toThrow("mmap failed: ENOMEM");
  expect(readSmaps(child.pid).filter(({ path }) => path.includes("trapline"))).toEqual([]);
});

test("what a tracer has reserved that died before it wrote a journal is freed by the next one", async () => {
  using child = await UnmanagedChild.start([fixture]);
  const before = readSmaps(child.pid);
  const traced = TracedProcess.open(child.pid);
  const at = traced.reserve(1 << 20);
  closeSync(traced.createShared("trapline", 8192, at + PAGE).fd);
  traced.close();
  expect(
    readSmaps(child.pid)
      .filter(({ path }) => path.includes("trapline"))
      .map(nameOf),
  ).toEqual(["---p trapline-arena", "rw-s trapline", "---p trapline-arena"]);
  expect(runCommand(["detach", "-p", `${child.pid}`]).code).toBe(0);
  expect(readSmaps(child.pid)).toEqual(before);
});

describe.skipIf(transparent.kind === "refused")("maps in transparent huge pages", () => {
  test("are mapped by huge pages in all processes that share them", async () => {
    using first = await UnmanagedChild.start([fixture]);
    using second = await UnmanagedChild.start([fixture]);
    const pids = [first, second].flatMap(({ pid }) => ["-p", `${pid}`]);
    await using tracing = await Tracing.armed(
      ["--arena", "thp", "--verify", "-v", ...pids],
      "uprobe:keyed:try_read { @[pid] = count(); }",
    );
    for (const child of [first, second]) {
      child.send("read 1000\n");
      expect(await child.line()).toBe("main faults by 1, opened faults by 1");
      const maps = readSmaps(child.pid).filter(({ path }) => path.includes("trapline-maps"));
      expect(maps).toHaveLength(1);
      expect(maps[0]!.hugeKib).toBeGreaterThanOrEqual(2048);
      expect(maps[0]!.start % (2n << 20n)).toBe(0n);
    }
    const result = await tracing.interrupt();
    expect(result.code).toBe(0);
    expect(result.err).toContain("maps in transparent huge pages");
    expect(result.map("@")).toEqual({ [first.pid]: 2, [second.pid]: 2 });
    const arenas = result.lines.filter(({ type }) => type === "arena").map(({ data }) => data);
    expect(arenas).toHaveLength(2);
    expect(arenas[0]).toMatchObject({
      pid: first.pid < second.pid ? first.pid : second.pid,
      pages: "thp",
      key: null,
    });
  });
});

test.skipIf(hasGigabytePages)(
  "huge pages that the machine does not have are an error before anything is changed",
  async () => {
    using child = await UnmanagedChild.start([fixture]);
    const before = readSmaps(child.pid);
    const script = `uprobe:keyed:try_read { @[arg0] = count(); }`;
    const { code, err } = runCommand(["--arena", "1g", "-p", `${child.pid}`, "-e", script]);
    expect(code).toBe(1);
    expect(err).toMatch(/1 GiB pages: the machine does not grant them/);
    expect(err).toMatch(/hint: reserve 1 more, as root: echo .*hugepages-1048576kB/);
    expect(readSmaps(child.pid)).toEqual(before);
  },
);

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
    await attachment.memory.addMailbox(100);
    if (key === undefined) throw new Error(describeKeyRefusal(keyRefusal!));
    const isNew = ({ start }: KeyedMapping) => !before.some((old) => old.start === start);
    const ours = readSmaps(child.pid).filter(isNew);
    const unkeyed = ours.filter((mapping) => mapping.key !== key);
    // The open part, and what is reserved.
    expect([...new Set(unkeyed.map(nameOf))].sort()).toEqual(["---p trapline-arena", "rw-p "]);
    expect(unkeyed.filter(({ perms }) => perms === "rw-p").map(({ start }) => start)).toEqual([
      attachment.memory.scratchAt,
    ]);
    expect([...new Set(ours.filter((mapping) => mapping.key === key).map(nameOf))].sort()).toEqual([
      "---p trapline-stacks",
      "rw-p ",
      "rw-p trapline-stacks",
      "rw-s trapline",
      "rw-s trapline-mailbox",
      "rw-s trapline-maps",
    ]);
    const touchable = ours.filter((mapping) => mapping.key === key && mapping.perms !== "---p");
    // Of a thousand stacks, some.
    for (const { start } of touchable.filter((_, index) => index < 8 || index % 128 === 0)) {
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
