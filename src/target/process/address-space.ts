/**
 * Who executes in the memory of a process: besides its own threads, every process that was cloned with CLONE_VM and not as
 * a thread, and a child of vfork or posix_spawn until it becomes another program. All of them run the same text, so all of
 * them have to stand while it is changed.
 *
 * The kernel tells by kcmp(2) whether two processes have one memory. Where it may not be asked (a container's filter may
 * forbid it), a mark is set in the process's memory and looked for in the other's.
 *
 * A process comes to share memory only when it is made, and ceases to when it execs or ends. So whoever was once asked and
 * does not share needs not be asked again.
 */
import { readdirSync, readFileSync } from "node:fs";
import { kcmpVm, usleep } from "./libc.ts";
import { MemoryFile } from "./memory-file.ts";
import { processFolder } from "./proc-fs.ts";

const SYS_VFORK = 58;
const SYS_CLONE = 56;
const SYS_CLONE3 = 435;
const CLONE_VM = 0x100n;
const CLONE_VFORK = 0x4000n;

/** Memory of ours, or of nobody's, in the process where a mark may stand for a moment: 8 bytes of zero. */
export type MarkPlace = () => bigint | undefined;

export class AddressSpace {
  readonly pid: number;
  readonly #memory: MemoryFile;
  readonly #markAt: MarkPlace;
  /** A thread that has the memory: the first one has not when it has ended. */
  #owner: number;
  /** Processes that were asked, and whether they share. */
  readonly #asked = new Map<number, boolean>();

  constructor(pid: number, memory: MemoryFile, markAt: MarkPlace) {
    this.pid = pid;
    this.#owner = pid;
    this.#memory = memory;
    this.#markAt = markAt;
  }

  /** Looks at all processes that have come since the last time. Returns those that share the memory and are new. */
  findNew(): number[] {
    const found: number[] = [];
    this.#owner = ownerOf(this.pid);
    for (const name of readdirSync("/proc")) {
      const other = Number(name);
      if (!Number.isInteger(other) || other === this.pid || this.#asked.has(other)) continue;
      const shares = other !== process.pid && this.shares(other);
      this.#asked.set(other, shares);
      if (shares) found.push(other);
    }
    return found;
  }

  /** Whether a process has the memory now. */
  shares(other: number): boolean {
    const answer = kcmpVm(this.#owner, other);
    // To have no memory at all, as what has ended and the kernel's own threads, is no common memory.
    return answer === "unknown" ? this.#sharesMark(other) : answer === "same" && hasMemory(other);
  }

  #sharesMark(other: number): boolean {
    const at = this.#markAt();
    if (at === undefined) return false;
    let theirs: MemoryFile;
    try {
      theirs = MemoryFile.open(other, "r");
    } catch {
      return false;
    }
    const mark = new Uint8Array(8);
    crypto.getRandomValues(mark);
    const found = new Uint8Array(8);
    try {
      this.#memory.write(at, mark);
      return theirs.readInto(at, found) === 8 && Buffer.compare(found, mark) === 0;
    } finally {
      this.#memory.write(at, new Uint8Array(8));
      theirs.close();
    }
  }
}

const ownerOf = (pid: number): number => Number(processFolder(pid).split("/").at(-1));

const hasMemory = (pid: number): boolean => readIfThere(`${processFolder(pid)}/maps`) !== "";

/** Where a thread stands in user mode that waits for its child of vfork to exec or to end. */
export interface VforkWait {
  readonly ip: bigint;
  readonly sp: bigint;
}

/**
 * Whether the thread waits in the kernel for a child that has the same memory; the kernel lets it do nothing else until
 * that child has become another program or has ended (kernel/fork.c, wait_for_vfork_done).
 */
export function findVforkWait(pid: number, tid: number, memory: MemoryFile): VforkWait | undefined {
  const task = `/proc/${pid}/task/${tid}`;
  // Of the states only the one that cannot be interrupted: reading `syscall` of a thread that runs says nothing.
  if (!/\) D /.test(readIfThere(`${task}/stat`))) return undefined;
  // Number, six arguments, stack pointer, instruction pointer.
  const words = readIfThere(`${task}/syscall`).trim().split(" ");
  if (words.length !== 9) return undefined;
  const flags = cloneFlags(Number(words[0]), BigInt(words[1]!), memory);
  if ((flags & CLONE_VM) === 0n || (flags & CLONE_VFORK) === 0n) return undefined;
  return { sp: BigInt(words[7]!), ip: BigInt(words[8]!) };
}

function cloneFlags(call: number, first: bigint, memory: MemoryFile): bigint {
  switch (call) {
    case SYS_VFORK:
      return CLONE_VM | CLONE_VFORK;
    case SYS_CLONE:
      return first;
    case SYS_CLONE3: {
      // struct clone_args begins with the flags.
      const word = new Uint8Array(8);
      return memory.readInto(first, word) === 8 ? new DataView(word.buffer).getBigUint64(0, true) : 0n;
    }
    default:
      return 0n;
  }
}

/** A child of vfork that is there: to be named when it lasts too long. */
export function findVforkChild(pid: number): { readonly pid: number; readonly name: string } | undefined {
  for (const child of readIfThere(`/proc/${pid}/task/${pid}/children`).trim().split(" ")) {
    if (child === "" || kcmpVm(ownerOf(pid), Number(child)) !== "same") continue;
    return { pid: Number(child), name: readIfThere(`/proc/${child}/comm`).trim() };
  }
  return undefined;
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

/** A process that is being ended gives up its memory before it is gone: waits a moment to tell that from other failures. */
export function isEnding(pid: number): boolean {
  const GRACE_MS = 200;
  for (let waitedMs = 0; ; waitedMs++) {
    const state = endingState(pid);
    if (state !== "unsure") return state === "ending";
    if (waitedMs >= GRACE_MS) return false;
    usleep(1000);
  }
}

function endingState(pid: number): "ending" | "unsure" {
  const PF_EXITING = 4;
  let threads: string[];
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    return "ending";
  }
  const live = threads.filter((tid) => {
    const stat = readIfThere(`/proc/${pid}/task/${tid}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return stat !== "" && !/[ZX]/.test(fields[0]!) && (Number(fields[6]) & PF_EXITING) === 0;
  });
  return live.length === 0 ? "ending" : "unsure";
}
