import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { boundaryAt, decodeBlock, effectsOf, type FlowKind, ripTargetOf, textOf } from "./decode.ts";
import { regNames, regsOf } from "./registers.ts";

const AT = 0x40_1000n;
const bytesOf = (hex: string) => Uint8Array.from(Buffer.from(hex.replaceAll(" ", ""), "hex"));

describe("flow and target of an instruction", () => {
  const cases: readonly { name: string; code: string; flow: FlowKind; target?: bigint }[] = [
    { name: "mov", code: "48 89 c8", flow: "next" },
    { name: "jmp rel8", code: "eb 10", flow: "jump", target: AT + 0x12n },
    { name: "jmp rel8 backwards", code: "eb f0", flow: "jump", target: AT - 14n },
    { name: "jmp rel32", code: "e9 00 01 00 00", flow: "jump", target: AT + 0x105n },
    { name: "jcc rel8", code: "74 7f", flow: "branch", target: AT + 0x81n },
    { name: "jcc rel32", code: "0f 85 fa ff ff ff", flow: "branch", target: AT },
    { name: "loop", code: "e2 fe", flow: "branch", target: AT },
    { name: "jecxz", code: "67 e3 00", flow: "branch", target: AT + 3n },
    { name: "xbegin", code: "c7 f8 10 00 00 00", flow: "branch", target: AT + 0x16n },
    { name: "call rel32", code: "e8 00 00 00 00", flow: "call", target: AT + 5n },
    { name: "call with prefixes", code: "66 66 48 e8 00 00 00 00", flow: "call", target: AT + 8n },
    { name: "call r/m", code: "ff d0", flow: "call-indirect" },
    { name: "jmp r/m", code: "ff 25 00 00 00 00", flow: "jump-indirect" },
    { name: "ret", code: "c3", flow: "return" },
    { name: "vmcall, which calls nothing in this process", code: "0f 01 c1", flow: "next" },
    { name: "syscall", code: "0f 05", flow: "syscall" },
    { name: "int 0x80", code: "cd 80", flow: "syscall" },
    { name: "int3", code: "cc", flow: "trap" },
    { name: "int n", code: "cd 03", flow: "trap" },
    { name: "ud2", code: "0f 0b", flow: "stop" },
    { name: "hlt", code: "f4", flow: "stop" },
  ];
  for (const { name, code, flow, target } of cases) {
    test(name, () => {
      const block = decodeBlock(AT, bytesOf(code));
      expect(block.count).toBe(1);
      expect(block.insn(0)).toMatchObject({ addr: AT, flow, target });
      expect(block.undecodableAt).toBeUndefined();
    });
  }
});

function names(set: number): string {
  return regsOf(set)
    .map((reg) => regNames[reg])
    .join(" ");
}

describe("effects", () => {
  const cases: readonly { name: string; code: string; reads: string; writes: string; kills: string }[] = [
    { name: "32-bit write", code: "89 c8", reads: "rcx", writes: "rax", kills: "rax" },
    { name: "8-bit write", code: "88 c8", reads: "rcx", writes: "rax", kills: "" },
    { name: "high byte", code: "88 e1", reads: "rax", writes: "rcx", kills: "" },
    { name: "extended register", code: "4d 89 fe", reads: "r15", writes: "r14", kills: "r14" },
    { name: "implicit operands", code: "48 f7 e1", reads: "rax rcx", writes: "rax rdx", kills: "rax rdx" },
    { name: "string instruction", code: "f3 a4", reads: "rcx rsi rdi", writes: "rcx rsi rdi", kills: "" },
    { name: "vector to general", code: "66 48 0f 7e c0", reads: "", writes: "rax", kills: "rax" },
  ];
  for (const { name, code, reads, writes, kills } of cases) {
    test(name, () => {
      const effects = effectsOf(bytesOf(code));
      expect([names(effects.reads), names(effects.writes), names(effects.kills)]).toEqual([
        reads,
        writes,
        kills,
      ]);
    });
  }
});

test("an address inside an instruction has two nearest boundaries", () => {
  const block = decodeBlock(AT, bytesOf("55 48 89 e5 c3"));
  expect(boundaryAt(block, AT + 1n).kind).toBe("boundary");
  expect(boundaryAt(block, AT + 2n)).toMatchObject({ kind: "inside", before: AT + 1n, after: AT + 4n });
  expect(boundaryAt(block, AT + 9n)).toMatchObject({ kind: "undecodable" });
});

test("decoding stops at the first byte that begins no instruction", () => {
  const block = decodeBlock(AT, bytesOf("90 06 90"));
  expect(block.count).toBe(1);
  expect(block.undecodableAt).toBe(AT + 1n);
});

test("an instruction that is cut off is no instruction", () => {
  expect(decodeBlock(AT, bytesOf("90 48 b8 00")).undecodableAt).toBe(AT + 1n);
});

test("a RIP-relative operand has an absolute target", () => {
  const insn = decodeBlock(AT, bytesOf("48 83 05 10 00 00 00 01")).insn(0);
  expect(ripTargetOf(insn)).toBe(AT + 0x18n);
  expect(textOf(insn)).toBe("add qword ptr [0x401018], 1");
});

test("instruction boundaries of a program agree with objdump", () => {
  const file = "/bin/true";
  const listing = execFileSync("objdump", ["-d", "-w", "--section=.text", file], { encoding: "utf8" });
  const lines = [...listing.matchAll(/^\s+([0-9a-f]+):\t((?:[0-9a-f]{2} )+)/gm)];
  const first = lines[0]!;
  const bytes = lines.flatMap((line) => [...bytesOf(line[2]!)]);
  const block = decodeBlock(BigInt(`0x${first[1]}`), Uint8Array.from(bytes));
  expect(block.undecodableAt).toBeUndefined();
  expect(block.insns().map((insn) => insn.addr.toString(16))).toEqual(lines.map((line) => line[1]!));
});
