import { describe, expect, test } from "vitest";
import { Assembler } from "./assembler.ts";
import { decodeBlock } from "./decode.ts";
import { liveAt } from "./liveness.ts";
import { R8, R9, R10, R11, R12, RAX, RBX, RCX, RDI, RDX, RSI, RSP, regNames, regsOf } from "./registers.ts";

const all = regNames.filter((name) => name !== "rsp");
const allBut = (...names: string[]) => all.filter((name) => !names.includes(name));

interface Case {
  readonly name: string;
  readonly emit: (asm: Assembler) => void;
  readonly isEntry?: boolean;
  readonly live: readonly string[];
  readonly flags: boolean;
}

const cases: readonly Case[] = [
  {
    name: "everything at a return",
    emit: (asm) => asm.ret(),
    live: all,
    flags: false,
  },
  {
    name: "a register that is overwritten is dead",
    emit: (asm) => {
      asm.movImm(RAX, 1, 32);
      asm.ret();
    },
    live: allBut("rax"),
    flags: false,
  },
  {
    name: "a register that is read first is live",
    emit: (asm) => {
      asm.mov(RCX, RAX);
      asm.movImm(RAX, 1, 32);
      asm.ret();
    },
    live: allBut("rcx"),
    flags: false,
  },
  {
    name: "a register that is read as an address is live",
    emit: (asm) => {
      asm.mov(RDI, { base: RDI, index: RSI, scale: 8 });
      asm.movImm(RSI, 0, 32);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "zeroing by xor reads nothing",
    emit: (asm) => {
      asm.zero(RDX);
      asm.ret();
    },
    live: allBut("rdx"),
    flags: false,
  },
  {
    name: "a write of 8 bits leaves the rest alive",
    emit: (asm) => {
      asm.movImm(RAX, 1, 8);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "a write of 16 bits leaves the rest alive",
    emit: (asm) => {
      asm.mov(RAX, RCX, 16);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "a conditional move leaves its destination alive",
    emit: (asm) => {
      asm.cmov("e", RAX, RCX);
      asm.ret();
    },
    live: all,
    flags: true,
  },
  {
    name: "written on one path, read on the other",
    emit: (asm) => {
      const other = asm.label();
      asm.test(RDI, RDI);
      asm.jcc("e", other);
      asm.movImm(RAX, 1, 32);
      asm.ret();
      asm.bind(other);
      asm.mov(RCX, RAX);
      asm.movImm(RAX, 1, 32);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "written on both paths",
    emit: (asm) => {
      const other = asm.label();
      asm.test(RDI, RDI);
      asm.jcc("e", other);
      asm.movImm(RAX, 1, 32);
      asm.ret();
      asm.bind(other);
      asm.movImm(RAX, 2, 32);
      asm.ret();
    },
    live: allBut("rax"),
    flags: false,
  },
  {
    name: "a loop is walked once",
    emit: (asm) => {
      asm.movImm(RCX, 10, 32);
      const again = asm.here();
      asm.dec(RCX, 32);
      asm.jcc("ne", again);
      asm.movImm(RAX, 1, 32);
      asm.ret();
    },
    live: allBut("rax", "rcx"),
    flags: false,
  },
  {
    name: "a loop back to the site that needs the register",
    emit: (asm) => {
      const again = asm.here();
      asm.add(RAX, RCX);
      asm.zero(RCX);
      asm.jcc("ne", again);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "a call reads everything but flags",
    emit: (asm) => {
      asm.movImm(R11, 1, 32);
      asm.call(0x50_0000n);
      asm.ret();
    },
    live: allBut("r11"),
    flags: false,
  },
  {
    name: "an endless loop needs nothing that it does not read",
    emit: (asm) => {
      const again = asm.here();
      asm.inc(R8);
      asm.jmp(again);
    },
    live: ["r8"],
    flags: false,
  },
  {
    name: "a trap that never returns",
    emit: (asm) => {
      asm.mov({ base: RDI }, RSI);
      asm.ud2();
    },
    live: all,
    flags: true,
  },
  {
    name: "flags read by a branch",
    emit: (asm) => {
      const done = asm.label();
      asm.jcc("e", done);
      asm.movImm(RAX, 1, 32);
      asm.bind(done);
      asm.ret();
    },
    live: all,
    flags: true,
  },
  {
    name: "flags set before they are read",
    emit: (asm) => {
      const done = asm.label();
      asm.cmp(RDI, RSI);
      asm.jcc("e", done);
      asm.movImm(RAX, 1, 32);
      asm.bind(done);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "one flag kept by inc, read later",
    emit: (asm) => {
      asm.inc(RAX);
      asm.alu("adc", RCX, RDX);
      asm.ret();
    },
    live: all,
    flags: true,
  },
  {
    name: "a shift by cl may leave the flags as they are",
    emit: (asm) => {
      asm.shiftCl("shl", RAX);
      asm.set("b", RDX);
      asm.ret();
    },
    live: all,
    flags: true,
  },
  {
    name: "flags read, but a call led to the site",
    isEntry: true,
    emit: (asm) => {
      asm.set("b", RDX);
      asm.ret();
    },
    live: all,
    flags: false,
  },
  {
    name: "a conditional jump out of the function may need the flags",
    emit: (asm) => {
      asm.movImm(RAX, 1, 32);
      asm.jcc("e", 0x50_0000n);
      asm.cmp(RDI, RSI);
      asm.ret();
    },
    live: allBut("rax"),
    flags: true,
  },
  {
    name: "push reads its operand",
    emit: (asm) => {
      asm.push(R12);
      asm.movImm(R12, 0, 32);
      asm.pop(RBX);
      asm.ret();
    },
    live: allBut("rbx"),
    flags: false,
  },
  {
    name: "a system call needs everything that it does not change itself",
    emit: (asm) => {
      asm.movImm(R9, 0, 32);
      asm.movImm(R10, 0, 32);
      asm.syscall();
      asm.ret();
    },
    live: allBut("rcx", "r9", "r10", "r11"),
    flags: true,
  },
];

describe("live at the first instruction", () => {
  for (const { name, emit, isEntry = false, live, flags } of cases) {
    test(name, () => {
      const asm = new Assembler(0x40_0000n);
      emit(asm);
      const found = liveAt(decodeBlock(asm.base, asm.finish()), 0, isEntry);
      expect(regsOf(found.regs).map((reg) => regNames[reg])).toEqual(live);
      expect(found.flagsLive).toBe(flags);
      expect(regsOf(found.regs)).not.toContain(RSP);
    });
  }
});

test("behind bytes that are no instruction everything is live", () => {
  const asm = new Assembler(0x40_0000n);
  asm.movImm(RAX, 1, 32);
  asm.bytes([0x06]);
  const found = liveAt(decodeBlock(asm.base, asm.finish()), 0, false);
  expect(regsOf(found.regs).map((reg) => regNames[reg])).toEqual(allBut("rax"));
  expect(found.flagsLive).toBe(true);
});
