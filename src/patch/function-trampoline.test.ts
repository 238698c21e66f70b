import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Machine, type NativeMemory, nativeMemory, randomWords } from "../../test/support/native-code.ts";
import { GATE_OVERRIDE_VALUE, GATE_OVERRIDES, GATE_SITE, type GateProgram } from "../gate/gate-frame.ts";
import { Assembler } from "../x86/assembler.ts";
import type { CodeImage } from "../x86/code-image.ts";
import { ALL_REGS } from "../x86/liveness.ts";
import { ImageCode } from "../x86/regions.ts";
import {
  hasReg,
  PT_REGS_COOKIE,
  PT_REGS_FLAGS,
  PT_REGS_IP,
  PT_REGS_SP,
  ptRegsOffset,
  R10,
  R11,
  RAX,
  RCX,
  RDI,
  type RegSet,
  RSP,
  regSet,
} from "../x86/registers.ts";
import {
  emitApproach,
  emitFunctionTrampoline,
  entryDistanceOf,
  mayServe,
  trampolineKey,
} from "./function-trampoline.ts";
import { patchOf, planSites, type SitePlan } from "./plan.ts";

const FUNCTION = 0;
const RECORD = 1024;
const PROGRAMS = 4096;
const TRAMPOLINE = 8192;
const APPROACH = 12288;
const MEMORY_BYTES = 16384;

let machine: Machine;
let memory: NativeMemory;
beforeAll(() => {
  machine = new Machine();
  memory = nativeMemory(MEMORY_BYTES, (machine.exit & ~0xfffffn) + 0x100_0000n);
});
afterAll(() => {
  memory[Symbol.dispose]();
  machine[Symbol.dispose]();
});

const entries: readonly { readonly name: string; readonly emit: (asm: Assembler) => void }[] = [
  { name: "a 5-byte nop", emit: (asm) => asm.nop(5) },
  {
    name: "a 5-byte nop behind endbr64",
    emit: (asm) => {
      asm.endbr64();
      asm.nop(5);
    },
  },
  {
    name: "a sled of eight behind endbr64",
    emit: (asm) => {
      asm.endbr64();
      for (let i = 0; i < 8; i++) asm.nop(1);
    },
  },
];

/** A function that uses what a caller gives it: registers, the word above its return address, the red zone. */
function writeFunction(entry: (asm: Assembler) => void): Uint8Array {
  memory.bytes.fill(0xcc);
  const asm = new Assembler(memory.at + BigInt(FUNCTION));
  entry(asm);
  asm.mov({ base: RSP, disp: -8 }, RDI);
  asm.add(RAX, { base: RSP, disp: 8 });
  asm.add(RAX, { base: RSP, disp: -8 });
  asm.jmp32(machine.exit);
  const bytes = asm.finish();
  memory.bytes.set(bytes, FUNCTION);
  return bytes.slice();
}

function plan(original: Uint8Array): SitePlan {
  const start = memory.at + BigInt(FUNCTION);
  const end = start + BigInt(original.length);
  const image: CodeImage = {
    name: "made",
    text: [{ start, bytes: original }],
    findFunction: (addr) => (addr >= start && addr < end ? { start, end, name: "f" } : undefined),
    pointersInto: () => [],
    landingPads: () => [],
    readData: () => undefined,
  };
  const [planned] = planSites(new ImageCode(image), [start], { mechanism: "call" });
  if (planned?.kind !== "planned") throw new Error("refused");
  return planned;
}

/** Stores every slot that it is allowed to read, then ruins every register that it is allowed to change. */
function emitProgram(at: bigint, record: bigint, clobbers: RegSet, reads: readonly number[]): Uint8Array {
  const asm = new Assembler(at);
  for (const [i, slot] of reads.entries()) {
    asm.mov(RCX, { base: RSP, disp: 8 + slot });
    asm.mov({ ripTo: record + BigInt(i * 8) }, RCX);
  }
  asm.lock().inc({ ripTo: record + 504n });
  for (let reg = 0; reg < 16; reg++) if (hasReg(clobbers, reg)) asm.movImm(reg, 0xdead_0000 + reg);
  asm.cmp(RSP, RSP);
  asm.ret();
  return asm.finish();
}

function program(index: number, clobbers: RegSet, reads: readonly number[]): GateProgram {
  const entry = memory.at + BigInt(PROGRAMS + index * 512);
  const code = emitProgram(entry, memory.at + BigInt(RECORD + index * 512), clobbers, reads);
  memory.bytes.set(code, PROGRAMS + index * 512);
  memory.bytes.fill(0, RECORD + index * 512, RECORD + (index + 1) * 512);
  return {
    name: `program ${index + 1}`,
    entry,
    clobbers,
    ctxReads: new Set(reads),
    stackBytes: 8,
    cookie: 0x1234_5678_9abc_def0n + BigInt(index),
  };
}

const everything = 0xffff & ~(1 << RSP);
const allSlots = [...ptRegsOffset, PT_REGS_IP, PT_REGS_COOKIE, PT_REGS_FLAGS, GATE_SITE];
const clobbersTable = [
  { name: "rcx", regs: regSet(RCX) },
  { name: "rax rcx rdi r10 r11", regs: regSet(RAX, RCX, RDI, R10, R11) },
  { name: "every register", regs: everything },
];

describe("a function that is entered through a trampoline", () => {
  for (const entry of entries)
    for (const clobbers of clobbersTable)
      for (const byTrap of [false, true])
        test(`finds everything as it was: ${entry.name}, ${clobbers.name} changed${byTrap ? ", from an int3" : ""}`, () => {
          for (const slots of [[], [PT_REGS_SP], [PT_REGS_IP], allSlots])
            for (const count of [1, 3]) {
              const original = writeFunction(entry.emit);
              const site = plan(original);
              const programs = Array.from({ length: count }, (_, i) => program(i, clobbers.regs, slots));
              const trampoline = emitFunctionTrampoline({
                at: memory.at + BigInt(TRAMPOLINE),
                programs,
                entryDistance: entryDistanceOf(site),
                liveRegs: ALL_REGS,
              });
              memory.bytes.set(trampoline.bytes, TRAMPOLINE);
              const behind = site.region.start + 5n;
              const approach = emitApproach(memory.at + BigInt(APPROACH), behind, trampoline.entry);
              memory.bytes.set(approach.bytes, APPROACH);
              const random = randomWords(clobbers.regs + count);
              const regs = Array.from({ length: 16 }, () => random());
              regs[RSP] = machine.stack.at + BigInt(machine.stack.bytes.length / 2);
              machine.stack.bytes.fill(7);
              const expected = machine.run(memory.at, { regs: [...regs], flags: 0x202n });
              const stackBefore = Buffer.from(machine.stack.bytes.slice(machine.stack.bytes.length / 2));
              machine.stack.bytes.fill(7);
              memory.bytes.set(
                patchOf(site, "call", trampoline.entry),
                Number(site.region.start - memory.at),
              );
              const start = byTrap ? approach.at : memory.at;
              const actual = machine.run(start, { regs: [...regs], flags: 0x246n });
              expect(actual.regs).toEqual(expected.regs);
              const stackAfter = Buffer.from(machine.stack.bytes.slice(machine.stack.bytes.length / 2));
              expect(stackAfter.equals(stackBefore), "stack").toBe(true);
              for (const [i, each] of programs.entries()) {
                const record = RECORD + i * 512;
                expect(memory.view.getBigUint64(record + 504, true)).toBe(1n);
                for (const [k, slot] of slots.entries())
                  expect(memory.view.getBigUint64(record + k * 8, true), `slot ${slot}`).toBe(
                    expectedSlot(slot, each, regs),
                  );
              }
            }
        });
});

function expectedSlot(slot: number, { cookie }: GateProgram, regs: readonly bigint[]): bigint {
  switch (slot) {
    case PT_REGS_IP:
      return memory.at + BigInt(FUNCTION);
    case PT_REGS_COOKIE:
      return cookie;
    case PT_REGS_FLAGS:
      return 0x246n;
    case GATE_SITE:
      return 1n;
    default:
      return regs[ptRegsOffset.indexOf(slot)]!;
  }
}

test("an overridden function is left for its caller, and the word of the call with it", () => {
  for (const entry of entries) {
    const original = writeFunction(entry.emit);
    const site = plan(original);
    const asm = new Assembler(memory.at + BigInt(PROGRAMS));
    asm.movImm({ base: RSP, disp: 8 + GATE_OVERRIDES }, 1);
    asm.movImm({ base: RSP, disp: 8 + GATE_OVERRIDE_VALUE }, 4711);
    asm.movImm(RCX, 1);
    asm.ret();
    memory.bytes.set(asm.finish(), PROGRAMS);
    const override: GateProgram = {
      name: "override",
      entry: memory.at + BigInt(PROGRAMS),
      clobbers: regSet(RCX),
      ctxReads: new Set([GATE_OVERRIDES, GATE_OVERRIDE_VALUE]),
      stackBytes: 8,
      cookie: 0n,
    };
    const trampoline = emitFunctionTrampoline({
      at: memory.at + BigInt(TRAMPOLINE),
      programs: [override],
      entryDistance: undefined,
      liveRegs: ALL_REGS,
    });
    memory.bytes.set(trampoline.bytes, TRAMPOLINE);
    memory.bytes.set(patchOf(site, "call", trampoline.entry), Number(site.region.start - memory.at));
    const regs = Array.from({ length: 16 }, (_, i) => BigInt(i * 10 + 1));
    regs[RSP] = machine.stack.at + 8192n;
    new DataView(machine.stack.bytes.buffer, machine.stack.bytes.byteOffset).setBigUint64(
      8192,
      machine.exit,
      true,
    );
    const left = machine.run(memory.at, { regs: [...regs], flags: 0x202n });
    expect(left.regs).toEqual(
      regs.map((value, reg) => (reg === RAX ? 4711n : reg === RSP ? value + 8n : value)),
    );
  }
});

describe("who shares a trampoline", () => {
  const plain = () => program(0, regSet(RCX), []);
  const withCookie = (cookie: bigint) => ({ ...program(0, regSet(RCX), [PT_REGS_COOKIE]), cookie });
  test("functions with the same programs, however they begin", () => {
    expect(trampolineKey([plain()], 5)).toBe(trampolineKey([plain()], 9));
  });
  test("not those whose place is asked for and computed in another way", () => {
    const asks = program(0, regSet(RCX), [PT_REGS_IP]);
    expect(trampolineKey([asks], 5)).not.toBe(trampolineKey([asks], 9));
  });
  test("cookies that nobody reads do not matter, others do", () => {
    expect(trampolineKey([{ ...plain(), cookie: 1n }], 5)).toBe(
      trampolineKey([{ ...plain(), cookie: 2n }], 5),
    );
    expect(trampolineKey([withCookie(1n)], 5)).not.toBe(trampolineKey([withCookie(2n)], 5));
  });
  test("the order of programs matters", () => {
    const [a, b] = [program(0, 0, []), program(1, 0, [])];
    expect(trampolineKey([a, b], 5)).not.toBe(trampolineKey([b, a], 5));
  });
  test("not a function in which more is live than is saved", () => {
    const at = memory.at + BigInt(TRAMPOLINE);
    const made = emitFunctionTrampoline({
      at,
      programs: [program(0, regSet(RCX, R11), [])],
      entryDistance: 5,
      liveRegs: regSet(RCX, RDI),
    });
    expect(mayServe(made, { regs: regSet(RCX), flagsLive: false })).toBe(true);
    expect(mayServe(made, { regs: regSet(RAX, RDI, RCX), flagsLive: false }), "rax is not changed").toBe(
      true,
    );
    expect(mayServe(made, { regs: regSet(R11), flagsLive: false })).toBe(false);
  });
  test("not a function in which the register for constants is live", () => {
    const made = emitFunctionTrampoline({
      at: memory.at + BigInt(TRAMPOLINE),
      programs: [program(0, 0, [PT_REGS_IP])],
      entryDistance: 5,
      liveRegs: ALL_REGS & ~regSet(R10),
    });
    expect(made.frame.scratch).toBe(R10);
    expect(mayServe(made, { regs: ALL_REGS & ~regSet(R10), flagsLive: false })).toBe(true);
    expect(mayServe(made, { regs: ALL_REGS, flagsLive: false })).toBe(false);
  });
});
