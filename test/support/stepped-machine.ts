/**
 * Single instructions, run from any state of all registers in a process of its own: what they do to registers, flags, vector
 * registers and memory, where they lead, and how they fault. A fault ends the run and not the test.
 *
 * The process is a fork of the test that stands in generated code. Everything lies below 2 GiB, so that every form of
 * operand can reach it: two places for code, 512 MiB apart, and memory for data and stack between them.
 */
import koffi from "koffi";
import { Assembler } from "../../src/x86/assembler.ts";
import { RAX, RDI, RSI } from "../../src/x86/registers.ts";
import { callNative, nativeMemory } from "./native-code.ts";
import { callSpawn, killAndWait } from "./stepped-program.ts";

const libc = koffi.load("libc.so.6");
const mmap = libc.func("intptr_t mmap(intptr_t addr, size_t len, int prot, int flags, int fd, int64_t off)");
const munmap = libc.func("int munmap(intptr_t addr, size_t len)");
const waitpid = libc.func("int waitpid(int pid, intptr_t status, int options)");
const ptrace = libc.func("long ptrace(long request, int pid, intptr_t addr, intptr_t data)");

const PTRACE_SINGLESTEP = 9;
const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_SETOPTIONS = 0x4200;
const PTRACE_GETREGSET = 0x4204;
const PTRACE_SETREGSET = 0x4205;
const PTRACE_O_EXITKILL = 0x100000;
const NT_X86_XSTATE = 0x202;
const SIGTRAP = 5;
const WAIT_ALL = 0x40000000;
const PROT_ALL = 7;
const MAP_SHARED_ANONYMOUS = 0x21;
const MAP_FIXED_NOREPLACE = 0x100000;

/** Place of each general-purpose register in struct user_regs_struct, in words, by encoding number. */
const REG_WORDS = [10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0] as const;
const ORIG_RAX_WORD = 15;
const RIP_WORD = 16;
const FLAGS_WORD = 18;
const FS_BASE_WORD = 21;
const GS_BASE_WORD = 22;
const REGISTER_WORDS = 27;
/** TF and RF: what single steps do to them is no matter of the instruction. */
const STEP_FLAGS = 0x10100n;

/** Offsets in the shared memory behind its code. */
const CODE_BYTES = 0x4000;
const CONTROL = CODE_BYTES;
const XSTATE = CONTROL + 0x1000;
const XSTATE_BYTES = 0x4000;
const DATA = XSTATE + XSTATE_BYTES;
const DATA_BYTES = 0x4000;
const STACK = DATA + DATA_BYTES;
const STACK_BYTES = 0x4000;
const TOTAL_BYTES = STACK + STACK_BYTES;
/** The driver's code begins here; before it is room for code under test. */
const DRIVER = 0x3000;
const COPY_BYTES = 0x1000;

/** Registers to begin with. `vectors` fills the vector registers, eight bytes at a time. */
export interface StepState {
  /** By encoding number. */
  readonly regs: readonly bigint[];
  readonly flags: bigint;
  readonly fsBase: bigint;
  readonly gsBase: bigint;
  readonly vectors: () => bigint;
  /** A word of memory (data and stack) by its number. */
  readonly memory: BigUint64Array;
}

export interface StepOutcome {
  /** The signal of a fault; undefined: it ran. */
  readonly signal: number | undefined;
  readonly ip: bigint;
  readonly steps: number;
  /** struct user_regs_struct without ip. */
  readonly registers: BigUint64Array;
  /** The state of x87 and vector registers, without the address of the last x87 instruction. */
  readonly vectors: Uint8Array;
  readonly memory: Uint8Array;
}

interface Place {
  readonly at: bigint;
  readonly bytes: Uint8Array;
}

function mapShared(near: bigint, lenBytes: number): Place {
  for (let tries = 0n; tries < 64n; tries++) {
    const want = near + tries * 0x40_0000n;
    const flags = MAP_SHARED_ANONYMOUS | MAP_FIXED_NOREPLACE;
    const at = BigInt(mmap(want, lenBytes, PROT_ALL, flags, -1, 0) as number | bigint);
    if (at === want) return { at, bytes: new Uint8Array(koffi.view(at, lenBytes)) };
  }
  throw new Error(`map ${lenBytes} bytes near 0x${near.toString(16)}: refused`);
}

/** Where each part of the state lies, by its number (Intel SDM 1, 13.5; the standard format). */
function xstateParts(): { offset: number; lenBytes: number }[] {
  using memory = nativeMemory(4096);
  const asm = new Assembler(memory.at);
  const results = memory.at + 2048n;
  asm.push(3);
  for (let part = 0; part < 8; part++) {
    asm.movImm(RAX, 0xd);
    asm.movImm(1, part);
    asm.bytes(Uint8Array.of(0x0f, 0xa2));
    asm.mov({ ripTo: results + BigInt(part * 16) }, RAX);
    asm.mov({ ripTo: results + BigInt(part * 16 + 8) }, 3);
  }
  asm.pop(3);
  asm.ret();
  memory.bytes.set(asm.finish());
  callNative(memory.at, 0n);
  return Array.from({ length: 8 }, (_, part) => ({
    lenBytes: memory.view.getUint32(2048 + part * 16, true),
    offset: memory.view.getUint32(2048 + part * 16 + 8, true),
  }));
}

export class SteppedMachine implements Disposable {
  readonly #original: Place;
  readonly #copy: Place;
  readonly #pid: number;
  readonly #registers: BigUint64Array;
  readonly #status: DataView;
  readonly #xstate: Uint8Array;
  readonly #xstateView: DataView;
  readonly #memory: Uint8Array;
  readonly #parts = xstateParts();
  readonly #cleanXstate: Uint8Array;
  readonly #firstRegisters: BigUint64Array;
  #isAlive = true;

  constructor() {
    this.#original = mapShared(0x2000_0000n, TOTAL_BYTES);
    this.#copy = mapShared(0x4000_0000n, COPY_BYTES);
    const { at, bytes } = this.#original;
    this.#registers = new BigUint64Array(bytes.buffer, bytes.byteOffset + CONTROL, REGISTER_WORDS);
    this.#status = new DataView(bytes.buffer, bytes.byteOffset + CONTROL + 512, 64);
    this.#xstate = bytes.subarray(XSTATE, XSTATE + XSTATE_BYTES);
    this.#xstateView = new DataView(bytes.buffer, bytes.byteOffset + XSTATE, XSTATE_BYTES);
    this.#memory = bytes.subarray(DATA, TOTAL_BYTES);
    this.#pid = this.#spawn(at + BigInt(DRIVER));
    ptrace(PTRACE_SETOPTIONS, this.#pid, 0n, BigInt(PTRACE_O_EXITKILL));
    ptrace(PTRACE_GETREGS, this.#pid, 0n, this.#controlAt);
    this.#firstRegisters = this.#registers.slice();
    this.#readXstate();
    this.#cleanXstate = this.#xstate.slice(0, this.#xstateBytes);
  }

  /** Where code under test stands. */
  get codeAt(): bigint {
    return this.#original.at + 0x1000n;
  }

  /** Code that is jumped to, before the code under test; nothing runs there. */
  get targetAt(): bigint {
    return this.#original.at + 0x800n;
  }

  get copyAt(): bigint {
    return this.#copy.at + 0x100n;
  }

  /** The middle of the memory for data, on a border of 4096. */
  get dataAt(): bigint {
    return this.#original.at + BigInt(DATA + DATA_BYTES / 2);
  }

  get stackAt(): bigint {
    return this.#original.at + BigInt(STACK + STACK_BYTES / 2);
  }

  /** Words of memory that a state has. */
  get memoryWords(): number {
    return this.#memory.length / 8;
  }

  /** Runs one instruction that is written to `codeAt`; a repeated one to its end. */
  runOriginal(code: Uint8Array, state: StepState): StepOutcome {
    this.#original.bytes.fill(0xcc, 0x800, 0x2000);
    this.#original.bytes.set(code, 0x1000);
    const at = this.codeAt;
    const isRepeated = code.some((byte) => byte === 0xf2 || byte === 0xf3);
    return this.#run(at, state, (ip, steps) => (isRepeated ? ip !== at || steps >= 64 : true));
  }

  /** Runs a copy until it is left. `meanwhile` is what others do to the memory between two of its instructions. */
  runCopy(
    copy: Uint8Array,
    state: StepState,
    meanwhile: (steps: number, memory: BigUint64Array) => void = () => {},
  ): StepOutcome {
    this.#copy.bytes.fill(0xcc);
    this.#copy.bytes.set(copy, 0x100);
    const start = this.copyAt;
    const end = start + BigInt(copy.length);
    const { buffer, byteOffset } = this.#memory;
    const words = new BigUint64Array(buffer, byteOffset, this.memoryWords);
    return this.#run(start, state, (ip, steps) => {
      meanwhile(steps, words);
      return ip < start || ip >= end || steps >= 80;
    });
  }

  #run(at: bigint, state: StepState, isDone: (ip: bigint, steps: number) => boolean): StepOutcome {
    const words = this.#registers;
    this.#memory.set(new Uint8Array(state.memory.buffer, state.memory.byteOffset, this.#memory.length));
    words.set(this.#firstRegisters);
    for (const [reg, word] of REG_WORDS.entries()) words[word] = state.regs[reg]!;
    words[ORIG_RAX_WORD] = 0xffff_ffff_ffff_ffffn;
    words[RIP_WORD] = at;
    words[FLAGS_WORD] = state.flags;
    words[FS_BASE_WORD] = state.fsBase;
    words[GS_BASE_WORD] = state.gsBase;
    if (ptrace(PTRACE_SETREGS, this.#pid, 0n, this.#controlAt) !== 0)
      throw new Error("set registers: refused");
    this.#writeXstate(state.vectors);
    let signal: number | undefined;
    let ip = at;
    let steps = 0;
    do {
      ptrace(PTRACE_SINGLESTEP, this.#pid, 0n, 0n);
      signal = this.#wait();
      ptrace(PTRACE_GETREGS, this.#pid, 0n, this.#controlAt);
      ip = words[RIP_WORD]!;
      steps++;
    } while (signal === SIGTRAP && !isDone(ip, steps));
    const registers = words.slice();
    registers[RIP_WORD] = 0n;
    registers[ORIG_RAX_WORD] = 0n;
    registers[FLAGS_WORD] = registers[FLAGS_WORD]! & ~STEP_FLAGS;
    this.#readXstate();
    const vectors = this.#xstate.slice(0, this.#xstateBytes);
    vectors.fill(0, 8, 16);
    return {
      signal: signal === SIGTRAP ? undefined : signal,
      ip,
      steps,
      registers,
      vectors,
      memory: this.#memory.slice(),
    };
  }

  get #controlAt(): bigint {
    return this.#original.at + BigInt(CONTROL);
  }

  #xstateBytes = XSTATE_BYTES;

  #readXstate(): void {
    this.#setVector(XSTATE_BYTES);
    ptrace(PTRACE_GETREGSET, this.#pid, BigInt(NT_X86_XSTATE), this.#controlAt + 768n);
    this.#xstateBytes = Number(this.#registersAt(768 + 8));
  }

  #writeXstate(random: () => bigint): void {
    const view = this.#xstateView;
    this.#xstate.set(this.#cleanXstate);
    // x87: eight numbers between 1 and 2 to the power of 16, all of them valid.
    view.setUint8(4, 0xff);
    for (let i = 0; i < 8; i++) {
      view.setBigUint64(32 + i * 16, random() | (1n << 63n), true);
      view.setUint16(32 + i * 16 + 8, 0x3fff + i * 2, true);
    }
    for (let at = 160; at < 416; at += 8) view.setBigUint64(at, random(), true);
    let parts = 3n;
    for (const [part, { offset, lenBytes }] of this.#parts.entries()) {
      // AVX, opmask, the upper halves and the upper sixteen of AVX-512.
      if (![2, 5, 6, 7].includes(part) || lenBytes === 0 || offset + lenBytes > this.#xstateBytes) continue;
      parts |= 1n << BigInt(part);
      for (let at = 0; at < lenBytes; at += 8) view.setBigUint64(offset + at, random(), true);
    }
    view.setBigUint64(512, parts, true);
    this.#setVector(this.#xstateBytes);
    if (ptrace(PTRACE_SETREGSET, this.#pid, BigInt(NT_X86_XSTATE), this.#controlAt + 768n) !== 0)
      throw new Error("set vector registers: refused");
  }

  /** struct iovec at 768 of the control page. */
  #setVector(lenBytes: number): void {
    const { bytes, at } = this.#original;
    const view = new DataView(bytes.buffer, bytes.byteOffset + CONTROL, 4096);
    view.setBigUint64(768, at + BigInt(XSTATE), true);
    view.setBigUint64(776, BigInt(lenBytes), true);
  }

  #registersAt(offset: number): bigint {
    const { bytes } = this.#original;
    return new DataView(bytes.buffer, bytes.byteOffset + CONTROL, 4096).getBigUint64(offset, true);
  }

  #spawn(at: bigint): number {
    const [SYS_FORK, SYS_PRCTL, SYS_PTRACE, PR_SET_PDEATHSIG, SIGKILL] = [57, 157, 101, 1, 9];
    const a = new Assembler(at);
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
    a.int3();
    this.#original.bytes.set(a.finish(), DRIVER);
    const pid = callSpawn(at);
    const got = waitpid(pid, this.#controlAt + 512n, WAIT_ALL) as number;
    if (got !== pid) throw new Error(`start a stepped machine: wait ${got}`);
    return pid;
  }

  #wait(): number {
    const pid = waitpid(this.#pid, this.#controlAt + 512n, WAIT_ALL) as number;
    const status = this.#status.getInt32(0, true);
    if (pid === this.#pid && (status & 0xff) === 0x7f) return (status >> 8) & 0xff;
    this.#isAlive = false;
    throw new Error(`stepped machine: wait ${pid}, status 0x${status.toString(16)}`);
  }

  [Symbol.dispose](): void {
    if (this.#isAlive) killAndWait(this.#pid);
    munmap(this.#original.at, TOTAL_BYTES);
    munmap(this.#copy.at, COPY_BYTES);
  }
}
