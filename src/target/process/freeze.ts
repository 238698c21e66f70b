/**
 * Stopping everything that executes in a process's memory, and letting it go on as if nothing had been: its threads, and
 * those of processes that share the memory.
 *
 * A thread is seized (it runs on), interrupted, and waited for; this repeats until the lists of processes and threads are
 * stable.
 * All threads end in the same kind of stop, an event stop: there registers may be changed and nothing has to be passed on
 * at the resume. A thread that is about to get a signal is first sent into its handler.
 *
 * Invariants: when the tracer dies, the kernel resumes every thread where it stands, so no thread is ever left with
 * registers that are not its own. No system call is seen to fail: most are restarted by the kernel, and those that
 * return EINTR after any stop (epoll_wait, semop, sigtimedwait and others, signal(7)) are made again here. Such a call starts
 * with its whole timeout again.
 *
 * Where it may, the tracer runs as a real-time thread meanwhile: else each thread that it lets go can take the processor
 * from it, while the others still stand.
 *
 * A thread that waits for its child of vfork cannot be interrupted, and needs not be: it can do nothing until the child, which
 * has the same memory and so stands too, has gone on. It is not touched, and nobody can move it.
 *
 * Not handled: a thread that the kernel cannot interrupt (in disk sleep, in a frozen control group) makes the stop fail after
 * a time limit; everything is resumed then. ptrace can let go only of a thread that stands, so such a thread stays seized
 * as a straggler, and is let go when it stops at last.
 */
import { readdirSync, readFileSync } from "node:fs";
import { AddressSpace, findVforkWait, type MarkPlace } from "./address-space.ts";
import { SystemError, setRealTime, usleep } from "./libc.ts";
import type { MemoryFile } from "./memory-file.ts";
import * as ptrace from "./ptrace.ts";
import { describeStuckThread } from "./stuck-thread.ts";
import { UserRegs } from "./user-regs.ts";

export interface StoppedThread {
  /** The process that it belongs to: the stopped one, or one that shares its memory. */
  readonly pid: number;
  readonly tid: number;
  /** As they are now; after a change, `Freeze.setRegs` writes them. Of a fixed thread only the stack and the position. */
  regs: UserRegs;
  /** It waits in vfork: its registers cannot be set, and it cannot be borrowed. */
  readonly isFixed: boolean;
}

/** A thread did not stop in time. */
export class StopTimeoutError extends Error {
  readonly code = "stop-timeout";
  readonly tid: number;
  constructor(pid: number, tid: number) {
    super(`stop process ${pid}: thread ${tid} cannot be interrupted: ${describeStuckThread(pid, tid)}`);
    this.name = "StopTimeoutError";
    this.tid = tid;
  }
}

/** Somebody else traces a thread of the process by now. */
export class TracedByOtherError extends Error {
  readonly code = "already-traced";
  readonly tracer: number;
  constructor(pid: number, tracer: number) {
    super(`stop process ${pid}: process ${tracer} (${commandName(tracer)}) traces it; end that one first`);
    this.name = "TracedByOtherError";
    this.tracer = tracer;
  }
}

const STOP_TIMEOUT_MS = 2000;
/** A process whose only thread waits in vfork is waited for so long, when one of its own threads is needed. */
const VFORK_TIMEOUT_MS = 10_000;
/** A thread that could run and does not, because the machine is busy with others, will stop: it gets more time. */
const RUNNABLE_TIMEOUT_MS = 15_000;
/** A borrowed thread that does not stop within this time may be one that cannot: another one is interrupted too. */
const ONE_THREAD_TIMEOUT_MS = 200;
/** Of so many threads the state is asked, to find one that runs: that takes a while for each. */
const MOST_STATES_ASKED = 16;
const STRAGGLER_POLL_MS = 1;

/** Threads that were interrupted but not waited for until they stood, and who is to let them go. */
const stragglers = new Map<number, Freeze>();

/** A process as it is to be stopped. */
export interface FreezeTarget {
  readonly pid: number;
  readonly memory: MemoryFile;
  readonly markAt: MarkPlace;
}

export class Freeze {
  readonly pid: number;
  readonly threads: StoppedThread[] = [];
  readonly #memory: MemoryFile;
  readonly #space: AddressSpace;
  readonly #trapSites: ReadonlySet<bigint>;
  /** Which process each seized thread belongs to. */
  readonly #seized = new Map<number, number>();
  #firstInterruptNs = 0n;
  #isUrgent = false;

  private constructor({ pid, memory, markAt }: FreezeTarget, trapSites: ReadonlySet<bigint>) {
    this.pid = pid;
    this.#memory = memory;
    this.#space = new AddressSpace(pid, memory, markAt);
    this.#trapSites = trapSites;
  }

  /**
   * Stops all threads. `trapSites` are the addresses of our `int3`s: a trap from there that has not reached its
   * handler yet is taken back to the address.
   */
  static stop(target: FreezeTarget, trapSites: ReadonlySet<bigint>): Freeze {
    const freeze = new Freeze(target, trapSites);
    try {
      // Before anything stands: then only processes that come meanwhile have to be looked at.
      const sharers = freeze.#space.findNew();
      freeze.#stopAll(sharers);
    } catch (error) {
      freeze.resume();
      throw error;
    }
    return freeze;
  }

  /**
   * Stops one thread only, for a system call in the process's name: one that runs, if there is one, since it has no
   * system call to be interrupted.
   */
  static stopOne(target: FreezeTarget): Freeze {
    const freeze = new Freeze(target, new Set());
    try {
      freeze.#stopAny(byLikelihood(target.pid, Freeze.listThreads(target.pid)));
    } catch (error) {
      freeze.resume();
      throw error;
    }
    return freeze;
  }

  /** Takes over a thread that stands in an event stop already: the only one of a program that was just started. */
  static adopt(pid: number, memory: MemoryFile): Freeze {
    const freeze = new Freeze({ pid, memory, markAt: () => undefined }, new Set());
    freeze.#seized.set(pid, pid);
    freeze.threads.push({ pid, tid: pid, regs: ptrace.getRegs(pid), isFixed: false });
    return freeze;
  }

  static listThreads(pid: number): number[] {
    try {
      return readdirSync(`/proc/${pid}/task`).map(Number);
    } catch {
      return [];
    }
  }

  /** How long the first thread to be stopped has been standing, in nanoseconds. */
  get standingNs(): bigint {
    return this.#firstInterruptNs === 0n ? 0n : process.hrtime.bigint() - this.#firstInterruptNs;
  }

  setRegs(thread: StoppedThread): void {
    ptrace.setRegs(thread.tid, thread.regs);
  }

  /** Lets every thread go on, and returns for how long they stood. */
  resume(): bigint {
    const standing = new Set(this.threads.map(({ tid }) => tid));
    for (const tid of this.#seized.keys())
      if (!standing.has(tid) || !ptrace.tryDetach(tid, 0)) stragglers.set(tid, this);
    this.#seized.clear();
    const stoodNs = this.standingNs;
    if (this.#isUrgent) setRealTime(false);
    this.#isUrgent = false;
    if (stragglers.size > 0) releaseStragglers();
    return stoodNs;
  }

  /** Lets a straggler go if it stands, and returns whether that is settled. */
  releaseIfStopped(tid: number): boolean {
    const now = this.#takeStep(tid);
    if (now === "running") return false;
    if (now !== "ended") ptrace.tryDetach(tid, 0);
    return true;
  }

  /** Processes that share the memory and stand. */
  get sharers(): number[] {
    return [...new Set(this.threads.map(({ pid }) => pid))].filter((pid) => pid !== this.pid);
  }

  #stopAll(sharers: readonly number[]): void {
    this.#isUrgent = setRealTime(true);
    const deadline = Date.now() + STOP_TIMEOUT_MS;
    const processes = new Set([this.pid, ...sharers]);
    const known = new Set<number>();
    for (;;) {
      const fresh = [...processes].flatMap((pid) =>
        Freeze.listThreads(pid)
          .filter((tid) => !known.has(tid))
          .map((tid) => ({ pid, tid })),
      );
      if (fresh.length === 0) {
        const later = this.#space.findNew();
        for (const pid of later) processes.add(pid);
        if (later.length === 0 && this.#forgetWoken(known)) return;
        continue;
      }
      const seized = fresh.filter(({ pid, tid }) => {
        known.add(tid);
        return !this.#addFixed(pid, tid) && this.#seize(pid, tid);
      });
      if (this.#firstInterruptNs === 0n) this.#firstInterruptNs = process.hrtime.bigint();
      for (const { tid } of seized) ptrace.tryInterrupt(tid);
      const tids = seized.map(({ tid }) => tid);
      const [stuck] = this.#awaitRunnable(this.#await(tids, deadline, () => false));
      if (stuck !== undefined) throw this.#timeout(stuck);
      for (const { pid } of fresh) if (pid !== this.pid) this.#dropUnlessSharing(pid, processes);
    }
  }

  #timeout(tid: number): StopTimeoutError {
    return new StopTimeoutError(this.#seized.get(tid) ?? this.pid, tid);
  }

  /** A thread that waits in vfork stands by itself, as long as its child does. */
  #addFixed(pid: number, tid: number): boolean {
    const wait = findVforkWait(pid, tid, this.#memory);
    if (wait === undefined) return false;
    const regs = new UserRegs();
    regs.set("rip", wait.ip);
    regs.set("rsp", wait.sp);
    this.threads.push({ pid, tid, regs, isFixed: true });
    return true;
  }

  /**
   * Whether all fixed threads still wait; to be asked when everything else stands. Those that do not are to be stopped: their
   * children were gone before they could be stopped.
   */
  #forgetWoken(known: Set<number>): boolean {
    const woken = this.threads.filter(
      ({ pid, tid, isFixed }) => isFixed && findVforkWait(pid, tid, this.#memory) === undefined,
    );
    for (const thread of woken) {
      known.delete(thread.tid);
      this.threads.splice(this.threads.indexOf(thread), 1);
    }
    return woken.length === 0;
  }

  /** A process that has become another program on its way to the stop is let go. */
  #dropUnlessSharing(pid: number, processes: Set<number>): void {
    if (!processes.has(pid) || this.#space.shares(pid)) return;
    processes.delete(pid);
    for (const thread of this.threads.filter((each) => each.pid === pid)) {
      this.threads.splice(this.threads.indexOf(thread), 1);
      if (!thread.isFixed) ptrace.tryDetach(thread.tid, 0);
      this.#seized.delete(thread.tid);
    }
  }

  /** Stops the first of the threads that can be stopped; more of them may come to stand. */
  #stopAny(tids: readonly number[]): void {
    this.#isUrgent = setRealTime(true);
    let interrupted: number[] = [];
    for (const [index, candidate] of tids.entries()) {
      if (!this.#seize(this.pid, candidate)) continue;
      if (this.#firstInterruptNs === 0n) this.#firstInterruptNs = process.hrtime.bigint();
      ptrace.tryInterrupt(candidate);
      const isLast = index === tids.length - 1;
      const deadline = Date.now() + (isLast ? STOP_TIMEOUT_MS : ONE_THREAD_TIMEOUT_MS);
      interrupted = this.#await([...interrupted, candidate], deadline, () => this.threads.length > 0);
      if (this.threads.length > 0) return;
    }
    this.#awaitVforks(interrupted);
    if (this.threads.length > 0) return;
    const [stuck] = interrupted;
    if (stuck === undefined)
      throw new Error(`stop process ${this.pid}: it has no thread that can be stopped`);
    throw this.#timeout(stuck);
  }

  /** Waits on while a thread waits for its child of vfork. */
  #awaitVforks(interrupted: readonly number[]): void {
    const deadline = Date.now() + VFORK_TIMEOUT_MS;
    let running = interrupted;
    while (
      this.threads.length === 0 &&
      running.length > 0 &&
      Date.now() < deadline &&
      running.some((tid) => findVforkWait(this.pid, tid, this.#memory) !== undefined)
    )
      running = this.#await(running, Date.now() + ONE_THREAD_TIMEOUT_MS, () => this.threads.length > 0);
  }

  /**
   * Waits for interrupted threads until enough of them stand, all have ended, or the time is over, and returns those that
   * still run. Asks all of them between two sleeps: on a busy machine each sleep may last for milliseconds.
   */
  #await(tids: readonly number[], deadline: number, isEnough: () => boolean): number[] {
    let running = [...tids];
    for (let sleepUs = 0; ; sleepUs = Math.min(sleepUs + 10, 200)) {
      running = running.filter((tid) => {
        const now = this.#takeStep(tid);
        if (now === "ended") this.#seized.delete(tid);
        else if (now !== "running")
          this.threads.push({ pid: this.#seized.get(tid) ?? this.pid, tid, regs: now, isFixed: false });
        return now === "running";
      });
      if (running.length === 0 || isEnough() || Date.now() > deadline) return running;
      usleep(sleepUs);
    }
  }

  /** Waits on for threads that only lack a processor; returns those that still run when one of them cannot be interrupted. */
  #awaitRunnable(tids: readonly number[]): number[] {
    let running = [...tids];
    const deadline = Date.now() + RUNNABLE_TIMEOUT_MS;
    while (
      running.length > 0 &&
      Date.now() < deadline &&
      running.every((tid) => threadState(this.#seized.get(tid) ?? this.pid, tid) === "R")
    )
      running = this.#await(running, Date.now() + STOP_TIMEOUT_MS, () => false);
    return running;
  }

  #seize(pid: number, tid: number): boolean {
    // A straggler is seized already.
    if (!stragglers.delete(tid)) {
      try {
        ptrace.seize(tid);
      } catch (error) {
        if (isEndedThread(pid, tid)) return false;
        const tracer = tracerOf(pid, tid);
        if (tracer !== 0) throw new TracedByOtherError(pid, tracer);
        throw error;
      }
    }
    this.#seized.set(tid, pid);
    return true;
  }

  /** Takes an interrupted thread as far towards its event stop as it goes without waiting: its registers when it stands. */
  #takeStep(tid: number): UserRegs | "running" | "ended" {
    for (;;) {
      const event = ptrace.wait(tid, false);
      if (event === undefined) return "running";
      try {
        switch (event.kind) {
          case "ended":
            return "ended";
          case "trap-stop": {
            const regs = ptrace.getRegs(tid);
            if (
              !this.#trapSites.has(regs.get("rip") - 1n) ||
              !isTrapPending(this.#seized.get(tid) ?? this.pid, tid)
            )
              return this.#withoutInterruption(tid, regs);
            // The kernel reports the interrupt before the trap: without another interrupt, the trap comes next.
            ptrace.cont(tid, 0);
            break;
          }
          case "signal":
            this.#passOn(tid, event.signal);
            break;
          case "syscall":
          case "event":
            ptrace.tryInterrupt(tid);
            ptrace.cont(tid, 0);
            break;
          default:
            event satisfies never;
        }
      } catch (error) {
        if (error instanceof SystemError && error.code === "ESRCH") return "ended";
        throw error;
      }
    }
  }

  /** Sends a thread on into the handler of the signal that it is about to get, to be stopped at its first instruction. */
  #passOn(tid: number, signal: number): void {
    let passed = signal;
    if (signal === ptrace.SIGTRAP) {
      const regs = ptrace.getRegs(tid);
      if (this.#trapSites.has(regs.get("rip") - 1n)) {
        regs.set("rip", regs.get("rip") - 1n);
        ptrace.setRegs(tid, regs);
        passed = 0;
      }
    }
    ptrace.tryInterrupt(tid);
    ptrace.cont(tid, passed);
  }

  /** Makes a system call again that returned EINTR only because the thread was stopped. */
  #withoutInterruption(tid: number, regs: UserRegs): UserRegs {
    const EINTR = -4n;
    if (regs.getSigned("origRax") < 0n || regs.getSigned("rax") !== EINTR) return regs;
    if (
      hasDeliverableSignal(this.#seized.get(tid) ?? this.pid, tid) ||
      !isAfterSyscall(this.#memory, regs.get("rip"))
    )
      return regs;
    regs.set("rax", regs.get("origRax"));
    regs.set("rip", regs.get("rip") - 2n);
    regs.set("origRax", -1n);
    ptrace.setRegs(tid, regs);
    return regs;
  }
}

/** Looks now, and from time to time while the tracer has nothing else to do, which stragglers stand. */
function releaseStragglers(): void {
  for (const [tid, freeze] of stragglers) if (freeze.releaseIfStopped(tid)) stragglers.delete(tid);
  if (stragglers.size > 0) setTimeout(releaseStragglers, STRAGGLER_POLL_MS).unref();
}

/** A thread that runs first, if one is soon found: it has no system call to be interrupted. */
function byLikelihood(pid: number, tids: readonly number[]): number[] {
  const running = tids.slice(0, MOST_STATES_ASKED).find((tid) => threadState(pid, tid) === "R");
  return running === undefined ? [...tids] : [running, ...tids.filter((tid) => tid !== running)];
}

function isAfterSyscall(memory: MemoryFile, ip: bigint): boolean {
  const bytes = new Uint8Array(2);
  return memory.readInto(ip - 2n, bytes) === 2 && bytes[0] === 0x0f && bytes[1] === 0x05;
}

function threadStatus(pid: number, tid: number): string {
  try {
    return readFileSync(`/proc/${pid}/task/${tid}/status`, "latin1");
  } catch {
    return "";
  }
}

function threadState(pid: number, tid: number): string {
  return /^State:\s+(\S)/m.exec(threadStatus(pid, tid))?.[1] ?? "gone";
}

function tracerOf(pid: number, tid: number): number {
  return Number(/^TracerPid:\s+(\d+)/m.exec(threadStatus(pid, tid))?.[1] ?? 0);
}

function commandName(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, "latin1").trim();
  } catch {
    return "unknown";
  }
}

function isEndedThread(pid: number, tid: number): boolean {
  const state = threadState(pid, tid);
  return state === "gone" || state === "Z" || state === "X";
}

function isTrapPending(pid: number, tid: number): boolean {
  const pending = /^SigPnd:\s+(\S+)/m.exec(threadStatus(pid, tid))?.[1] ?? "0";
  return ((BigInt(`0x${pending}`) >> BigInt(ptrace.SIGTRAP - 1)) & 1n) === 1n;
}

/** Signals whose default action is to be ignored: CHLD, CONT, URG, WINCH (signal(7)). */
const ignoredByDefault = (1n << 16n) | (1n << 17n) | (1n << 22n) | (1n << 27n);

/** Whether a signal is pending that the thread will really notice: not blocked and not ignored. */
function hasDeliverableSignal(pid: number, tid: number): boolean {
  const status = threadStatus(pid, tid);
  const mask = (name: string) =>
    BigInt(`0x${new RegExp(`^${name}:\\s+(\\S+)`, "m").exec(status)?.[1] ?? "0"}`);
  const ignored = mask("SigIgn") | (ignoredByDefault & ~mask("SigCgt"));
  return ((mask("SigPnd") | mask("ShdPnd")) & ~mask("SigBlk") & ~ignored) !== 0n;
}
