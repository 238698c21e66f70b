/**
 * Runs generated code inside the test's own process: executable memory, and a machine that loads every
 * general-purpose register and the flags, runs code, and reads everything back.
 *
 * Only for code that is expected to behave: what faults here takes the test process with it.
 */
import koffi from "koffi";
import { Assembler } from "../../src/x86/assembler.ts";
import { R12, R13, R14, R15, RAX, RBP, RBX, RSP } from "../../src/x86/registers.ts";

const PROT_READ_WRITE_EXEC = 7;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const MAP_FIXED_NOREPLACE = 0x100000;

const libc = koffi.load("libc.so.6");
const mmap = libc.func("intptr_t mmap(intptr_t addr, size_t len, int prot, int flags, int fd, long off)");
const munmap = libc.func("int munmap(intptr_t addr, size_t len)");
const callVoid = koffi.proto("void NativeVoid(intptr_t arg)");

export interface NativeMemory extends Disposable {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** Memory that can be written and executed, near `hint` if there is one. */
export function nativeMemory(lenBytes: number, hint = 0n): NativeMemory {
  let at = -1n;
  // Above and below in turn: what Node has reserved may be larger than a step.
  for (let tries = 0; tries < 512 && at === -1n; tries++) {
    const steps = tries % 2 === 0 ? tries / 2 : -(tries + 1) / 2;
    const want = hint === 0n ? 0n : hint + BigInt(steps) * 0x10_0000n;
    const flags = MAP_PRIVATE_ANONYMOUS | (hint === 0n ? 0 : MAP_FIXED_NOREPLACE);
    at = BigInt(mmap(want, lenBytes, PROT_READ_WRITE_EXEC, flags, -1, 0) as number | bigint);
  }
  if (at === -1n) throw new Error(`map ${lenBytes} bytes: refused`);
  const bytes = new Uint8Array(koffi.view(at, lenBytes));
  return {
    at,
    bytes,
    view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
    [Symbol.dispose]() {
      munmap(at, lenBytes);
    },
  };
}

/** Calls code as `void f(intptr_t)`. */
export function callNative(at: bigint, arg: bigint): void {
  koffi.call(at, callVoid, arg);
}

/** Sixteen registers by encoding number, and flags. rsp is the machine's own stack when a run begins. */
export interface MachineState {
  readonly regs: bigint[];
  flags: bigint;
}

const STATE_BYTES = 17 * 8;
const STACK_BYTES = 1 << 16;

/**
 * One place to run code from. Layout of its memory: driver code, state in, state out, host stack pointer, stack.
 * The code under test begins at any address and ends by jumping to `exit`.
 */
export class Machine implements Disposable {
  readonly #memory: NativeMemory;
  readonly #stateAt: bigint;
  /** Code under test jumps here when it is done. */
  readonly exit: bigint;
  readonly stack: { readonly at: bigint; readonly bytes: Uint8Array };
  readonly #run: bigint;
  readonly #targetAt: number;

  constructor(hint = 0n) {
    const dataOffset = 4096;
    this.#memory = nativeMemory(dataOffset + 4096 + STACK_BYTES, hint);
    const { at, bytes } = this.#memory;
    this.#stateAt = at + BigInt(dataOffset);
    const state = this.#stateAt;
    const hostSp = state + BigInt(STATE_BYTES);
    const target = hostSp + 8n;
    this.#targetAt = dataOffset + STATE_BYTES + 8;
    const regs = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    const asm = new Assembler(at);
    const run = asm.here("run");
    for (const reg of [RBX, RBP, R12, R13, R14, R15]) asm.push(reg);
    asm.pushfq();
    asm.mov({ ripTo: hostSp }, RSP);
    // The flags go through the host's stack, so that the tested stack stays as it is.
    asm.push({ ripTo: state + 16n * 8n });
    asm.popfq();
    asm.mov(RSP, { ripTo: state + 4n * 8n });
    for (const reg of regs) asm.mov(reg, { ripTo: state + BigInt(reg * 8) });
    asm.jmpTo({ ripTo: target });
    asm.align(16, "int3");
    const exit = asm.here("exit");
    for (const reg of regs) asm.mov({ ripTo: state + BigInt(reg * 8) }, reg);
    asm.mov({ ripTo: state + 4n * 8n }, RSP);
    asm.mov(RSP, { ripTo: hostSp });
    asm.pushfq();
    asm.pop(RAX);
    asm.mov({ ripTo: state + 16n * 8n }, RAX);
    asm.popfq();
    for (const reg of [R15, R14, R13, R12, RBP, RBX]) asm.pop(reg);
    asm.ret();
    bytes.set(asm.finish());
    this.#run = asm.addressOf(run);
    this.exit = asm.addressOf(exit);
    const stackOffset = dataOffset + 4096;
    this.stack = {
      at: at + BigInt(stackOffset),
      bytes: bytes.subarray(stackOffset, stackOffset + STACK_BYTES),
    };
  }

  /** Runs the code at `at` from the given state; returns the state at `exit`. */
  run(at: bigint, before: MachineState): MachineState {
    const words = new BigUint64Array(
      this.#memory.bytes.buffer,
      this.#memory.bytes.byteOffset + Number(this.#stateAt - this.#memory.at),
      17,
    );
    for (let reg = 0; reg < 16; reg++) words[reg] = BigInt.asUintN(64, before.regs[reg]!);
    words[16] = before.flags;
    this.#memory.view.setBigUint64(this.#targetAt, at, true);
    callNative(this.#run, 0n);
    return { regs: [...words.subarray(0, 16)], flags: words[16]! };
  }

  [Symbol.dispose](): void {
    this.#memory[Symbol.dispose]();
  }
}

/** Pseudo-random 64-bit values from a seed (splitmix64), so that a failure can be repeated. */
export function randomWords(seed: number): () => bigint {
  let state = BigInt(seed);
  return () => {
    state = BigInt.asUintN(64, state + 0x9e37_79b9_7f4a_7c15n);
    let z = state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58_476d_1ce4_e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d0_49bb_1331_11ebn);
    return z ^ (z >> 31n);
  };
}
