/**
 * Reading a process's files under /proc, as values.
 *
 * Everything is synchronous: these files are made by the kernel while they are read, a read takes microseconds, and a
 * target's 200 threads are asked one after the other while they stand. A process can end between any two reads;
 * that is a `ProcError` with its own code, never a surprise of another kind.
 * Source: proc(5), Documentation/filesystems/proc.rst.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** Why a file under /proc could not be read. */
export type ProcErrorCode = "no-such-process" | "not-permitted" | "unreadable";

export class ProcError extends Error {
  readonly code: ProcErrorCode;
  readonly path: string;

  constructor(path: string, cause: unknown) {
    const errno = (cause as { code?: string }).code ?? "EIO";
    const code: ProcErrorCode =
      errno === "ENOENT" || errno === "ESRCH"
        ? "no-such-process"
        : errno === "EACCES" || errno === "EPERM"
          ? "not-permitted"
          : "unreadable";
    super(`read ${path}: ${code === "unreadable" ? errno : code.replaceAll("-", " ")}`, { cause });
    this.name = "ProcError";
    this.code = code;
    this.path = path;
  }
}

function attempt<T>(path: string, read: (path: string) => T): T {
  try {
    return read(path);
  } catch (cause) {
    throw new ProcError(path, cause);
  }
}

function readText(path: string): string {
  return attempt(path, (at) => readFileSync(at, "utf8"));
}

/** One line of /proc/PID/maps. */
export interface MapEntry {
  readonly start: bigint;
  readonly end: bigint;
  /** Four letters: `r`, `w`, `x` or `-`, then `p` (private) or `s` (shared). */
  readonly perms: string;
  /** Offset in the file, in bytes. */
  readonly offset: bigint;
  /** Device of the file, `major:minor` in hex. */
  readonly dev: string;
  /** 0 when no file is mapped. */
  readonly inode: bigint;
  /** As the kernel shows it, with ` (deleted)` behind removed files; `[heap]` and the like; or empty. */
  readonly path: string;
}

/**
 * Where the kernel shows what all threads of a process have in common: its memory, files and program. That is at its first
 * thread, but when that has ended and others have not, at one of those.
 */
export function processFolder(pid: number): string {
  const folder = `/proc/${pid}`;
  try {
    if (readStat(pid).state !== "Z") return folder;
    const live = listThreads(pid).find((tid) => tid !== pid && !/[ZX]/.test(readStat(pid, tid).state));
    return live === undefined ? folder : `${folder}/task/${live}`;
  } catch {
    return folder;
  }
}

/** All mappings in address order. */
export function readMaps(pid: number): MapEntry[] {
  const text = readText(`/proc/${pid}/maps`);
  const folder = text === "" ? processFolder(pid) : "";
  return parseMaps(folder.includes("/task/") ? readText(`${folder}/maps`) : text);
}

// start-end perms offset dev inode, blanks, path to the end of the line.
const MAPS_LINE = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+) *(.*)$/gm;

/** Parses the text of a maps file; lines that do not have its form are left out. */
export function parseMaps(text: string): MapEntry[] {
  const entries: MapEntry[] = [];
  for (const line of text.matchAll(MAPS_LINE)) {
    entries.push({
      start: BigInt(`0x${line[1]}`),
      end: BigInt(`0x${line[2]}`),
      perms: line[3]!,
      offset: BigInt(`0x${line[4]}`),
      dev: line[5]!,
      inode: BigInt(line[6]!),
      // The kernel writes a newline in a path as \012 and nothing else in a special way.
      path: line[7]!.replaceAll("\\012", "\n"),
    });
  }
  return entries;
}

/** The mapping that holds an address, among mappings in address order. */
export function findMapping<Mapping extends Pick<MapEntry, "start" | "end">>(
  mappings: readonly Mapping[],
  at: bigint,
): Mapping | undefined {
  let low = 0;
  let high = mappings.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (mappings[middle]!.end <= at) low = middle + 1;
    else high = middle;
  }
  const mapping = mappings[low];
  return mapping !== undefined && mapping.start <= at ? mapping : undefined;
}

/** Signal sets of a thread: bit n - 1 stands for signal n. */
export interface SignalSets {
  /** SigBlk: blocked by this thread. */
  readonly blocked: bigint;
  /** SigIgn: ignored by the process. */
  readonly ignored: bigint;
  /** SigCgt: handled by the process. */
  readonly caught: bigint;
  /** SigPnd: pending for this thread. */
  readonly pending: bigint;
  /** ShdPnd: pending for the process. */
  readonly sharedPending: bigint;
}

/** What /proc/PID/status says, as far as the tracer asks. */
export interface ProcStatus {
  readonly name: string;
  /** One letter: R running, S sleeping, D uninterruptible, T stopped, t tracing stop, Z zombie, X dead, I idle. */
  readonly state: string;
  readonly tgid: number;
  readonly pid: number;
  /** 0: nobody traces it. */
  readonly tracerPid: number;
  /** Real, effective, saved and filesystem user id. */
  readonly uids: readonly number[];
  /** Ids in each nested pid namespace, from the reader's to the process's own; [pid] on kernels without the field. */
  readonly nsPids: readonly number[];
  readonly threads: number;
  readonly signals: SignalSets;
  readonly capEffective: bigint;
  readonly noNewPrivs: boolean;
  readonly seccomp: "none" | "strict" | "filter";
  /** CPU features that were switched on for the thread, such as `shstk`. */
  readonly threadFeatures: readonly string[];
}

/** Status of a process, or of one of its threads. */
export function readStatus(pid: number, tid?: number): ProcStatus {
  return parseStatus(readText(tid === undefined ? `/proc/${pid}/status` : `/proc/${pid}/task/${tid}/status`));
}

export function parseStatus(text: string): ProcStatus {
  const fields = new Map<string, string>();
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  const word = (name: string) => fields.get(name)?.split(/\s+/)[0] ?? "";
  const words = (name: string) => (fields.get(name) ?? "").split(/\s+/).filter((part) => part !== "");
  const mask = (name: string) => BigInt(`0x${word(name) || "0"}`);
  const nsPids = words("NSpid").map(Number);
  return {
    name: fields.get("Name") ?? "",
    state: word("State"),
    tgid: Number(word("Tgid")),
    pid: Number(word("Pid")),
    tracerPid: Number(word("TracerPid")),
    uids: words("Uid").map(Number),
    nsPids: nsPids.length > 0 ? nsPids : [Number(word("Pid"))],
    threads: Number(word("Threads") || "1"),
    signals: {
      blocked: mask("SigBlk"),
      ignored: mask("SigIgn"),
      caught: mask("SigCgt"),
      pending: mask("SigPnd"),
      sharedPending: mask("ShdPnd"),
    },
    capEffective: mask("CapEff"),
    noNewPrivs: word("NoNewPrivs") === "1",
    seccomp: ({ "1": "strict", "2": "filter" } as const)[word("Seccomp")] ?? "none",
    threadFeatures: words("x86_Thread_features"),
  };
}

/** Whether a set holds a signal, by its number. */
export function hasSignal(set: bigint, signal: number): boolean {
  return ((set >> BigInt(signal - 1)) & 1n) === 1n;
}

/** What /proc/PID/stat says, as far as the tracer asks. */
export interface ProcStat {
  readonly comm: string;
  /** As `ProcStatus.state`. */
  readonly state: string;
  readonly ppid: number;
  /** PF_* flags of the kernel. */
  readonly flags: number;
  readonly threads: number;
  /** Clock ticks between boot and the start of the process: together with the pid it names a process for good. */
  readonly startTicks: bigint;
  /** The processor that the thread last ran on. */
  readonly processor: number;
}

/** Stat of a process, or of one of its threads. */
export function readStat(pid: number, tid?: number): ProcStat {
  return parseStat(readText(tid === undefined ? `/proc/${pid}/stat` : `/proc/${pid}/task/${tid}/stat`));
}

export function parseStat(text: string): ProcStat {
  // The command name may hold blanks and parentheses: fields count from behind the last one.
  const open = text.indexOf("(");
  const close = text.lastIndexOf(")");
  const fields = text.slice(close + 2).split(" ");
  const field = (number: number) => fields[number - 3] ?? "0";
  return {
    comm: text.slice(open + 1, close),
    state: field(3),
    ppid: Number(field(4)),
    flags: Number(field(9)),
    threads: Number(field(20)),
    startTicks: BigInt(field(22)),
    processor: Number(field(39)),
  };
}

/** Ids of the threads that exist now, ascending as the kernel lists them. */
export function listThreads(pid: number): number[] {
  return attempt(`/proc/${pid}/task`, (path) => readdirSync(path)).map(Number);
}

/** Target of one of the links `exe`, `root` and `cwd`, as the kernel shows it. */
export function readProcLink(pid: number, name: "exe" | "root" | "cwd"): string {
  return attempt(`${processFolder(pid)}/${name}`, (path) => readlinkSync(path));
}

/** The arguments that the process was started with. */
export function readCommandLine(pid: number): string[] {
  const text = readText(`/proc/${pid}/cmdline`);
  return text === "" ? [] : text.replace(/\0$/, "").split("\0");
}

/** Address of the program headers, of the loader, of the entry point, of the vDSO; size of a page. */
export const AT_PHDR = 3;
export const AT_PAGESZ = 6;
export const AT_BASE = 7;
export const AT_ENTRY = 9;
export const AT_SYSINFO_EHDR = 33;

/** The auxiliary vector that the kernel gave to the program, by tag. */
export function readAuxv(pid: number): ReadonlyMap<number, bigint> {
  const bytes = attempt(`${processFolder(pid)}/auxv`, (path) => readFileSync(path));
  const entries = new Map<number, bigint>();
  for (let at = 0; at + 16 <= bytes.length; at += 16) {
    const tag = Number(bytes.readBigUInt64LE(at));
    if (tag === 0) break;
    entries.set(tag, bytes.readBigUInt64LE(at + 8));
  }
  return entries;
}

/** Processor time that all threads of a process have used so far, in nanoseconds: fields 14 and 15 of its stat, in ticks of 10 ms. */
export function readCpuTimeNs(pid: number): number {
  const TICK_NS = 1e7;
  const text = readText(`/proc/${pid}/stat`);
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * TICK_NS;
}
