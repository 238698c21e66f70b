import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeInsns, encodeInsns, type Insn } from "./insn.ts";
import { parseProgram, printInsn, printProgram } from "./text.ts";

const hex = (insns: readonly Insn[]) => Buffer.from(encodeInsns(insns)).toString("hex");

function parse(text: string): Insn[] {
  const parsed = parseProgram(text);
  if (parsed.kind === "bad") throw new Error(parsed.message);
  return parsed.insns;
}

const forms: [text: string, bytes: string][] = [
  ["r1 = r2", "bf21000000000000"],
  ["w1 = w2", "bc21000000000000"],
  ["r1 = -1", "b7010000ffffffff"],
  ["w1 = 7", "b401000007000000"],
  ["r1 = (s8)r2", "bf21080000000000"],
  ["r1 = (s32)r2", "bf21200000000000"],
  ["w1 = (s16)w2", "bc21100000000000"],
  ["r1 += r2", "0f21000000000000"],
  ["r1 -= 3", "1701000003000000"],
  ["w1 *= w2", "2c21000000000000"],
  ["r1 /= 3", "3701000003000000"],
  ["r1 s/= 3", "3701010003000000"],
  ["r1 %= r2", "9f21000000000000"],
  ["w1 s%= w2", "9c21010000000000"],
  ["r1 |= 1", "4701000001000000"],
  ["r1 &= 1", "5701000001000000"],
  ["r1 ^= 1", "a701000001000000"],
  ["r1 <<= 32", "6701000020000000"],
  ["r1 >>= 32", "7701000020000000"],
  ["r1 s>>= 32", "c701000020000000"],
  ["r1 = -r1", "8701000000000000"],
  ["w1 = -w1", "8401000000000000"],
  ["r1 = le16 r1", "d401000010000000"],
  ["r1 = be64 r1", "dc01000040000000"],
  ["r1 = bswap32 r1", "d701000020000000"],
  ["r1 = *(u64 *)(r2 +8)", "7921080000000000"],
  ["r1 = *(u8 *)(r2 -1)", "7121ffff00000000"],
  ["r1 = *(s16 *)(r2 +0)", "8921000000000000"],
  ["*(u32 *)(r10 -4) = r1", "631afcff00000000"],
  ["*(u64 *)(r10 -8) = -5", "7a0af8fffbffffff"],
  ["lock *(u64 *)(r0 +0) += r1", "db10000000000000"],
  ["lock *(u32 *)(r0 +4) ^= r1", "c3100400a0000000"],
  ["r1 = atomic64_fetch_add((u64 *)(r0 +0), r1)", "db10000001000000"],
  ["r1 = atomic_fetch_or((u32 *)(r0 +0), r1)", "c310000041000000"],
  ["r1 = atomic64_xchg((u64 *)(r0 +0), r1)", "db100000e1000000"],
  ["r0 = atomic64_cmpxchg((u64 *)(r2 +0), r0, r1)", "db120000f1000000"],
  ["goto +3", "0500030000000000"],
  ["gotol -70000", "0600000090eefeff"],
  ["if r1 s> 5 goto +3", "6501030005000000"],
  ["if r1 == r2 goto -1", "1d21ffff00000000"],
  ["if w1 & 4 goto +0", "4601000004000000"],
  ["if w1 s<= w2 goto +1", "de21010000000000"],
  ["call bpf_map_lookup_elem#1", "8500000001000000"],
  ["call unknown#70000", "8500000070110100"],
  ["call pc+2", "8510000002000000"],
  ["exit", "9500000000000000"],
  ["r1 = 0x1122334455667788 ll", "18010000887766550000000044332211"],
  ["r1 = map[2]", "18110000020000000000000000000000"],
  ["r1 = map[2][0]+16", "18210000020000000000000010000000"],
  ["r1 = map[idx:2]", "18510000020000000000000000000000"],
  ["r1 = map[idx:2][0]-16", "186100000200000000000000f0ffffff"],
  ["r2 = subprog[+5]", "18420000050000000000000000000000"],
  ["r2 = subprog[-5]", "18420000fbffffff0000000000000000"],
  ["r1 = var[7]", "18310000070000000000000000000000"],
  ["call kernel-function#4711", "8520000067120000"],
  ["callx r3", "8d03000000000000"],
  ["r0 = *(u32 *)skb[4]", "2000000004000000"],
  ["r0 = *(u16 *)skb[r3 +4]", "4830000004000000"],
  [".8byte 0x123456780000abff", "ffab000078563412"],
];

describe("text form", () => {
  it.each(forms)("%s", (text, bytes) => {
    const insns = parse(text);
    expect(hex(insns)).toBe(bytes);
    expect(printInsn(insns, 0)).toBe(text);
  });

  it.each([
    ["hexadecimal immediates", "r1 = 0xff", "r1 = 255"],
    ["llvm's spacing", "r1 = *(u64 *)(r2 + 0x8)", "r1 = *(u64 *)(r2 +8)"],
    ["llvm's missing offset sign", "if w1 != 0x0 goto +0x2 <LBB0_2>", "if w1 != 0 goto +2"],
    ["the kernel's pc", "if r1 == 0 goto pc-3", "if r1 == 0 goto -3"],
    ["slot index and opcode", "12: (b7) r1 = 1   ; R1_w=1", "r1 = 1"],
    ["llvm's exchange", "w1 = xchg32_32(r2 + 0x8, w1)", "r1 = atomic_xchg((u32 *)(r2 +8), r1)"],
    [
      "llvm's compare-and-exchange",
      "r0 = cmpxchg_64(r2 - 0x8, r0, r1)",
      "r0 = atomic64_cmpxchg((u64 *)(r2 -8), r0, r1)",
    ],
    ["a helper by name only", "call bpf_ktime_get_ns", "call bpf_ktime_get_ns#5"],
    ["a helper by number only", "call 0x5", "call bpf_ktime_get_ns#5"],
  ])("reads %s", (_name, text, printed) => {
    expect(printInsn(parse(text), 0)).toBe(printed);
  });

  it("resolves labels over two-slot instructions", () => {
    const insns = parse(`
      top: if r1 == 0 goto out    ; leave
      r2 = 0x1 ll
      r1 -= 1
      goto top
    out:
      exit`);
    expect(printProgram(insns)).toBe(
      ["0: if r1 == 0 goto +4", "1: r2 = 0x1 ll", "3: r1 -= 1", "4: goto -5", "5: exit", ""].join("\n"),
    );
  });

  it.each([
    ["an unknown operator", "r1 s+= 2", 1],
    ["no register r11", "r11 = 2", 1],
    ["an immediate of 33 bits", "r1 = 0x1ffffffff", 1],
    ["an offset of 17 bits", "r1 = *(u8 *)(r2 +40000)", 1],
    ["mixed widths", "r1 += w2", 1],
    ["a label that is missing", "exit\ngoto nowhere", 2],
    ["a label twice", "a: exit\na: exit", 2],
    ["an unknown helper", "call bpf_no_such", 1],
    ["a 64-bit load that sign-extends", "r1 = *(s64 *)(r2 +0)", 1],
    ["an atomic access of 16 bits", "lock *(u16 *)(r1 +0) += r2", 1],
  ])("refuses %s", (_name, text, line) => {
    expect(parseProgram(text)).toMatchObject({ kind: "bad", line });
  });

  it("prints and reads any slots without loss", () => {
    fc.assert(
      fc.property(fc.array(anyInsn, { maxLength: 8 }), (insns) => {
        expect(parse(printProgram(insns))).toEqual(insns);
      }),
      { numRuns: 3000 },
    );
  });

  it.each([1, 2, 3, 4, 5, 6])("prints and reads a wide load of source %i with any numbers", (src) => {
    for (const imm of [0, 1, -1, 0x7fffffff, -0x80000000])
      for (const high of [0, 16, -16]) {
        const insns: Insn[] = [
          { opcode: 0x18, dst: 3, src, off: 0, imm },
          { opcode: 0, dst: 0, src: 0, off: 0, imm: high },
        ];
        expect(parse(printProgram(insns))).toEqual(insns);
      }
  });

  it("never throws on any text", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        parseProgram(text);
      }),
    );
  });
});

/** Mostly real opcodes and small fields, so that all instructions occur. */
const anyInsn: fc.Arbitrary<Insn> = fc.record({
  opcode: fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(0x18, 0, 0xdb, 0xc3, 0x85)),
  dst: fc.oneof(
    { weight: 9, arbitrary: fc.integer({ min: 0, max: 10 }) },
    { weight: 1, arbitrary: fc.nat(15) },
  ),
  src: fc.oneof(
    { weight: 4, arbitrary: fc.constant(0) },
    { weight: 5, arbitrary: fc.nat(10) },
    { weight: 1, arbitrary: fc.nat(15) },
  ),
  off: fc.oneof(fc.constant(0), fc.constantFrom(1, 8, 16, 32), fc.integer({ min: -0x8000, max: 0x7fff })),
  imm: fc.oneof(
    fc.constant(0),
    fc.constantFrom(1, 0x40, 0x41, 0xa0, 0xe1, 0xf1, 16, 32, 64),
    fc.integer({ min: -0x80000000, max: 0x7fffffff }),
  ),
});

const objdump = ["llvm-mc", "llvm-objdump"].every((tool) =>
  spawnSync(tool, ["--version"], { encoding: "utf8" }).stdout?.includes("bpfel"),
);

/** Without what an old llvm prints as another instruction, and without what is ours alone. */
function v1To3(text: string): boolean {
  return !/\(s\d|s[/%]=|skb|8byte|\[|unknown|pc\+|callx|kernel-/.test(text);
}

describe("text form against llvm", () => {
  // Needs llvm with the BPF target; nothing else on the machine knows this form.
  it.skipIf(!objdump)("reads what llvm-objdump prints for every instruction that it knows", () => {
    const insns = forms.filter(([text]) => v1To3(text)).flatMap(([text]) => parse(text));
    const dir = mkdtempSync(join(tmpdir(), "trapline-text-"));
    try {
      const lines = [...encodeInsns(insns)].map((byte) => `.byte ${byte}\n`).join("");
      writeFileSync(join(dir, "in.s"), `.text\n${lines}`);
      const object = join(dir, "in.o");
      const mc = spawnSync("llvm-mc", ["-triple=bpfel", "-filetype=obj", "-o", object, join(dir, "in.s")]);
      expect(mc.stderr.toString()).toBe("");
      const dump = spawnSync("llvm-objdump", ["-d", "--mcpu=v4", "--no-show-raw-insn", object], {
        encoding: "utf8",
      });
      const known = [...dump.stdout.matchAll(/^\s*(\d+):\s+(.*)$/gm)].filter(
        ([, , text]) => text !== "<unknown>",
      );
      // Old versions of llvm do not know all of the instruction set.
      expect(known.length).toBeGreaterThan(25);
      for (const [, index, text] of known) {
        const [insn] = parse(text!);
        expect({ text, insn }).toEqual({ text, insn: insns[Number(index)] });
      }
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  it("decodes bytes whose length is no multiple of 8 as bad", () => {
    expect(decodeInsns(new Uint8Array(9))).toMatchObject({ kind: "bad" });
  });
});
