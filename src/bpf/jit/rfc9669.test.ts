/**
 * Every opcode of RFC 9669 on edge operands, against a second reading of the RFC that shares no code with the machine:
 * 32-bit results come from the numbers of JavaScript, 64-bit ones from typed arrays.
 */
import { afterAll, describe, expect, it } from "vitest";
import { contextOf, NativeBpf } from "../../../test/support/native-bpf.ts";
import type { Insn } from "../insn.ts";

const native = new NativeBpf();
afterAll(() => native[Symbol.dispose]());

const slot = (opcode: number, dst: number, src: number, off: number, imm: number): Insn => ({
  opcode,
  dst,
  src,
  off,
  imm,
});
const wide = (dst: number, value: bigint): Insn[] => [
  slot(0x18, dst, 0, 0, Number(BigInt.asIntN(32, value))),
  slot(0, 0, 0, 0, Number(BigInt.asIntN(32, value >> 32n))),
];
const exit = slot(0x95, 0, 0, 0, 0);

const values: readonly bigint[] = [
  0n,
  1n,
  2n,
  31n,
  32n,
  63n,
  64n,
  0xffn,
  0x8000n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_ffffn,
  0x1_0000_0000n,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0xffff_ffff_8000_0000n,
  0xffff_ffff_ffff_fffen,
  0xffff_ffff_ffff_ffffn,
  0x0123_4567_89ab_cdefn,
];
const immediates: readonly number[] = [0, 1, 2, 31, 32, 63, 64, 0xff, 0x7fffffff, -0x80000000, -2, -1];

const unsigned64 = new BigUint64Array(2);
const signed64 = new BigInt64Array(unsigned64.buffer);

/** Two operands of 64 bits, read as signed or unsigned numbers. */
function on64(dst: bigint, src: bigint, compute: (u: BigUint64Array, s: BigInt64Array) => bigint): bigint {
  unsigned64[0] = dst;
  unsigned64[1] = src;
  const result = compute(unsigned64, signed64);
  unsigned64[0] = result;
  return unsigned64[0]!;
}

/** Two operands of 32 bits; the high half of the result is zero. */
function on32(dst: bigint, src: bigint, compute: (d: number, s: number) => number): bigint {
  return BigInt(compute(Number(dst & 0xffff_ffffn), Number(src & 0xffff_ffffn)) >>> 0);
}

interface Operation {
  readonly name: string;
  /** Bits 4 to 7 of the opcode. */
  readonly code: number;
  readonly off?: number;
  readonly wide: (dst: bigint, src: bigint) => bigint;
  readonly narrow: (dst: bigint, src: bigint) => bigint;
}

const operations: readonly Operation[] = [
  {
    name: "ADD",
    code: 0x00,
    wide: (d, s) => on64(d, s, (u) => u[0]! + u[1]!),
    narrow: (d, s) => on32(d, s, (a, b) => a + b),
  },
  {
    name: "SUB",
    code: 0x10,
    wide: (d, s) => on64(d, s, (u) => u[0]! - u[1]!),
    narrow: (d, s) => on32(d, s, (a, b) => a - b),
  },
  {
    name: "MUL",
    code: 0x20,
    wide: (d, s) => on64(d, s, (u) => u[0]! * u[1]!),
    narrow: (d, s) => on32(d, s, (a, b) => Math.imul(a, b)),
  },
  {
    name: "DIV",
    code: 0x30,
    wide: (d, s) => on64(d, s, (u) => (u[1] === 0n ? 0n : u[0]! / u[1]!)),
    narrow: (d, s) => on32(d, s, (a, b) => (b === 0 ? 0 : Math.floor(a / b))),
  },
  {
    name: "SDIV",
    code: 0x30,
    off: 1,
    wide: (d, s) => on64(d, s, (_, i) => (i[1] === 0n ? 0n : i[0]! / i[1]!)),
    narrow: (d, s) => on32(d, s, (a, b) => (b === 0 ? 0 : Math.trunc((a | 0) / (b | 0)))),
  },
  {
    name: "OR",
    code: 0x40,
    wide: (d, s) => on64(d, s, (u) => u[0]! | u[1]!),
    narrow: (d, s) => on32(d, s, (a, b) => a | b),
  },
  {
    name: "AND",
    code: 0x50,
    wide: (d, s) => on64(d, s, (u) => u[0]! & u[1]!),
    narrow: (d, s) => on32(d, s, (a, b) => a & b),
  },
  {
    name: "LSH",
    code: 0x60,
    wide: (d, s) => on64(d, s, (u) => u[0]! << (u[1]! & 63n)),
    narrow: (d, s) => on32(d, s, (a, b) => a << (b & 31)),
  },
  {
    name: "RSH",
    code: 0x70,
    wide: (d, s) => on64(d, s, (u) => u[0]! >> (u[1]! & 63n)),
    narrow: (d, s) => on32(d, s, (a, b) => a >>> (b & 31)),
  },
  {
    name: "MOD",
    code: 0x90,
    wide: (d, s) => on64(d, s, (u) => (u[1] === 0n ? u[0]! : u[0]! % u[1]!)),
    narrow: (d, s) => on32(d, s, (a, b) => (b === 0 ? a : a % b)),
  },
  {
    name: "SMOD",
    code: 0x90,
    off: 1,
    wide: (d, s) => on64(d, s, (_, i) => (i[1] === 0n ? i[0]! : i[0]! % i[1]!)),
    narrow: (d, s) => on32(d, s, (a, b) => (b === 0 ? a : (a | 0) % (b | 0))),
  },
  {
    name: "XOR",
    code: 0xa0,
    wide: (d, s) => on64(d, s, (u) => u[0]! ^ u[1]!),
    narrow: (d, s) => on32(d, s, (a, b) => a ^ b),
  },
  {
    name: "MOV",
    code: 0xb0,
    wide: (d, s) => on64(d, s, (u) => u[1]!),
    narrow: (d, s) => on32(d, s, (_, b) => b),
  },
  {
    name: "ARSH",
    code: 0xc0,
    wide: (d, s) => on64(d, s, (u, i) => i[0]! >> (u[1]! & 63n)),
    narrow: (d, s) => on32(d, s, (a, b) => (a | 0) >> (b & 31)),
  },
];

const conditions: readonly {
  readonly name: string;
  readonly code: number;
  readonly wide: (u: BigUint64Array, s: BigInt64Array) => boolean;
  readonly narrow: (d: number, s: number) => boolean;
}[] = [
  { name: "JEQ", code: 0x10, wide: (u) => u[0] === u[1], narrow: (a, b) => a === b },
  { name: "JGT", code: 0x20, wide: (u) => u[0]! > u[1]!, narrow: (a, b) => a > b },
  { name: "JGE", code: 0x30, wide: (u) => u[0]! >= u[1]!, narrow: (a, b) => a >= b },
  { name: "JSET", code: 0x40, wide: (u) => (u[0]! & u[1]!) !== 0n, narrow: (a, b) => (a & b) !== 0 },
  { name: "JNE", code: 0x50, wide: (u) => u[0] !== u[1], narrow: (a, b) => a !== b },
  { name: "JSGT", code: 0x60, wide: (_, s) => s[0]! > s[1]!, narrow: (a, b) => (a | 0) > (b | 0) },
  { name: "JSGE", code: 0x70, wide: (_, s) => s[0]! >= s[1]!, narrow: (a, b) => (a | 0) >= (b | 0) },
  { name: "JLT", code: 0xa0, wide: (u) => u[0]! < u[1]!, narrow: (a, b) => a < b },
  { name: "JLE", code: 0xb0, wide: (u) => u[0]! <= u[1]!, narrow: (a, b) => a <= b },
  { name: "JSLT", code: 0xc0, wide: (_, s) => s[0]! < s[1]!, narrow: (a, b) => (a | 0) < (b | 0) },
  { name: "JSLE", code: 0xd0, wide: (_, s) => s[0]! <= s[1]!, narrow: (a, b) => (a | 0) <= (b | 0) },
];

/** r6 and r7 are the first two words of the context. Both machines must say what the model says. */
function check(
  body: readonly Insn[],
  pairs: Iterable<readonly [bigint, bigint, bigint]>,
  what: string,
): void {
  const insns = [slot(0x79, 6, 1, 0, 0), slot(0x79, 7, 1, 8, 0), ...body, exit];
  native.reset();
  const compiled = native.compile(insns);
  for (const [dst, src, wanted] of pairs) {
    const ctx = contextOf((offset) => (offset === 0 ? dst : src));
    const got = { interpreted: native.interpret(insns, ctx), compiled: native.run(compiled, ctx) };
    const same = got.interpreted === wanted && got.compiled === wanted;
    if (!same) {
      const hex = (n: bigint) => `0x${n.toString(16)}`;
      expect.fail(
        `${what} of ${hex(dst)}, ${hex(src)}: interpreted ${hex(got.interpreted)}, ` +
          `compiled ${hex(got.compiled)}, not ${hex(wanted)}`,
      );
    }
  }
}

function* pairs(
  sources: readonly bigint[],
  wanted: (dst: bigint, src: bigint) => bigint,
): Iterable<readonly [bigint, bigint, bigint]> {
  for (const dst of values) for (const src of sources) yield [dst, src, wanted(dst, src)];
}

/** What an immediate is as a 64-bit operand. */
const extended = (imm: number) => BigInt.asUintN(64, BigInt(imm));
const result = slot(0xbf, 0, 6, 0, 0);

describe.each([
  { cls: 0x07, name: "ALU64" },
  { cls: 0x04, name: "ALU" },
])("$name", ({ cls, name }) => {
  it.each(operations)("$name by register and by immediate", (operation) => {
    const { code, off = 0 } = operation;
    const model = cls === 0x07 ? operation.wide : operation.narrow;
    check([slot(cls | code | 8, 6, 7, off, 0), result], pairs(values, model), `${name} ${operation.name} X`);
    for (const imm of immediates) {
      const body = [slot(cls | code, 6, 0, off, imm), result];
      check(body, pairs([extended(imm)], model), `${name} ${operation.name} K ${imm}`);
    }
  });

  it("NEG", () => {
    const model = (dst: bigint) =>
      cls === 0x07 ? on64(dst, 0n, (u) => 0n - u[0]!) : on32(dst, 0n, (a) => 0 - a);
    check([slot(cls | 0x80, 6, 0, 0, 0), result], pairs([0n], model), `${name} NEG`);
  });

  it.each(cls === 0x07 ? [8, 16, 32] : [8, 16])("MOVSX from %i bits", (bits) => {
    const view = new DataView(new ArrayBuffer(8));
    const model = (_: bigint, src: bigint) => {
      view.setBigUint64(0, src, true);
      const low =
        bits === 8 ? view.getInt8(0) : bits === 16 ? view.getInt16(0, true) : view.getInt32(0, true);
      return cls === 0x07 ? BigInt.asUintN(64, BigInt(low)) : BigInt(low >>> 0);
    };
    check([slot(cls | 0xb8, 6, 7, bits, 0), result], pairs(values, model), `${name} MOVSX${bits}`);
  });
});

describe("byte order", () => {
  it.each([16, 32, 64])("le%i, be%i and bswap%i", (bits) => {
    const bytesOf = (dst: bigint) =>
      Array.from({ length: bits / 8 }, (_, i) => (dst >> BigInt(8 * i)) & 0xffn);
    const fold = (bytes: readonly bigint[]) =>
      bytes.reduce((sum, byte, i) => sum | (byte << BigInt(8 * i)), 0n);
    const kept = (dst: bigint) => fold(bytesOf(dst));
    const swapped = (dst: bigint) => fold(bytesOf(dst).toReversed());
    check([slot(0xd4, 6, 0, 0, bits), result], pairs([0n], kept), `le${bits}`);
    check([slot(0xdc, 6, 0, 0, bits), result], pairs([0n], swapped), `be${bits}`);
    check([slot(0xd7, 6, 0, 0, bits), result], pairs([0n], swapped), `bswap${bits}`);
  });
});

describe.each([
  { cls: 0x05, name: "JMP" },
  { cls: 0x06, name: "JMP32" },
])("$name", ({ cls, name }) => {
  it.each(conditions)("$name by register and by immediate", (condition) => {
    const model = (dst: bigint, src: bigint) => {
      if (cls === 0x06)
        return condition.narrow(Number(dst & 0xffff_ffffn), Number(src & 0xffff_ffffn)) ? 1n : 2n;
      unsigned64[0] = dst;
      unsigned64[1] = src;
      return condition.wide(unsigned64, signed64) ? 1n : 2n;
    };
    const body = (jump: Insn): Insn[] => [slot(0xb7, 0, 0, 0, 1), jump, slot(0xb7, 0, 0, 0, 2)];
    const { code } = condition;
    check(body(slot(cls | code | 8, 6, 7, 1, 0)), pairs(values, model), `${name} ${condition.name} X`);
    for (const imm of immediates)
      check(
        body(slot(cls | code, 6, 0, 1, imm)),
        pairs([extended(imm)], model),
        `${name} ${condition.name} K ${imm}`,
      );
  });

  it(`JA forwards and backwards`, () => {
    const jump = (distance: number) =>
      cls === 0x05 ? slot(0x05, 0, 0, distance, 0) : slot(0x06, 0, 0, 0, distance);
    // Over two instructions, back to the first, and out behind both.
    const body = [jump(2), slot(0xbf, 0, 7, 0, 0), jump(2), slot(0xbf, 0, 6, 0, 0), jump(-4)];
    check(
      body,
      pairs(values, (_, src) => src),
      `${name} JA`,
    );
  });
});

describe("memory", () => {
  const stack = (at: number) => at - 16;
  const fill = [
    ...wide(2, 0xf1e2_d3c4_b5a6_9788n),
    slot(0x7b, 10, 2, stack(0), 0),
    slot(0x7b, 10, 2, stack(8), 0),
  ];

  it.each([
    { lenBytes: 1, mem: 0x71, sx: 0x91, st: 0x72, stx: 0x73 },
    { lenBytes: 2, mem: 0x69, sx: 0x89, st: 0x6a, stx: 0x6b },
    { lenBytes: 4, mem: 0x61, sx: 0x81, st: 0x62, stx: 0x63 },
    { lenBytes: 8, mem: 0x79, sx: undefined, st: 0x7a, stx: 0x7b },
  ])("loads and stores of $lenBytes bytes", ({ lenBytes, mem, sx, st, stx }) => {
    const bits = 8 * lenBytes;
    const low = (n: bigint) => n & ((1n << BigInt(bits)) - 1n);
    const signed = (n: bigint) =>
      low(n) >> BigInt(bits - 1) ? low(n) | ((1n << 64n) - (1n << BigInt(bits))) : low(n);
    const at = stack(8);
    const stored = slot(stx, 10, 6, at, 0);
    check(
      [...fill, stored, slot(mem, 0, 10, at, 0)],
      pairs([0n], (d) => low(d)),
      `LDX ${bits}`,
    );
    if (sx !== undefined)
      check([...fill, stored, slot(sx, 0, 10, at, 0)], pairs([0n], signed), `LDXS ${bits}`);
    // What lies beside is as before.
    const around = (dst: bigint) =>
      BigInt.asUintN(64, ((0xf1e2_d3c4_b5a6_9788n >> BigInt(bits)) << BigInt(bits)) | low(dst));
    check([...fill, stored, slot(0x79, 0, 10, at, 0)], pairs([0n], around), `STX ${bits}`);
    for (const imm of immediates)
      check(
        [...fill, slot(st, 10, 0, at, imm), slot(0x79, 0, 10, at, 0)],
        pairs([0n], () => around(extended(imm))),
        `ST ${bits} ${imm}`,
      );
  });

  it.each([
    { name: "ADD", imm: 0x00, model: (old: bigint, src: bigint) => old + src },
    { name: "OR", imm: 0x40, model: (old: bigint, src: bigint) => old | src },
    { name: "AND", imm: 0x50, model: (old: bigint, src: bigint) => old & src },
    { name: "XOR", imm: 0xa0, model: (old: bigint, src: bigint) => old ^ src },
  ])("atomic $name, with and without FETCH", ({ name, imm, model }) => {
    for (const bits of [32, 64]) {
      const opcode = bits === 64 ? 0xdb : 0xc3;
      const cut = (n: bigint) => BigInt.asUintN(bits, n);
      const high = (n: bigint) => (n >> BigInt(bits)) << BigInt(bits);
      const store = slot(0x7b, 10, 6, stack(8), 0);
      const load = slot(0x79, 0, 10, stack(8), 0);
      const after = (d: bigint, s: bigint) => high(d) | cut(model(cut(d), cut(s)));
      check([store, slot(opcode, 10, 7, stack(8), imm), load], pairs(values, after), `${name}${bits}`);
      check(
        [store, slot(opcode, 10, 7, stack(8), imm | 1), load],
        pairs(values, after),
        `FETCH ${name}${bits}`,
      );
      check(
        [store, slot(opcode, 10, 7, stack(8), imm | 1), slot(0xbf, 0, 7, 0, 0)],
        pairs(values, (d) => cut(d)),
        `FETCH ${name}${bits}, old value`,
      );
    }
  });

  it("atomic XCHG and CMPXCHG", () => {
    for (const bits of [32, 64]) {
      const opcode = bits === 64 ? 0xdb : 0xc3;
      const cut = (n: bigint) => BigInt.asUintN(bits, n);
      const high = (n: bigint) => (n >> BigInt(bits)) << BigInt(bits);
      const store = slot(0x7b, 10, 6, stack(8), 0);
      const load = slot(0x79, 0, 10, stack(8), 0);
      const swap = slot(opcode, 10, 7, stack(8), 0xe1);
      check(
        [store, swap, load],
        pairs(values, (d, s) => high(d) | cut(s)),
        `XCHG${bits}`,
      );
      check(
        [store, swap, slot(0xbf, 0, 7, 0, 0)],
        pairs(values, (d) => cut(d)),
        `XCHG${bits}, old value`,
      );
      for (const expected of [0n, 0xffff_ffffn, 0x8000_0000_0000_0000n]) {
        const exchange = [...wide(0, expected), store, slot(opcode, 10, 7, stack(8), 0xf1)];
        check(
          [...exchange, slot(0xbf, 0, 0, 0, 0)],
          pairs(values, (d) => cut(d)),
          `CMPXCHG${bits}, old value`,
        );
        check(
          [...exchange, load],
          pairs(values, (d, s) => (cut(d) === cut(expected) ? high(d) | cut(s) : d)),
          `CMPXCHG${bits} with 0x${expected.toString(16)}`,
        );
      }
    }
  });
});
