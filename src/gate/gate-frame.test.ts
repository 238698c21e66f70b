import { describe, expect, test } from "vitest";
import { decodeBlock, textOf } from "../x86/decode.ts";
import { ALL_REGS, type Liveness } from "../x86/liveness.ts";
import {
  PT_REGS_COOKIE,
  PT_REGS_FLAGS,
  PT_REGS_IP,
  PT_REGS_SP,
  R10,
  R11,
  R12,
  RAX,
  type RegSet,
  RSP,
  regNames,
  regSet,
} from "../x86/registers.ts";
import { CodeWriter } from "./code-writer.ts";
import { emitEnter, emitLeave, emitPrograms } from "./gate.ts";
import { type GateProgram, planFrame } from "./gate-frame.ts";

function program(clobbers: RegSet, reads: readonly number[] = [], cookie = 0n): GateProgram {
  return { name: "p", entry: 0x1000n, clobbers, ctxReads: new Set(reads), stackBytes: 32, cookie };
}

const everything: Liveness = { regs: ALL_REGS, flagsLive: true };
const quiet: Liveness = { regs: ALL_REGS, flagsLive: false };

interface Case {
  readonly name: string;
  readonly programs: readonly GateProgram[];
  readonly liveness: Liveness;
  readonly isEntry?: boolean;
  readonly restored: readonly string[];
  readonly totalBytes: number;
  readonly keepsFlags?: boolean;
}

const cases: readonly Case[] = [
  { name: "no program", programs: [], liveness: everything, isEntry: true, restored: [], totalBytes: 0 },
  {
    name: "nothing changed at an entry: no frame",
    programs: [program(0)],
    liveness: quiet,
    isEntry: true,
    restored: [],
    totalBytes: 0,
  },
  {
    name: "nothing changed elsewhere: the red zone only",
    programs: [program(0)],
    liveness: quiet,
    restored: [],
    totalBytes: 128,
  },
  {
    name: "changed and live: saved, packed where no context is read",
    programs: [program(regSet(RAX, R11))],
    liveness: quiet,
    isEntry: true,
    restored: ["rax", "r11"],
    totalBytes: 16,
  },
  {
    name: "changed and dead: not saved",
    programs: [program(regSet(RAX, R11))],
    liveness: { regs: ALL_REGS & ~regSet(RAX), flagsLive: false },
    isEntry: true,
    restored: ["r11"],
    totalBytes: 8,
  },
  {
    name: "flags live: kept behind the registers, through rax",
    programs: [program(regSet(R11))],
    liveness: everything,
    isEntry: true,
    restored: ["rax", "r11"],
    totalBytes: 24,
    keepsFlags: true,
  },
  {
    name: "flags live, rax dead: rax is not saved",
    programs: [program(0)],
    liveness: { regs: ALL_REGS & ~regSet(RAX), flagsLive: true },
    isEntry: true,
    restored: [],
    totalBytes: 8,
    keepsFlags: true,
  },
  {
    name: "several programs: one frame for what any of them changes",
    programs: [program(regSet(RAX)), program(regSet(R10, R12))],
    liveness: quiet,
    isEntry: true,
    restored: ["rax", "r10", "r12"],
    totalBytes: 24,
  },
  {
    name: "context read: registers in their places, cut off behind the highest",
    programs: [program(regSet(RAX), [112])],
    liveness: quiet,
    isEntry: true,
    restored: ["rax"],
    totalBytes: 120,
  },
  {
    name: "stack pointer changed by nobody, whatever a program says",
    programs: [program(regSet(RSP))],
    liveness: quiet,
    isEntry: true,
    restored: [],
    totalBytes: 0,
  },
];

describe("the frame of a gate", () => {
  for (const {
    name,
    programs,
    liveness,
    isEntry = false,
    restored,
    totalBytes,
    keepsFlags = false,
  } of cases) {
    test(name, () => {
      const frame = planFrame({ programs, liveness, isEntry, otherClobbers: 0, otherClobbersFlags: false });
      const names = frame.regs.filter((saved) => saved.isRestored).map((saved) => regNames[saved.reg]);
      expect(names).toEqual(restored);
      expect(frame.totalBytes).toBe(totalBytes);
      expect(frame.flagsSlot !== undefined).toBe(keepsFlags);
    });
  }

  test("a register is free for constants even where every register is live and none is changed", () => {
    const frame = planFrame({
      programs: [program(0, [PT_REGS_IP, PT_REGS_SP])],
      liveness: quiet,
      isEntry: true,
      otherClobbers: 0,
      otherClobbersFlags: false,
    });
    expect(frame.scratch).toBe(RAX);
    expect(frame.regs).toMatchObject([{ reg: RAX, isRestored: true }]);
  });

  test("the stack it needs is that of the deepest program", () => {
    const deep = { ...program(0), stackBytes: 512 };
    const frame = planFrame({
      programs: [program(0), deep, program(0)],
      liveness: quiet,
      isEntry: false,
      otherClobbers: 0,
      otherClobbersFlags: false,
    });
    expect(frame.stackBytes).toBe(128 + 8 + 512);
  });
});

test("no instruction that changes flags stands outside the saved flags", () => {
  const programs = [program(0xffff, [PT_REGS_IP, PT_REGS_SP, PT_REGS_COOKIE, PT_REGS_FLAGS], 1n << 40n)];
  const frame = planFrame({
    programs,
    liveness: everything,
    isEntry: false,
    otherClobbers: 0,
    otherClobbersFlags: false,
  });
  const writer = new CodeWriter(0x10_0000n);
  emitEnter(writer, frame, { ip: 0x7f00_1234_5678n, spDelta: 0, isEntry: true });
  emitPrograms(writer, frame, programs);
  emitLeave(writer, frame);
  const code = writer.finish();
  const mnemonics = decodeBlock(code.at, code.bytes)
    .insns()
    .map((insn) => textOf(insn).split(" ")[0]!);
  const saved = mnemonics.indexOf("lahf");
  const restored = mnemonics.indexOf("sahf");
  const harmless = new Set(["lea", "mov", "pushfq", "pop", "popf", "pushf", "call", "seto"]);
  expect(saved).toBeGreaterThan(0);
  expect(mnemonics.slice(0, saved).filter((name) => !harmless.has(name))).toEqual([]);
  expect(mnemonics.slice(restored + 1).filter((name) => !harmless.has(name))).toEqual([]);
});

test("constants behind the code are shared and named", () => {
  const writer = new CodeWriter(0x10_0000n);
  writer.note("calls");
  writer.call(0x7f00_0000_0000n);
  writer.call(0x7f00_0000_0000n);
  const code = writer.finish();
  expect(code.notes.map((note) => note.text)).toEqual(["calls", "constants"]);
  const [, constants] = code.notes;
  expect(code.bytes.length - constants!.offset).toBe(8);
  expect((code.at + BigInt(constants!.offset)) % 8n).toBe(0n);
});
