import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import {
  AT_ENTRY,
  AT_PAGESZ,
  AT_SYSINFO_EHDR,
  hasSignal,
  listThreads,
  ProcError,
  parseMaps,
  parseStat,
  parseStatus,
  readAuxv,
  readCommandLine,
  readMaps,
  readProcLink,
  readStat,
  readStatus,
} from "./proc-fs.ts";

describe("maps", () => {
  it.each([
    {
      name: "mapped file",
      line: "55d0a1000000-55d0a1002000 r-xp 00002000 fe:00 247026                     /usr/bin/cat",
      entry: {
        start: 0x55d0a1000000n,
        end: 0x55d0a1002000n,
        perms: "r-xp",
        offset: 0x2000n,
        dev: "fe:00",
        inode: 247026n,
        path: "/usr/bin/cat",
      },
    },
    {
      name: "no file",
      line: "7f0000000000-7f0000001000 rw-s 00000000 00:00 0 ",
      entry: { perms: "rw-s", inode: 0n, path: "" },
    },
    {
      name: "removed file with blanks in its name",
      line: "7f0000000000-7f0000001000 r--p 00000000 00:1f 5                          /tmp/a b  c (deleted)",
      entry: { dev: "00:1f", path: "/tmp/a b  c (deleted)" },
    },
    {
      name: "newline in the name",
      line: "7f0000000000-7f0000001000 r--p 00000000 103:05 5                         /tmp/a\\012b",
      entry: { dev: "103:05", path: "/tmp/a\nb" },
    },
    {
      name: "top of the address space",
      line: "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
      entry: { start: 0xffffffffff600000n, path: "[vsyscall]" },
    },
  ])("$name", ({ line, entry }) => {
    expect(parseMaps(`${line}\n`)).toMatchObject([entry]);
  });

  it("of this process: ascending, with libc and the stack", () => {
    const maps = readMaps(process.pid);
    for (let i = 1; i < maps.length; i++) expect(maps[i]!.start >= maps[i - 1]!.end).toBe(true);
    expect(maps.some((m) => m.path.endsWith("libc.so.6") && m.perms === "r-xp")).toBe(true);
    expect(maps.some((m) => m.path === "[stack]")).toBe(true);
  });

  it("leaves out what has not the form of a line", () => {
    expect(parseMaps("\ngarbage\n")).toEqual([]);
  });
});

const STATUS = `Name:\tmy (odd) name
State:\tS (sleeping)
Tgid:\t4242
Pid:\t4243
TracerPid:\t7
Uid:\t1000\t1001\t1002\t1003
NSpid:\t4243\t3\t2
Threads:\t200
SigPnd:\t0000000000000001
ShdPnd:\t0000000000000002
SigBlk:\t0000000000000010
SigIgn:\t8000000000001000
SigCgt:\t00000001000004ec
CapEff:\t000001ffffffffff
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t1
x86_Thread_features:\tshstk wrss
x86_Thread_features_locked:\t
`;

describe("status", () => {
  it("all fields", () => {
    const status = parseStatus(STATUS);
    expect(status).toEqual({
      name: "my (odd) name",
      state: "S",
      tgid: 4242,
      pid: 4243,
      tracerPid: 7,
      uids: [1000, 1001, 1002, 1003],
      nsPids: [4243, 3, 2],
      threads: 200,
      signals: {
        pending: 1n,
        sharedPending: 2n,
        blocked: 0x10n,
        ignored: 0x8000000000001000n,
        caught: 0x1000004ecn,
      },
      capEffective: 0x1ffffffffffn,
      noNewPrivs: true,
      seccomp: "filter",
      threadFeatures: ["shstk", "wrss"],
    });
    // SIGTRAP is 5: bit 4.
    expect(hasSignal(status.signals.blocked, 5)).toBe(true);
    expect(hasSignal(status.signals.blocked, 4)).toBe(false);
    expect(hasSignal(status.signals.ignored, 64)).toBe(true);
  });

  it("fields that old kernels do not have", () => {
    expect(parseStatus("Name:\tx\nPid:\t5\n")).toMatchObject({
      nsPids: [5],
      seccomp: "none",
      threadFeatures: [],
      noNewPrivs: false,
      threads: 1,
    });
  });

  it("a thread that blocks and ignores signals", async () => {
    const child = spawn("python3", [
      "-c",
      "import signal, time\nsignal.signal(10, signal.SIG_IGN)\nsignal.signal(12, lambda *a: 0)\nsignal.pthread_sigmask(0, [5])\nprint('ready', flush=True)\ntime.sleep(100)",
    ]);
    try {
      await once(child.stdout, "data");
      const { signals } = readStatus(child.pid!, child.pid!);
      expect([hasSignal(signals.blocked, 5), hasSignal(signals.blocked, 6)]).toEqual([true, false]);
      expect([hasSignal(signals.ignored, 10), hasSignal(signals.caught, 12)]).toEqual([true, true]);
    } finally {
      child.kill("SIGKILL");
    }
  });
});

describe("stat", () => {
  it("a command name with parentheses and blanks", () => {
    const rest = Array.from({ length: 49 }, (_, i) => String(i + 4)).join(" ");
    expect(parseStat(`12 (a) b (c) R ${rest}\n`)).toEqual({
      comm: "a) b (c",
      state: "R",
      ppid: 4,
      flags: 9,
      threads: 20,
      startTicks: 22n,
      processor: 39,
    });
  });

  it("of this process", () => {
    const stat = readStat(process.pid);
    expect(stat.ppid).toBe(process.ppid);
    expect(stat.threads).toBe(listThreads(process.pid).length);
    expect(readStat(process.pid).startTicks).toBe(stat.startTicks);
  });
});

describe("other files", () => {
  it("threads, links, arguments", () => {
    expect(listThreads(process.pid)).toContain(process.pid);
    expect(readProcLink(process.pid, "exe")).toBe(process.execPath);
    expect(readCommandLine(process.pid)[0]).toBeDefined();
  });

  it("auxiliary vector", () => {
    const auxv = readAuxv(process.pid);
    expect(auxv.get(AT_PAGESZ)).toBe(4096n);
    const vdso = readMaps(process.pid).find((m) => m.path === "[vdso]");
    expect(auxv.get(AT_SYSINFO_EHDR)).toBe(vdso?.start);
    expect(auxv.get(AT_ENTRY)).toBeGreaterThan(0n);
  });

  it("a process that has ended", () => {
    const { pid } = spawnSync("true");
    for (const read of [readMaps, readStatus, readStat, listThreads, readAuxv]) {
      expect(() => read(pid)).toThrow(
        expect.objectContaining({ name: "ProcError", code: "no-such-process" }),
      );
    }
    expect(() => readMaps(pid)).toThrow(ProcError);
  });
});
