import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  Machine,
  type MachineState,
  type NativeMemory,
  nativeMemory,
  randomWords,
} from "../../test/support/native-code.ts";
import { Assembler } from "./assembler.ts";
import { decodeBlock, textOf } from "./decode.ts";
import type { Region } from "./regions.ts";
import { RAX, RBX, RCX, RDI, RSI, RSP } from "./registers.ts";
import { relocate } from "./relocate.ts";

/** Offsets in the memory that holds originals: code under test, code behind a taken branch, data, marks. */
const CODE = 256;
const TARGET = 192;
const DATA = 2048;
const MARK = 4096;
const MEMORY_BYTES = 8192;

interface Form {
  readonly name: string;
  /** Hex; REL8, REL32 lead to the target, RIP32 and RIP32+n to the data (n bytes follow the field). */
  readonly code: string;
  /** Registers that hold the data's address. */
  readonly pointers?: readonly number[];
  /** rcx is drawn from small numbers. */
  readonly counts?: boolean;
  readonly needs?: string;
}

const forms: readonly Form[] = [
  { name: "register move", code: "48 89 c8" },
  { name: "push and pop", code: "50; 41 5f" },
  { name: "push rsp", code: "54" },
  { name: "call-saved prologue", code: "55; 48 89 e5; 41 57" },
  { name: "endbr64", code: "f3 0f 1e fa; 50" },
  { name: "leave after enter", code: "55; 48 89 e5; c9" },
  { name: "flags read and written", code: "48 11 d8; 0f 94 c1" },
  { name: "shift by cl", code: "48 d3 e0", counts: true },
  { name: "mov from below the stack pointer, in the red zone", code: "48 8b 44 24 f8" },
  { name: "mov to below the stack pointer, in the red zone", code: "48 89 44 24 80" },
  { name: "rip relative load, 8 bits", code: "8a 05 RIP32" },
  { name: "rip relative load, 16 bits", code: "66 8b 05 RIP32" },
  { name: "rip relative load, 32 bits", code: "8b 05 RIP32" },
  { name: "rip relative load, 64 bits", code: "48 8b 05 RIP32" },
  { name: "rip relative load, REX.R", code: "4c 8b 3d RIP32" },
  { name: "rip relative store", code: "48 89 0d RIP32" },
  { name: "rip relative store of imm8", code: "c6 05 RIP32+1 7f" },
  { name: "rip relative store of imm16", code: "66 c7 05 RIP32+2 34 12" },
  { name: "rip relative store of imm32", code: "c7 05 RIP32+4 78 56 34 12" },
  { name: "rip relative store of sign-extended imm32", code: "48 c7 05 RIP32+4 78 56 34 f2" },
  { name: "rip relative add of imm8", code: "48 83 05 RIP32+1 ff" },
  { name: "rip relative compare", code: "48 3b 05 RIP32" },
  { name: "rip relative lea", code: "48 8d 05 RIP32" },
  { name: "rip relative lea, 32 bits", code: "8d 05 RIP32" },
  { name: "rip relative push in red zone", code: "48 89 44 24 f0; ff 35 RIP32" },
  { name: "rip relative pop", code: "50; 8f 05 RIP32" },
  { name: "rip relative lock cmpxchg", code: "f0 48 0f b1 0d RIP32" },
  { name: "rip relative xadd", code: "f0 48 0f c1 0d RIP32" },
  { name: "rip relative imul with imm32", code: "48 69 05 RIP32+4 11 22 33 04" },
  { name: "rip relative movzx", code: "0f b6 05 RIP32" },
  { name: "rip relative bit test", code: "48 0f ba 25 RIP32+1 05" },
  { name: "rip relative setcc", code: "0f 94 05 RIP32" },
  { name: "rip relative SSE", code: "66 48 0f 6e c0; f3 0f 7f 05 RIP32" },
  { name: "rip relative SSE with imm8", code: "66 0f 70 05 RIP32+1 1b; f3 0f 7f 05 RIP32" },
  { name: "rip relative VEX, two bytes", code: "c4 e1 f9 6e c0; c5 fa 7f 05 RIP32", needs: "avx" },
  { name: "rip relative VEX, three bytes", code: "c4 e2 7d 18 05 RIP32; c5 fe 7f 05 RIP32", needs: "avx2" },
  { name: "rip relative VEX with imm8", code: "c4 e3 7d 46 05 RIP32+1 33; c5 fe 7f 05 RIP32", needs: "avx2" },
  {
    name: "rip relative EVEX",
    code: "62 f1 fe 48 6f 05 RIP32; 62 f1 fe 48 7f 05 RIP32",
    needs: "avx512f",
  },
  { name: "rip relative BMI", code: "c4 e2 f8 f2 05 RIP32", needs: "bmi1" },
  { name: "jcc short within reach", code: "75 REL8" },
  { name: "jcc near", code: "0f 84 REL32" },
  { name: "every condition, short: jo", code: "70 REL8" },
  { name: "every condition, short: jp", code: "7a REL8" },
  { name: "every condition, short: jg", code: "7f REL8" },
  { name: "jcc with branch hint", code: "3e 72 REL8" },
  { name: "jcc after compare in one region", code: "48 39 d8; 77 REL8" },
  { name: "jmp short", code: "eb REL8" },
  { name: "jmp near", code: "e9 REL32" },
  { name: "jmp with bnd prefix", code: "f2 e9 REL32" },
  { name: "loop", code: "e2 REL8", counts: true },
  { name: "loope", code: "e1 REL8", counts: true },
  { name: "loopne", code: "e0 REL8", counts: true },
  { name: "loop with ecx", code: "67 e2 REL8", counts: true },
  { name: "jrcxz", code: "e3 REL8", counts: true },
  { name: "jecxz", code: "67 e3 REL8", counts: true },
  { name: "call near", code: "e8 REL32" },
  { name: "call near behind another instruction", code: "50; e8 REL32" },
  { name: "call near with useless prefixes", code: "66 66 48 e8 REL32" },
  { name: "call the next instruction", code: "e8 00 00 00 00" },
  { name: "call through a register", code: "ff d0" },
  { name: "call through an upper register", code: "41 ff d7" },
  { name: "call through memory", code: "ff 13", pointers: [RBX] },
  { name: "call through memory with disp8", code: "ff 53 10", pointers: [RBX] },
  { name: "call through memory with index", code: "ff 14 f3", pointers: [RBX] },
  { name: "call through rip relative memory", code: "ff 15 RIP32" },
  { name: "call through rip relative memory, 66 REX.W", code: "66 48 ff 15 RIP32" },
  { name: "call through the stack", code: "ff 14 24" },
  { name: "call through the stack with disp8", code: "ff 54 24 10" },
  { name: "call through the stack with disp32", code: "ff 94 24 80 00 00 00" },
  { name: "call through the stack below the red zone", code: "ff 94 24 70 ff ff ff" },
  { name: "jmp through a register", code: "ff e0" },
  { name: "jmp through memory", code: "ff 23", pointers: [RBX] },
  { name: "jmp through rip relative memory", code: "ff 25 RIP32" },
  { name: "jmp with notrack prefix", code: "3e ff e0" },
  { name: "ret", code: "c3" },
  { name: "ret with bytes to drop", code: "c2 10 00" },
  { name: "repz ret", code: "f3 c3" },
  { name: "rep movs", code: "f3 48 a5", pointers: [RSI, RDI], counts: true },
  { name: "repne scas", code: "f2 ae", pointers: [RDI], counts: true },
  { name: "xlat", code: "d7", pointers: [RBX] },
  { name: "system call", code: "0f 05" },
  { name: "nops and a jump", code: "0f 1f 00; 90; eb REL8" },
];

const cpuFlags = new Set(
  readFileSync("/proc/cpuinfo", "utf8")
    .match(/^flags\s*:(.*)$/m)?.[1]
    ?.trim()
    .split(" ") ?? [],
);

function hexBytes(hex: string): number[] {
  return (hex.match(/[0-9a-f]{2}/g) ?? []).map((byte) => Number.parseInt(byte, 16));
}

/** Bytes of a form for its place; one instruction after the other, because displacements need their ends. */
function assembleForm(form: Form, at: bigint, target: bigint, data: bigint): Uint8Array {
  const out: number[] = [];
  for (const insn of form.code.split(";")) {
    const tokens = insn.trim().split(/\s+/);
    const lenBytes = tokens.reduce((sum, token) => sum + (/^(REL|RIP)32/.test(token) ? 4 : 1), 0);
    const end = at + BigInt(out.length + lenBytes);
    for (const token of tokens) {
      const place = token.startsWith("REL") ? target : data;
      const value = Number(BigInt.asIntN(32, place - end));
      if (token === "REL8") out.push(value & 0xff);
      else if (token.startsWith("R"))
        out.push(value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, (value >> 24) & 0xff);
      else out.push(...hexBytes(token));
    }
  }
  return Uint8Array.from(out);
}

function regionFrom(at: bigint, bytes: Uint8Array): Region {
  const block = decodeBlock(at, bytes);
  expect(block.undecodableAt).toBeUndefined();
  return {
    start: at,
    lenBytes: bytes.length,
    insns: block.insns(),
    paddingBytes: 0,
    fallsThrough: block.fallsThrough(block.count - 1),
  };
}

let machine: Machine;
let originals: NativeMemory;
let copies: NativeMemory;
beforeAll(() => {
  machine = new Machine();
  originals = nativeMemory(MEMORY_BYTES, (machine.exit & ~0xfffffn) + 0x100_0000n);
  copies = nativeMemory(MEMORY_BYTES, (machine.exit & ~0xfffffn) + 0x4000_0000n);
});
afterAll(() => {
  copies[Symbol.dispose]();
  originals[Symbol.dispose]();
  machine[Symbol.dispose]();
});

/** Code that leaves a mark and ends the run; changes no flag and no register. */
function markCode(at: bigint, mark: number): Uint8Array {
  const asm = new Assembler(at);
  asm.movImm({ ripTo: originals.at + BigInt(MARK) }, mark, 32);
  asm.jmp(machine.exit);
  return asm.finish();
}

interface Outcome {
  readonly state: MachineState;
  readonly memory: Uint8Array;
  readonly stack: Uint8Array;
}

function runFrom(at: bigint, before: MachineState, memory: Uint8Array, stack: Uint8Array): Outcome {
  originals.bytes.set(memory);
  machine.stack.bytes.set(stack);
  const state = machine.run(at, { regs: [...before.regs], flags: before.flags });
  return { state, memory: originals.bytes.slice(), stack: machine.stack.bytes.slice() };
}

describe("a relocated instruction does what the original does", () => {
  for (const form of forms) {
    const isMissing = form.needs !== undefined && !cpuFlags.has(form.needs);
    test.skipIf(isMissing)(form.name, () => {
      const at = originals.at + BigInt(CODE);
      const target = originals.at + BigInt(TARGET);
      const bytes = assembleForm(form, at, target, originals.at + BigInt(DATA));
      const behind = CODE + bytes.length;
      originals.bytes.fill(0xcc);
      originals.bytes.set(bytes, CODE);
      originals.bytes.set(markCode(originals.at + BigInt(behind), 1), behind);
      originals.bytes.set(markCode(target, 2), TARGET);
      const region = regionFrom(at, bytes);
      const copy = relocate(region, copies.at);
      if (copy.kind === "refused") throw new Error(JSON.stringify(copy.refusal, (_, v) => String(v)));
      copies.bytes.set(copy.bytes);
      expect(copy.twins.map((twin) => twin.original)).toEqual([
        ...region.insns.map((insn) => insn.addr),
        ...(region.fallsThrough && !region.insns.at(-1)!.flow.startsWith("call")
          ? [originals.at + BigInt(behind)]
          : []),
      ]);

      const random = randomWords(form.name.length * 7919 + bytes.length);
      const stackTop = machine.stack.bytes.length / 2;
      for (let round = 0; round < 24; round++) {
        const memory = originals.bytes.slice();
        const words = new DataView(memory.buffer);
        for (let i = DATA; i < DATA + 512; i += 8) {
          // Words of data are code addresses where code may be called through them.
          const isPointer = /\b(ff)\b/.test(form.code) && !form.name.includes("push");
          words.setBigUint64(i, isPointer ? target : random(), true);
        }
        words.setUint32(MARK, 0, true);
        const stack = new Uint8Array(machine.stack.bytes.length);
        const stackWords = new DataView(stack.buffer);
        for (let i = stackTop - 512; i < stackTop + 512; i += 8) stackWords.setBigUint64(i, target, true);

        const regs = Array.from({ length: 16 }, () => random());
        regs[RSP] = machine.stack.at + BigInt(stackTop);
        if (form.code.includes("ff d0") || form.code.includes("ff e0")) regs[RAX] = target;
        if (form.code.includes("ff d7")) regs[15] = target;
        if (form.counts === true) regs[RCX] = BigInt(round % 4);
        for (const reg of form.pointers ?? []) {
          regs[reg] = originals.at + BigInt(DATA + (reg === RDI ? 256 : 0));
          regs[RSI] = reg === RBX ? BigInt(round % 8) : regs[RSI]!;
        }
        if (form.name === "xlat") regs[RAX] = random() & 0xffn;
        if (form.name === "system call") regs[RAX] = 39n; // getpid
        const flags = 0x202n | (random() & 0x8d5n);

        const expected = runFrom(at, { regs, flags }, memory, stack);
        const actual = runFrom(copies.at, { regs, flags }, memory, stack);
        // A system call leaves the address behind it in rcx: the one difference, which nothing may rely on.
        if (form.name === "system call") actual.state.regs[RCX] = expected.state.regs[RCX]!;
        expect(actual.state).toEqual(expected.state);
        expect(Buffer.compare(actual.memory, expected.memory), "memory").toBe(0);
        expect(Buffer.compare(actual.stack, expected.stack), "stack").toBe(0);
        expect(new DataView(actual.memory.buffer).getUint32(MARK, true)).toBeGreaterThan(0);
      }
    });
  }
});

describe("what cannot be relocated is refused", () => {
  const cases: readonly { name: string; code: string; reason: string; far?: boolean }[] = [
    { name: "a breakpoint, which reports its own address", code: "cc", reason: "unrelocatable" },
    { name: "a call through rsp", code: "ff d4", reason: "unrelocatable" },
    {
      name: "a call through the slot of its own return address",
      code: "ff 54 24 f8",
      reason: "unrelocatable",
    },
    { name: "an operand relative to EIP", code: "67 8b 05 00 00 00 00", reason: "unrelocatable" },
    { name: "an indirect call with a 16-bit operand", code: "66 ff 10", reason: "unrelocatable" },
    {
      name: "a jump with a 16-bit displacement on some processors",
      code: "66 e9 00 00 00 00",
      reason: "unrelocatable",
    },
    { name: "a short branch that truncates on some processors", code: "66 75 10", reason: "unrelocatable" },
    { name: "a loop that truncates on some processors", code: "66 e2 10", reason: "unrelocatable" },
    { name: "a far call", code: "ff 18", reason: "unrelocatable" },
    { name: "a far return", code: "cb", reason: "unrelocatable" },
    {
      name: "a rip relative operand out of reach",
      code: "8b 05 00 00 00 00",
      reason: "operand-out-of-reach",
      far: true,
    },
    { name: "a branch target out of reach", code: "eb 10", reason: "operand-out-of-reach", far: true },
  ];
  for (const { name, code, reason, far } of cases) {
    test(name, () => {
      const region = regionFrom(0x40_0000n, Uint8Array.from(hexBytes(code)));
      const copy = relocate(region, far ? 0x1_4000_0000n : 0x50_0000n);
      expect(copy).toMatchObject({ kind: "refused", refusal: { reason } });
    });
  }
});

function sameText(line: string): string {
  return line.replace(/\b(short|near) /, "");
}

test("every instruction of the C library reads the same after relocation", () => {
  const bytes = readFileSync("/lib/x86_64-linux-gnu/libc.so.6");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const sections = Number(view.getBigUint64(40, true));
  let text = { offset: 0, lenBytes: 0 };
  for (let i = 0; i < view.getUint16(60, true); i++) {
    const header = sections + i * 64;
    const lenBytes = Number(view.getBigUint64(header + 32, true));
    const isCode = (view.getUint32(header + 8, true) & 4) !== 0;
    if (isCode && lenBytes > text.lenBytes)
      text = { offset: Number(view.getBigUint64(header + 24, true)), lenBytes };
  }
  const at = 0x7000_0000n;
  const block = decodeBlock(at, bytes.subarray(text.offset, text.offset + text.lenBytes));
  expect(block.undecodableAt).toBeUndefined();
  let compared = 0;
  for (let i = 0; i < block.count; i += 11) {
    const insn = block.insn(i);
    const region: Region = {
      start: insn.addr,
      lenBytes: insn.lenBytes,
      insns: [insn],
      paddingBytes: 0,
      fallsThrough: true,
    };
    const copy = relocate(region, at + 0x1000_0000n);
    if (copy.kind === "refused") {
      expect(insn.flow).toBe("trap");
      continue;
    }
    if (insn.flow.startsWith("call") || /^(loop|jrcxz|jecxz)/.test(textOf(insn))) continue;
    const first = decodeBlock(copy.at, copy.bytes).insn(0);
    expect(sameText(textOf(first))).toBe(sameText(textOf(insn)));
    compared++;
  }
  expect(compared).toBeGreaterThan(20_000);
});
