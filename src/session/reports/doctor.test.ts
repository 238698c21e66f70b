import { describe, expect, it } from "vitest";
import { recordIo } from "../../../test/support/session-io.ts";
import { type CheckStatus, doctor, examine } from "./doctor.ts";
import type { Machine } from "./machine.ts";

const ALL_CAPABILITIES = "000001ffffffffff";
const NO_CAPABILITIES = "0000000000000000";

interface FakeMachine extends Partial<Omit<Machine, "read" | "list" | "exists">> {
  readonly files?: Readonly<Record<string, string>>;
}

function fakeMachine({ files = {}, ...others }: FakeMachine): Machine {
  const all: Readonly<Record<string, string>> = {
    "/proc/self/status": `CapEff:\t${ALL_CAPABILITIES}\nSeccomp:\t0`,
    "/proc/self/uid_map": "0          0 4294967295",
    "/proc/self/mounts": "proc /proc proc rw,nosuid 0 0",
    "/proc/cpuinfo": "flags\t\t: fpu rdpid fsgsbase pku ospke",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "/proc/sys/kernel/perf_event_paranoid": "2",
    "/sys/bus/event_source/devices/uprobe/type": "8",
    ...files,
  };
  return {
    architecture: "x64",
    kernelRelease: "6.1.0-18-amd64",
    nodeVersion: "20.19.0",
    uid: 0,
    ptraceIsReachable: () => true,
    canForceMemory: () => true,
    hasVdso: () => true,
    countFreeKeys: () => 14,
    joinsHugePages: () => "madvise: EINVAL",
    tryProbing: async () => ({ kind: "worked" }),
    ...others,
    read: (path) => all[path],
    list: (path) => [
      ...new Set(
        Object.keys(all)
          .filter((name) => name.startsWith(`${path}/`))
          .map((name) => name.slice(path.length + 1).split("/")[0]!),
      ),
    ],
    exists: (path) => path in all,
  };
}

const status = (capabilities: string, seccomp = "0") => ({
  "/proc/self/status": `CapEff:\t${capabilities}\nSeccomp:\t${seccomp}`,
});
const scope = (value: string) => ({ "/proc/sys/kernel/yama/ptrace_scope": value });

describe("examining a machine", () => {
  const cases: readonly {
    readonly name: string;
    readonly machine: FakeMachine;
    readonly check: string;
    readonly status: CheckStatus;
    readonly mentions: string;
  }[] = [
    {
      name: "another processor",
      machine: { architecture: "arm64" },
      check: "processor",
      status: "missing",
      mentions: "arm64",
    },
    {
      name: "a kernel that is old enough",
      machine: { kernelRelease: "5.3.0" },
      check: "kernel",
      status: "ok",
      mentions: "5.3.0",
    },
    {
      name: "a kernel that is too old",
      machine: { kernelRelease: "4.19.0-26" },
      check: "kernel",
      status: "missing",
      mentions: "5.3",
    },
    {
      name: "a Node that is too old",
      machine: { nodeVersion: "18.20.4" },
      check: "node",
      status: "missing",
      mentions: "20.19",
    },
    {
      name: "a filter that hides ptrace",
      machine: { ptraceIsReachable: () => false },
      check: "ptrace",
      status: "missing",
      mentions: "seccomp",
    },
    { name: "no Yama", machine: {}, check: "ptrace scope", status: "ok", mentions: "no Yama" },
    {
      name: "Yama asks nothing",
      machine: { files: scope("0") },
      check: "ptrace scope",
      status: "ok",
      mentions: "is 0",
    },
    {
      name: "Yama, with the capability",
      machine: { files: scope("1") },
      check: "ptrace scope",
      status: "ok",
      mentions: "SYS_PTRACE",
    },
    {
      name: "Yama, own children only",
      machine: { files: { ...scope("1"), ...status(NO_CAPABILITIES) } },
      check: "ptrace scope",
      status: "limited",
      mentions: "sysctl kernel.yama.ptrace_scope=0",
    },
    {
      name: "Yama, administrators only",
      machine: { files: { ...scope("2"), ...status(NO_CAPABILITIES) } },
      check: "ptrace scope",
      status: "missing",
      mentions: "as root",
    },
    {
      name: "Yama, nobody",
      machine: { files: scope("3") },
      check: "ptrace scope",
      status: "missing",
      mentions: "nobody",
    },
    { name: "a trial that works", machine: {}, check: "trial", status: "ok", mentions: "resumed" },
    {
      name: "a trial that fails",
      machine: { tryProbing: async () => ({ kind: "failed", why: "text-differs" }) },
      check: "trial",
      status: "missing",
      mentions: "text-differs",
    },
    {
      name: "no trial without ptrace",
      machine: { files: scope("3") },
      check: "trial",
      status: "missing",
      mentions: "not tried",
    },
    { name: "all capabilities", machine: {}, check: "capabilities", status: "ok", mentions: "SYS_ADMIN" },
    {
      name: "no capability",
      machine: { uid: 1000, files: status(NO_CAPABILITIES) },
      check: "capabilities",
      status: "limited",
      mentions: "your own user",
    },
    {
      name: "ptrace capability only",
      machine: { files: status("0000000000080000") },
      check: "capabilities",
      status: "limited",
      mentions: "seccomp filter",
    },
    {
      name: "a container without real root",
      machine: { files: { "/proc/self/uid_map": "0 100000 65536" } },
      check: "user namespace",
      status: "limited",
      mentions: "container",
    },
    {
      name: "a filter on us",
      machine: { files: status(ALL_CAPABILITIES, "2") },
      check: "seccomp",
      status: "limited",
      mentions: "inherit",
    },
    {
      name: "SELinux denies ptrace",
      machine: { files: { "/sys/fs/selinux/booleans/deny_ptrace": "1 1" } },
      check: "security module",
      status: "missing",
      mentions: "setsebool",
    },
    {
      name: "AppArmor confines us",
      machine: { files: { "/proc/self/attr/current": "docker-default (enforce)" } },
      check: "security module",
      status: "limited",
      mentions: "docker-default",
    },
    {
      name: "memory file forced off",
      machine: {
        canForceMemory: () => false,
        files: { "/proc/cmdline": "quiet proc_mem.force_override=never" },
      },
      check: "memory file",
      status: "missing",
      mentions: "always",
    },
    {
      name: "memory file for tracers only",
      machine: { canForceMemory: () => false, files: { "/proc/cmdline": "proc_mem.force_override=ptrace" } },
      check: "memory file",
      status: "limited",
      mentions: "stopped",
    },
    {
      name: "memfd without execution only",
      machine: { files: { "/proc/sys/vm/memfd_noexec": "2" } },
      check: "memfd",
      status: "ok",
      mentions: "is 2",
    },
    {
      name: "strict overcommit",
      machine: { files: { "/proc/sys/vm/overcommit_memory": "2" } },
      check: "overcommit",
      status: "limited",
      mentions: "ENOMEM",
    },
    {
      name: "hidden processes",
      machine: { files: { "/proc/self/mounts": "proc /proc proc rw,hidepid=invisible 0 0" } },
      check: "proc",
      status: "limited",
      mentions: "invisible",
    },
    {
      name: "slow clock",
      machine: { files: { "/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet" } },
      check: "clock",
      status: "limited",
      mentions: "system call",
    },
    {
      name: "no vDSO",
      machine: { hasVdso: () => false },
      check: "clock",
      status: "limited",
      mentions: "no vDSO",
    },
    {
      name: "no rdpid",
      machine: { files: { "/proc/cpuinfo": "flags : fsgsbase" } },
      check: "cpu number",
      status: "ok",
      mentions: "segment limit",
    },
    {
      name: "shadow stacks",
      machine: { files: { "/proc/cpuinfo": "flags : fpu user_shstk" } },
      check: "shadow stacks",
      status: "limited",
      mentions: "return probes",
    },
    {
      name: "no shadow stacks",
      machine: {},
      check: "shadow stacks",
      status: "ok",
      mentions: "every program",
    },
    {
      name: "protection keys",
      machine: {},
      check: "protection keys",
      status: "ok",
      mentions: "in use, 14 of 15 free",
    },
    {
      name: "protection keys, all taken",
      machine: { countFreeKeys: () => 0 },
      check: "protection keys",
      status: "limited",
      mentions: "0 of 15 free",
    },
    {
      name: "frames of signals that are written with the thread's keys",
      machine: { kernelRelease: "6.11.9-amd64" },
      check: "signal frames",
      status: "ok",
      mentions: "their thread has open; since",
    },
    {
      name: "frames of signals that are written with all keys open",
      machine: { kernelRelease: "6.12.0-amd64" },
      check: "signal frames",
      status: "ok",
      mentions: "whatever keys",
    },
    {
      name: "frames of signals where there are no keys",
      machine: { files: { "/proc/cpuinfo": "flags : fpu" } },
      check: "signal frames",
      status: "ok",
      mentions: "no keys",
    },
    {
      name: "a strict gate with a key",
      machine: {},
      check: "strict gate",
      status: "ok",
      mentions: "cannot reach",
    },
    {
      name: "a strict gate without keys",
      machine: { files: { "/proc/cpuinfo": "flags : fpu" } },
      check: "strict gate",
      status: "limited",
      mentions: "can reach",
    },
    {
      name: "a strict gate with all keys taken",
      machine: { countFreeKeys: () => 0 },
      check: "strict gate",
      status: "limited",
      mentions: "without a key",
    },
    {
      name: "protection keys switched off",
      machine: { files: { "/proc/cpuinfo": "flags : pku" } },
      check: "protection keys",
      status: "missing",
      mentions: "nopku",
    },
    {
      name: "no protection keys",
      machine: { files: { "/proc/cpuinfo": "flags : fpu" } },
      check: "protection keys",
      status: "missing",
      mentions: "processor",
    },
    {
      name: "reserved huge pages, some of them promised",
      machine: {
        files: {
          "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "64",
          "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages": "14",
          "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0",
        },
      },
      check: "huge pages",
      status: "ok",
      mentions: "2 MiB: 50 free, 1 GiB: 0 free, transparent: no (madvise: EINVAL)",
    },
    {
      name: "how more are reserved",
      machine: { files: { "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0" } },
      check: "huge pages",
      status: "limited",
      mentions: "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages (or at boot",
    },
    {
      name: "transparent huge pages",
      machine: { joinsHugePages: () => undefined },
      check: "huge pages",
      status: "ok",
      mentions: "--arena thp",
    },
    { name: "no huge pages", machine: {}, check: "huge pages", status: "limited", mentions: "4 KiB" },
    {
      name: "kernel uprobes",
      machine: {},
      check: "kernel uprobes",
      status: "ok",
      mentions: "perf_event_open",
    },
  ];
  it.each(cases)("$name", async ({ machine, check, status: expected, mentions }) => {
    const result = (await examine(fakeMachine(machine))).find(({ name }) => name === check)!;
    expect(result.status).toBe(expected);
    expect(`${result.found} ${result.meaning} ${result.advice}`).toContain(mentions);
  });
});

describe("doctor", () => {
  it("fails when something is missing that is always needed", async () => {
    expect(await doctor({ format: "text" }, recordIo(), fakeMachine({ kernelRelease: "4.4.0" }))).toBe(1);
  });

  it("does not fail for want of something that only some things need", async () => {
    const machine = fakeMachine({ files: { "/proc/cpuinfo": "flags : fpu" } });
    expect(await doctor({ format: "text" }, recordIo(), machine)).toBe(0);
  });

  it("says of this machine, on which tests attach to processes, that it can be done", async () => {
    const io = recordIo();
    expect(await doctor({ format: "json" }, io)).toBe(0);
    const lines = io.outText().trim().split("\n");
    for (const line of lines) expect(JSON.parse(line)).toMatchObject({ type: "check" });
    const byName = new Map(lines.map((line) => [JSON.parse(line).data.name, JSON.parse(line).data.status]));
    expect(byName.get("ptrace")).toBe("ok");
    expect(byName.get("memory file")).toBe("ok");
    expect(byName.get("trial")).toBe("ok");
  });
});
