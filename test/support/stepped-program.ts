/**
 * A compiled program in a process of its own, run one machine instruction at a time on maps that the test shares.
 *
 * What another thread does between two instructions of a program cannot be left to chance; here the test decides.
 * The process is a fork of the test that runs nothing but generated code.
 */
import koffi from "koffi";
import type { Insn } from "../../src/bpf/index.ts";
import { RAX, RDI, RSI, RSP } from "../../src/x86/registers.ts";
import { CODE_BYTES, type NativeBpf } from "./native-bpf.ts";

const libc = koffi.load("libc.so.6");
const mmap = libc.func("intptr_t mmap(intptr_t addr, size_t len, int prot, int flags, int fd, int64_t off)");
const munmap = libc.func("int munmap(intptr_t addr, size_t len)");
const kill = libc.func("int kill(int pid, int signal)");
const waitpid = libc.func("int waitpid(int pid, intptr_t status, int options)");
const ptrace = libc.func("long ptrace(long request, int pid, intptr_t addr, intptr_t data)");
const spawnType = koffi.proto("int Spawn()");

const PTRACE_CONT = 7;
const PTRACE_SINGLESTEP = 9;
const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_SETOPTIONS = 0x4200;
const PTRACE_O_EXITKILL = 0x100000;
const SIGTRAP = 5;
const SIGKILL = 9;
const WAIT_ALL = 0x40000000;

export interface ForkedMemory extends Disposable {
  readonly at: bigint;
  readonly bytes: Uint8Array;
}

/** Memory that a process shares with what it forks: code, and `lenBytes` bytes more. */
export function forkedMemory(lenBytes: number): ForkedMemory {
  const MAP_SHARED_ANONYMOUS = 0x21;
  const total = CODE_BYTES + lenBytes;
  const at = BigInt(mmap(0n, total, 7, MAP_SHARED_ANONYMOUS, -1, 0) as number | bigint);
  return {
    at,
    bytes: new Uint8Array(koffi.view(at, total)),
    [Symbol.dispose]: () => {
      munmap(at, total);
    },
  };
}

/** Calls generated code that forks, as `int spawn()`; returns the process id. */
export function callSpawn(at: bigint): number {
  return koffi.call(at, spawnType) as number;
}

export function killAndWait(pid: number): void {
  kill(pid, SIGKILL);
  if (waitpid(pid, 0n, WAIT_ALL) !== pid) throw new Error(`wait for process ${pid}: it is gone`);
}

/** Offsets in the memory at `control`, shared with the process: its registers and its stack lie there too. */
const RESULT = 0;
const RUNS = 8;
const STATUS = 16;
const REGISTERS = 64;
/** Size of struct user_regs_struct. */
const REGISTER_BYTES = 216;
const STACK_END = 4096;
export const CONTROL_BYTES = STACK_END;

export class SteppedProgram implements Disposable {
  readonly #pid: number;
  readonly #memory: Uint8Array;
  readonly #control: DataView;
  readonly #controlAt: bigint;
  #saved: { readonly memory: Uint8Array; readonly registers: Uint8Array } | undefined;
  #isAlive = true;

  /** `control` is the offset of CONTROL_BYTES in `memory`. r1 of the program is a context whose slot 0 is `word`. */
  constructor(
    native: NativeBpf,
    memory: ForkedMemory,
    control: number,
    insns: readonly Insn[],
    word: bigint,
  ) {
    this.#control = new DataView(memory.bytes.buffer, memory.bytes.byteOffset + control, CONTROL_BYTES);
    const controlAt = memory.at + BigInt(control);
    this.#controlAt = controlAt;
    this.#memory = memory.bytes.subarray(CODE_BYTES);
    const proof = native.prove(insns);
    const [SYS_FORK, SYS_PRCTL, SYS_PTRACE, PR_SET_PDEATHSIG] = [57, 157, 101, 1];
    const { asm, written } = native.place((a, unit) => {
      const program = unit.emit({ name: "stepped", insns }, proof, { keepsResult: true });
      const entry = a.here("spawn");
      const child = a.label("child");
      a.movImm(RAX, SYS_FORK);
      a.syscall();
      a.test(RAX, RAX);
      a.jcc("e", child);
      a.ret();
      a.bind(child);
      a.movImm(RAX, SYS_PRCTL);
      a.movImm(RDI, PR_SET_PDEATHSIG);
      a.movImm(RSI, SIGKILL);
      a.syscall();
      a.movImm(RAX, SYS_PTRACE);
      a.zero(RDI);
      a.syscall();
      a.movImm(RSP, controlAt + BigInt(STACK_END - 168));
      a.movImm(RAX, word);
      a.mov({ base: RSP }, RAX);
      const again = a.here("again");
      a.int3();
      a.call(program.entry);
      a.movImm(RDI, controlAt);
      a.mov({ base: RDI, disp: RESULT }, RAX);
      a.inc({ base: RDI, disp: RUNS });
      a.jmp(again);
      return entry;
    });
    this.#pid = callSpawn(asm.addressOf(written));
    this.#wait();
    ptrace(PTRACE_SETOPTIONS, this.#pid, 0n, BigInt(PTRACE_O_EXITKILL));
  }

  /** Keeps the state of the process and of all shared memory, for `advance` to return to. */
  save(): void {
    ptrace(PTRACE_GETREGS, this.#pid, 0n, this.#controlAt + BigInt(REGISTERS));
    this.#saved = { memory: this.#memory.slice(), registers: this.#registers.slice() };
  }

  /** Returns to the state that was saved, runs one instruction more and saves that; false if the program has ended. */
  advance(): boolean {
    this.restore();
    const runs = this.#control.getBigUint64(RUNS, true);
    ptrace(PTRACE_SINGLESTEP, this.#pid, 0n, 0n);
    this.#wait();
    if (this.#control.getBigUint64(RUNS, true) !== runs) return false;
    this.save();
    return true;
  }

  /** Returns to the state that was saved. */
  restore(): void {
    if (this.#saved === undefined) throw new Error("restore: nothing was saved");
    const { memory, registers } = this.#saved;
    this.#registers.set(registers);
    ptrace(PTRACE_SETREGS, this.#pid, 0n, this.#controlAt + BigInt(REGISTERS));
    this.#memory.set(memory);
  }

  get #registers(): Uint8Array {
    return new Uint8Array(this.#control.buffer, this.#control.byteOffset + REGISTERS, REGISTER_BYTES);
  }

  /** Lets the program run to its end; returns r0, signed. */
  finish(): bigint {
    this.#resume();
    return this.#control.getBigInt64(RESULT, true);
  }

  /** Kills the process where it stands. */
  kill(): void {
    if (this.#isAlive) killAndWait(this.#pid);
    this.#isAlive = false;
  }

  #resume(): void {
    ptrace(PTRACE_CONT, this.#pid, 0n, 0n);
    this.#wait();
  }

  #wait(): void {
    const pid = waitpid(this.#pid, this.#controlAt + BigInt(STATUS), WAIT_ALL) as number;
    const status = this.#control.getInt32(STATUS, true);
    if (pid === this.#pid && (status & 0xff) === 0x7f && status >> 8 === SIGTRAP) return;
    this.#isAlive = false;
    throw new Error(`stepped program: wait ${pid}, status 0x${status.toString(16)}`);
  }

  [Symbol.dispose](): void {
    this.kill();
  }
}
