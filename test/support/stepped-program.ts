/**
 * A compiled program in a process of its own, run one machine instruction at a time on maps that the test shares.
 *
 * What another thread does between two instructions of a program cannot be left to chance; here the test decides.
 * The process is a fork of the test that runs nothing but generated code.
 */
import koffi from "koffi";
import type { Insn } from "../../src/bpf/index.ts";
import { R10, R12, R13, RAX, RBX, RCX, RDI, RDX, RSI, RSP } from "../../src/x86/registers.ts";
import { CODE_BYTES, type NativeBpf } from "./native-bpf.ts";

const libc = koffi.load("libc.so.6");
const mmap = libc.func("intptr_t mmap(intptr_t addr, size_t len, int prot, int flags, int fd, int64_t off)");
const munmap = libc.func("int munmap(intptr_t addr, size_t len)");
const kill = libc.func("int kill(int pid, int signal)");
const waitpid = libc.func("int waitpid(int pid, intptr_t status, int options)");
const ptrace = libc.func("long ptrace(long request, int pid, intptr_t addr, intptr_t data)");
const spawnType = koffi.proto("int Spawn()");
const stepType = koffi.proto("int Step(int pid, int64_t count)");

const PTRACE_CONT = 7;
const PTRACE_SINGLESTEP = 9;
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

/** Words of the memory at `control`, shared with the process. */
const RESULT = 0;
const RUNS = 8;
const STATUS = 16;
export const CONTROL_BYTES = 64;

export class SteppedProgram implements Disposable {
  readonly #pid: number;
  readonly #control: DataView;
  readonly #statusAt: bigint;
  readonly #stepper: bigint;
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
    this.#statusAt = controlAt + BigInt(STATUS);
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
      a.subImm(RSP, 168);
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
    this.#stepper = emitStepper(native, controlAt);
    this.#pid = callSpawn(asm.addressOf(written));
    this.#wait();
    ptrace(PTRACE_SETOPTIONS, this.#pid, 0n, BigInt(PTRACE_O_EXITKILL));
  }

  /** Runs `count` instructions of the program, from its beginning; false if it ended before. */
  step(count: number): boolean {
    if (count > 0 && (koffi.call(this.#stepper, stepType, this.#pid, count) as number) !== 0) {
      this.#resume();
      return false;
    }
    return true;
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
    const pid = waitpid(this.#pid, this.#statusAt, WAIT_ALL) as number;
    const status = this.#control.getInt32(STATUS, true);
    if (pid === this.#pid && (status & 0xff) === 0x7f && status >> 8 === SIGTRAP) return;
    this.#isAlive = false;
    throw new Error(`stepped program: wait ${pid}, status 0x${status.toString(16)}`);
  }

  [Symbol.dispose](): void {
    this.kill();
  }
}

/**
 * A C function `int step(pid, count)`: steps and waits `count` times; stops early and returns 1 when the program has
 * ended. In machine code because it is called a million times.
 */
function emitStepper(native: NativeBpf, controlAt: bigint): bigint {
  const [SYS_PTRACE, SYS_WAIT4] = [101, 61];
  const { asm, written } = native.place((a) => {
    const entry = a.here("step");
    const [next, ended] = [a.label("next"), a.label("ended")];
    for (const reg of [RBX, R12, R13]) a.push(reg);
    a.mov(RBX, RDI, 32);
    a.mov(R12, RSI);
    a.movImm(R13, controlAt);
    a.push({ base: R13, disp: RUNS });
    a.bind(next);
    a.movImm(RAX, SYS_PTRACE);
    a.movImm(RDI, PTRACE_SINGLESTEP);
    a.mov(RSI, RBX);
    a.zero(RDX);
    a.zero(R10);
    a.syscall();
    a.movImm(RAX, SYS_WAIT4);
    a.mov(RDI, RBX);
    a.lea(RSI, { base: R13, disp: STATUS });
    a.movImm(RDX, WAIT_ALL);
    a.zero(R10);
    a.syscall();
    a.mov(RDX, { base: R13, disp: RUNS });
    a.cmp(RDX, { base: RSP });
    a.jcc("ne", ended);
    a.dec(R12);
    a.jcc("ne", next);
    a.bind(ended);
    a.pop(RCX);
    a.zero(RAX);
    a.cmp(RDX, RCX);
    a.set("ne", RAX);
    for (const reg of [R13, R12, RBX]) a.pop(reg);
    a.ret();
    return entry;
  });
  return asm.addressOf(written);
}
