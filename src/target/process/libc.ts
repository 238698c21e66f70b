/**
 * The C library calls that the tracer makes itself, through koffi. This is the FFI boundary of the process target:
 * every call returns plain numbers, and a failure becomes a `SystemError` with the name of the errno.
 */
import koffi from "koffi";

const lib = koffi.load("libc.so.6");

const errnoNames = new Map<number, string>(
  Object.entries(koffi.os.errno).map(([name, value]) => [value as number, name]),
);

/** A system call of the tracer failed. `code` is the errno's name. */
export class SystemError extends Error {
  readonly code: string;
  readonly operation: string;

  constructor(operation: string, errno: number) {
    const code = errnoNames.get(errno) ?? `errno ${errno}`;
    super(`${operation}: ${code}`);
    this.name = "SystemError";
    this.code = code;
    this.operation = operation;
  }
}

export const errno = (): number => koffi.errno();
export const errnoName = (value: number): string => errnoNames.get(value) ?? `errno ${value}`;

/** Result of a raw system call in the target: a negative errno becomes its name. */
export function errnoOfResult(result: bigint): string | undefined {
  return result < 0n && result > -4096n ? errnoName(Number(-result)) : undefined;
}

/** ptrace with plain numbers for addr and data. */
export const ptraceRaw = lib.func("long ptrace(long request, int pid, uintptr_t addr, uintptr_t data)") as (
  request: number,
  pid: number,
  addr: number | bigint,
  data: number | bigint,
) => number;

/** ptrace with a buffer as data. */
export const ptraceBuffer = lib.func("long ptrace(long request, int pid, uintptr_t addr, void *data)") as (
  request: number,
  pid: number,
  addr: number | bigint,
  data: Uint8Array,
) => number;

/** Memory for a register set of ptrace: a `struct iovec`, and behind it what that describes. Kept for the tracer's life. */
export class RegisterSet {
  /** Address of the iovec. */
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly #iovec: DataView;

  constructor(capacityBytes: number) {
    const IOVEC_BYTES = 16;
    const memory = koffi.alloc("uint8_t", IOVEC_BYTES + capacityBytes);
    this.at = koffi.address(memory);
    const buffer = koffi.view(memory, IOVEC_BYTES + capacityBytes);
    this.#iovec = new DataView(buffer, 0, IOVEC_BYTES);
    this.#iovec.setBigUint64(0, this.at + BigInt(IOVEC_BYTES), true);
    this.bytes = new Uint8Array(buffer, IOVEC_BYTES);
  }

  /** How much there is room for, and after a read how much there is. */
  get lenBytes(): number {
    return Number(this.#iovec.getBigUint64(8, true));
  }

  set lenBytes(value: number) {
    this.#iovec.setBigUint64(8, BigInt(value), true);
  }
}

export const waitpidRaw = lib.func("int waitpid(int pid, void *status, int options)") as (
  pid: number,
  status: Int32Array,
  options: number,
) => number;

const schedGetScheduler = lib.func("int sched_getscheduler(int pid)") as (pid: number) => number;
const schedSetScheduler = lib.func("int sched_setscheduler(int pid, int policy, void *param)") as (
  pid: number,
  policy: number,
  param: Uint8Array,
) => number;

/**
 * Lets the calling thread run before all ordinary threads of the machine, or makes it an ordinary one again (sched(7)).
 * Returns whether that was done: it needs CAP_SYS_NICE, and is not done to a thread with a policy of its own.
 */
export function setRealTime(on: boolean): boolean {
  const SCHED_OTHER = 0;
  const SCHED_FIFO = 1;
  const [from, to] = on ? [SCHED_OTHER, SCHED_FIFO] : [SCHED_FIFO, SCHED_OTHER];
  if (schedGetScheduler(0) !== from) return false;
  // struct sched_param: the priority, 1 is the lowest of the real-time ones.
  const param = new Uint8Array(Int32Array.of(on ? 1 : 0).buffer);
  return schedSetScheduler(0, to, param) === 0;
}

export const usleep = lib.func("int usleep(unsigned int usec)") as (usec: number) => number;

const flockRaw = lib.func("int flock(int fd, int operation)") as (fd: number, operation: number) => number;
const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;
const EWOULDBLOCK = 11;

/** Takes the lock of an open file for this process alone, unless another process has it. */
export function tryLockFile(fd: number): boolean {
  if (flockRaw(fd, LOCK_EX | LOCK_NB) === 0) return true;
  if (errno() !== EWOULDBLOCK) throw new SystemError("flock", errno());
  return false;
}

export function unlockFile(fd: number): void {
  flockRaw(fd, LOCK_UN);
}

export const killRaw = lib.func("int kill(int pid, int sig)") as (pid: number, sig: number) => number;

const mmapRaw = lib.func("void *mmap(void *addr, size_t len, int prot, int flags, int fd, long off)") as (
  addr: null,
  len: number,
  prot: number,
  flags: number,
  fd: number,
  off: number,
) => unknown;
const munmapRaw = lib.func("int munmap(void *addr, size_t len)") as (addr: unknown, len: number) => number;

const syscall3 = lib.func("long syscall(long number, long a, long b, long c)") as (
  number: number,
  a: number,
  b: number,
  c: number,
) => number;
const futexRaw = lib.func("long syscall(long number, void *addr, long op, long value)") as (
  number: number,
  addr: Uint8Array,
  op: number,
  value: number,
) => number;

const pollRaw = lib.func("int poll(void *fds, unsigned long count, int timeout)") as (
  fds: Uint8Array,
  count: number,
  timeoutMs: number,
) => number;

const spawnRaw = lib.func(
  "int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attributes, const char **argv, const char **envp)",
) as (
  pid: number[],
  path: string,
  actions: Uint8Array,
  attributes: Uint8Array,
  argv: (string | null)[],
  envp: (string | null)[],
) => number;
const spawnActionsInit = lib.func("int posix_spawn_file_actions_init(void *actions)") as (
  actions: Uint8Array,
) => number;
const spawnActionsDup = lib.func(
  "int posix_spawn_file_actions_adddup2(void *actions, int fd, int newfd)",
) as (actions: Uint8Array, fd: number, newFd: number) => number;
const spawnActionsDestroy = lib.func("int posix_spawn_file_actions_destroy(void *actions)") as (
  actions: Uint8Array,
) => number;
const spawnAttrInit = lib.func("int posix_spawnattr_init(void *attributes)") as (
  attributes: Uint8Array,
) => number;
const spawnAttrFlags = lib.func("int posix_spawnattr_setflags(void *attributes, short flags)") as (
  attributes: Uint8Array,
  flags: number,
) => number;
const spawnAttrMask = lib.func("int posix_spawnattr_setsigmask(void *attributes, void *mask)") as (
  attributes: Uint8Array,
  mask: Uint8Array,
) => number;
const spawnAttrDefault = lib.func("int posix_spawnattr_setsigdefault(void *attributes, void *mask)") as (
  attributes: Uint8Array,
  mask: Uint8Array,
) => number;

/** A shared mapping of a whole file; the view is valid until `unmap`. */
export interface Mapping {
  readonly buffer: ArrayBuffer;
  unmap(): void;
}

/** Maps `lenBytes` of an open file, shared, readable and writable. */
export function mapShared(fd: number, lenBytes: number): Mapping {
  const PROT_READ_WRITE = 3;
  const MAP_SHARED = 1;
  const pointer = mmapRaw(null, lenBytes, PROT_READ_WRITE, MAP_SHARED, fd, 0);
  if (koffi.address(pointer as never) === 0xffff_ffff_ffff_ffffn) throw new SystemError("mmap", errno());
  const buffer = koffi.view(pointer as never, lenBytes);
  return {
    buffer,
    unmap() {
      munmapRaw(pointer, lenBytes);
    },
  };
}

const syscall4 = lib.func("long syscall(long number, long a, long b, long c, long d)") as (
  number: number,
  a: number,
  b: number,
  c: number,
  d: number,
) => number;
const sendmsgRaw = lib.func("long sendmsg(int fd, void *message, int flags)") as (
  fd: number,
  message: unknown,
  flags: number,
) => number;

const syscall5 = lib.func("long syscall(long number, long a, long b, long c, long d, long e)") as (
  number: number,
  a: number,
  b: number,
  c: number,
  d: number,
  e: number,
) => number;

/** Whether two processes have one memory; `unknown` where the kernel may not be asked (kcmp(2)). */
export function kcmpVm(pid: number, other: number): "same" | "different" | "unknown" {
  const SYS_KCMP = 312;
  const KCMP_VM = 1;
  const result = syscall5(SYS_KCMP, pid, other, KCMP_VM, 0, 0);
  if (result >= 0) return result === 0 ? "same" : "different";
  const code = errnoName(errno());
  if (code === "ESRCH") return "different";
  // Not permitted for this process, or forbidden for all.
  return code === "EPERM" && canCompare() ? "different" : "unknown";
}

let comparable: boolean | undefined;

/** Whether the kernel answers at all: it does about the tracer itself, if no filter forbids it. */
function canCompare(): boolean {
  const SYS_KCMP = 312;
  const KCMP_VM = 1;
  comparable ??= syscall5(SYS_KCMP, process.pid, process.pid, KCMP_VM, 0, 0) === 0;
  return comparable;
}

const SYS_PIDFD_GETFD = 438;
const SYS_PIDFD_OPEN = 434;
const SYS_FUTEX = 202;

/** A descriptor that stands for the process, whatever later gets its number. */
export function openPidFd(pid: number): number {
  const fd = syscall3(SYS_PIDFD_OPEN, pid, 0, 0);
  if (fd < 0) throw new SystemError(`pidfd_open ${pid}`, errno());
  return fd;
}

/**
 * How many protection keys a process like this one could still have: all that there are, allocated and given back. 0 too if there
 * are none at all, or the call is not let through.
 */
export function countFreeKeys(): number {
  const SYS_PKEY_ALLOC = 330;
  const SYS_PKEY_FREE = 331;
  const PKEY_DISABLE_ACCESS = 1;
  const keys: number[] = [];
  for (;;) {
    const key = syscall3(SYS_PKEY_ALLOC, 0, PKEY_DISABLE_ACCESS, 0);
    if (key < 0) break;
    keys.push(key);
  }
  for (const key of keys) syscall3(SYS_PKEY_FREE, key, 0, 0);
  return keys.length;
}

/** Whether the process behind the descriptor has ended. */
export function pidFdEnded(fd: number): boolean {
  const POLLIN = 1;
  const poll = Buffer.alloc(8);
  poll.writeInt32LE(fd, 0);
  poll.writeInt16LE(POLLIN, 4);
  return pollRaw(poll, 1, 0) > 0;
}

/** Wakes everybody who waits on a word of shared memory. */
export function futexWakeAll(word: Uint8Array): void {
  const FUTEX_WAKE = 1;
  futexRaw(SYS_FUTEX, word, FUTEX_WAKE, 0x7fff_ffff);
}

/** Starts a program that Node does not know about: Node would reap the stops that ptrace reports for its children. */
export function spawnUnmanaged(path: string, argv: readonly string[], env: readonly string[]): number {
  const POSIX_SPAWN_SETSIGDEF = 4;
  const POSIX_SPAWN_SETSIGMASK = 8;
  const attributes = new Uint8Array(512);
  spawnAttrInit(attributes);
  spawnAttrFlags(attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  spawnAttrMask(attributes, new Uint8Array(128));
  spawnAttrDefault(attributes, new Uint8Array(128).fill(0xff));
  // Node opens its three standard descriptors if they are not, and marks them to be closed on exec; copied onto
  // themselves they stay open.
  const actions = new Uint8Array(256);
  spawnActionsInit(actions);
  for (const fd of [0, 1, 2]) spawnActionsDup(actions, fd, fd);
  const pid = [0];
  const error = spawnRaw(pid, path, actions, attributes, [...argv, null], [...env, null]);
  spawnActionsDestroy(actions);
  if (error !== 0) throw new SystemError(`posix_spawn ${path}`, error);
  return pid[0]!;
}

/** A descriptor of ours for what another process has open; needs the right to trace it. */
export function takeDescriptor(pidFd: number, theirs: number): number {
  const fd = syscall4(SYS_PIDFD_GETFD, pidFd, theirs, 0, 0);
  if (fd < 0) throw new SystemError("pidfd_getfd", errno());
  return fd;
}

/** Sends a descriptor, with one byte, through a socket (unix(7), SCM_RIGHTS). */
export function sendDescriptor(socket: number, fd: number): void {
  const memory = koffi.alloc("uint8_t", descriptorMessage.totalBytes);
  try {
    const view = new DataView(koffi.view(memory, descriptorMessage.totalBytes));
    writeDescriptorMessage(view, koffi.address(memory), fd);
    if (sendmsgRaw(socket, memory, 0) < 0) throw new SystemError("sendmsg", errno());
  } finally {
    koffi.free(memory);
  }
}

/** A `struct msghdr` with room for one byte and one descriptor, and what it points to, in one piece of memory. */
export const descriptorMessage = {
  totalBytes: 104,
  /** Offset of the descriptor in the memory. */
  fdOffset: 96,
} as const;

/**
 * Writes the message for memory that lies at `at`. Layout, all little-endian 64-bit words unless noted:
 * msghdr { name 0, namelen 0, iov +16, iovlen +24, control +32, controllen +40, flags +48 }, iovec { base +56, len +64 },
 * the byte +72, cmsghdr { len +80, level u32 +88, type u32 +92 }, the descriptor u32 +96.
 */
export function writeDescriptorMessage(view: DataView, at: bigint, fd: number): void {
  const SOL_SOCKET = 1;
  const SCM_RIGHTS = 1;
  const word = (offset: number, value: bigint) => view.setBigUint64(offset, value, true);
  for (let offset = 0; offset < descriptorMessage.totalBytes; offset += 8) word(offset, 0n);
  word(16, at + 56n);
  word(24, 1n);
  word(32, at + 80n);
  word(40, 24n);
  word(56, at + 72n);
  word(64, 1n);
  word(80, 20n);
  view.setUint32(88, SOL_SOCKET, true);
  view.setUint32(92, SCM_RIGHTS, true);
  view.setInt32(96, fd, true);
}
