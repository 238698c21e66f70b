/**
 * Whether a process can be attached to at all, found out before it is touched, with a reason that says what to do.
 */
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { type ProcStat, type ProcStatus, processFolder, readStat, readStatus } from "./proc-fs.ts";

export type AttachRefusal =
  | { readonly kind: "no-such-process" }
  | { readonly kind: "zombie" }
  | { readonly kind: "kernel-thread" }
  | { readonly kind: "is-thread"; readonly pid: number }
  | {
      readonly kind: "not-permitted";
      readonly uid: number;
      readonly ownUid: number;
      readonly ptraceScope: number;
    }
  | { readonly kind: "already-traced"; readonly tracer: number; readonly tracerName: string }
  | { readonly kind: "not-x86-64"; readonly what: string }
  | { readonly kind: "ourselves" };

/** A process that cannot be attached to. `reason` says why. */
export class AttachError extends Error {
  readonly code: string;
  readonly pid: number;
  readonly reason: AttachRefusal;
  constructor(pid: number, reason: AttachRefusal) {
    super(`attach to process ${pid}: ${describeRefusal(reason)}`);
    this.name = "AttachError";
    this.code = reason.kind;
    this.pid = pid;
    this.reason = reason;
  }
}

function describeRefusal(reason: AttachRefusal): string {
  switch (reason.kind) {
    case "no-such-process":
      return "there is no such process";
    case "zombie":
      return "it has ended (zombie) and only waits to be reaped by its parent";
    case "kernel-thread":
      return "it is a kernel thread: there is no user code to probe";
    case "is-thread":
      return `it is a thread of process ${reason.pid}; use -p ${reason.pid}`;
    case "not-permitted":
      return reason.uid !== reason.ownUid && reason.ownUid !== 0
        ? `it belongs to user ${reason.uid} and you are user ${reason.ownUid}: run trapline as that user or as root`
        : `ptrace is not permitted (kernel.yama.ptrace_scope is ${reason.ptraceScope}); ` +
            "run trapline as root, or allow it with: sysctl kernel.yama.ptrace_scope=0";
    case "already-traced":
      return `process ${reason.tracer} (${reason.tracerName}) traces it already; end that debugger first`;
    case "not-x86-64":
      return `it runs ${reason.what}; only 64-bit x86 code can be probed`;
    case "ourselves":
      return "it is this tracer itself";
    default:
      return reason satisfies never;
  }
}

const PF_KTHREAD = 0x0020_0000;
const ELFCLASS64 = 2;
const EM_X86_64 = 62;

/** Throws `AttachError` if the process cannot be attached to. */
export function checkAttachable(pid: number): void {
  const refuse = (reason: AttachRefusal): never => {
    throw new AttachError(pid, reason);
  };
  if (pid === process.pid) refuse({ kind: "ourselves" });
  const found = readIdentity(pid);
  if (found === undefined) throw new AttachError(pid, { kind: "no-such-process" });
  const { status, stat } = found;
  if (status.tgid !== pid) refuse({ kind: "is-thread", pid: status.tgid });
  if ((stat.flags & PF_KTHREAD) !== 0) refuse({ kind: "kernel-thread" });
  if (status.state === "Z" && status.threads === 1) refuse({ kind: "zombie" });
  if (status.state === "X") refuse({ kind: "no-such-process" });
  const tracer = status.tracerPid;
  if (tracer !== 0)
    refuse({ kind: "already-traced", tracer, tracerName: readProc(tracer, "comm")?.trim() ?? "unknown" });
  const header = readExeHeader(pid);
  if (header === undefined) {
    if (readIdentity(pid) === undefined) refuse({ kind: "no-such-process" });
    refuse({
      kind: "not-permitted",
      uid: status.uids[0] ?? -1,
      ownUid: process.getuid?.() ?? -1,
      ptraceScope: Number(readSysctl("kernel/yama/ptrace_scope") ?? "0"),
    });
    return;
  }
  if (header[4] !== ELFCLASS64) refuse({ kind: "not-x86-64", what: "a 32-bit program" });
  if ((header[18]! | (header[19]! << 8)) !== EM_X86_64)
    refuse({ kind: "not-x86-64", what: "a program for another machine" });
}

/** What the kernel says of a process; undefined when it is gone. */
function readIdentity(pid: number): { readonly status: ProcStatus; readonly stat: ProcStat } | undefined {
  try {
    return { status: readStatus(pid), stat: readStat(pid) };
  } catch {
    return undefined;
  }
}

function readProc(pid: number, name: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/${name}`, "latin1");
  } catch {
    return undefined;
  }
}

function readSysctl(name: string): string | undefined {
  try {
    return readFileSync(`/proc/sys/${name}`, "latin1").trim();
  } catch {
    return undefined;
  }
}

/** The first bytes of the executable; undefined when the process may not be looked into. */
function readExeHeader(pid: number): Uint8Array | undefined {
  const header = new Uint8Array(20);
  try {
    const fd = openSync(`${processFolder(pid)}/exe`, "r");
    readSync(fd, header, 0, header.length, 0);
    closeSync(fd);
    return header;
  } catch {
    return undefined;
  }
}
