/** What a program finds inside of a strict gate, and what its thread finds behind it: signal mask and protection key. */
import koffi from "koffi";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Machine, type NativeMemory, nativeMemory, randomWords } from "../../test/support/native-code.ts";
import { describeWithKeys, hasProtectionKeys } from "../../test/support/protection-keys.ts";
import { Assembler } from "../x86/assembler.ts";
import { R10, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../x86/registers.ts";
import { CodeWriter } from "./code-writer.ts";
import { DEFERRED_SIGNALS } from "./deferred-signals.ts";
import { emitEnter, emitLeave, emitPrograms } from "./gate.ts";
import { planFrame } from "./gate-frame.ts";
import { closedBit, type GateKey, keyBits } from "./gate-key.ts";
import { emitStackRoutines, PRIVATE_STACKS_BYTES, STACK_STRIDE } from "./private-stacks.ts";

const GATE = 0;
const PROGRAM = 1024;
const ROUTINES = 2048;
const READ_STATE = 3072;
/** What was seen inside: signal mask, PKRU; and outside. */
const [MASK_INSIDE, PKRU_INSIDE, MASK_OUTSIDE, PKRU_OUTSIDE] = [4096, 4104, 4112, 4120];
const SYS_RT_SIGPROCMASK = 14;
/** The kernel never blocks SIGKILL and SIGSTOP. */
const NEVER_BLOCKED = (1n << 8n) | (1n << 18n);

const libc = koffi.load("libc.so.6");
const pkeyAlloc = libc.func("int pkey_alloc(unsigned int flags, unsigned int rights)");
const pkeyFree = libc.func("int pkey_free(int key)");
const pkeyMprotect = libc.func("int pkey_mprotect(intptr_t at, size_t len, int prot, int key)");
const sigaltstack = libc.func("int sigaltstack(const uint64_t *stack, void *old)");
const PKEY_DISABLE_ACCESS = 1;
const PROT_READ_WRITE = 3;

let machine: Machine;
let code: NativeMemory;
beforeAll(() => {
  machine = new Machine();
  code = nativeMemory(8192, (machine.exit & ~0xfffffn) + 0x100_0000n);
});
afterAll(() => {
  code[Symbol.dispose]();
  machine[Symbol.dispose]();
});

const at = (offset: number) => code.at + BigInt(offset);

/** Stores the thread's signal mask, and PKRU where there is one. */
function emitReadState(asm: Assembler, maskAt: number, pkruAt: number): void {
  asm.movImm(RDI, 0, 32);
  asm.zero(RSI);
  asm.lea(RDX, { ripTo: at(maskAt) });
  asm.movImm(R10, 8, 32);
  asm.movImm(RAX, SYS_RT_SIGPROCMASK, 32);
  asm.syscall();
  if (!hasProtectionKeys) return;
  asm.zero(RCX);
  asm.rdpkru();
  asm.mov({ ripTo: at(pkruAt) }, RAX);
}

/** A gate with every register and flag live, around a program that looks around and changes everything. */
function writeGate(base: bigint, key: GateKey | undefined, level: "stack" | "strict" = "strict"): void {
  code.bytes.fill(0);
  const program = new Assembler(at(PROGRAM));
  emitReadState(program, MASK_INSIDE, PKRU_INSIDE);
  // The stack is under the key.
  program.push(RAX);
  program.pop(RAX);
  for (let reg = 0; reg < 16; reg++) if (reg !== RSP) program.movImm(reg, 0xdead_0000 + reg);
  program.ret();
  code.bytes.set(program.finish(), PROGRAM);
  const routines = emitStackRoutines(at(ROUTINES), base);
  code.bytes.set(routines.bytes, ROUTINES);
  const outside = new Assembler(at(READ_STATE));
  emitReadState(outside, MASK_OUTSIDE, PKRU_OUTSIDE);
  outside.jmp32(machine.exit);
  code.bytes.set(outside.finish(), READ_STATE);
  const clobbers = 0xffff & ~regSet(RSP);
  const programs = [
    { name: "p", entry: at(PROGRAM), clobbers, ctxReads: new Set<number>(), stackBytes: 16, cookie: 0n },
  ];
  const frame = planFrame({
    programs,
    liveness: { regs: 0xffff & ~regSet(RSP), flagsLive: true },
    isEntry: false,
    otherClobbers: 0,
    otherClobbersFlags: false,
    stacks: {
      base,
      thread: "fs:0",
      routines,
      defersSignals: level === "strict",
      findsAlternate: level === "stack",
      key,
    },
  });
  const writer = new CodeWriter(at(GATE));
  const sides = emitEnter(writer, frame, { ip: undefined, spDelta: 0, isEntry: false });
  emitPrograms(writer, frame, programs);
  emitLeave(writer, frame, sides);
  writer.asm.jmp32(machine.exit);
  sides!.emit(frame.totalBytes);
  code.bytes.set(writer.finish().bytes, GATE);
}

const word = (offset: number) => code.view.getBigUint64(offset, true);
const random = randomWords(11);

/** Goes through the gate with random registers, which must come back, and reads the thread's state behind it. */
function pass(rsp = machine.stack.at + BigInt(machine.stack.bytes.length / 2)): void {
  const regs = Array.from({ length: 16 }, () => random());
  regs[RSP] = rsp;
  const flags = 0x202n | (random() & 0x8d5n);
  machine.stack.bytes.fill(0x5a);
  const before = machine.stack.bytes.slice(machine.stack.bytes.length / 2 - 128);
  const after = machine.run(at(GATE), { regs: [...regs], flags });
  expect(after).toEqual({ regs, flags });
  expect(Buffer.compare(machine.stack.bytes.slice(machine.stack.bytes.length / 2 - 128), before)).toBe(0);
  machine.run(at(READ_STATE), { regs, flags: 0x202n });
}

const aligned = (memory: NativeMemory) => (memory.at + BigInt(STACK_STRIDE) - 1n) & -BigInt(STACK_STRIDE);

test("signals wait inside but for those of faults, and the mask is as before behind it", () => {
  using stacks = nativeMemory(PRIVATE_STACKS_BYTES + STACK_STRIDE);
  writeGate(aligned(stacks), undefined);
  machine.run(at(READ_STATE), {
    regs: Array.from({ length: 16 }, () => 0n).with(RSP, machine.stack.at + 4096n),
    flags: 0x202n,
  });
  const outside = word(MASK_OUTSIDE);
  for (let round = 0; round < 20; round++) {
    pass();
    expect(word(MASK_INSIDE)).toBe(DEFERRED_SIGNALS & ~NEVER_BLOCKED);
    expect(word(MASK_OUTSIDE)).toBe(outside);
  }
  expect([4, 7, 8, 11, 31].every((signal) => (DEFERRED_SIGNALS & (1n << BigInt(signal - 1))) === 0n)).toBe(
    true,
  );
});

/** Tells the kernel which alternate stack this thread has; 0 bytes: none. */
function setAlternateStack(stackAt: bigint, lenBytes: number): void {
  const SS_DISABLE = 2n;
  const stack = BigUint64Array.of(stackAt, lenBytes === 0 ? SS_DISABLE : 0n, BigInt(lenBytes));
  expect(sigaltstack(stack, null)).toBe(0);
}

describe("on a private stack, without signals deferred", () => {
  let stacks: NativeMemory;
  let alternate: NativeMemory;
  beforeAll(() => {
    stacks = nativeMemory(PRIVATE_STACKS_BYTES + STACK_STRIDE);
    alternate = nativeMemory(1 << 16);
    writeGate(aligned(stacks), undefined, "stack");
  });
  afterAll(() => {
    setAlternateStack(0n, 0);
    stacks[Symbol.dispose]();
    alternate[Symbol.dispose]();
  });

  test.each([
    ["none", () => setAlternateStack(0n, 0)],
    ["elsewhere", () => setAlternateStack(alternate.at, 1 << 16)],
    ["right above", () => setAlternateStack(machine.stack.at + 0xc000n, 0x3000)],
    ["right below", () => setAlternateStack(machine.stack.at, 0x4000)],
  ])("a thread on its ordinary stack, with an alternate one %s: signals come as they do", (_, prepare) => {
    writeGate(aligned(stacks), undefined, "stack");
    stacks.bytes.fill(0);
    prepare();
    for (let round = 0; round < 3; round++) {
      pass();
      expect(word(MASK_INSIDE)).toBe(word(MASK_OUTSIDE));
    }
  });

  test("a thread on its alternate stack, also where it was on its ordinary one before: signals wait", () => {
    stacks.bytes.fill(0);
    setAlternateStack(0n, 0);
    pass();
    expect(word(MASK_INSIDE)).toBe(word(MASK_OUTSIDE));
    setAlternateStack(alternate.at, 1 << 16);
    for (let round = 0; round < 3; round++) {
      const outside = word(MASK_OUTSIDE);
      pass(alternate.at + 0x8000n);
      expect(word(MASK_INSIDE)).toBe(DEFERRED_SIGNALS & ~NEVER_BLOCKED);
      expect(word(MASK_OUTSIDE)).toBe(outside);
      pass();
      expect(word(MASK_INSIDE)).toBe(outside);
    }
  });
});

describeWithKeys("with protection keys", () => {
  test("the key is open inside and closed behind it, and the bits of other keys are as before", () => {
    const [mine, other] = [pkeyAlloc(0, PKEY_DISABLE_ACCESS), pkeyAlloc(0, 0)];
    expect(mine).toBeGreaterThan(0);
    const key = { number: mine };
    using stacks = nativeMemory(PRIVATE_STACKS_BYTES + STACK_STRIDE);
    expect(pkeyMprotect(stacks.at, PRIVATE_STACKS_BYTES + STACK_STRIDE, PROT_READ_WRITE, mine)).toBe(0);
    try {
      writeGate(aligned(stacks), key);
      for (let round = 0; round < 20; round++) {
        pass();
        const [inside, outside] = [Number(word(PKRU_INSIDE)), Number(word(PKRU_OUTSIDE))];
        expect(inside & keyBits(key)).toBe(0);
        expect(outside & keyBits(key)).toBe(closedBit(key));
        expect(inside & ~keyBits(key)).toBe(outside & ~keyBits(key));
        expect(outside & keyBits({ number: other })).toBe(0);
      }
    } finally {
      pkeyFree(mine);
      pkeyFree(other);
    }
  });
});

test.each([1, 7, 14, 15])("the bits of key %i", (number) => {
  expect(BigInt.asUintN(32, BigInt(keyBits({ number })))).toBe(3n << BigInt(2 * number));
  expect(BigInt(closedBit({ number }))).toBe(1n << BigInt(2 * number));
});
