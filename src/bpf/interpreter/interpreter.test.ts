import { describe, expect, it } from "vitest";
import {
  type AluName,
  type AtomicName,
  InsnBuilder,
  type JumpName,
  r0,
  r1,
  r2,
  r3,
  r10,
} from "../builder.ts";
import type { Insn } from "../insn.ts";
import type { HelperHost, MapAccess } from "./host.ts";
import { interpret } from "./interpreter.ts";
import { fakeArray, fakeHash, fakeHost, fakeRing } from "./test-world.ts";

const M = 0xffff_ffff_ffff_ffffn;
const MIN = 0x8000_0000_0000_0000n;
const MAX = 0x7fff_ffff_ffff_ffffn;

interface World {
  maps?: MapAccess[];
  host?: HelperHost;
  memory?: Uint8Array;
  ctx?: Uint8Array;
  maxSteps?: number;
}

function run(insns: readonly Insn[], world: World = {}) {
  return interpret({
    insns,
    maps: world.maps ?? [],
    host: world.host ?? fakeHost(),
    entry: world.memory
      ? { kind: "memory", bytes: world.memory }
      : { kind: "context", bytes: world.ctx ?? new Uint8Array(168) },
    ...(world.maxSteps === undefined ? {} : { maxSteps: world.maxSteps }),
    checkInitialised: true,
  });
}

function build(write: (b: InsnBuilder) => void): Insn[] {
  const b = new InsnBuilder();
  write(b);
  return b.build().insns;
}

function value(write: (b: InsnBuilder) => void, world: World = {}): bigint {
  const result = run(build(write), world);
  if (result.kind !== "returned") throw new Error(`${result.message} at ${result.at}`);
  return result.value;
}

type AluRow = [op: AluName, dst: bigint, src: bigint, alu64: bigint, alu32: bigint];

const aluRows: AluRow[] = [
  ["add", 1n, 2n, 3n, 3n],
  ["add", M, 1n, 0n, 0n],
  ["add", 0xffff_ffffn, 1n, 0x1_0000_0000n, 0n],
  ["add", MAX, 1n, MIN, 0n],
  ["sub", 0n, 1n, M, 0xffff_ffffn],
  ["sub", MIN, 1n, MAX, 0xffff_ffffn],
  ["sub", 5n, 5n, 0n, 0n],
  ["mul", 0x1_0000_0001n, 0x1_0000_0001n, 0x2_0000_0001n, 1n],
  ["mul", M, M, 1n, 1n],
  ["mul", 0x8000_0000n, 2n, 0x1_0000_0000n, 0n],
  ["div", 7n, 2n, 3n, 3n],
  ["div", 7n, 0n, 0n, 0n],
  ["div", M, 2n, MAX, 0x7fff_ffffn],
  ["div", 0x1_0000_0007n, 0x1_0000_0000n, 1n, 0n],
  ["sdiv", u(-7n), 2n, u(-3n), 0xffff_fffdn],
  ["sdiv", 7n, u(-2n), u(-3n), 0xffff_fffdn],
  ["sdiv", MIN, M, MIN, 0n],
  ["sdiv", 0x8000_0000n, M, u(-0x8000_0000n), 0x8000_0000n],
  ["sdiv", u(-7n), 0n, 0n, 0n],
  ["mod", 7n, 3n, 1n, 1n],
  ["mod", 7n, 0n, 7n, 7n],
  ["mod", M, 10n, 5n, 5n],
  ["mod", 0x1_0000_0007n, 0n, 0x1_0000_0007n, 7n],
  ["smod", u(-7n), 3n, u(-1n), 0xffff_ffffn],
  ["smod", 7n, u(-3n), 1n, 1n],
  ["smod", MIN, M, 0n, 0n],
  ["smod", 0x8000_0000n, M, 0n, 0n],
  ["smod", u(-7n), 0n, u(-7n), 0xffff_fff9n],
  ["or", 0xf0n, 0x0fn, 0xffn, 0xffn],
  ["or", MIN, 1n, MIN | 1n, 1n],
  ["and", M, 0xff00_0000_00ffn, 0xff00_0000_00ffn, 0xffn],
  ["xor", M, 0xffn, M ^ 0xffn, 0xffff_ff00n],
  ["lsh", 1n, 63n, MIN, 0x8000_0000n],
  ["lsh", 1n, 64n, 1n, 1n],
  ["lsh", 1n, 33n, 0x2_0000_0000n, 2n],
  ["lsh", 3n, 31n, 0x1_8000_0000n, 0x8000_0000n],
  ["rsh", M, 63n, 1n, 1n],
  ["rsh", M, 64n, M, 0xffff_ffffn],
  ["rsh", M, 1n, MAX, 0x7fff_ffffn],
  ["arsh", MIN, 63n, M, 0n],
  ["arsh", 0x8000_0000n, 4n, 0x800_0000n, 0xf800_0000n],
  ["arsh", M, 65n, M, 0xffff_ffffn],
  ["arsh", MAX, 62n, 1n, 0xffff_ffffn],
  ["mov", 1n, 0xffff_ffff_0000_0001n, 0xffff_ffff_0000_0001n, 1n],
];

type JumpRow = [cond: JumpName, dst: bigint, src: bigint, jmp64: boolean, jmp32: boolean];

const jumpRows: JumpRow[] = [
  ["eq", 1n, 1n, true, true],
  ["eq", 0x1_0000_0001n, 1n, false, true],
  ["ne", 0x1_0000_0001n, 1n, true, false],
  ["ne", 5n, 5n, false, false],
  ["gt", M, 0n, true, true],
  ["gt", 0n, 0n, false, false],
  ["gt", 0x1_0000_0000n, 0xffff_ffffn, true, false],
  ["ge", 0n, 0n, true, true],
  ["ge", 0n, M, false, false],
  ["lt", 0n, M, true, true],
  ["lt", 3n, 3n, false, false],
  ["le", 3n, 3n, true, true],
  ["le", M, 0n, false, false],
  ["set", 6n, 1n, false, false],
  ["set", 6n, 2n, true, true],
  ["set", MIN, MIN, true, false],
  ["sgt", 0n, M, true, true],
  ["sgt", MIN, MAX, false, true],
  ["sgt", 0x7fff_ffffn, 0x8000_0000n, false, true],
  ["sge", M, M, true, true],
  ["sge", M, 0n, false, false],
  ["slt", M, 0n, true, true],
  ["slt", 0n, M, false, false],
  ["sle", MIN, MAX, true, false],
  ["sle", MAX, MIN, false, true],
];

const taken = (
  load: (b: InsnBuilder) => void,
  jump: (b: InsnBuilder, to: ReturnType<InsnBuilder["label"]>) => void,
) =>
  value((b) => {
    const yes = b.label();
    load(b);
    jump(b, yes);
    b.mov64(r0, 0).exit().bind(yes).mov64(r0, 1).exit();
  }) === 1n;

const memory = () =>
  Uint8Array.from([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x91, 0, 0, 0, 0, 0, 0, 0, 0]);

const cmpxchg32 = (b: InsnBuilder) =>
  b.st(8, r10, -8, -1).ldImm64(r0, 0x5_ffff_ffffn).mov64(r3, 9).atomic("cmpxchg", 4, r10, -8, r3);

const withKey = (b: InsnBuilder, k: number) =>
  b.st(4, r10, -4, k).st(8, r10, -16, 77).ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -4);

const reserve = (b: InsnBuilder) => b.ldMapFd(r1, 0).mov64(r2, 16).mov64(r3, 0).call(131);

const submit = (b: InsnBuilder) => b.st(8, r0, 0, 42).mov64(r1, r0).mov64(r2, 0).call(132).mov64(r0, 0);

const callResult = (n: number) => value((b) => b.call(n).exit());

const stackRead = (helper: number, len: number, addr: bigint) => (b: InsnBuilder) =>
  b.st(8, r10, -8, -1).mov64(r1, r10).alu64("add", r1, -8).mov64(r2, len).ldImm64(r3, addr).call(helper);

const comm = (len: number) =>
  value((b) =>
    b
      .st(8, r10, -8, -1)
      .mov64(r1, r10)
      .alu64("add", r1, -8)
      .mov64(r2, len)
      .call(16)
      .ldx(8, r0, r10, -8)
      .exit(),
  );

const update = (b: InsnBuilder, k: number) =>
  withKey(b, k).mov64(r3, r10).alu64("add", r3, -16).mov64({ reg: 4 }, 0).call(2);

function u(x: bigint): bigint {
  return BigInt.asUintN(64, x);
}

describe("arithmetic", () => {
  it.each(aluRows)("%s of %d and %d", (op, dst, src, alu64, alu32) => {
    const load = (b: InsnBuilder) => b.ldImm64(r0, dst).ldImm64(r1, src);
    expect(value((b) => load(b).alu64(op, r0, r1).exit())).toBe(alu64);
    expect(value((b) => load(b).alu32(op, r0, r1).exit())).toBe(alu32);
    const imm = BigInt.asIntN(32, src);
    if (u(imm) === src) {
      expect(value((b) => load(b).alu64(op, r0, Number(imm)).exit())).toBe(alu64);
      expect(value((b) => load(b).alu32(op, r0, Number(imm)).exit())).toBe(alu32);
    }
  });

  it.each<[name: string, write: (b: InsnBuilder) => InsnBuilder, from: bigint, to: bigint]>([
    ["neg64 of 1", (b) => b.neg64(r0), 1n, M],
    ["neg64 of the smallest", (b) => b.neg64(r0), MIN, MIN],
    ["neg32 of 1", (b) => b.neg32(r0), 1n, 0xffff_ffffn],
    ["neg32 clears the high half", (b) => b.neg32(r0), 0x5_0000_0000n, 0n],
    ["movsx64 8 negative", (b) => b.movsx64(r0, r0, 8), 0x1280n, u(-128n)],
    ["movsx64 8 positive", (b) => b.movsx64(r0, r0, 8), 0x127fn, 0x7fn],
    ["movsx64 16", (b) => b.movsx64(r0, r0, 16), 0x18000n, u(-0x8000n)],
    ["movsx64 32", (b) => b.movsx64(r0, r0, 32), 0x1_8000_0000n, u(-0x8000_0000n)],
    ["movsx32 8", (b) => b.movsx32(r0, r0, 8), 0xff80n, 0xffff_ff80n],
    ["movsx32 16", (b) => b.movsx32(r0, r0, 16), 0x18000n, 0xffff_8000n],
    ["le16 cuts", (b) => b.swap("le", r0, 16), 0x1122_3344_5566_7788n, 0x7788n],
    ["le64 keeps", (b) => b.swap("le", r0, 64), 0x1122_3344_5566_7788n, 0x1122_3344_5566_7788n],
    ["be16", (b) => b.swap("be", r0, 16), 0x1122_3344_5566_7788n, 0x8877n],
    ["be32", (b) => b.swap("be", r0, 32), 0x1122_3344_5566_7788n, 0x8877_6655n],
    ["be64", (b) => b.swap("be", r0, 64), 0x1122_3344_5566_7788n, 0x8877_6655_4433_2211n],
    ["bswap16", (b) => b.swap("bswap", r0, 16), 0x1122_3344_5566_7788n, 0x8877n],
    ["bswap32", (b) => b.swap("bswap", r0, 32), 0x1122_3344_5566_7788n, 0x8877_6655n],
    ["bswap64", (b) => b.swap("bswap", r0, 64), 0x1122_3344_5566_7788n, 0x8877_6655_4433_2211n],
  ])("%s", (_name, write, from, to) => {
    expect(value((b) => write(b.ldImm64(r0, from)).exit())).toBe(to);
  });

  it.each([
    ["mov64 sign-extends its immediate", (b: InsnBuilder) => b.mov64(r0, -1), M],
    ["mov32 does not", (b: InsnBuilder) => b.mov32(r0, -1), 0xffff_ffffn],
  ] as const)("%s", (_name, write, result) => {
    expect(value((b) => write(b).exit())).toBe(result);
  });
});

describe("jumps", () => {
  it.each(jumpRows)("%s on %d and %d", (cond, dst, src, jmp64, jmp32) => {
    const load = (b: InsnBuilder) => b.ldImm64(r1, dst).ldImm64(r2, src);
    expect(taken(load, (b, to) => b.jmp(cond, r1, r2, to))).toBe(jmp64);
    expect(taken(load, (b, to) => b.jmp32(cond, r1, r2, to))).toBe(jmp32);
    const imm = BigInt.asIntN(32, src);
    if (u(imm) === src) {
      expect(taken(load, (b, to) => b.jmp(cond, r1, Number(imm), to))).toBe(jmp64);
      expect(taken(load, (b, to) => b.jmp32(cond, r1, Number(imm), to))).toBe(jmp32);
    }
  });

  it("runs a loop and gotol", () => {
    const insns = build((b) => {
      const top = b.label();
      b.mov64(r0, 0)
        .mov64(r1, 10)
        .bind(top)
        .alu64("add", r0, r1)
        .alu64("sub", r1, 1)
        .jmp("ne", r1, 0, top)
        .exit();
    });
    expect(run(insns)).toMatchObject({ kind: "returned", value: 55n });
    const gotol: Insn[] = [
      { opcode: 0xb7, dst: 0, src: 0, off: 0, imm: 3 },
      { opcode: 0x06, dst: 0, src: 0, off: 0, imm: 1 },
      { opcode: 0xb7, dst: 0, src: 0, off: 0, imm: 4 },
      { opcode: 0x95, dst: 0, src: 0, off: 0, imm: 0 },
    ];
    expect(run(gotol)).toMatchObject({ kind: "returned", value: 3n });
  });
});

describe("memory", () => {
  it.each<[name: string, write: (b: InsnBuilder) => InsnBuilder, result: bigint]>([
    ["u8", (b) => b.ldx(1, r0, r1, 7), 0x91n],
    ["u16", (b) => b.ldx(2, r0, r1, 6), 0x9122n],
    ["u32", (b) => b.ldx(4, r0, r1, 4), 0x9122_3344n],
    ["u64", (b) => b.ldx(8, r0, r1, 0), 0x9122_3344_5566_7788n],
    ["u64 misaligned", (b) => b.ldx(8, r0, r1, 1), 0x91_2233_4455_6677n],
    ["u32 misaligned", (b) => b.ldx(4, r0, r1, 5), 0x91_2233n],
    ["s8", (b) => b.ldsx(1, r0, r1, 7), u(-0x6fn)],
    ["s16", (b) => b.ldsx(2, r0, r1, 6), u(-0x6eden)],
    ["s32", (b) => b.ldsx(4, r0, r1, 4), u(-0x6eddccbcn)],
    ["s32 positive", (b) => b.ldsx(4, r0, r1, 0), 0x5566_7788n],
    ["length in r2", (b) => b.mov64(r0, r2), 16n],
  ])("load %s", (_name, write, result) => {
    expect(value((b) => write(b).exit(), { memory: memory() })).toBe(result);
  });

  it.each<[name: string, write: (b: InsnBuilder) => InsnBuilder, bytes: string]>([
    ["u8 reg", (b) => b.mov64(r3, -2).stx(1, r1, 1, r3), "88fe665544332291"],
    ["u16 reg", (b) => b.mov64(r3, -2).stx(2, r1, 1, r3), "88feff5544332291"],
    ["u32 reg", (b) => b.mov64(r3, -2).stx(4, r1, 4, r3), "88776655feffffff"],
    ["u64 reg", (b) => b.mov64(r3, -2).stx(8, r1, 0, r3), "feffffffffffffff"],
    ["u8 imm", (b) => b.st(1, r1, 0, 0x1ff), "ff77665544332291"],
    ["u32 imm", (b) => b.st(4, r1, 0, -1), "ffffffff44332291"],
    ["u64 imm sign-extends", (b) => b.st(8, r1, 0, -2), "feffffffffffffff"],
  ])("store %s", (_name, write, bytes) => {
    const bytesOut = memory();
    value((b) => write(b).mov64(r0, 0).exit(), { memory: bytesOut });
    expect(Buffer.from(bytesOut.subarray(0, 8)).toString("hex")).toBe(bytes);
  });

  const atomicRows: [op: AtomicName, old: bigint, operand: bigint, now: bigint, fetched: boolean][] = [
    ["add", 5n, 3n, 8n, false],
    ["add", M, 1n, 0n, false],
    ["fetch_add", MAX, 1n, MIN, true],
    ["or", 0xf0n, 0x0fn, 0xffn, false],
    ["fetch_or", 0xf0n, 0x0fn, 0xffn, true],
    ["and", 0xffn, 0x3cn, 0x3cn, false],
    ["fetch_and", M, MIN, MIN, true],
    ["xor", 0xffn, 0xf0n, 0x0fn, false],
    ["fetch_xor", M, M, 0n, true],
    ["xchg", 1n, M, M, true],
  ];
  it.each(atomicRows)("lock %s on %d with %d", (op, old, operand, now, fetched) => {
    for (const bytes of [8, 4] as const) {
      const cut = (x: bigint) => BigInt.asUintN(bytes * 8, x);
      const program = (b: InsnBuilder) =>
        b.ldImm64(r2, old).stx(8, r10, -8, r2).ldImm64(r3, operand).atomic(op, bytes, r10, -8, r3);
      const kept = bytes === 4 ? old & ~0xffff_ffffn : 0n;
      expect(value((b) => program(b).ldx(8, r0, r10, -8).exit())).toBe(kept | cut(now));
      expect(value((b) => program(b).mov64(r0, r3).exit())).toBe(fetched ? cut(old) : operand);
    }
  });

  it.each([
    { name: "equal", expected: 7n, now: 9n },
    { name: "not equal", expected: 8n, now: 7n },
  ])("cmpxchg when $name", ({ expected, now }) => {
    const program = (b: InsnBuilder) =>
      b.st(8, r10, -8, 7).ldImm64(r0, expected).mov64(r3, 9).atomic("cmpxchg", 8, r10, -8, r3);
    expect(value((b) => program(b).exit())).toBe(7n);
    expect(value((b) => program(b).ldx(8, r0, r10, -8).exit())).toBe(now);
  });

  it("cmpxchg on 32 bits compares the low half and zero-extends r0", () => {
    expect(value((b) => cmpxchg32(b).exit())).toBe(0xffff_ffffn);
    expect(value((b) => cmpxchg32(b).ldx(8, r0, r10, -8).exit())).toBe(0xffff_ffff_0000_0009n);
  });
});

describe("faults", () => {
  it.each<[name: string, write: (b: InsnBuilder) => InsnBuilder, message: RegExp]>([
    ["a read below the stack", (b) => b.ldx(8, r0, r10, -520), /read of 8 bytes/],
    ["a read that ends above the stack", (b) => b.ldx(8, r0, r10, -4), /read of 8 bytes/],
    ["a read through null", (b) => b.mov64(r1, 0).ldx(1, r0, r1, 0), /read of 1 bytes at 0x0/],
    ["a write of the context", (b) => b.st(8, r1, 0, 0), /context is read only/],
    [
      "a misaligned atomic",
      (b) => b.st(8, r10, -8, 0).st(8, r10, -16, 0).atomic("add", 8, r10, -12, r1),
      /not aligned/,
    ],
    ["a register never written", (b) => b.mov64(r0, r3), /r3, which was never written/],
    ["r1 after a call", (b) => b.call(5).mov64(r0, r1), /r1, which was never written/],
    ["a stack byte never written", (b) => b.st(4, r10, -8, 0).ldx(8, r0, r10, -8), /not all written/],
    ["a helper that does not exist", (b) => b.call(93), /bpf_spin_lock#93/],
    ["a call of a number as a map", (b) => b.mov64(r1, 5).mov64(r2, 0).call(1), /no map/],
    ["running off the end", (b) => b.mov64(r0, 0), /left the program at instruction 2/],
    ["a write of r10", (b) => b.mov64(r10, 0), /write of r10/],
    ["an unknown opcode", (b) => b.raw({ opcode: 0xff, dst: 0, src: 0, off: 0, imm: 0 }), /./],
  ])("%s", (_name, write, message) => {
    const insns = build((b) => write(b.mov64(r0, 0)));
    const result = run(insns);
    expect(result).toMatchObject({ kind: "faulted", message: expect.stringMatching(message) });
  });

  it("gives up a program that does not end", () => {
    const result = run([{ opcode: 0x05, dst: 0, src: 0, off: -1, imm: 0 }], { maxSteps: 1000 });
    expect(result).toMatchObject({ kind: "faulted", message: "no exit within 1000 steps" });
  });
});

describe("helpers", () => {
  it("looks up an array in place, so that atomics meet the shared words", () => {
    const array = fakeArray(2, 8);
    const add = build((b) => {
      const out = b.label();
      b.st(4, r10, -4, 1).ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -4).call(1);
      b.jmp("eq", r0, 0, out).mov64(r1, 3).atomic("add", 8, r0, 0, r1).bind(out).mov64(r0, 0).exit();
    });
    run(add, { maps: [array] });
    run(add, { maps: [array] });
    expect([...array.memory.words]).toEqual([0n, 6n]);
  });

  it("does not let a value be left for its neighbour", () => {
    const result = run(
      build((b) => b.ldMapValue(r1, 0, 0).ldx(8, r0, r1, 8).exit()),
      { maps: [fakeArray(2, 8)] },
    );
    expect(result).toMatchObject({ kind: "faulted", message: expect.stringContaining("value of map array") });
  });

  it("updates, finds and deletes in a hash, with the kernel's error numbers", () => {
    const hash = fakeHash(1, 4, 8);
    expect(value((b) => update(b, 5).exit(), { maps: [hash] })).toBe(0n);
    expect(value((b) => update(b, 6).exit(), { maps: [hash] })).toBe(u(-7n));
    expect(value((b) => withKey(b, 5).call(1).ldx(8, r0, r0, 0).exit(), { maps: [hash] })).toBe(77n);
    expect(value((b) => withKey(b, 9).call(1).exit(), { maps: [hash] })).toBe(0n);
    expect(value((b) => withKey(b, 5).call(3).exit(), { maps: [hash] })).toBe(0n);
    expect(value((b) => withKey(b, 5).call(3).exit(), { maps: [hash] })).toBe(u(-2n));
  });

  it("reserves, fills and submits a record, and faults on a record kept", () => {
    const ring = fakeRing(16, 4);
    expect(value((b) => submit(reserve(b)).exit(), { maps: [ring] })).toBe(0n);
    expect(ring.submitted).toEqual([[42n, 0n]]);
    const kept = run(
      build((b) => reserve(b).exit()),
      { maps: [ring] },
    );
    expect(kept).toMatchObject({ kind: "faulted", message: expect.stringContaining("still reserved") });
    const twice = run(
      build((b) =>
        submit(reserve(b).mov64({ reg: 6 }, r0))
          .mov64(r1, { reg: 6 })
          .mov64(r2, 0)
          .call(132)
          .exit(),
      ),
      { maps: [ring] },
    );
    expect(twice).toMatchObject({ kind: "faulted", message: expect.stringContaining("no reserved record") });
  });

  it("answers what the host says", () => {
    expect([5, 7, 8, 14, 15].map(callResult)).toEqual([
      123n,
      0xffff_ffffn,
      3n,
      0x1_0000_0002n,
      0x3_0000_0004n,
    ]);
  });

  it("reads cookie and address from the context", () => {
    const ctx = new Uint8Array(168);
    new DataView(ctx.buffer).setBigUint64(120, 77n, true);
    new DataView(ctx.buffer).setBigUint64(128, M, true);
    expect(value((b) => b.call(174).exit(), { ctx })).toBe(77n);
    expect(value((b) => b.call(173).exit(), { ctx })).toBe(M);
  });

  const user = Buffer.from("hello\0world");

  it.each([
    { name: "memory", helper: 112, len: 8, addr: 0x1000n, r: 0n, bytes: "68656c6c6f00776f" },
    { name: "bad memory zeroes", helper: 112, len: 8, addr: 0x5000n, r: u(-14n), bytes: "0000000000000000" },
    { name: "a string", helper: 114, len: 8, addr: 0x1000n, r: 6n, bytes: "68656c6c6f00ffff" },
    { name: "a string that is cut", helper: 114, len: 4, addr: 0x1000n, r: 4n, bytes: "68656c00ffffffff" },
    { name: "a string of size 0", helper: 114, len: 0, addr: 0x1000n, r: 0n, bytes: "ffffffffffffffff" },
    {
      name: "a bad string zeroes",
      helper: 114,
      len: 8,
      addr: 0x5000n,
      r: u(-14n),
      bytes: "0000000000000000",
    },
    {
      name: "a string that ends before a hole",
      helper: 114,
      len: 8,
      addr: 0x1ffen,
      r: 2n,
      bytes: "6100ffffffffffff",
    },
  ])("reads user $name", ({ helper, len, addr, r, bytes }) => {
    const page = Buffer.alloc(4096);
    user.copy(page);
    page[4094] = 0x61;
    const host = fakeHost(new Map([[0x1000n, page]]));
    expect(value((b) => stackRead(helper, len, addr)(b).exit(), { host })).toBe(r);
    const after = value(
      (b) => stackRead(helper, len, addr)(b).ldx(8, r0, r10, -8).swap("be", r0, 64).exit(),
      { host },
    );
    expect(after.toString(16).padStart(16, "0")).toBe(bytes);
  });

  it("cuts the thread's name to size with a NUL", () => {
    expect(comm(8)).toBe(Buffer.from("main\0\0\0\0").readBigUInt64LE());
    expect(comm(3)).toBe(0xffff_ffff_ff00_616dn);
  });
});
