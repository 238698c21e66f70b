/**
 * `trapline doctor`: what this machine allows, what that means, and what to do where it does not.
 *
 * Nothing is changed. A check that fails to find its file says what the absence means; it never guesses.
 */

import { hugePageBytes } from "../../target/process/huge-memory.ts";
import { howToReserve } from "../attach/arena-pages.ts";
import type { ReportOptions, SessionIo } from "../options.ts";
import { type Machine, thisMachine } from "./machine.ts";

export type CheckStatus = "ok" | "limited" | "missing";

export interface CheckResult {
  readonly name: string;
  readonly status: CheckStatus;
  /** What was found. */
  readonly found: string;
  /** What it means for tracing. */
  readonly meaning: string;
  /** What to do about it, if anything can be done. */
  readonly advice: string | undefined;
  /** Whether no process can be probed while this is missing. */
  readonly isRequired: boolean;
}

type Finding = Omit<CheckResult, "name" | "isRequired">;

const ok = (found: string, meaning: string): Finding => ({ status: "ok", found, meaning, advice: undefined });
const limited = (found: string, meaning: string, advice?: string): Finding => ({
  status: "limited",
  found,
  meaning,
  advice,
});
const missing = (found: string, meaning: string, advice?: string): Finding => ({
  status: "missing",
  found,
  meaning,
  advice,
});

interface Check {
  readonly name: string;
  readonly isRequired?: true;
  readonly look: (machine: Machine) => Finding | Promise<Finding>;
}

/** Bits of the capability sets (include/uapi/linux/capability.h). */
const CAP_SYS_PTRACE = 19n;
const CAP_SYS_ADMIN = 21n;
const CAP_PERFMON = 38n;
const CAP_BPF = 39n;

function hasCapability(machine: Machine, bit: bigint): boolean {
  const mask = statusField(machine, "CapEff");
  return mask !== undefined && ((BigInt(`0x${mask}`) >> bit) & 1n) === 1n;
}

function statusField(machine: Machine, name: string): string | undefined {
  return new RegExp(`^${name}:\\s+(.*)$`, "m").exec(machine.read("/proc/self/status") ?? "")?.[1];
}

function cpuFlags(machine: Machine): ReadonlySet<string> {
  const line = /^flags\s*:\s*(.*)$/m.exec(machine.read("/proc/cpuinfo") ?? "")?.[1] ?? "";
  return new Set(line.split(/\s+/));
}

const checks: readonly Check[] = [
  { name: "processor", isRequired: true, look: lookAtProcessor },
  { name: "kernel", isRequired: true, look: lookAtKernel },
  { name: "node", isRequired: true, look: lookAtNode },
  { name: "ptrace", isRequired: true, look: lookAtPtrace },
  { name: "ptrace scope", look: lookAtPtraceScope },
  { name: "trial", isRequired: true, look: lookAtTrial },
  { name: "capabilities", look: lookAtCapabilities },
  { name: "user namespace", look: lookAtUserNamespace },
  { name: "seccomp", look: lookAtSeccomp },
  { name: "security module", look: lookAtSecurityModules },
  { name: "memory file", look: lookAtMemoryFile },
  { name: "memfd", look: lookAtMemfd },
  { name: "overcommit", look: lookAtOvercommit },
  { name: "proc", look: lookAtProc },
  { name: "clock", look: lookAtClock },
  { name: "cpu number", look: lookAtCpuNumber },
  { name: "shadow stacks", look: lookAtShadowStacks },
  { name: "protection keys", look: lookAtProtectionKeys },
  { name: "signal frames", look: lookAtSignalFrames },
  { name: "strict gate", look: lookAtStrictGate },
  { name: "huge pages", look: lookAtHugePages },
  { name: "kernel uprobes", look: lookAtUprobes },
];

function lookAtProcessor({ architecture }: Machine): Finding {
  return architecture === "x64"
    ? ok("x86-64", "code for this processor can be generated")
    : missing(architecture, "only x86-64 code can be probed");
}

/** The youngest system call that is always needed is pidfd_open, of Linux 5.3. */
const OLDEST_KERNEL = [5, 3] as const;

function isAtLeast({ kernelRelease }: Machine, [major, minor]: readonly [number, number]): boolean {
  const [itsMajor = 0, itsMinor = 0] = kernelRelease.split(/[.-]/).map(Number);
  return itsMajor > major || (itsMajor === major && itsMinor >= minor);
}

function lookAtKernel(machine: Machine): Finding {
  const { kernelRelease } = machine;
  return isAtLeast(machine, OLDEST_KERNEL)
    ? ok(`Linux ${kernelRelease}`, "has every system call that is needed")
    : missing(`Linux ${kernelRelease}`, `at least Linux ${OLDEST_KERNEL.join(".")} is needed (pidfd_open)`);
}

function lookAtNode({ nodeVersion }: Machine): Finding {
  const [major = 0, minor = 0] = nodeVersion.split(".").map(Number);
  return major > 20 || (major === 20 && minor >= 19)
    ? ok(`Node ${nodeVersion}`, "is recent enough")
    : missing(`Node ${nodeVersion}`, "at least Node 20.19 is needed");
}

function lookAtPtrace(machine: Machine): Finding {
  return machine.ptraceIsReachable()
    ? ok("answers", "threads of other processes can be stopped, as far as the lines below allow")
    : missing(
        "is filtered out",
        "no process can be attached to: a seccomp filter around this process refuses ptrace",
        "in a container: run it with --cap-add SYS_PTRACE, or with a seccomp profile that allows ptrace",
      );
}

function lookAtPtraceScope(machine: Machine): Finding {
  const scope = machine.read("/proc/sys/kernel/yama/ptrace_scope");
  const isPrivileged = hasCapability(machine, CAP_SYS_PTRACE);
  const rule = "kernel.yama.ptrace_scope";
  switch (scope) {
    case undefined:
      return ok("no Yama", "every process of the same user can be attached to");
    case "0":
      return ok(`${rule} is 0`, "every process of the same user can be attached to");
    case "3":
      return missing(
        `${rule} is 3`,
        "nobody can attach to anything, root included, until the machine is started again",
        `set ${rule} to 1 or 0 where it is configured (/etc/sysctl.d), and restart the machine`,
      );
    default:
      if (isPrivileged)
        return ok(`${rule} is ${scope}`, "does not bind you: you have the capability SYS_PTRACE");
      return scope === "1"
        ? limited(
            `${rule} is 1`,
            "only your own children (-c COMMAND) and processes that ask for it can be attached to",
            `run as root, or: sysctl ${rule}=0`,
          )
        : missing(
            `${rule} is ${scope}`,
            "only the capability SYS_PTRACE lets one attach to processes",
            `run as root, or: sysctl ${rule}=0`,
          );
  }
}

async function lookAtTrial(machine: Machine): Promise<Finding> {
  if (lookAtPtrace(machine).status === "missing" || lookAtPtraceScope(machine).status === "missing")
    return missing("not tried", "without ptrace nothing can be probed");
  const trial = await machine.tryProbing();
  return trial.kind === "worked"
    ? ok(
        "a command was started, stopped, changed and resumed",
        "commands that are started with -c can be probed",
      )
    : missing(trial.why, "a command of ours could not be started, stopped, changed and resumed");
}

function lookAtCapabilities(machine: Machine): Finding {
  const has = (bit: bigint) => hasCapability(machine, bit);
  const names = [
    has(CAP_SYS_PTRACE) ? "SYS_PTRACE" : undefined,
    has(CAP_SYS_ADMIN) ? "SYS_ADMIN" : undefined,
    has(CAP_PERFMON) ? "PERFMON" : undefined,
    has(CAP_BPF) ? "BPF" : undefined,
  ].filter((name) => name !== undefined);
  const found = `user ${machine.uid}, ${names.length === 0 ? "none of interest" : names.join(" ")}`;
  if (has(CAP_SYS_PTRACE) && has(CAP_SYS_ADMIN))
    return ok(found, "processes of every user, and processes under seccomp filters, can be attached to");
  if (has(CAP_SYS_PTRACE))
    return limited(
      found,
      "processes of every user; one under a seccomp filter only if the filter allows what is needed (no SYS_ADMIN)",
      "run as root",
    );
  return limited(
    found,
    "only processes of your own user can be attached to",
    "run as root to reach the others",
  );
}

const WHOLE_ID_RANGE = 4_294_967_295;

function lookAtUserNamespace(machine: Machine): Finding {
  const [inside, outside, count] = (machine.read("/proc/self/uid_map") ?? "").split(/\s+/).map(Number);
  const isInitial = inside === 0 && outside === 0 && count === WHOLE_ID_RANGE;
  const most = machine.read("/proc/sys/user/max_user_namespaces");
  if (!isInitial)
    return limited(
      "not the first one",
      "capabilities count only for processes in this namespace (this is a container without real root)",
      "to reach other processes, run on the host",
    );
  if (most === undefined || most === "0")
    return ok(
      "the first one",
      "capabilities count for all processes; no further namespaces can be made here",
    );
  return ok("the first one", "capabilities count for all processes, those in containers included");
}

function lookAtSeccomp(machine: Machine): Finding {
  switch (statusField(machine, "Seccomp")) {
    case "0":
      return ok("none on us", "nothing stands between trapline and the kernel");
    case undefined:
      return ok("not in this kernel", "nothing stands between trapline and the kernel");
    default:
      return limited(
        "a filter is on us",
        "commands started with -c inherit it; what it refuses fails in them and in us",
        "if attaching fails, run outside of the sandbox or container",
      );
  }
}

function lookAtSecurityModules(machine: Machine): Finding {
  const deny = machine.read("/sys/fs/selinux/booleans/deny_ptrace");
  if (deny?.startsWith("1") === true)
    return missing("SELinux denies ptrace", "no process can be attached to", "setsebool deny_ptrace off");
  const selinux = machine.read("/sys/fs/selinux/enforce");
  if (selinux === "1")
    return limited(
      "SELinux is enforcing",
      "confined services may be refused new executable memory (execmem)",
      "if preparing a service fails: ausearch -m avc shows the rule",
    );
  const confinement = machine.read("/proc/self/attr/current")?.replaceAll("\0", "");
  if (confinement?.endsWith("(enforce)") === true)
    return limited(
      `AppArmor profile ${confinement}`,
      "the profile may refuse ptrace of processes outside of it",
      "run outside of the profile",
    );
  return ok("does not interfere", "no SELinux rule or AppArmor profile stands in the way");
}

function lookAtMemoryFile(machine: Machine): Finding {
  if (machine.canForceMemory())
    return ok("writes read-only pages", "code can be changed without ever being writable");
  const parameter = /proc_mem\.force_override=(\w+)/.exec(machine.read("/proc/cmdline") ?? "")?.[1];
  const found =
    parameter === undefined ? "does not write read-only pages" : `proc_mem.force_override=${parameter}`;
  const advice = "start the kernel with proc_mem.force_override=always";
  return parameter === "never"
    ? missing(found, "code cannot be changed through /proc/PID/mem", advice)
    : limited(found, "code can be changed at most while its threads are stopped by ptrace", advice);
}

function lookAtMemfd(machine: Machine): Finding {
  const noexec = machine.read("/proc/sys/vm/memfd_noexec");
  return ok(
    noexec === undefined ? "no vm.memfd_noexec" : `vm.memfd_noexec is ${noexec}`,
    "shared memory is made without the right to execute, which every setting allows",
  );
}

function lookAtOvercommit(machine: Machine): Finding {
  const mode = machine.read("/proc/sys/vm/overcommit_memory") ?? "0";
  return mode === "2"
    ? limited(
        "vm.overcommit_memory is 2",
        "maps count in full against the memory limit, though most of each is never touched",
        "if preparing a process fails with ENOMEM: sysctl vm.overcommit_memory=0",
      )
    : ok(`vm.overcommit_memory is ${mode}`, "maps take memory only where they are used");
}

function lookAtProc(machine: Machine): Finding {
  const line = (machine.read("/proc/self/mounts") ?? "")
    .split("\n")
    .find((mount) => / \/proc proc /.test(mount));
  if (line === undefined)
    return missing("not mounted", "processes cannot be looked into", "mount -t proc proc /proc");
  const hidden = /hidepid=(\w+)/.exec(line)?.[1];
  return hidden === undefined || hidden === "0" || hidden === "off"
    ? ok("shows all processes", "trapline ps finds every process that carries probes")
    : limited(`hidepid=${hidden}`, "processes of other users are not seen", "run as root");
}

/** Clock sources that the vDSO reads without a system call (arch/x86/include/asm/vdso/clocksource.h). */
const FAST_CLOCKS: ReadonlySet<string> = new Set(["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"]);

function lookAtClock(machine: Machine): Finding {
  const source = machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  const advice = "choose another: /sys/devices/system/clocksource/clocksource0/available_clocksource";
  if (!machine.hasVdso())
    return limited(`no vDSO, ${source ?? "unknown"}`, "nsecs costs a system call at each hit (vdso=0)");
  if (source !== undefined && FAST_CLOCKS.has(source))
    return ok(`vDSO, ${source}`, "nsecs is read without a system call");
  return limited(`vDSO, ${source ?? "unknown"}`, "nsecs costs a system call at each hit", advice);
}

function lookAtCpuNumber(machine: Machine): Finding {
  const flags = cpuFlags(machine);
  const fsgsbase = flags.has("fsgsbase") ? "fsgsbase" : "no fsgsbase";
  return flags.has("rdpid")
    ? ok(`rdpid, ${fsgsbase}`, "the cpu number is one instruction")
    : ok(`no rdpid, ${fsgsbase}`, "the cpu number is read from a segment limit, which is a little slower");
}

function lookAtShadowStacks(machine: Machine): Finding {
  return cpuFlags(machine).has("user_shstk")
    ? limited("possible", "programs that have switched theirs on cannot have return probes")
    : ok("none", "return probes are possible in every program");
}

function lookAtProtectionKeys(machine: Machine): Finding {
  const meaning = "memory of probes cannot be guarded by a key";
  const flags = cpuFlags(machine);
  if (!flags.has("pku")) return missing("the processor has none", meaning);
  if (!flags.has("ospke"))
    return missing("pku, not switched on", meaning, "the kernel was started with nopku, or built without it");
  const free = machine.countFreeKeys();
  const found = `pku, in use, ${free} of ${KEYS_OF_A_PROCESS} free in a process like this one`;
  return free > 0
    ? ok(found, "memory of probes can be guarded by a key of the process, if it has one left")
    : limited(
        found,
        meaning,
        "if a seccomp filter refuses pkey_alloc: run outside of the sandbox or container",
      );
}

/** Key 0 is that of all memory. */
const KEYS_OF_A_PROCESS = 15;

/** The kernel opens all keys while it writes the frame of a signal (arch/x86/kernel/signal.c, sig_prepare_pkru). */
const OPENS_KEYS_FOR_FRAMES = [6, 12] as const;

function lookAtSignalFrames(machine: Machine): Finding {
  if (lookAtProtectionKeys(machine).status === "missing")
    return ok("no keys", "signals arrive on every stack");
  const found = `Linux ${machine.kernelRelease}`;
  return isAtLeast(machine, OPENS_KEYS_FOR_FRAMES)
    ? ok(found, "signals arrive on every stack, whatever keys their thread has open")
    : ok(
        found,
        "signals arrive only on stacks whose key their thread has open; since Linux 6.12 on every stack",
      );
}

function lookAtStrictGate(machine: Machine): Finding {
  const signals = "--gate strict: signals wait while a program runs, on a stack of its own";
  return lookAtProtectionKeys(machine).status === "ok"
    ? ok("with a key", `${signals}, in memory that the process itself cannot reach`)
    : limited("without a key", `${signals}; the process itself can reach the memory of probes`);
}

function lookAtHugePages(machine: Machine): Finding {
  const transparent = machine.joinsHugePages();
  const POOLS = "/sys/kernel/mm/hugepages";
  const pools = (["2m", "1g"] as const)
    .map((pages) => ({ pages, name: `hugepages-${hugePageBytes[pages] >> 10}kB` }))
    .filter(({ name }) => machine.list(POOLS).includes(name));
  const sizes = pools.map(({ pages, name: folder }) => {
    const count = (name: string) => Number(machine.read(`${POOLS}/${folder}/${name}`) ?? "0");
    // What somebody has mapped already is promised, though still free.
    const free = Math.max(0, count("free_hugepages") - count("resv_hugepages"));
    return { pages, free };
  });
  const found = [
    ...sizes.map(({ pages, free }) => `${pages === "1g" ? "1 GiB" : "2 MiB"}: ${free} free`),
    transparent === undefined ? "transparent: yes" : `transparent: no (${transparent})`,
  ].join(", ");
  const granted = [
    ...sizes.filter(({ free }) => free > 0).map(({ pages }) => pages),
    ...(transparent === undefined ? ["thp"] : []),
  ];
  const lacking = sizes.find(({ free }) => free === 0);
  const advice = lacking && howToReserve(lacking.pages, lacking.pages === "1g" ? 1 : 512);
  if (granted.length === 0) return limited(found, "maps lie in 4 KiB pages (--arena 4k)", advice);
  return {
    ...ok(found, `large maps lie in huge pages, as far as they suffice (--arena ${granted.join(", ")})`),
    advice,
  };
}

function lookAtUprobes(machine: Machine): Finding {
  const hasPerf = machine.exists("/sys/bus/event_source/devices/uprobe/type");
  const tracefs = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].find((folder) =>
    machine.exists(`${folder}/uprobe_events`),
  );
  const paranoid = machine.read("/proc/sys/kernel/perf_event_paranoid") ?? "unknown";
  const doors = [hasPerf ? "perf_event_open" : undefined, tracefs].filter((door) => door !== undefined);
  if (doors.length === 0)
    return missing("none", "not needed for tracing; the benchmark cannot compare with them");
  const mayOpen = hasCapability(machine, CAP_PERFMON) || hasCapability(machine, CAP_SYS_ADMIN);
  const found = `${doors.join(", ")}, kernel.perf_event_paranoid is ${paranoid}`;
  return mayOpen
    ? ok(found, "not needed for tracing; the benchmark can compare with them")
    : limited(found, "not needed for tracing; the benchmark can compare with them as root only");
}

/** Looks at everything that decides what can be probed here. */
export async function examine(machine: Machine): Promise<CheckResult[]> {
  const results: CheckResult[] = [];
  for (const { name, isRequired = false, look } of checks)
    results.push({ name, isRequired, ...(await look(machine)) });
  return results;
}

/** Returns 1 when something is missing without which nothing can be probed. */
export async function doctor(
  { format }: ReportOptions,
  io: SessionIo,
  machine: Machine = thisMachine,
): Promise<number> {
  const results = await examine(machine);
  io.out.write(format === "json" ? toJsonLines(results) : toTable(results));
  return results.some(({ isRequired, status }) => isRequired && status === "missing") ? 1 : 0;
}

function toJsonLines(results: readonly CheckResult[]): string {
  return results
    .map(({ name, status, found, meaning, advice, isRequired }) =>
      JSON.stringify({
        type: "check",
        data: { name, status, found, meaning, advice: advice ?? null, required: isRequired },
      }),
    )
    .map((line) => `${line}\n`)
    .join("");
}

function toTable(results: readonly CheckResult[]): string {
  const nameWidth = Math.max(...results.map(({ name }) => name.length));
  const indent = " ".repeat("limited".length + 2 + nameWidth + 2);
  return results
    .map(({ name, status, found, meaning, advice }) => {
      const lines = [
        `${status.padEnd("limited".length)}  ${name.padEnd(nameWidth)}  ${found}`,
        indent + meaning,
      ];
      if (advice !== undefined) lines.push(`${indent}do: ${advice}`);
      return `${lines.join("\n")}\n`;
    })
    .join("");
}
