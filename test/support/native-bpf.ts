/**
 * Compiles BPF programs and runs them inside the test's own process, beside an interpreter with the same maps.
 *
 * Each run loads every register with a number of its own and checks that only those in `clobbers` changed, and that
 * nothing below the stack that the program declared was written.
 */
import koffi from "koffi";
import { afterAll } from "vitest";
import {
  type Bundle,
  type HelperHost,
  type Insn,
  InsnBuilder,
  interpret,
  type MapSpec,
  type ProgramSpec,
  type Proof,
  verifyProgram,
} from "../../src/bpf/index.ts";
import { type CompiledProgram, JitUnit, type LinkEnv } from "../../src/bpf/jit/index.ts";
import {
  layoutMap,
  type OpenedMap,
  openMap,
  type SharedMemory,
  sharedMemoryOf,
} from "../../src/bpf/maps/index.ts";
import { Assembler } from "../../src/x86/assembler.ts";
import {
  hasReg,
  PT_REGS_BYTES,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RDI,
  RSI,
  RSP,
  regNames,
} from "../../src/x86/registers.ts";
import { Machine, type NativeMemory, nativeMemory } from "./native-code.ts";

export const CODE_BYTES = 1 << 20;
/** Behind the maps: the pid cache. */
const PID_CACHE_BYTES = 64;
const STACK_PATTERN = 0xa5;
/** Where the return address of a run lies in the machine's stack; not a multiple of 16. */
const FRAME_AT = 8 * 1024 + 8;

const pattern = new Uint8Array(FRAME_AT).fill(STACK_PATTERN);

const libc = koffi.load("libc.so.6");
const dlsym = libc.func("intptr_t dlsym(intptr_t handle, const char *name)");

/** The C library's clock_gettime has the vDSO function's signature, and calls it. */
export function clockGettimeAddress(): bigint {
  return BigInt(dlsym(0n, "clock_gettime") as number | bigint);
}

export interface NativeRun {
  readonly result: bigint;
  readonly program: CompiledProgram;
}

export interface NativeBpfOptions {
  readonly maps?: readonly MapSpec[];
  readonly env?: Partial<LinkEnv>;
  /** Index of the ring buffer that takes what programs print. */
  readonly printk?: number;
  /** Whether the maps lie in reach of the code. */
  readonly isNear?: boolean;
  /** What the slots of program arrays name. */
  readonly programs?: readonly ProgramSpec[];
  /** Memory to use instead of its own: for the code, then for the maps. */
  readonly memory?: { readonly at: bigint; readonly bytes: Uint8Array };
}

export class NativeBpf implements Disposable {
  readonly specs: readonly MapSpec[];
  readonly programs: readonly ProgramSpec[];
  readonly maps: readonly OpenedMap[];
  readonly memory: SharedMemory;
  readonly env: LinkEnv;
  readonly printk: number | undefined;
  readonly machine = new Machine();
  readonly #code: { readonly at: bigint; readonly bytes: Uint8Array };
  readonly #owned: NativeMemory[] = [];
  #nextCode: bigint;

  constructor(options: NativeBpfOptions = {}) {
    const { maps: specs = [], env = {}, isNear = false, programs = [], memory, printk } = options;
    this.printk = printk;
    this.specs = specs;
    this.programs = programs;
    this.#code = memory ?? this.#own(nativeMemory(CODE_BYTES));
    this.#nextCode = this.#code.at;
    const offsets: number[] = [];
    let lenBytes = 0;
    for (const spec of specs) {
      offsets.push(lenBytes);
      lenBytes += layoutMap(spec).totalBytes;
    }
    const totalBytes = lenBytes + PID_CACHE_BYTES;
    const hint = isNear ? this.#code.at - 0x4000_0000n : 0x5a00_0000_0000n;
    const { at, bytes } =
      memory === undefined
        ? this.#own(nativeMemory(totalBytes, hint))
        : { at: memory.at + BigInt(CODE_BYTES), bytes: memory.bytes.subarray(CODE_BYTES) };
    this.memory = sharedMemoryOf(bytes.buffer, bytes.byteOffset, totalBytes);
    this.maps = specs.map((spec, index) => openMap(spec, this.memory, offsets[index]!));
    this.env = {
      mapAddr: (index) => at + BigInt(offsets[index]!),
      cpu: "rdpid",
      clockGettime: undefined,
      tidOffset: undefined,
      pidCache: at + BigInt(lenBytes),
      ...env,
    };
  }

  get bundle(): Bundle {
    return {
      maps: this.specs,
      programs: this.programs,
      ...(this.printk === undefined ? {} : { printk: this.printk }),
    };
  }

  /** The verifier's proof; throws with its log. */
  prove(insns: readonly Insn[]): Proof {
    const verdict = verifyProgram({ insns }, this.specs);
    if (verdict.kind === "rejected") throw new Error(`verifier: ${verdict.log}`);
    return verdict.proof;
  }

  /** Lets `write` emit code at the next free place and returns what it returned, once the code is in place. */
  place<T>(write: (asm: Assembler, unit: JitUnit) => T): { readonly asm: Assembler; readonly written: T } {
    const asm = new Assembler(this.#nextCode);
    const proofs = this.programs.map(({ insns }) => this.prove(insns));
    const unit = new JitUnit(asm, this.bundle, this.env, proofs);
    const written = write(asm, unit);
    unit.finish();
    asm.align(64, "int3");
    const code = asm.finish();
    const offset = Number(this.#nextCode - this.#code.at);
    if (offset + code.length > CODE_BYTES) throw new Error("no room for code");
    this.#code.bytes.set(code, offset);
    this.#nextCode += BigInt(code.length);
    return { asm, written };
  }

  /** Forgets all code that was placed. */
  reset(): void {
    this.#nextCode = this.#code.at;
  }

  /**
   * A C function `void run(context, count)` that calls a program `count` times on a copy of the context, whose slot 0
   * counts the calls. Any thread of the process may call it.
   */
  compileLoop(insns: readonly Insn[]): bigint {
    const proof = this.prove(insns);
    const { asm, written } = this.place((a, unit) => {
      const program = unit.emit({ name: "loop", insns }, proof);
      const saved = [RBX, RBP, R12, R13, R14, R15];
      a.align(16, "int3");
      const run = a.here("run");
      for (const reg of saved) a.push(reg);
      a.push(RSI);
      a.subImm(RSP, PT_REGS_BYTES);
      for (let at = 0; at < PT_REGS_BYTES; at += 8) {
        a.mov(RAX, { base: RDI, disp: at });
        a.mov({ base: RSP, disp: at }, RAX);
      }
      const next = a.here("next");
      a.inc({ base: RSP });
      a.call(program.entry);
      a.dec({ base: RSP, disp: PT_REGS_BYTES });
      a.jcc("ne", next);
      a.addImm(RSP, PT_REGS_BYTES + 8);
      for (const reg of saved.reverse()) a.pop(reg);
      a.ret();
      return run;
    });
    return asm.addressOf(written);
  }

  compile(insns: readonly Insn[], keepsResult = true) {
    const proof = this.prove(insns);
    const { asm, written: program } = this.place((_, unit) =>
      unit.emit({ name: "test", insns }, proof, { keepsResult }),
    );
    const entry = asm.addressOf(program.entry);
    const lenBytes = asm.offsetOf(program.end) - asm.offsetOf(program.start);
    const at = Number(asm.addressOf(program.start) - this.#code.at);
    return { program, entry, code: this.#code.bytes.slice(at, at + lenBytes) };
  }

  /** Runs a compiled program with this context; returns r0. */
  run(compiled: { readonly program: CompiledProgram; readonly entry: bigint }, ctx: Uint8Array): bigint {
    const { machine } = this;
    const { program } = compiled;
    const { bytes, at } = machine.stack;
    bytes.fill(STACK_PATTERN, 0, FRAME_AT);
    const frame = new DataView(bytes.buffer, bytes.byteOffset + FRAME_AT);
    frame.setBigUint64(0, machine.exit, true);
    bytes.set(ctx, FRAME_AT + 8);
    const before = Array.from(
      { length: 16 },
      (_, reg) => 0x1111_0000_0000_0000n * BigInt(reg) + 0xdead_0000n + BigInt(reg),
    );
    before[RSP] = at + BigInt(FRAME_AT);
    const after = machine.run(compiled.entry, { regs: before, flags: 0x202n });
    const allowed = program.clobbers | (1 << RSP);
    for (let reg = 0; reg < 16; reg++) {
      if (!hasReg(allowed, reg) && after.regs[reg] !== BigInt.asUintN(64, before[reg]!))
        throw new Error(`${regNames[reg]} changed, though the program does not declare it`);
    }
    if (after.regs[RSP] !== before[RSP]! + 8n) throw new Error("the stack pointer is not where it was");
    const untouched = bytes.subarray(0, FRAME_AT - program.stackBytes);
    if (Buffer.compare(untouched, pattern.subarray(0, untouched.length)) !== 0) {
      const dirty = untouched.findIndex((byte) => byte !== STACK_PATTERN);
      throw new Error(`used ${FRAME_AT - dirty} bytes of stack, declared ${program.stackBytes}`);
    }
    if (Buffer.compare(bytes.subarray(FRAME_AT + 8, FRAME_AT + 8 + ctx.length), ctx) !== 0)
      throw new Error("the context was changed");
    return after.regs[RAX]!;
  }

  /** The interpreter on the same maps. */
  interpret(insns: readonly Insn[], ctx: Uint8Array, host: Partial<HelperHost> = {}): bigint {
    const result = interpret({
      insns,
      programs: this.programs,
      maps: this.maps,
      printk: this.printk,
      host: { ...quietHost, ...host },
      entry: { kind: "context", bytes: ctx },
    });
    if (result.kind !== "returned")
      throw new Error(
        `interpreter: ${JSON.stringify(result, (_, v) => (typeof v === "bigint" ? `${v}` : v))}`,
      );
    return result.value;
  }

  [Symbol.dispose](): void {
    this.machine[Symbol.dispose]();
    for (const memory of this.#owned) memory[Symbol.dispose]();
  }

  #own(memory: NativeMemory): NativeMemory {
    this.#owned.push(memory);
    return memory;
  }
}

const quietHost: HelperHost = {
  ktimeGetNs: () => 0n,
  clockNs: () => 0n,
  jiffies: () => 0n,
  numaNode: () => 0,
  prandomU32: () => 0,
  cpu: () => 0,
  pidTgid: () => 0n,
  uidGid: () => 0n,
  comm: () => new Uint8Array(0),
  readUser: () => false,
};

/** A context whose slot at offset `o` holds `valueAt(o)`. */
export function contextOf(valueAt: (offset: number) => bigint): Uint8Array {
  const bytes = new Uint8Array(PT_REGS_BYTES);
  const view = new DataView(bytes.buffer);
  for (let offset = 0; offset < PT_REGS_BYTES; offset += 8)
    view.setBigUint64(offset, BigInt.asUintN(64, valueAt(offset)), true);
  return bytes;
}

/** Opens what the tests of one file need, and closes it behind them. */
export function nativeBpfOpener(): (maps: readonly MapSpec[], env?: Partial<LinkEnv>) => NativeBpf {
  const opened: NativeBpf[] = [];
  afterAll(() => {
    for (const native of opened) native[Symbol.dispose]();
  });
  return (maps, env = {}) => {
    const native = new NativeBpf({ maps, env });
    opened.push(native);
    return native;
  };
}

/** A program that ends in `exit`. */
export function insnsOf(write: (b: InsnBuilder) => void): readonly Insn[] {
  const b = new InsnBuilder();
  write(b);
  return b.exit().build().insns;
}
