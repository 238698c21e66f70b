/**
 * ptrace and wait, typed. All of it must be called from one OS thread: ptrace attaches to the calling thread, not to
 * the process (ptrace(2)). That thread is the tracer worker.
 */
import { errno, ptraceBuffer, ptraceRaw, RegisterSet, SystemError, waitpidRaw } from "./libc.ts";
import { UserRegs } from "./user-regs.ts";

const PTRACE_CONT = 7;
const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_DETACH = 17;
const PTRACE_SYSCALL = 24;
const PTRACE_SETOPTIONS = 0x4200;
const PTRACE_GETREGSET = 0x4204;
const PTRACE_SETREGSET = 0x4205;
const PTRACE_SEIZE = 0x4206;
const PTRACE_INTERRUPT = 0x4207;
const PTRACE_EVENT_STOP = 128;

const PTRACE_O_TRACESYSGOOD = 1;
export const PTRACE_O_TRACEEXEC = 1 << 4;
const PTRACE_O_SUSPEND_SECCOMP = 1 << 21;
export const PTRACE_EVENT_EXEC = 4;

const WNOHANG = 1;
const WALL = 0x4000_0000;

export const SIGTRAP = 5;

/** What waitpid says about one thread. */
export type WaitEvent =
  /** Stopped by an interrupt or in a group stop: nothing is lost when it is resumed. */
  | { readonly kind: "trap-stop" }
  /** About to get a signal, which must be passed on when it is resumed. */
  | { readonly kind: "signal"; readonly signal: number }
  | { readonly kind: "syscall" }
  | { readonly kind: "event"; readonly event: number }
  | { readonly kind: "ended"; readonly status: number };

/** SEIZE: the thread runs on. Its stops at system calls will be told apart from traps. */
export function seize(tid: number, extraOptions = 0): void {
  if (ptraceRaw(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD | extraOptions) < 0)
    throw new SystemError(`ptrace seize ${tid}`, errno());
}

/** Whether the thread is still there to be interrupted. */
export function tryInterrupt(tid: number): boolean {
  return ptraceRaw(PTRACE_INTERRUPT, tid, 0, 0) >= 0;
}

/** Makes the thread's seccomp filters let everything through while it is traced; needs CAP_SYS_ADMIN. */
export function trySuspendSeccomp(tid: number): boolean {
  return ptraceRaw(PTRACE_SETOPTIONS, tid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP) >= 0;
}

export function getRegs(tid: number, into = new UserRegs()): UserRegs {
  if (ptraceBuffer(PTRACE_GETREGS, tid, 0, into.bytes) < 0)
    throw new SystemError(`read registers of ${tid}`, errno());
  return into;
}

/** Sets all registers in one call: the thread never sees half of a change, even if the tracer dies. */
export function setRegs(tid: number, regs: UserRegs): void {
  if (ptraceBuffer(PTRACE_SETREGS, tid, 0, regs.bytes) < 0)
    throw new SystemError(`write registers of ${tid}`, errno());
}

/** The state that XSAVE saves, in its standard format (include/uapi/linux/elf.h). */
const NT_X86_XSTATE = 0x202;
/** With all tiles of AMX it takes 11 KiB. */
const EXTENDED_STATE_BYTES = 16 << 10;
let extendedState: RegisterSet | undefined;

/** A stopped thread's vector and other extended registers. */
export function readExtendedState(tid: number): Uint8Array {
  extendedState ??= new RegisterSet(EXTENDED_STATE_BYTES);
  extendedState.lenBytes = EXTENDED_STATE_BYTES;
  if (ptraceRaw(PTRACE_GETREGSET, tid, NT_X86_XSTATE, extendedState.at) < 0)
    throw new SystemError(`read extended registers of ${tid}`, errno());
  return extendedState.bytes.slice(0, extendedState.lenBytes);
}

/** `state` as it was read, with changes. */
export function writeExtendedState(tid: number, state: Uint8Array): void {
  extendedState ??= new RegisterSet(EXTENDED_STATE_BYTES);
  extendedState.bytes.set(state);
  extendedState.lenBytes = state.length;
  if (ptraceRaw(PTRACE_SETREGSET, tid, NT_X86_XSTATE, extendedState.at) < 0)
    throw new SystemError(`write extended registers of ${tid}`, errno());
}

export function cont(tid: number, signal: number): void {
  if (ptraceRaw(PTRACE_CONT, tid, 0, signal) < 0) throw new SystemError(`continue ${tid}`, errno());
}

/** Resumes until the next border of a system call. */
export function contToSyscall(tid: number, signal: number): void {
  if (ptraceRaw(PTRACE_SYSCALL, tid, 0, signal) < 0)
    throw new SystemError(`continue ${tid} to system call`, errno());
}

/** Lets go of a stopped thread; false when it does not stand: it still runs, or has ended. */
export function tryDetach(tid: number, signal: number): boolean {
  return ptraceRaw(PTRACE_DETACH, tid, 0, signal) >= 0;
}

const statusWord = new Int32Array(1);

/** The next event of one thread, or undefined when there is none yet. Never blocks when `block` is false. */
export function wait(tid: number, block: boolean): WaitEvent | undefined {
  const EINTR = 4;
  for (;;) {
    const got = waitpidRaw(tid, statusWord, WALL | (block ? 0 : WNOHANG));
    if (got === 0) return undefined;
    if (got > 0) return decodeStatus(statusWord[0]!);
    const error = errno();
    if (error === EINTR) continue;
    return { kind: "ended", status: 0 };
  }
}

function decodeStatus(status: number): WaitEvent {
  if ((status & 0xff) !== 0x7f) return { kind: "ended", status };
  const signal = (status >> 8) & 0xff;
  const event = status >>> 16;
  if (event === PTRACE_EVENT_STOP) return { kind: "trap-stop" };
  if (event !== 0) return { kind: "event", event };
  if (signal === (SIGTRAP | 0x80)) return { kind: "syscall" };
  return { kind: "signal", signal };
}
