/** What a session puts into a process for data, and who may touch it. These tests are the tracer: ptrace belongs to this thread. */
import { closeSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createHugeMemory, type HugePages } from "../../src/target/process/huge-memory.ts";
import { findKeyObstacle } from "../../src/target/process/protection-keys.ts";
import { TracedProcess } from "../../src/target/process/traced-process.ts";
import { Attached } from "../support/attached.ts";
import { runCommand } from "../support/built-command.ts";
import { keyedFixture, nameOf, readSmaps, startKeyed } from "../support/keyed-process.ts";
import { Tracing } from "../support/tracing.ts";
import { UnmanagedChild } from "../support/unmanaged-child.ts";

const obstacle = findKeyObstacle();
/** Room for the fixture (its two threads' stacks and heaps) and 40 MiB. */
const LIMIT_KIB = 60_000;

/** Whether such memory is to be had here; it is given back at once. */
function isGranted(pages: HugePages, lenBytes: number): boolean {
  const made = createHugeMemory("trapline-trial", pages, lenBytes);
  if (made.kind === "refused") return false;
  made.mapping.unmap();
  closeSync(made.fd);
  return true;
}

const SCRIPT = "uprobe:keyed:try_read { @ = count(); }";
const FAULT = "main faults by 2, opened faults by 2";
const PAGE = 4096n;

test("all data lies in one reserved range, a guard apart from each other, and all of it is given back, in a child as well", async () => {
  const { child, ask } = await startKeyed();
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
  const { child, ask } = await startKeyed();
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
  const limited = ["/bin/sh", "-c", `ulimit -v ${LIMIT_KIB}; exec ${keyedFixture}`];
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
  using child = await UnmanagedChild.start([keyedFixture]);
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

describe.each([
  ["thp", "transparent huge pages"],
  ["2m", "2 MiB pages"],
] as const)("maps in huge pages, %s", (pages, name) => {
  // Seven of them.
  test.skipIf(!isGranted(pages, 14 << 20))(
    "are mapped by them in all processes that share them",
    async () => {
      using first = await UnmanagedChild.start([keyedFixture]);
      using second = await UnmanagedChild.start([keyedFixture]);
      const pids = [first, second].flatMap(({ pid }) => ["-p", `${pid}`]);
      await using tracing = await Tracing.armed(
        ["--arena", pages, "--verify", "-v", ...pids],
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
      expect(result.err).toContain(`maps in ${name}`);
      expect(result.map("@")).toEqual({ [first.pid]: 2, [second.pid]: 2 });
      const arenas = result.lines.filter(({ type }) => type === "arena").map(({ data }) => data);
      expect(arenas).toHaveLength(2);
      expect(arenas[0]).toMatchObject({ pid: Math.min(first.pid, second.pid), pages, key: null });
    },
  );
});

test.skipIf(isGranted("1g", 1))(
  "huge pages that the machine does not have are an error before anything is changed",
  async () => {
    using child = await UnmanagedChild.start([keyedFixture]);
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
  const { child } = await startKeyed();
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
