/** The way to a thread's private stack and back, run natively with the slots in every state. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Machine, type NativeMemory, nativeMemory, randomWords } from "../../test/support/native-code.ts";
import { Assembler } from "../x86/assembler.ts";
import { R10, R11, R14, RAX, RSP, regSet } from "../x86/registers.ts";
import { CodeWriter } from "./code-writer.ts";
import { emitEnter, emitLeave, emitPrograms } from "./gate.ts";
import { planFrame } from "./gate-frame.ts";
import {
  emitHash,
  emitStackRoutines,
  guardPages,
  HEAD_OWNER,
  HEAD_RECOVER,
  HEAD_SP,
  PRIVATE_STACKS_BYTES,
  STACK_COUNT,
  STACK_HEAD,
  STACK_STRIDE,
} from "./private-stacks.ts";
import { FRAME_SIZE_BEFORE_RECOVERY } from "./stack-switch.ts";

const GATE = 0;
const PROGRAM = 1024;
const ROUTINES = 2048;
const PROBE = 3072;
/** Where the program writes its stack pointer and its count; the counter of those who pass by; whether it is left in the middle. */
const [SEEN_SP, RUNS, PASSED, ABANDONED] = [4096, 4104, 4112, 4120];

let machine: Machine;
let code: NativeMemory;
let stacks: NativeMemory;
let base: bigint;
/** The slot of this thread, by its hash, and its fs base. */
let home: number;
let fsBase: bigint;

beforeAll(() => {
  machine = new Machine();
  code = nativeMemory(8192, (machine.exit & ~0xfffffn) + 0x100_0000n);
  stacks = nativeMemory(PRIVATE_STACKS_BYTES + STACK_STRIDE);
  base = (stacks.at + BigInt(STACK_STRIDE) - 1n) & -BigInt(STACK_STRIDE);
  const probe = new CodeWriter(code.at + BigInt(PROBE));
  emitHash(probe, { base, thread: "fs base" });
  probe.asm.jmp32(machine.exit);
  code.bytes.set(probe.finish().bytes, PROBE);
  const { regs } = machine.run(code.at + BigInt(PROBE), { regs: registers(), flags: 0x202n });
  home = Number(regs[10]! - base) / STACK_STRIDE;
  fsBase = regs[11]!;
  writeGate();
});
afterAll(() => {
  stacks[Symbol.dispose]();
  code[Symbol.dispose]();
  machine[Symbol.dispose]();
});
beforeEach(() => {
  for (let slot = 0; slot < STACK_COUNT; slot++) setHead(slot, 0n, 0n);
  for (const at of [SEEN_SP, RUNS, PASSED, ABANDONED]) code.view.setBigUint64(at, 0n, true);
});

/** A gate with everything live, and a program that changes everything and says where its stack is. */
function writeGate(): void {
  const at = (offset: number) => code.at + BigInt(offset);
  const program = new Assembler(at(PROGRAM));
  program.mov({ ripTo: at(SEEN_SP) }, RSP);
  program.lock().inc({ ripTo: at(RUNS) });
  const clobbers = 0xffff & ~(1 << RSP);
  for (let reg = 0; reg < 16; reg++) if (reg !== RSP) program.movImm(reg, 0xdead_0000 + reg);
  const abandon = program.label("abandon");
  program.cmpImm({ ripTo: at(ABANDONED) }, 0);
  program.jcc("ne", abandon);
  program.ret();
  program.bind(abandon);
  program.mov(R10, RSP);
  program.andImm(R10, -STACK_STRIDE);
  program.subImm(RSP, 1000);
  program.jmpTo({ base: R10, disp: STACK_HEAD + HEAD_RECOVER });
  code.bytes.set(program.finish(), PROGRAM);

  const routines = emitStackRoutines(at(ROUTINES), base);
  code.bytes.set(routines.bytes, ROUTINES);
  const programs = [
    { name: "p", entry: at(PROGRAM), clobbers, ctxReads: new Set<number>(), stackBytes: 8, cookie: 0n },
  ];
  const frame = planFrame({
    programs,
    liveness: { regs: 0xffff, flagsLive: true },
    isEntry: false,
    otherClobbers: 0,
    otherClobbersFlags: false,
    stacks: { base, thread: "fs base", routines, defersSignals: false, findsAlternate: true, key: undefined },
  });
  const writer = new CodeWriter(at(GATE));
  const sides = emitEnter(writer, frame, {
    ip: undefined,
    spDelta: 0,
    isEntry: false,
    turnedAway: [at(PASSED)],
  });
  emitPrograms(writer, frame, programs);
  emitLeave(writer, frame, sides);
  writer.asm.jmp32(machine.exit);
  sides!.emit(frame.totalBytes);
  code.bytes.set(writer.finish().bytes, GATE);
}

const random = randomWords(7);
function registers(rsp = machine.stack.at + BigInt(machine.stack.bytes.length / 2)): bigint[] {
  const regs = Array.from({ length: 16 }, () => random());
  regs[RSP] = rsp;
  return regs;
}

const headOffset = (slot: number) => Number(base - stacks.at) + slot * STACK_STRIDE + STACK_HEAD;
function setHead(slot: number, owner: bigint, sp: bigint): void {
  stacks.view.setBigUint64(headOffset(slot) + HEAD_OWNER, owner, true);
  stacks.view.setBigUint64(headOffset(slot) + HEAD_SP, sp, true);
}
const ownerOf = (slot: number) => stacks.view.getBigUint64(headOffset(slot) + HEAD_OWNER, true);
const spOf = (slot: number) => stacks.view.getBigUint64(headOffset(slot) + HEAD_SP, true);
const word = (offset: number) => code.view.getBigUint64(offset, true);
/** The slot whose stack the program ran on. */
const slotSeen = () => Math.floor(Number(word(SEEN_SP) - base) / STACK_STRIDE);

/** Goes through the gate; every register, the status flags, and the stack with its red zone must be as before. */
function pass(rsp?: bigint): void {
  const regs = registers(rsp);
  const flags = 0x202n | (random() & 0x8d5n);
  const { bytes, at } = machine.stack;
  for (let i = 0; i < bytes.length; i++) bytes[i] = i;
  const before = bytes.slice(Number(regs[RSP]! - at) - 128);
  const after = machine.run(code.at + BigInt(GATE), { regs: [...regs], flags });
  expect(after.regs).toEqual(regs);
  expect(after.flags).toBe(flags);
  expect(Buffer.compare(bytes.slice(Number(regs[RSP]! - at) - 128), before)).toBe(0);
}

describe("a program runs on the thread's private stack", () => {
  test("the slot that its hash says, which is the thread's from then on and free again behind the gate", () => {
    pass();
    expect([word(RUNS), word(PASSED), slotSeen()]).toEqual([1n, 0n, home]);
    expect([ownerOf(home), spOf(home)]).toEqual([fsBase, 0n]);
    pass();
    expect([word(RUNS), slotSeen()]).toEqual([2n, home]);
  });

  test.each([
    ["the slot is another thread's", 1],
    ["a run of slots is other threads'", 20],
    ["all slots up to the last are others': the search goes on at the first", STACK_COUNT - 1],
  ])("%s", (_, taken) => {
    for (let i = 0; i < taken; i++) setHead((home + i) % STACK_COUNT, 0x1000n + BigInt(i), 0n);
    pass();
    expect([word(RUNS), slotSeen()]).toEqual([1n, (home + taken) % STACK_COUNT]);
    expect(ownerOf((home + taken) % STACK_COUNT)).toBe(fsBase);
  });

  test("a stack in use by what lies above it on the thread's stack is not what a longjmp left: passed by", () => {
    const rsp = machine.stack.at + BigInt(machine.stack.bytes.length / 2);
    setHead(home, fsBase, rsp + 512n);
    pass(rsp);
    expect([word(RUNS), word(PASSED), spOf(home)]).toEqual([0n, 1n, rsp + 512n]);
  });

  test("a stack in use by what lies below has been left by a longjmp: it is taken again", () => {
    const rsp = machine.stack.at + BigInt(machine.stack.bytes.length / 2);
    setHead(home, fsBase, rsp - 2048n);
    pass(rsp);
    expect([word(RUNS), word(PASSED), spOf(home)]).toEqual([1n, 0n, 0n]);
  });

  test("a handler that runs on the private stack passes by", () => {
    // The machine's stack stands for it: a slot of its own size around it.
    const rsp = base + BigInt(home * STACK_STRIDE + STACK_HEAD - 8192);
    setHead(home, fsBase, 8n);
    const regs = registers(rsp);
    const after = machine.run(code.at + BigInt(GATE), { regs: [...regs], flags: 0x202n });
    expect(after.regs).toEqual(regs);
    expect([word(RUNS), word(PASSED), spOf(home)]).toEqual([0n, 1n, 8n]);
  });

  test("what is left in the middle of a program goes on behind it, with everything as it was", () => {
    code.view.setBigUint64(ABANDONED, 1n, true);
    pass();
    pass();
    expect([word(RUNS), word(PASSED), spOf(home)]).toEqual([2n, 0n, 0n]);
    const recover = stacks.view.getBigUint64(headOffset(home) + HEAD_RECOVER, true);
    const frameBytes = code.view.getBigUint64(Number(recover - code.at) - FRAME_SIZE_BEFORE_RECOVERY, true);
    // The program had been called from the bottom of the frame.
    expect(word(SEEN_SP) - base - BigInt(home * STACK_STRIDE)).toBe(BigInt(STACK_HEAD) - frameBytes - 8n);
  });

  test("no slot is left: passed by", () => {
    for (let slot = 0; slot < STACK_COUNT; slot++) setHead(slot, BigInt(slot + 1), 0n);
    pass();
    expect([word(RUNS), word(PASSED)]).toEqual([0n, 1n]);
  });
});

test("the frame is for the switch only where registers are dead and flags too", () => {
  const frame = planFrame({
    programs: [],
    liveness: { regs: 0xffff & ~regSet(R11, R10), flagsLive: false },
    isEntry: true,
    otherClobbers: regSet(RAX, R14),
    otherClobbersFlags: true,
    stacks: {
      base: 0n,
      thread: "fs:0",
      routines: { find: 0n, isHeld: 0n, findWithKey: 0n, isHeldWithKey: 0n, settle: 0n, deliver: 0n },
      defersSignals: false,
      findsAlternate: true,
      key: undefined,
    },
  });
  expect(frame.sill).toMatchObject({ lenBytes: 0, regs: [], flagsSlot: undefined });
});

test("each stack ends in a guard page", () => {
  const pages = guardPages(0x10_0000n);
  expect(pages).toHaveLength(STACK_COUNT);
  expect(pages[1]).toEqual({ at: 0x10_0000n + BigInt(STACK_STRIDE), lenBytes: 4096 });
});
