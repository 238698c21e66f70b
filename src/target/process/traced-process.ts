/**
 * One process as the tracer worker handles it: every operation runs to its end on the worker's thread, and leaves no
 * thread of the target stopped (but for a command that was started stopped and has not been released).
 */
import { closeSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import {
  type Addr,
  type AddrRange,
  addr,
  type CommitReport,
  type RemoteCall,
  type Transaction,
} from "../target.ts";
import { AttachError, checkAttachable } from "./attach-check.ts";
import { type BorrowedThread, borrowThread, STUB_BYTES } from "./borrowed-thread.ts";
import { commit } from "./commit.ts";
import { Freeze, type FreezeTarget, type StoppedThread } from "./freeze.ts";
import {
  descriptorMessage,
  errnoOfResult,
  openPidFd,
  sendDescriptor,
  takeDescriptor,
  usleep,
  writeDescriptorMessage,
} from "./libc.ts";
import { MemoryFile } from "./memory-file.ts";
import { readMaps, readStatus } from "./proc-fs.ts";
import {
  findKeyObstacle,
  freeKeyCall,
  grantKey,
  type KeyGrant,
  protectWithKeyCall,
} from "./protection-keys.ts";
import { STACKS_MEMORY_NAME } from "./signal-frames.ts";
import { BLOCKED_FOR_MS, findTrapObstacle } from "./trap-obstacle.ts";

const SYS_CLOSE = 3;
const SYS_RT_SIGACTION = 13;
const SYS_MPROTECT = 10;
const SYS_RECVMSG = 47;
const SYS_SOCKETPAIR = 53;
const AF_UNIX = 1n;
const SOCK_DGRAM = 2n;
const SOCK_CLOEXEC = 0x8_0000n;
const MSG_CMSG_CLOEXEC = 0x4000_0000n;
const SYS_MMAP = 9;
const SYS_MADVISE = 28;
const SYS_MEMFD_CREATE = 319;
const PROT_NONE = 0n;
const PROT_READ = 1n;
const PROT_WRITE = 2n;
const PROT_EXEC = 4n;
/** Rights of all memory for data, as numbers. */
export const READ_WRITE = 3;
const MAP_SHARED = 1n;
const MAP_PRIVATE = 2n;
const MAP_FIXED = 0x10n;
const MAP_ANONYMOUS = 0x20n;
const MAP_NORESERVE = 0x4000n;
const MAP_FIXED_NOREPLACE = 0x10_0000n;
const MADV_WIPEONFORK = 18n;
const MFD_CLOEXEC = 1n;
const MFD_NOEXEC_SEAL = 8n;
const NO_FD = -1n;
/** `struct sigaction` as the kernel gives it: handler, flags, restorer and a mask. */
const ACTION_BYTES = 32;
const SIGSET_BYTES = 8n;

/** Name of the memory with the journal, in the target's list of mappings `/memfd:trapline (deleted)`. */
export const JOURNAL_MEMORY_NAME = "trapline";
/** Name of the memory with the maps of programs. */
export const MAPS_MEMORY_NAME = "trapline-maps";

/** Name of what is reserved for all data: parts are mapped over it. */
export const ARENA_MEMORY_NAME = "trapline-arena";
/** Name of the memory for messages of the target's code to the tracer. */
export const MAILBOX_MEMORY_NAME = "trapline-mailbox";

/** A system call in the target's name failed. `code` is the errno's name. */
export class TargetCallError extends Error {
  readonly code: string;
  constructor(pid: number, call: string, code: string) {
    super(`prepare process ${pid}: its system call ${call} failed: ${code}`);
    this.name = "TargetCallError";
    this.code = code;
  }
}

/** Another tracer is at work on the process. `holder` is its pid, if that is known. */
export class TargetBusyError extends Error {
  readonly code = "target-busy";
  readonly holder: number | undefined;
  constructor(pid: number, holder: number | undefined) {
    super(
      `attach to process ${pid}: ${holder === undefined ? "another tracer" : `process ${holder}`} is changing it`,
    );
    this.name = "TargetBusyError";
    this.holder = holder;
  }
}

/**
 * Several tracers may have one process open. Whatever stops it, or borrows one of its threads, is done under the lock of the
 * process, so that they never do so at the same time; an operation throws `TargetBusyError` when another tracer has it.
 */
export class TracedProcess {
  readonly pid: number;
  #memory: MemoryFile;
  /** Set while a command waits, stopped, to be released. */
  #held: Freeze | undefined;
  /** How many times the lock is held. */
  #locks = 0;

  private constructor(pid: number, memory: MemoryFile, held: Freeze | undefined) {
    this.pid = pid;
    this.#memory = memory;
    this.#held = held;
  }

  /** Opens a running process; throws `AttachError` when it cannot be attached to. */
  static open(pid: number): TracedProcess {
    try {
      checkAttachable(pid);
    } catch (error) {
      if (!(error instanceof AttachError) || error.code !== "already-traced") throw error;
      checkAlone(pid);
    }
    return new TracedProcess(pid, MemoryFile.open(pid), undefined);
  }

  /**
   * The process has become another program: what was open leads to memory that is no more. Throws `AttachError` when the
   * new program cannot be attached to. Nothing may be locked.
   */
  reopen(): void {
    checkAttachable(this.pid);
    const memory = MemoryFile.open(this.pid);
    this.#memory.close();
    this.#memory = memory;
    this.#locks = 0;
  }

  /** Takes the lock, once more if this tracer has it. Says whether it has been taken. */
  tryLock(): boolean {
    if (this.#locks === 0 && !this.#memory.tryLock()) return false;
    this.#locks++;
    return true;
  }

  /** The same, but throws where the lock is not to be had. */
  lock(): void {
    if (!this.tryLock()) throw new TargetBusyError(this.pid, this.#memory.findLockHolder());
  }

  /** Gives back one taking of the lock. */
  unlock(): void {
    if (--this.#locks === 0) this.#memory.unlock();
  }

  /** Takes over a command that stands stopped. */
  static adopt(pid: number, held: Freeze): TracedProcess {
    return new TracedProcess(pid, MemoryFile.open(pid), held);
  }

  read(at: bigint, lenBytes: number): Uint8Array {
    return this.#memory.read(at, lenBytes);
  }

  /** Reads many places in one request. */
  readMany(places: readonly { readonly at: bigint; readonly lenBytes: number }[]): Uint8Array[] {
    return places.map(({ at, lenBytes }) => this.#memory.read(at, lenBytes));
  }

  /** The same where some places may be mapped no more: those are undefined. */
  findMany(
    places: readonly { readonly at: bigint; readonly lenBytes: number }[],
  ): (Uint8Array | undefined)[] {
    return places.map(({ at, lenBytes }) => {
      const bytes = new Uint8Array(lenBytes);
      return this.#memory.readInto(at, bytes) === lenBytes ? bytes : undefined;
    });
  }

  /** Writes memory that nothing in the target uses yet: without stopping it. */
  write(at: bigint, bytes: Uint8Array): void {
    this.#memory.write(at, bytes);
  }

  /**
   * Reserves addresses where the kernel finds them free: nothing can be touched there, and no memory is used, until something is
   * mapped over them. The name tells them from what the process reserves itself. Throws `TargetCallError`, `ENOMEM` where the
   * process may not have so many.
   */
  reserve(lenBytes: number): Addr {
    return this.#borrow((thread) => {
      const fd = this.#memfd(thread, ARENA_MEMORY_NAME);
      try {
        const args = [0n, BigInt(lenBytes), PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, fd, 0n];
        return addr(this.#must(thread, { name: "mmap", number: SYS_MMAP, args }));
      } finally {
        this.#must(thread, { name: "close", number: SYS_CLOSE, args: [fd] });
      }
    });
  }

  /**
   * Creates shared memory in the target, and returns where it is and the tracer's own descriptor of it. `place` is reserved;
   * without it the kernel chooses.
   */
  createShared(
    memoryName: string,
    lenBytes: number,
    place?: bigint,
  ): { readonly at: Addr; readonly fd: number } {
    return this.#borrow((thread) => {
      const fd = this.#memfd(thread, memoryName);
      let own: number | undefined;
      try {
        own = openSync(`/proc/${this.pid}/task/${thread.tid}/fd/${fd}`, "r+");
        ftruncateSync(own, lenBytes);
        const at = this.#must(thread, {
          name: "mmap",
          number: SYS_MMAP,
          args: [place ?? 0n, BigInt(lenBytes), PROT_READ | PROT_WRITE, sharedFlags(place), fd, 0n],
        });
        return { at: addr(at), fd: own };
      } catch (error) {
        if (own !== undefined) closeSync(own);
        throw error;
      } finally {
        this.#must(thread, { name: "close", number: SYS_CLOSE, args: [fd] });
      }
    });
  }

  /**
   * Maps memory that the tracer has open as `fd` into the target, through a socket: that needs no path that the target could
   * open, so it works for other users' processes and in containers. `scratch` is memory of ours in the target, `place` is reserved.
   */
  mapDescriptor(fd: number, lenBytes: number, scratch: bigint, place?: bigint): Addr {
    return this.#borrow((thread) => {
      this.#must(thread, {
        name: "socketpair",
        number: SYS_SOCKETPAIR,
        args: [AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0n, scratch],
      });
      const pair = new DataView(this.#memory.read(scratch, 8).buffer);
      const [ours, theirs] = [pair.getInt32(0, true), pair.getInt32(4, true)];
      try {
        this.#send(ours, fd);
        const received = this.#receive(thread, theirs, scratch);
        try {
          const at = this.#must(thread, {
            name: "mmap",
            number: SYS_MMAP,
            args: [place ?? 0n, BigInt(lenBytes), PROT_READ | PROT_WRITE, sharedFlags(place), received, 0n],
          });
          return addr(at);
        } finally {
          this.#must(thread, { name: "close", number: SYS_CLOSE, args: [received] });
        }
      } finally {
        for (const end of [ours, theirs])
          this.#must(thread, { name: "close", number: SYS_CLOSE, args: [BigInt(end)] });
      }
    });
  }

  /** Sends a descriptor of ours into the target's end of its own socket. */
  #send(socket: number, fd: number): void {
    const pidFd = openPidFd(this.pid);
    try {
      const end = takeDescriptor(pidFd, socket);
      try {
        sendDescriptor(end, fd);
      } finally {
        closeSync(end);
      }
    } finally {
      closeSync(pidFd);
    }
  }

  #receive(thread: BorrowedThread, socket: number, scratch: bigint): bigint {
    const message = new Uint8Array(descriptorMessage.totalBytes);
    writeDescriptorMessage(new DataView(message.buffer), scratch, -1);
    this.#memory.write(scratch, message);
    this.#must(thread, {
      name: "recvmsg",
      number: SYS_RECVMSG,
      args: [BigInt(socket), scratch, MSG_CMSG_CLOEXEC],
    });
    const fd = this.#memory.read(scratch + BigInt(descriptorMessage.fdOffset), 4);
    return BigInt(new DataView(fd.buffer).getInt32(0, true));
  }

  /**
   * Creates memory at this address that a forked child gets as a copy. Its first page is zeroes in the child. False: the
   * process has put something there itself.
   */
  createPrivate(at: bigint, lenBytes: number): boolean {
    return this.#borrow((thread) => {
      const call = {
        name: "mmap",
        number: SYS_MMAP,
        args: [
          at,
          BigInt(lenBytes),
          PROT_READ | PROT_WRITE,
          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
          NO_FD,
          0n,
        ],
      };
      if (!this.#mapIfFree(thread, call)) return false;
      this.#must(thread, { name: "madvise", number: SYS_MADVISE, args: [at, 4096n, MADV_WIPEONFORK] });
      return true;
    });
  }

  /** The same over addresses that are reserved; `wipedBytes` from its beginning on are zeroes in a forked child. */
  createPrivateIn(at: bigint, lenBytes: number, wipedBytes: number): void {
    this.#borrow((thread) => {
      const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
      const args = [at, BigInt(lenBytes), PROT_READ | PROT_WRITE, flags, NO_FD, 0n];
      this.#must(thread, { name: "mmap", number: SYS_MMAP, args });
      if (wipedBytes === 0) return;
      const wiped = [at, BigInt(wipedBytes), MADV_WIPEONFORK];
      this.#must(thread, { name: "madvise", number: SYS_MADVISE, args: wiped });
    });
  }

  /**
   * Creates the memory of private stacks over addresses that are reserved: a copy of its own in each forked child, `guards` out of
   * reach.
   */
  createStacks(
    at: bigint,
    lenBytes: number,
    guards: readonly { readonly at: bigint; readonly lenBytes: number }[],
    key?: number,
  ): void {
    this.#borrow((thread) => {
      const fd = this.#memfd(thread, STACKS_MEMORY_NAME);
      try {
        const own = openSync(`/proc/${this.pid}/fd/${fd}`, "r+");
        ftruncateSync(own, lenBytes);
        closeSync(own);
        const flags = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED;
        const args = [at, BigInt(lenBytes), PROT_READ | PROT_WRITE, flags, fd, 0n];
        this.#must(thread, { name: "mmap", number: SYS_MMAP, args });
      } finally {
        this.#must(thread, { name: "close", number: SYS_CLOSE, args: [fd] });
      }
      if (key !== undefined)
        this.#must(thread, protectWithKeyCall({ start: at, end: at + BigInt(lenBytes) }, READ_WRITE, key));
      for (const guard of guards)
        this.#must(thread, {
          name: "mprotect",
          number: SYS_MPROTECT,
          args: [guard.at, BigInt(guard.lenBytes), PROT_NONE],
        });
    });
  }

  /**
   * Allocates a protection key that all threads have closed, and writes its number, one byte, to `recordAt` before anything
   * else is done with it. Refused where there is none, or where a thread cannot be closed.
   */
  allocateKey(recordAt: bigint): KeyGrant {
    const obstacle = findKeyObstacle();
    if (obstacle !== undefined) return { kind: "refused", refusal: obstacle };
    return this.#stopped((freeze) => {
      const borrow = <Result>(use: (thread: BorrowedThread) => Result) =>
        borrowThread(freeze, this.#memory, this.#stubAt(), this.#usesSeccomp(), use);
      const record = (number: number) => this.#memory.write(recordAt, Uint8Array.of(number));
      const tids = freeze.threads.filter(({ isFixed }) => !isFixed).map(({ tid }) => tid);
      return grantKey(borrow, tids, record);
    });
  }

  /** Gives a key back that no memory has any more. */
  freeKey(number: number): void {
    this.#borrow((thread) => this.#must(thread, freeKeyCall(number)));
  }

  /** Gives pages a key, and the rights `prot` of mprotect(2). */
  protectWithKey(range: AddrRange, prot: number, key: number): void {
    this.#borrow((thread) => this.#must(thread, protectWithKeyCall(range, prot, key)));
  }

  /** Maps code memory, read and execute only, at exactly these addresses, and says which were free. */
  createCodeWhereFree(ranges: readonly CodeRange[]): boolean[] {
    return this.#borrow((thread) =>
      ranges.map((range) => errnoOfResult(thread.call(mapCode(range))) === undefined),
    );
  }

  /** Makes system calls in the target's name and returns their raw results. */
  call(calls: readonly RemoteCall[]): bigint[] {
    return this.#borrow((thread) => calls.map((call) => thread.call(call)));
  }

  /** The process's `struct sigaction` for each signal, as the kernel has it. Needs no memory of ours in the process. */
  readSignalActions(signals: readonly number[]): Uint8Array[] {
    return this.#borrow((thread) => {
      const at = thread.answerAt;
      const saved = this.#memory.read(at, ACTION_BYTES);
      try {
        return signals.map((signal) => {
          this.#must(thread, {
            name: "rt_sigaction",
            number: SYS_RT_SIGACTION,
            args: [BigInt(signal), 0n, at, SIGSET_BYTES],
          });
          return this.#memory.read(at, ACTION_BYTES);
        });
      } finally {
        this.#memory.write(at, saved);
      }
    });
  }

  /**
   * The offset from the fs base, out of `candidates`, at which every thread holds its own id as a 32-bit number;
   * undefined when there is none. The ids are those of the target's own pid namespace.
   */
  findTidOffset(candidates: readonly number[]): number | undefined {
    return this.#stopped((freeze) =>
      candidates.find(
        (offset) =>
          ownThreads(freeze).length > 0 &&
          ownThreads(freeze).every(({ tid, regs }) => {
            const word = new Uint8Array(4);
            const at = regs.get("fsBase") + BigInt(offset);
            if (regs.get("fsBase") === 0n || this.#memory.readInto(at, word) < 4) return false;
            return new DataView(word.buffer).getInt32(0, true) === namespaceTid(this.pid, tid);
          }),
      ),
    );
  }

  /** Whether the fs base of every thread points to a word with its own address, as C libraries have it (psABI 3.4.2). */
  hasThreadPointers(): boolean {
    return this.#stopped(
      (freeze) =>
        ownThreads(freeze).length > 0 &&
        ownThreads(freeze).every(({ regs }) => {
          const word = new Uint8Array(8);
          const base = regs.get("fsBase");
          if (base === 0n || this.#memory.readInto(base, word) < 8) return false;
          return new DataView(word.buffer).getBigUint64(0, true) === base;
        }),
    );
  }

  commit(transaction: Transaction): CommitReport {
    this.lock();
    try {
      return this.#commit(transaction);
    } finally {
      this.unlock();
    }
  }

  #commit(transaction: Transaction): CommitReport {
    const blocked = transaction.usesTraps ? findTrapObstacle(this.pid) : undefined;
    if (blocked !== undefined) return { kind: "refused", reason: blocked };
    const place = {
      ...this.#freezeTarget,
      stubAt: this.#stubAt(),
      seccomp: this.#usesSeccomp(),
      mappings: () => readMaps(this.pid),
    };
    const deadline = performance.now() + BLOCKED_FOR_MS;
    for (;;) {
      const report = commit(place, transaction, this.#held);
      const isBrief = report.kind === "refused" && report.reason.kind === "sigtrap-unhandled";
      if (!isBrief || performance.now() > deadline) return report;
      // It may be a child of posix_spawn that is about to execute something.
      usleep(1000);
    }
  }

  /** Lets a command go that was started stopped. */
  release(): void {
    this.#held?.resume();
    this.#held = undefined;
  }

  close(): void {
    this.release();
    this.#memory.close();
  }

  #must(thread: BorrowedThread, call: RemoteCall): bigint {
    const result = thread.call(call);
    const code = errnoOfResult(result);
    if (code !== undefined) throw new TargetCallError(this.pid, call.name, code);
    return result;
  }

  /** False where something is mapped already. */
  #mapIfFree(thread: BorrowedThread, call: RemoteCall): boolean {
    const errno = errnoOfResult(thread.call(call));
    if (errno === undefined) return true;
    if (errno === "EEXIST") return false;
    throw new TargetCallError(this.pid, call.name, errno);
  }

  #memfd(thread: BorrowedThread, memoryName: string): bigint {
    const name = Buffer.from(`${memoryName}\0`);
    const create = (flags: bigint) =>
      thread.call({ name: "memfd_create", number: SYS_MEMFD_CREATE, args: [name, flags] });
    // Kernels before 6.3 do not know the flag that says that the memory will never be executed.
    let fd = create(MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (errnoOfResult(fd) === "EINVAL") fd = create(MFD_CLOEXEC);
    const code = errnoOfResult(fd);
    if (code !== undefined) throw new TargetCallError(this.pid, "memfd_create", code);
    return fd;
  }

  #borrow<Result>(use: (thread: BorrowedThread) => Result): Result {
    return this.#stopped(
      (freeze) => borrowThread(freeze, this.#memory, this.#stubAt(), this.#usesSeccomp(), use),
      true,
    );
  }

  #stopped<Result>(use: (freeze: Freeze) => Result, oneThread = false): Result {
    if (this.#held !== undefined) return use(this.#held);
    this.lock();
    try {
      const target = this.#freezeTarget;
      const freeze = oneThread ? Freeze.stopOne(target) : Freeze.stop(target, new Set());
      try {
        return use(freeze);
      } finally {
        freeze.resume();
      }
    } finally {
      this.unlock();
    }
  }

  get #freezeTarget(): FreezeTarget {
    return { pid: this.pid, memory: this.#memory, markAt: () => this.#stubAt() };
  }

  #usesSeccomp(): boolean {
    return readStatus(this.pid).seccomp !== "none";
  }

  /** The zero bytes behind the vDSO's code. */
  #stubAt(): bigint {
    const vdso = readMaps(this.pid).find((entry) => entry.path === "[vdso]");
    if (vdso === undefined) throw new Error(`prepare process ${this.pid}: it has no vDSO`);
    const at = vdso.end - BigInt((STUB_BYTES + 15) & ~15);
    if (this.#memory.read(at, STUB_BYTES).some((byte) => byte !== 0)) {
      // What a tracer left that was killed while it had a thread borrowed; nobody executes it any more.
      this.#memory.write(at, new Uint8Array(STUB_BYTES));
    }
    return at;
  }
}

const sharedFlags = (place: bigint | undefined): bigint =>
  MAP_SHARED | MAP_NORESERVE | (place === undefined ? 0n : MAP_FIXED);

/** Who traces the process: another tracer like this one, for a moment, or a debugger? Throws what the answer is. */
function checkAlone(pid: number): void {
  const memory = MemoryFile.open(pid);
  try {
    if (!memory.tryLock()) throw new TargetBusyError(pid, memory.findLockHolder());
    checkAttachable(pid);
  } finally {
    memory.close();
  }
}

/** Code memory that is to be at exactly this address. */
export interface CodeRange {
  readonly at: bigint;
  readonly lenBytes: number;
}

function mapCode({ at, lenBytes }: CodeRange): RemoteCall {
  return {
    name: "mmap",
    number: SYS_MMAP,
    args: [
      at,
      BigInt(lenBytes),
      PROT_READ | PROT_EXEC,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
      NO_FD,
      0n,
    ],
  };
}

/** Threads whose registers are known, without those of other processes. */
const ownThreads = (freeze: Freeze): readonly StoppedThread[] =>
  freeze.threads.filter(({ pid, isFixed }) => pid === freeze.pid && !isFixed);

function namespaceTid(pid: number, tid: number): number {
  const status = readFileSync(`/proc/${pid}/task/${tid}/status`, "latin1");
  const ids = /^NSpid:\s+(.*)$/m.exec(status)?.[1]?.trim().split(/\s+/) ?? [];
  return Number(ids[ids.length - 1] ?? tid);
}
