import { type ChildProcess, spawn } from "node:child_process";
import { afterEach, describe, expect, it } from "vitest";
import { recordIo } from "../../../test/support/session-io.ts";
import { Journal } from "../../probe/journal.ts";
import { readStat } from "../../target/process/proc-fs.ts";
import { findJournals, findTracedProcesses, listTracedProcesses } from "./processes.ts";

/**
 * A process that has shared memory of the tracer's name, filled with bytes from its standard input; with no tracer
 * at all, since only what lies in the memory counts here.
 */
const holder = `
  import koffi from "koffi";
  import { readFileSync, writeFileSync } from "node:fs";
  const lib = koffi.load("libc.so.6");
  const fd = lib.func("int memfd_create(const char *name, unsigned int flags)")("trapline", 1);
  writeFileSync(fd, readFileSync(0));
  lib.func("void *mmap(void *a, size_t n, int p, int f, int fd, long o)")(null, 8192, 3, 1, fd, 0);
  process.stdout.write("ready");
  setTimeout(() => {}, 60_000);
`;

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

async function startHolder(makeMemory: (pid: number) => Uint8Array): Promise<number> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", holder], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  children.push(child);
  child.stdin.end(makeMemory(child.pid!));
  await new Promise((resolve) => child.stdout.once("data", resolve));
  return child.pid!;
}

function journalMemory(header: {
  readonly tracerPid: number;
  readonly tracerStart: bigint;
  readonly targetPid: number;
}) {
  const memory = new Uint8Array(8192);
  const journal = new Journal(memory, 16, { ...header, sharedBytes: memory.length });
  const site = (at: bigint, mechanism: "jump" | "int3") =>
    journal.addSite({
      at,
      mechanism,
      oldBytes: Uint8Array.of(0x55, 0x48, 0x89, 0xe5, 0x53),
      newBytes: Uint8Array.of(0xe9, 1, 2, 3, 4),
      detour: 0x7000n,
    });
  journal.setState(site(0x1000n, "jump"), "armed");
  journal.setState(site(0x2000n, "jump"), "armed");
  journal.setState(site(0x3000n, "int3"), "armed");
  journal.setState(site(0x4000n, "int3"), "removed");
  return memory;
}

const ownStart = () => readStat(process.pid).startTicks;

describe("processes with probes", () => {
  it("counts the armed sites of a living tracer by mechanism", async () => {
    const pid = await startHolder((targetPid) =>
      journalMemory({ tracerPid: process.pid, tracerStart: ownStart(), targetPid }),
    );
    const found = findTracedProcesses().traced.find((process) => process.pid === pid)!;
    expect(found.tracer).toEqual({ kind: "alive", pid: process.pid });
    expect(found.forkedFrom).toBeUndefined();
    expect([...found.sitesByMechanism]).toEqual([
      ["jump", 2],
      ["int3", 1],
    ]);
    const io = recordIo();
    expect(await listTracedProcesses({ format: "text" }, io)).toBe(0);
    expect(io.outText()).toMatch(
      new RegExp(`^${pid} +\\S+ +${process.pid} alive +3 \\(2 jump, 1 int3\\)$`, "m"),
    );
    expect(io.errText()).not.toContain(`detach -p ${pid}`);
  });

  it("tells a dead tracer from another process that has its number now", async () => {
    const pid = await startHolder((targetPid) =>
      journalMemory({ tracerPid: process.pid, tracerStart: ownStart() - 1n, targetPid }),
    );
    const io = recordIo();
    await listTracedProcesses({ format: "text" }, io);
    expect(io.outText()).toMatch(new RegExp(`^${pid} .* ${process.pid} dead `, "m"));
    expect(io.errText()).toContain(`trapline detach -p ${pid}`);
  });

  it("names the parent of a forked child, and gives json lines", async () => {
    const pid = await startHolder(() =>
      journalMemory({ tracerPid: process.pid, tracerStart: ownStart(), targetPid: 1 }),
    );
    const io = recordIo();
    await listTracedProcesses({ format: "json" }, io);
    const lines = io
      .outText()
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines).toContainEqual({
      type: "process",
      data: {
        pid,
        comm: expect.any(String),
        tracer: process.pid,
        tracer_alive: true,
        forked_from: 1,
        sites: { jump: 2, int3: 1 },
      },
    });
  });

  it("reports a damaged journal and goes on", async () => {
    const pid = await startHolder(() => new Uint8Array(8192).fill(0x41));
    const { damaged } = findTracedProcesses();
    expect(damaged.find((process) => process.pid === pid)?.why).toContain("journal");
    expect(() => findJournals(pid)).toThrow(expect.objectContaining({ code: "bad-journal" }));
  });

  it("a record count that cannot be is damage, and not gigabytes to read", async () => {
    const pid = await startHolder((targetPid) => {
      const memory = journalMemory({ tracerPid: 1, tracerStart: 1n, targetPid });
      new DataView(memory.buffer).setUint32(16, 0xffff_ffff, true);
      return memory;
    });
    expect(() => findJournals(pid)).toThrow(expect.objectContaining({ code: "bad-journal" }));
  });

  it("a process without probes has no journal", () => {
    expect(findJournals(process.pid)).toEqual([]);
  });
});
