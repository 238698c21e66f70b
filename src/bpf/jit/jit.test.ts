/** Each instruction with its edge operands, compiled and interpreted. */
import { afterAll, describe, expect, it } from "vitest";
import { contextOf, NativeBpf } from "../../../test/support/native-bpf.ts";
import {
  type AluName,
  type AtomicName,
  bpfRegs,
  InsnBuilder,
  type JumpName,
  r0,
  r1,
  r2,
  r3,
  r4,
  r5,
  r6,
  r7,
  r8,
  r9,
  r10,
} from "../index.ts";

const native = new NativeBpf();
afterAll(() => native[Symbol.dispose]());

const edges: readonly bigint[] = [
  0n,
  1n,
  2n,
  7n,
  31n,
  32n,
  63n,
  64n,
  0x7fn,
  0x80n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_ffffn,
  0x1_0000_0000n,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0xffff_ffff_8000_0000n,
  0xffff_ffff_ffff_fff9n,
  0xffff_ffff_ffff_ffffn,
  0x1234_5678_9abc_def0n,
];
const immediates = [0, 1, -1, 2, 8, 31, 63, 0x7f, 0x80, 0xff, 0xffff, 1000, 0x7fffffff, -0x80000000, -7];

/** Runs both ways on every pair of edge values, in r6 (context slot 0) and r7 (slot 8). */
function expectSame(build: (b: InsnBuilder) => void, what: string, values = edges): void {
  const b = new InsnBuilder();
  b.ldx(8, r6, r1, 0).ldx(8, r7, r1, 8);
  build(b);
  const { insns } = b.exit().build();
  native.reset();
  const compiled = native.compile(insns);
  for (const [i, left] of values.entries()) {
    for (const right of [
      edges[i]!,
      edges[(i + 7) % edges.length]!,
      edges[(i * 3 + 1) % edges.length]!,
      0n,
      1n,
      (1n << 64n) - 1n,
    ]) {
      const ctx = contextOf((offset) => (offset === 0 ? left : right));
      const want = native.interpret(insns, ctx);
      const got = native.run(compiled, ctx);
      if (got !== want)
        expect.fail(
          `${what} of 0x${left.toString(16)}, 0x${right.toString(16)}: 0x${got.toString(16)}, not 0x${want.toString(16)}`,
        );
    }
  }
}

const aluNames: readonly AluName[] = [
  "add",
  "sub",
  "mul",
  "div",
  "sdiv",
  "or",
  "and",
  "lsh",
  "rsh",
  "mod",
  "smod",
  "xor",
  "mov",
  "arsh",
];
const jumpNames: readonly JumpName[] = [
  "eq",
  "ne",
  "gt",
  "ge",
  "lt",
  "le",
  "set",
  "sgt",
  "sge",
  "slt",
  "sle",
];
const isShift = (op: AluName) => op === "lsh" || op === "rsh" || op === "arsh";
const isDivision = (op: AluName) => op === "div" || op === "mod" || op === "sdiv" || op === "smod";

describe("arithmetic", () => {
  it.each(
    aluNames.flatMap((op) => ([64, 32] as const).map((width) => ({ name: `${op}${width}`, op, width }))),
  )("$name by register and by every edge immediate", ({ op, width }) => {
    const emit = (b: InsnBuilder, src: Parameters<InsnBuilder["alu64"]>[2]) =>
      width === 64 ? b.alu64(op, r6, src) : b.alu32(op, r6, src);
    expectSame((b) => emit(b, r7).mov64(r0, r6), `${op}${width} by register`);
    for (const imm of immediates) {
      if (isShift(op) && (imm < 0 || imm >= width)) continue;
      if (isDivision(op) && imm === 0) continue;
      expectSame((b) => emit(b, imm).mov64(r0, r6), `${op}${width} by ${imm}`);
    }
    expectSame((b) => emit(b, r6).mov64(r0, r6), `${op}${width} by itself`);
  });

  it.each([
    { name: "neg64", emit: (b: InsnBuilder) => b.neg64(r6) },
    { name: "neg32", emit: (b: InsnBuilder) => b.neg32(r6) },
    ...([8, 16, 32] as const).map((bits) => ({
      name: `movsx64 from ${bits}`,
      emit: (b: InsnBuilder) => b.movsx64(r6, r7, bits),
    })),
    ...([8, 16] as const).map((bits) => ({
      name: `movsx32 from ${bits}`,
      emit: (b: InsnBuilder) => b.movsx32(r6, r7, bits),
    })),
    ...(["le", "be", "bswap"] as const).flatMap((kind) =>
      ([16, 32, 64] as const).map((bits) => ({
        name: `${kind}${bits}`,
        emit: (b: InsnBuilder) => b.swap(kind, r6, bits),
      })),
    ),
  ])("$name", ({ name, emit }) => expectSame((b) => emit(b).mov64(r0, r6), name));

  it("every register as divisor, dividend and shift count, with all others live", () => {
    const all = bpfRegs.slice(0, 10);
    for (const op of ["div", "mod", "sdiv", "lsh"] as const) {
      for (const dst of all) {
        for (const src of all) {
          expectSame(
            (b) => {
              // r6 and r7 hold the edges; spread them, then make every register different.
              b.mov64(r0, r6)
                .mov64(r2, r7)
                .mov64(r3, r6)
                .mov64(r4, r7)
                .mov64(r5, r6)
                .mov64(r8, r7)
                .mov64(r9, r6);
              b.mov64(r1, r7);
              for (const [i, reg] of all.entries()) b.alu64("xor", reg, i * 5);
              b.alu64(op, dst, src);
              for (const reg of all.slice(1)) b.alu64("mul", r0, 31).alu64("add", r0, reg);
            },
            `${op} r${dst.reg}, r${src.reg}`,
            [0n, 7n, 1n << 63n],
          );
        }
      }
    }
  });
});

describe("jumps", () => {
  it.each(
    jumpNames.flatMap((op) => ([64, 32] as const).map((width) => ({ name: `${op}${width}`, op, width }))),
  )("$name on registers and immediates", ({ op, width }) => {
    const test = (src: Parameters<InsnBuilder["jmp"]>[2]) => {
      expectSame(
        (b) => {
          const taken = b.label();
          b.mov64(r0, 1);
          if (width === 64) b.jmp(op, r6, src, taken);
          else b.jmp32(op, r6, src, taken);
          b.mov64(r0, 2).bind(taken);
        },
        `${op}${width} ${typeof src === "number" ? src : "register"}`,
      );
    };
    test(r7);
    for (const imm of immediates) test(imm);
  });
});

describe("memory", () => {
  it("every width on the stack, in every alignment, constants and registers, signed and not", () => {
    for (const bytes of [1, 2, 4, 8] as const) {
      for (const at of [-8, -16, -24]) {
        expectSame((b) => {
          b.st(8, r10, -8, -1).st(8, r10, -16, 0x12345678).st(8, r10, -24, 0);
          b.stx(bytes, r10, at, r6).ldx(bytes, r0, r10, at);
          for (const slot of [-8, -16, -24])
            b.ldx(8, r2, r10, slot).alu64("xor", r0, r2).alu64("mul", r0, 31);
        }, `store ${bytes} at ${at}`);
        expectSame((b) => {
          b.st(8, r10, -8, 5).st(8, r10, -16, 6).st(8, r10, -24, 7);
          b.st(bytes, r10, at, -2).ldx(8, r0, r10, at);
        }, `store constant ${bytes} at ${at}`);
        if (bytes === 8) continue;
        expectSame((b) => b.stx(8, r10, at, r6).ldsx(bytes, r0, r10, at), `signed load ${bytes}`);
      }
    }
  });

  it("the stack through a pointer that was computed, copied and merged", () => {
    expectSame((b) => {
      const [low, done] = [b.label(), b.label()];
      b.st(8, r10, -8, 1).st(8, r10, -16, 2);
      b.mov64(r2, r10).alu64("add", r2, -8);
      b.jmp("lt", r6, 100, low).goto(done).bind(low);
      b.alu64("add", r2, -8);
      b.bind(done).ldx(8, r0, r2, 0);
    }, "merged stack pointer");
  });

  it("more stack than the red zone", () => {
    expectSame(
      (b) =>
        b
          .stx(8, r10, -512, r6)
          .stx(8, r10, -8, r7)
          .ldx(8, r0, r10, -512)
          .ldx(8, r2, r10, -8)
          .alu64("sub", r0, r2),
      "512 bytes",
    );
  });

  it("every slot of the context that can be read", () => {
    for (let offset = 0; offset <= 160; offset += 8) {
      const b = new InsnBuilder()
        .mov64(r6, r1)
        .ldx(8, r0, r6, offset)
        .ldx(4, r2, r1, offset)
        .alu64("mul", r2, 3)
        .alu64("add", r0, r2)
        .exit();
      const { insns } = b.build();
      native.reset();
      const compiled = native.compile(insns);
      const ctx = contextOf((at) => 0xfeed_0000_8000_0000n + BigInt(at) * 0x1_0000_0001n);
      expect(native.run(compiled, ctx)).toBe(native.interpret(insns, ctx));
      expect(compiled.program.ctxReads).toEqual(new Set([offset]));
    }
  });
});

const atomicNames: readonly AtomicName[] = [
  "add",
  "or",
  "and",
  "xor",
  "fetch_add",
  "fetch_or",
  "fetch_and",
  "fetch_xor",
  "xchg",
  "cmpxchg",
];

describe("atomics", () => {
  it.each(
    atomicNames.flatMap((op) =>
      ([8, 4] as const).map((bytes) => ({ name: `${op} of ${bytes} bytes`, op, bytes })),
    ),
  )("$name, operand in every register", ({ op, bytes }) => {
    for (const src of [r0, r2, r3, r4, r8]) {
      expectSame((b) => {
        b.stx(8, r10, -8, r6).mov64(r0, r6).mov64(r2, r7).mov64(r3, r7).mov64(r4, r7).mov64(r8, r7);
        b.alu64("add", r3, 1).alu64("add", r4, 2);
        b.atomic(op, bytes, r10, -8, src);
        b.ldx(8, r9, r10, -8);
        for (const reg of [r2, r3, r4, r8, r9]) b.alu64("mul", r0, 31).alu64("add", r0, reg);
      }, `${op} ${bytes} r${src.reg}`);
    }
    for (const constant of [0, 1, -1, 1000]) {
      if (op === "cmpxchg") continue;
      expectSame((b) => {
        b.stx(8, r10, -8, r6).mov64(r2, constant).atomic(op, bytes, r10, -8, r2).ldx(8, r0, r10, -8);
      }, `${op} ${bytes} with ${constant}`);
    }
  });
});
