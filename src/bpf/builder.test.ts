import { describe, expect, it } from "vitest";
import { InsnBuilder, r0, r1, r2, r10 } from "./builder.ts";
import { findHelperName, findHelperNumber, helperSpecs } from "./helpers.ts";
import { decodeInsns, encodeInsns } from "./insn.ts";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

// Expected bytes follow RFC 9669, section 3: opcode, src:dst, offset, imm.
const encodings: { name: string; build: (b: InsnBuilder) => void; bytes: string }[] = [
  { name: "mov64 imm", build: (b) => b.mov64(r0, -1), bytes: "b7000000ffffffff" },
  {
    name: "mov32 takes an unsigned immediate",
    build: (b) => b.mov32(r1, 0xffffffff),
    bytes: "b4010000ffffffff",
  },
  { name: "add64 reg", build: (b) => b.alu64("add", r1, r2), bytes: "0f21000000000000" },
  { name: "sdiv32 imm", build: (b) => b.alu32("sdiv", r1, 3), bytes: "3401010003000000" },
  { name: "smod64 reg", build: (b) => b.alu64("smod", r1, r2), bytes: "9f21010000000000" },
  { name: "movsx64 8", build: (b) => b.movsx64(r1, r2, 8), bytes: "bf21080000000000" },
  { name: "movsx32 16", build: (b) => b.movsx32(r1, r2, 16), bytes: "bc21100000000000" },
  { name: "neg64", build: (b) => b.neg64(r2), bytes: "8702000000000000" },
  { name: "be16", build: (b) => b.swap("be", r1, 16), bytes: "dc01000010000000" },
  { name: "le64", build: (b) => b.swap("le", r1, 64), bytes: "d401000040000000" },
  { name: "bswap32", build: (b) => b.swap("bswap", r1, 32), bytes: "d701000020000000" },
  { name: "load u8", build: (b) => b.ldx(1, r0, r1, -1), bytes: "7110ffff00000000" },
  { name: "load s32", build: (b) => b.ldsx(4, r0, r1, 4), bytes: "8110040000000000" },
  { name: "store reg", build: (b) => b.stx(8, r10, -8, r1), bytes: "7b1af8ff00000000" },
  { name: "store imm", build: (b) => b.st(2, r10, -2, 7), bytes: "6a0afeff07000000" },
  { name: "lock add", build: (b) => b.atomic("add", 8, r0, 0, r1), bytes: "db10000000000000" },
  { name: "fetch or 32", build: (b) => b.atomic("fetch_or", 4, r0, 8, r1), bytes: "c310080041000000" },
  { name: "cmpxchg", build: (b) => b.atomic("cmpxchg", 8, r1, 0, r2), bytes: "db210000f1000000" },
  {
    name: "ldimm64",
    build: (b) => b.ldImm64(r1, 0x1122334455667788n),
    bytes: "18010000887766550000000044332211",
  },
  { name: "ldimm64 negative", build: (b) => b.ldImm64(r1, -1n), bytes: "18010000ffffffff00000000ffffffff" },
  { name: "map by index", build: (b) => b.ldMapFd(r1, 3), bytes: "18110000030000000000000000000000" },
  { name: "map value", build: (b) => b.ldMapValue(r1, 3, 16), bytes: "18210000030000000000000010000000" },
  { name: "helper call", build: (b) => b.call(5), bytes: "8500000005000000" },
  { name: "exit", build: (b) => b.exit(), bytes: "9500000000000000" },
  {
    name: "jump forwards and backwards counts slots",
    build: (b) => {
      const top = b.label();
      const out = b.label();
      b.bind(top).jmp("slt", r1, 5, out).ldImm64(r2, 0n).jmp32("ne", r1, r2, top).bind(out).exit();
    },
    bytes: "c501030005000000180200000000000000000000000000005e21fcff000000009500000000000000",
  },
];

describe("instruction builder", () => {
  it.each(encodings)("encodes $name", ({ build, bytes }) => {
    const b = new InsnBuilder();
    build(b);
    const { insns } = b.build();
    expect(hex(encodeInsns(insns))).toBe(bytes);
    expect(decodeInsns(Buffer.from(bytes, "hex"))).toEqual({ kind: "decoded", insns });
  });

  it("turns a goto out of 16-bit reach into gotol, and a conditional jump into a hop over one", () => {
    const b = new InsnBuilder();
    const end = b.label("end");
    const next = b.label("next");
    b.jmp("eq", r0, 0, next).goto(end).bind(next).jmp("eq", r0, 0, end);
    for (let i = 0; i < 40_000; i++) b.mov64(r0, 0);
    b.bind(end).exit();
    const { insns } = b.build();
    expect(insns[1]).toMatchObject({ opcode: 0x06, imm: 40_003 });
    expect(insns[2]).toMatchObject({ opcode: 0x15, off: 1 });
    expect(insns[3]).toMatchObject({ opcode: 0x05, off: 1 });
    expect(insns[4]).toMatchObject({ opcode: 0x06, imm: 40_000 });
    expect(insns).toHaveLength(40_006);
  });

  it("leaves out what no path reaches", () => {
    const b = new InsnBuilder();
    const out = b.label();
    b.goto(out).mov64(r0, 1).mov64(r1, 2).bind(out).mov64(r0, 0).exit().ldImm64(r1, 5n).exit();
    expect(hex(encodeInsns(b.build().insns))).toBe("0500000000000000b7000000000000009500000000000000");
  });

  it("keeps the source place of every slot", () => {
    const b = new InsnBuilder();
    b.at({ line: 2, column: 7 }).ldImm64(r1, 1n).at(undefined).exit();
    expect([...b.build().places]).toEqual([
      [0, { line: 2, column: 7 }],
      [1, { line: 2, column: 7 }],
    ]);
  });

  it.each([
    { name: "an immediate of 33 bits", run: () => new InsnBuilder().mov64(r0, 0x80000000) },
    { name: "an offset of 17 bits", run: () => new InsnBuilder().ldx(8, r0, r1, 0x8000) },
    { name: "a label that is never placed", run: () => void new InsnBuilder().goto({ name: "x" }).build() },
  ])("refuses $name", ({ run }) => {
    expect(run).toThrow();
  });
});

describe("helper table", () => {
  it("has the kernel's numbers and names", () => {
    expect(helperSpecs.map((spec) => `${spec.name}#${spec.number}`)).toEqual(
      helperSpecs.map(({ number }) => `${findHelperName(number)}#${number}`),
    );
    const numbers = helperSpecs.map(({ number }) => number);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    expect(findHelperName(1)).toBe("bpf_map_lookup_elem");
    expect(findHelperName(174)).toBe("bpf_get_attach_cookie");
    expect(findHelperName(181)).toBe("bpf_loop");
    expect(findHelperNumber("bpf_loop")).toBe(181);
    expect(findHelperName(0)).toBeUndefined();
    expect(findHelperName(9999)).toBeUndefined();
  });
});
