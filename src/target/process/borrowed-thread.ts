/**
 * Borrowing a stopped thread of the target to make system calls in its name.
 *
 * The thread is pointed at a stub, runs one `syscall` instruction between two stops, and gets its registers back.
 * The invariant: should the tracer be killed at any moment, the thread goes on unharmed by itself. So the stub does
 * not end in a trap; behind the `syscall` it puts the registers back that the call has changed, from constants
 * beside it, and jumps to where the thread was. Neither the stack nor any other memory of the thread is touched.
 *
 *     stub:   0f 05                     syscall
 *             48 8b 05 rel32            mov rax, [rip + saved rax]
 *             ...                       rcx, rdx, rsi, rdi, r8, r9, r10, r11
 *             ff 25 rel32               jmp [rip + saved rip]
 *     saved:  ten words
 *
 * The stub stands in the zero bytes behind the vDSO's code: a page of the process's own once it is written to, never
 * executed by anybody else, and there before the target holds any memory of ours. Flags survive because `syscall`
 * itself keeps them (SDM 2B, SYSCALL: r11 to RFLAGS at SYSRET), vector state because the kernel keeps it.
 */
import type { RemoteCall } from "../target.ts";
import type { Freeze, StoppedThread } from "./freeze.ts";
import type { MemoryFile } from "./memory-file.ts";
import * as ptrace from "./ptrace.ts";
import { type UserRegName, type UserRegs, withRestartApplied } from "./user-regs.ts";

/** ModRM `mod=00 rm=101` with the register in bits 3 to 5: a rip-relative operand; REX.R for r8 and up. */
const restored: readonly { readonly name: UserRegName; readonly rex: number; readonly modrm: number }[] = [
  { name: "rax", rex: 0x48, modrm: 0x05 },
  { name: "rcx", rex: 0x48, modrm: 0x0d },
  { name: "rdx", rex: 0x48, modrm: 0x15 },
  { name: "rsi", rex: 0x48, modrm: 0x35 },
  { name: "rdi", rex: 0x48, modrm: 0x3d },
  { name: "r8", rex: 0x4c, modrm: 0x05 },
  { name: "r9", rex: 0x4c, modrm: 0x0d },
  { name: "r10", rex: 0x4c, modrm: 0x15 },
  { name: "r11", rex: 0x4c, modrm: 0x1d },
];

const MOV_BYTES = 7;
const JMP_BYTES = 6;
const SAVED_AT = (2 + restored.length * MOV_BYTES + JMP_BYTES + 7) & ~7;

const STUB_CODE_BYTES = SAVED_AT + (restored.length + 1) * 8;
/** Room behind the stub for the bytes that a call's arguments point to. */
const STUB_DATA_BYTES = 128;

/** Beyond the red zone's 128 bytes (psABI, 3.2.2), with room for an answer. */
const ANSWER_BELOW_RSP = 512n;

/** Room that a stub takes, in bytes. */
export const STUB_BYTES = STUB_CODE_BYTES + STUB_DATA_BYTES;

/** The stub's bytes for a thread whose registers, with any interrupted system call set up to be restarted, are `home`. */
export function encodeStub(home: UserRegs): Uint8Array {
  const bytes = new Uint8Array(STUB_CODE_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set([0x0f, 0x05]);
  let at = 2;
  restored.forEach((reg, index) => {
    const slot = SAVED_AT + index * 8;
    bytes.set([reg.rex, 0x8b, reg.modrm], at);
    view.setInt32(at + 3, slot - (at + MOV_BYTES), true);
    view.setBigUint64(slot, home.get(reg.name), true);
    at += MOV_BYTES;
  });
  const ripSlot = SAVED_AT + restored.length * 8;
  bytes.set([0xff, 0x25], at);
  view.setInt32(at + 2, ripSlot - (at + JMP_BYTES), true);
  view.setBigUint64(ripSlot, home.get("rip"), true);
  return bytes;
}

/** The borrowed thread did something else than to make the call. */
export class RemoteCallError extends Error {
  readonly code = "remote-call";
  constructor(call: RemoteCall, tid: number, what: string) {
    super(`make system call ${call.name} in thread ${tid}: ${what}`);
    this.name = "RemoteCallError";
  }
}

const argRegs: readonly UserRegName[] = ["rdi", "rsi", "rdx", "r10", "r8", "r9"];

/**
 * Borrows a thread of the stopped process for the time of `use`, and leaves it stopped with the registers it had.
 * `stubAt` is the place for the stub; `seccomp` says that filters must be suspended for the calls.
 */
export function borrowThread<Result>(
  freeze: Freeze,
  memory: MemoryFile,
  stubAt: bigint,
  seccomp: boolean,
  use: (thread: BorrowedThread) => Result,
): Result {
  const thread = chooseThread(freeze);
  const borrowed = new BorrowedThread(thread, memory, stubAt);
  try {
    if (seccomp && !ptrace.trySuspendSeccomp(thread.tid)) throw new SeccompError(freeze.pid);
    return use(borrowed);
  } finally {
    borrowed.giveBack();
    borrowed.clearStub();
  }
}

/** The target runs under seccomp, and the tracer may not suspend its filters. */
export class SeccompError extends Error {
  readonly code = "seccomp";
  constructor(pid: number) {
    super(
      `attach to process ${pid}: it runs under a seccomp filter, which could kill it for the system calls that attaching needs; ` +
        "suspending the filter needs CAP_SYS_ADMIN: run trapline as root",
    );
    this.name = "SeccompError";
  }
}

/** A thread in user mode is best: it has no system call that would have to be restarted. */
function chooseThread(freeze: Freeze): StoppedThread {
  // Not a thread of another process with the same memory: it has descriptors and signal actions of its own.
  const threads = freeze.threads.filter(({ pid, isFixed }) => pid === freeze.pid && !isFixed);
  const thread = threads.find(({ regs }) => regs.getSigned("origRax") < 0n) ?? threads[0];
  if (thread === undefined) throw new NoThreadError(freeze.pid);
  return thread;
}

/** All threads of the process have ended, or wait in vfork. */
export class NoThreadError extends Error {
  readonly code = "no-thread";
  constructor(pid: number) {
    super(`no thread of process ${pid} is left to make a system call`);
    this.name = "NoThreadError";
  }
}

export class BorrowedThread {
  readonly #thread: StoppedThread;
  readonly #memory: MemoryFile;
  readonly #stubAt: bigint;

  constructor(thread: StoppedThread, memory: MemoryFile, stubAt: bigint) {
    this.#thread = thread;
    this.#memory = memory;
    this.#stubAt = stubAt;
    this.#writeStub();
  }

  get tid(): number {
    return this.#thread.tid;
  }

  call(call: RemoteCall): bigint {
    for (;;) {
      this.#aim(call);
      ptrace.contToSyscall(this.#thread.tid, 0);
      const event = ptrace.wait(this.#thread.tid, true)!;
      if (event.kind === "syscall") break;
      if (event.kind === "signal") this.#enterHandler(event.signal);
      else if (event.kind !== "trap-stop")
        throw new RemoteCallError(call, this.#thread.tid, `thread reported ${event.kind}`);
    }
    // From the entry of the call to its exit, nothing else can happen but the end of the thread.
    ptrace.contToSyscall(this.#thread.tid, 0);
    const event = ptrace.wait(this.#thread.tid, true)!;
    if (event.kind !== "syscall")
      throw new RemoteCallError(call, this.#thread.tid, `thread reported ${event.kind}`);
    return ptrace.getRegs(this.#thread.tid).getSigned("rax");
  }

  /**
   * Memory that a call may write its answer to: below the thread's red zone, where a signal's frame would go. To be put back
   * as it was.
   */
  get answerAt(): bigint {
    return (this.#thread.regs.get("rsp") - ANSWER_BELOW_RSP) & ~15n;
  }

  /**
   * Puts the thread's registers back and stops it in an event stop: only there does the kernel look at an interrupted
   * system call again when it is resumed.
   */
  giveBack(): void {
    // The interrupt comes first: should the tracer die in between, the thread passes the kernel's restart logic all the same.
    ptrace.tryInterrupt(this.#thread.tid);
    ptrace.setRegs(this.#thread.tid, this.#thread.regs);
    ptrace.cont(this.#thread.tid, 0);
    this.#awaitEventStop();
  }

  clearStub(): void {
    this.#memory.write(this.#stubAt, new Uint8Array(STUB_BYTES));
  }

  #writeStub(): void {
    this.#memory.write(this.#stubAt, encodeStub(withRestartApplied(this.#thread.regs)));
  }

  #aim(call: RemoteCall): void {
    const regs = this.#thread.regs.copy();
    regs.set("rip", this.#stubAt);
    regs.set("rax", BigInt(call.number));
    // Not in a system call, as far as the kernel's restart logic is concerned.
    regs.set("origRax", -1n);
    let dataAt = this.#stubAt + BigInt(STUB_CODE_BYTES);
    argRegs.forEach((name, index) => {
      const arg = call.args[index] ?? 0n;
      if (typeof arg === "bigint") {
        regs.set(name, arg);
        return;
      }
      this.#memory.write(dataAt, arg);
      regs.set(name, dataAt);
      dataAt += BigInt((arg.length + 7) & ~7);
    });
    ptrace.setRegs(this.#thread.tid, regs);
  }

  /** A signal wants to be delivered: the thread takes it as itself, and is borrowed again at the handler's first instruction. */
  #enterHandler(signal: number): void {
    ptrace.setRegs(this.#thread.tid, this.#thread.regs);
    ptrace.tryInterrupt(this.#thread.tid);
    ptrace.cont(this.#thread.tid, signal);
    this.#awaitEventStop();
    this.#writeStub();
  }

  #awaitEventStop(): void {
    for (;;) {
      const event = ptrace.wait(this.#thread.tid, true)!;
      if (event.kind === "trap-stop") break;
      if (event.kind === "ended") throw new Error(`thread ${this.#thread.tid} ended while it was borrowed`);
      ptrace.tryInterrupt(this.#thread.tid);
      ptrace.cont(this.#thread.tid, event.kind === "signal" ? event.signal : 0);
    }
    this.#thread.regs = ptrace.getRegs(this.#thread.tid);
  }
}
