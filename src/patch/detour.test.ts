import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Machine, type NativeMemory, nativeMemory, randomWords } from "../../test/support/native-code.ts";
import { GATE_OVERRIDE_VALUE, GATE_OVERRIDES, type GateProgram } from "../gate/gate-frame.ts";
import { emitStackRoutines, PRIVATE_STACKS_BYTES, STACK_STRIDE } from "../gate/private-stacks.ts";
import { Assembler } from "../x86/assembler.ts";
import type { CodeImage } from "../x86/code-image.ts";
import { ImageCode } from "../x86/regions.ts";
import {
  hasReg,
  PT_REGS_COOKIE,
  PT_REGS_CS,
  PT_REGS_FLAGS,
  PT_REGS_IP,
  PT_REGS_SP,
  PT_REGS_SS,
  ptRegsOffset,
  R8,
  R10,
  R11,
  R12,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  type RegSet,
  RSI,
  RSP,
  regSet,
} from "../x86/registers.ts";
import { emitDetour, type PrivateStackHook, SLOT } from "./detour.ts";
import { findOverrideRefusal, patchOf, planSites, type SitePlan } from "./plan.ts";

const FUNCTION = 0;
const RECORD = 1024;
const PROGRAMS = 4096;
const DETOUR = 8192;
const ROUTINES = 16384;
const TURNED_AWAY = ROUTINES + 1024;
const MEMORY_BYTES = 20480;

let machine: Machine;
let memory: NativeMemory;
let stackMemory: NativeMemory;
let stacksAt: bigint;
beforeAll(() => {
  machine = new Machine();
  memory = nativeMemory(MEMORY_BYTES, (machine.exit & ~0xfffffn) + 0x100_0000n);
  stackMemory = nativeMemory(PRIVATE_STACKS_BYTES + STACK_STRIDE);
  stacksAt = (stackMemory.at + BigInt(STACK_STRIDE) - 1n) & -BigInt(STACK_STRIDE);
});
afterAll(() => {
  stackMemory[Symbol.dispose]();
  memory[Symbol.dispose]();
  machine[Symbol.dispose]();
});

/** A function in the middle of its life: flags and red zone in use, every register meaningful. */
const bodies: readonly {
  readonly name: string;
  readonly emit: (asm: Assembler) => void;
  /** Number of instructions before the site. */
  readonly siteIndex: number;
}[] = [
  {
    name: "function entry",
    siteIndex: 0,
    emit: (asm) => {
      asm.endbr64();
      asm.push(RBX);
      asm.mov(RBX, RDI);
      asm.add(RBX, RSI);
      asm.pop(RAX);
    },
  },
  {
    name: "flags live, red zone in use",
    siteIndex: 3,
    emit: (asm) => {
      asm.mov({ base: RSP, disp: -8 }, RDI);
      asm.mov({ base: RSP, disp: -120 }, RSI);
      asm.add(RAX, RCX);
      asm.mov(RDX, { base: RSP, disp: -8 });
      asm.alu("adc", RDX, { base: RSP, disp: -120 });
      asm.set("o", R8);
    },
  },
  {
    name: "flags dead, rax dead",
    siteIndex: 1,
    emit: (asm) => {
      asm.mov({ base: RSP, disp: -16 }, RDI);
      asm.lea(RAX, { base: RDI, index: RSI, scale: 2 });
      asm.add(RAX, { base: RSP, disp: -16 });
      asm.add(RAX, RBX);
    },
  },
  {
    name: "push and pop at the site",
    siteIndex: 1,
    emit: (asm) => {
      asm.cmp(RDI, RSI);
      asm.push(RAX);
      asm.push(RCX);
      asm.pushfq();
      asm.pop(R12);
      asm.pop(RDX);
      asm.pop(R11);
    },
  },
  {
    name: "conditional jump at the site",
    siteIndex: 1,
    emit: (asm) => {
      const skip = asm.label();
      asm.cmp(RDI, RSI);
      asm.jcc("b", skip);
      asm.lea(RAX, { base: RAX, disp: 1000 });
      asm.bind(skip);
      asm.set("be", R10);
    },
  },
];

/** Stores every slot that it is allowed to read, then ruins every register that it is allowed to change. */
function emitProgram(at: bigint, record: bigint, clobbers: RegSet, reads: readonly number[]): Uint8Array {
  const asm = new Assembler(at);
  const free = [RAX, RCX, R11].find((reg) => hasReg(clobbers, reg));
  if (free !== undefined) {
    for (const [i, slot] of reads.entries()) {
      asm.mov(free, { base: RSP, disp: 8 + slot });
      asm.mov({ ripTo: record + BigInt(i * 8) }, free);
    }
    asm.lock().inc({ ripTo: record + 504n });
  } else {
    asm.lock().inc({ ripTo: record + 504n });
  }
  for (let reg = 0; reg < 16; reg++) if (hasReg(clobbers, reg)) asm.movImm(reg, 0xdead_0000 + reg);
  asm.cmp(RSP, RSP);
  asm.ret();
  return asm.finish();
}

const readsTable: readonly { readonly name: string; readonly slots: readonly number[] }[] = [
  { name: "no context", slots: [] },
  { name: "arg0", slots: [ptRegsOffset[RDI]!] },
  { name: "arg0, arg1, ip and cookie", slots: [112, 104, PT_REGS_IP, PT_REGS_COOKIE] },
  {
    name: "everything",
    slots: [...ptRegsOffset, PT_REGS_IP, PT_REGS_COOKIE, PT_REGS_CS, PT_REGS_SS, PT_REGS_FLAGS],
  },
];

const clobbersTable: readonly { readonly name: string; readonly regs: RegSet }[] = [
  { name: "rax", regs: regSet(RAX) },
  { name: "rax rdi r10 r11", regs: regSet(RAX, RDI, R10, R11) },
  { name: "all", regs: 0xffff & ~(1 << RSP) },
];

function imageOf(bytes: Uint8Array): CodeImage {
  const start = memory.at + BigInt(FUNCTION);
  const end = start + BigInt(bytes.length);
  return {
    name: "made",
    text: [{ start, bytes }],
    findFunction: (addr) => (addr >= start && addr < end ? { start, end, name: "f" } : undefined),
    pointersInto: () => [],
    landingPads: () => [],
    readData: () => undefined,
  };
}

function writeFunction(emit: (asm: Assembler) => void): Uint8Array {
  memory.bytes.fill(0xcc);
  const asm = new Assembler(memory.at + BigInt(FUNCTION));
  emit(asm);
  asm.jmp32(machine.exit);
  const bytes = asm.finish();
  memory.bytes.set(bytes, FUNCTION);
  return bytes.slice();
}

function planAt(code: ImageCode, index: number, mechanism: "jump" | "int3"): SitePlan {
  const fn = code.functionAt(memory.at)!;
  const site = fn.code.insn(index).addr;
  const [plan] = planSites(code, [site], { mechanism });
  if (plan?.kind !== "planned") throw new Error(`refused: ${JSON.stringify(plan, (_, v) => String(v))}`);
  return plan;
}

/** The stack of the caller and the red zone, not what lies below: that belongs to nobody. */
function visibleStack(rsp: bigint, isEntry: boolean): Buffer {
  const offset = Number(rsp - machine.stack.at) - (isEntry ? 0 : 128);
  return Buffer.from(machine.stack.bytes.slice(offset, offset + 1024));
}

const stackLevels = ["its own stack", "a private stack", "a private stack, signals waiting"] as const;

/** Puts the routines of the private stacks into the memory. */
function privateStack(defersSignals = false): PrivateStackHook {
  const at = memory.at + BigInt(ROUTINES);
  const routines = emitStackRoutines(at, stacksAt);
  memory.bytes.set(routines.bytes, ROUTINES);
  return {
    stacks: {
      base: stacksAt,
      thread: "fs:0",
      routines,
      defersSignals,
      findsAlternate: !defersSignals,
      key: undefined,
    },
    turnedAway: [memory.at + BigInt(TURNED_AWAY)],
  };
}

const variants = bodies.flatMap((body) =>
  (["jump", "int3"] as const).flatMap((mechanism) =>
    clobbersTable.flatMap((clobbers) => stackLevels.map((stack) => ({ body, mechanism, clobbers, stack }))),
  ),
);

describe("a detour leaves everything as it was", () => {
  for (const { body, mechanism, clobbers, stack } of variants) {
    test(`${body.name}, ${mechanism}, program changes ${clobbers.name}, on ${stack}`, () => {
      for (const reads of readsTable) {
        for (const programCount of [1, 3]) {
          const original = writeFunction(body.emit);
          const plan = planAt(new ImageCode(imageOf(original)), body.siteIndex, mechanism);
          expect(plan.isEntry).toBe(body.siteIndex === 0);
          const programs: GateProgram[] = [];
          for (let i = 0; i < programCount; i++) {
            const entry = memory.at + BigInt(PROGRAMS + i * 512);
            const record = memory.at + BigInt(RECORD + i * 512);
            const code = emitProgram(entry, record, clobbers.regs, reads.slots);
            expect(code.length).toBeLessThan(512);
            memory.bytes.set(code, PROGRAMS + i * 512);
            memory.bytes.fill(0, RECORD + i * 512, RECORD + (i + 1) * 512);
            programs.push({
              name: `program ${i + 1}`,
              entry,
              clobbers: clobbers.regs,
              ctxReads: new Set(reads.slots),
              stackBytes: 8,
              cookie: i === 1 ? 0x1234_5678_9abc_def0n : BigInt(i),
            });
          }
          const hook = stack === "its own stack" ? undefined : privateStack(stack.endsWith("waiting"));
          const detour = emitDetour({
            plan,
            at: memory.at + BigInt(DETOUR),
            programs,
            privateStack: hook,
          });
          if (detour.kind === "refused") throw new Error(detour.refusal.reason);
          memory.bytes.set(detour.bytes, DETOUR);
          const patched = original.slice();
          patched.set(patchOf(plan, mechanism, detour.entry), Number(plan.at - memory.at));
          const random = randomWords(clobbers.regs + body.siteIndex);
          for (let round = 0; round < 4; round++) {
            const regs = Array.from({ length: 16 }, () => random());
            const rsp = machine.stack.at + BigInt(machine.stack.bytes.length / 2);
            regs[RSP] = rsp;
            const flags = 0x202n | (random() & 0x8d5n);
            memory.bytes.set(original, FUNCTION);
            machine.stack.bytes.fill(round + 1);
            const expected = machine.run(memory.at, { regs: [...regs], flags });
            const expectedStack = visibleStack(rsp, plan.isEntry);
            memory.bytes.set(original, FUNCTION);
            machine.stack.bytes.fill(round + 1);
            const before = stateAtSite(body.siteIndex, original, regs, flags);
            if (mechanism === "jump") machine.stack.bytes.fill(round + 1);
            memory.bytes.set(patched, FUNCTION);
            // The trap handler leads to the detour with the state at the site.
            const actual =
              mechanism === "jump"
                ? machine.run(memory.at, { regs: [...regs], flags })
                : machine.run(detour.entry, { regs: [...before.regs], flags: before.flags });
            expect(actual.regs).toEqual(expected.regs);
            expect(visibleStack(rsp, plan.isEntry).equals(expectedStack), "stack").toBe(true);
            if (plan.liveness.flagsLive) expect(actual.flags).toBe(expected.flags);

            for (let i = 0; i < programCount; i++) {
              const record = RECORD + i * 512;
              expect(memory.view.getBigUint64(record + 504, true)).toBe(BigInt(round + 1));
              for (const [k, slot] of reads.slots.entries()) {
                const seen = memory.view.getBigUint64(record + k * 8, true);
                expect(seen, `slot ${slot}`).toBe(expectedSlot(slot, plan, programs[i]!, before));
              }
            }
          }
        }
      }
    });
  }
});

/** Registers and flags just before the site, by running the original up to there. */
function stateAtSite(
  index: number,
  original: Uint8Array,
  regs: readonly bigint[],
  flags: bigint,
): { regs: readonly bigint[]; flags: bigint } {
  const code = new ImageCode(imageOf(original)).functionAt(memory.at)!.code;
  const at = Number(code.insn(index).addr - memory.at);
  const saved = memory.bytes.slice(FUNCTION, FUNCTION + original.length + 8);
  memory.bytes.set(original, FUNCTION);
  const asm = new Assembler(memory.at + BigInt(at));
  asm.jmp32(machine.exit);
  memory.bytes.set(asm.finish(), at);
  const state = machine.run(memory.at, { regs: [...regs], flags });
  memory.bytes.set(saved, FUNCTION);
  return state;
}

function expectedSlot(
  slot: number,
  plan: SitePlan,
  program: GateProgram,
  before: { regs: readonly bigint[]; flags: bigint },
): bigint {
  switch (slot) {
    case PT_REGS_IP:
      return plan.at;
    case PT_REGS_COOKIE:
      return program.cookie;
    case PT_REGS_CS:
      return 0x33n;
    case PT_REGS_SS:
      return 0x2bn;
    case PT_REGS_FLAGS:
      return before.flags;
    case PT_REGS_SP:
      return before.regs[RSP]!;
    default:
      return before.regs[ptRegsOffset.indexOf(slot)]!;
  }
}

test("nothing is saved where nothing is both live and changed", () => {
  const original = writeFunction((asm) => {
    asm.movImm(RAX, 1, 32);
    asm.movImm(RCX, 2, 32);
    asm.add(RAX, RCX);
  });
  const plan = planAt(new ImageCode(imageOf(original)), 0, "jump");
  const program: GateProgram = {
    name: "count",
    entry: memory.at + BigInt(PROGRAMS),
    clobbers: regSet(RAX, RCX),
    ctxReads: new Set(),
    stackBytes: 0,
    cookie: 0n,
  };
  const detour = emitDetour({ plan, at: memory.at + BigInt(DETOUR), programs: [program] });
  if (detour.kind === "refused") throw new Error(detour.refusal.reason);
  // the slot; call program; mov eax, 1; jmp back
  expect(detour.bytes.length).toBe(5 + 5 + 5 + 5);
  expect(detour.bytes.subarray(0, 5)).toEqual(SLOT);
  expect(detour.frame.totalBytes).toBe(0);
});

test("a detour out of reach is refused", () => {
  const original = writeFunction((asm) => asm.movImm(RAX, 1, 32));
  const plan = planAt(new ImageCode(imageOf(original)), 0, "jump");
  expect(emitDetour({ plan, at: plan.at + 0x1_0000_0000n, programs: [] })).toMatchObject({
    kind: "refused",
    refusal: { reason: "detour-out-of-reach" },
  });
});

test("a program that is too far for a call is reached all the same", () => {
  using far = nativeMemory(4096, (machine.exit & ~0xfffffn) + 0x3_0000_0000n);
  const original = writeFunction((asm) => {
    asm.lea(RAX, { base: RDI, disp: 5 });
    asm.push(RAX);
    asm.pop(RCX);
  });
  const plan = planAt(new ImageCode(imageOf(original)), 0, "jump");
  const asm = new Assembler(far.at);
  asm.lock().inc({ ripTo: far.at + 1024n });
  asm.ret();
  far.bytes.set(asm.finish());
  const program: GateProgram = {
    name: "far",
    entry: far.at,
    clobbers: 0,
    ctxReads: new Set(),
    stackBytes: 0,
    cookie: 0n,
  };
  const detour = emitDetour({ plan, at: memory.at + BigInt(DETOUR), programs: [program, program] });
  if (detour.kind === "refused") throw new Error(detour.refusal.reason);
  memory.bytes.set(detour.bytes, DETOUR);
  memory.bytes.set(patchOf(plan, "jump", detour.entry), FUNCTION);
  const regs = Array.from({ length: 16 }, (_, i) => BigInt(i * 10));
  regs[RSP] = machine.stack.at + 4096n;
  const after = machine.run(memory.at, { regs, flags: 0x202n });
  expect(after.regs[RCX]).toBe(75n);
  expect(far.view.getBigUint64(1024, true)).toBe(2n);
});

/** Ruins all registers; overrides with 4711 where rdi is not 0. */
function emitOverrider(at: bigint): Uint8Array {
  const asm = new Assembler(at);
  const done = asm.label();
  asm.test(RDI, RDI);
  asm.jcc("e", done);
  asm.movImm({ base: RSP, disp: 8 + GATE_OVERRIDE_VALUE }, 4711);
  asm.movImm({ base: RSP, disp: 8 + GATE_OVERRIDES }, 1);
  asm.bind(done);
  for (let reg = 0; reg < 16; reg++) if (reg !== RSP) asm.movImm(reg, 0xdead_0000 + reg);
  asm.ret();
  return asm.finish();
}

function overrider(): GateProgram {
  return {
    name: "override",
    entry: memory.at + BigInt(PROGRAMS),
    clobbers: 0xffff & ~(1 << RSP),
    ctxReads: new Set([GATE_OVERRIDES, GATE_OVERRIDE_VALUE]),
    stackBytes: 8,
    cookie: 0n,
  };
}

describe("a program that overrides the function's result", () => {
  const calleeSaved = [3, 5, 12, 13, 14, 15];

  for (const mechanism of ["jump", "int3"] as const) {
    for (const neverReturns of [false, true]) {
      test(`${mechanism}, ${neverReturns ? "a function that never returns" : "a function that returns"}`, () => {
        const original = writeFunction((asm) => {
          asm.endbr64();
          asm.movImm(RBX, 5);
          if (neverReturns) asm.jmp(asm.here());
          asm.lea(RAX, { base: RDI, disp: 5 });
        });
        memory.bytes.set(emitOverrider(memory.at + BigInt(PROGRAMS)), PROGRAMS);
        const plan = planAt(new ImageCode(imageOf(original)), 0, mechanism);
        const detour = emitDetour({ plan, at: memory.at + BigInt(DETOUR), programs: [overrider()] });
        if (detour.kind === "refused") throw new Error(detour.refusal.reason);
        memory.bytes.set(detour.bytes, DETOUR);
        memory.bytes.set(patchOf(plan, mechanism, detour.entry), FUNCTION);
        const regs = Array.from({ length: 16 }, (_, i) => BigInt(i * 10 + 1));
        regs[RSP] = machine.stack.at + 8192n;
        const stack = new DataView(machine.stack.bytes.buffer, machine.stack.bytes.byteOffset);
        stack.setBigUint64(8192, machine.exit, true);
        const start = mechanism === "jump" ? memory.at : detour.entry;
        const left = machine.run(start, { regs: [...regs], flags: 0x202n });
        expect(left.regs[RAX]).toBe(4711n);
        expect(left.regs[RSP]).toBe(regs[RSP]! + 8n);
        for (const reg of calleeSaved) expect(left.regs[reg]).toBe(regs[reg]);
        if (neverReturns) return;
        regs[RDI] = 0n;
        const ran = machine.run(start, { regs: [...regs], flags: 0x202n });
        expect(ran.regs[RAX]).toBe(5n);
        expect(ran.regs[RBX]).toBe(5n);
        expect(ran.regs[RSP]).toBe(regs[RSP]);
      });
    }
  }

  test("is refused inside a function and at its return", () => {
    const original = writeFunction((asm) => {
      asm.push(RBX);
      asm.movImm(RAX, 1, 32);
      asm.movImm(RCX, 1, 32);
    });
    const code = new ImageCode(imageOf(original));
    expect(findOverrideRefusal(planAt(code, 0, "jump"), "entry")).toBeUndefined();
    expect(findOverrideRefusal(planAt(code, 0, "jump"), "return")?.reason).toBe("override-at-return");
    expect(findOverrideRefusal(planAt(code, 1, "jump"), "entry")?.reason).toBe("override-inside-function");
  });
});
