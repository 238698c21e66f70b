import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { evalAlu32, evalAlu64, evalJump32, evalJump64, swapBytes } from "../alu.ts";
import * as op from "../opcodes.ts";
import {
  constant,
  contains,
  type Draft,
  draftOf,
  findScalar,
  isConstant,
  isWithin,
  max,
  min,
  newDraft,
  type Scalar,
  signedRange,
  U32_MAX,
  U64_MAX,
  unknownScalar,
  unsignedRange,
} from "./scalar.ts";
import { aluScalar, signExtend, swapScalar, truncate } from "./scalar-alu.ts";
import { refine } from "./scalar-branch.ts";

const low32 = (x: bigint) => x & U32_MAX;

/** Numbers near the places where carries, signs and halves change. */
const edgy: fc.Arbitrary<bigint> = fc.oneof(
  fc.bigInt({ min: 0n, max: U64_MAX }),
  fc.bigInt({ min: 0n, max: 70n }),
  fc
    .tuple(
      fc.constantFrom(0n, 1n << 31n, 1n << 32n, 1n << 63n, U64_MAX, U32_MAX, 1n << 16n),
      fc.integer({ min: -3, max: 3 }),
    )
    .map(([base, delta]) => BigInt.asUintN(64, base + BigInt(delta))),
);

/** A description that is true of `value`, made by loosening some of what is known about it. */
function loosen(value: bigint, mask: bigint, others: readonly bigint[], parts: number): Scalar {
  const exact = draftOf(constant(value));
  const d: Draft = newDraft();
  if (parts & 1) {
    d.mask = mask;
    d.value = value & ~mask & U64_MAX;
  }
  for (const other of others) {
    if (parts & 2) {
      d.umin = min(parts & 32 ? exact.umin : d.umin === 0n ? exact.umin : d.umin, other);
      d.umax = max(d.umax === U64_MAX ? exact.umax : d.umax, other);
    }
    if (parts & 4) {
      const signed = BigInt.asIntN(64, other);
      d.smin = min(exact.smin, signed);
      d.smax = max(exact.smax, signed);
    }
    if (parts & 8) {
      d.umin32 = min(exact.umin32, low32(other));
      d.umax32 = max(exact.umax32, low32(other));
    }
    if (parts & 16) {
      const signed = BigInt.asIntN(32, other);
      d.smin32 = min(exact.smin32, signed);
      d.smax32 = max(exact.smax32, signed);
    }
  }
  const scalar = findScalar(d, 0);
  if (!scalar || !contains(scalar, value)) throw new Error(`normalising lost ${value}`);
  return scalar;
}

/** A number and a true description of it. */
const known: fc.Arbitrary<{ value: bigint; scalar: Scalar }> = fc
  .tuple(edgy, fc.oneof(edgy, fc.constant(0n)), fc.array(edgy, { minLength: 1, maxLength: 2 }), fc.nat(63))
  .map(([value, mask, others, parts]) => ({ value, scalar: loosen(value, mask, others, parts) }));

const aluOps: readonly (readonly [op: number, offs: readonly number[]])[] = [
  [op.ALU_ADD, [0]],
  [op.ALU_SUB, [0]],
  [op.ALU_MUL, [0]],
  [op.ALU_DIV, [0, 1]],
  [op.ALU_MOD, [0, 1]],
  [op.ALU_OR, [0]],
  [op.ALU_AND, [0]],
  [op.ALU_XOR, [0]],
  [op.ALU_LSH, [0]],
  [op.ALU_RSH, [0]],
  [op.ALU_ARSH, [0]],
  [op.ALU_NEG, [0]],
  [op.ALU_MOV, [0, 8, 16, 32]],
];
const range = (s: Scalar) => [s.umin, s.umax];
const u = unsignedRange;
const jumpOps = [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0];

describe("what is known about a number", () => {
  it.each(aluOps.flatMap(([code, offs]) => offs.map((off) => ({ code, off }))))(
    "contains every result of operation $code with off $off",
    ({ code, off }) => {
      fc.assert(
        fc.property(known, known, (a, b) => {
          const whole = aluScalar(true, code, off, a.scalar, b.scalar);
          expect(contains(whole, evalAlu64(code, off, a.value, b.value))).toBe(true);
          if (code === op.ALU_MOV && off === 32) return;
          const half = aluScalar(false, code, off, a.scalar, b.scalar);
          expect(contains(half, evalAlu32(code, off, a.value, b.value))).toBe(true);
        }),
        { numRuns: 500 },
      );
    },
  );

  it("contains results of truncation, extension and byte swaps", () => {
    fc.assert(
      fc.property(known, fc.constantFrom(8, 16, 32), ({ value, scalar }, bits) => {
        expect(contains(truncate(scalar, bits), BigInt.asUintN(bits, value))).toBe(true);
        expect(contains(signExtend(scalar, bits), BigInt.asUintN(64, BigInt.asIntN(bits, value)))).toBe(true);
        const width = bits === 8 ? 64 : (bits as 16 | 32);
        expect(contains(swapScalar(true, width, scalar), swapBytes(value, width))).toBe(true);
        expect(contains(swapScalar(false, width, scalar), BigInt.asUintN(width, value))).toBe(true);
      }),
      { numRuns: 2000 },
    );
  });

  it.each(jumpOps)("keeps the operands on the way that condition %i takes", (code) => {
    fc.assert(
      fc.property(known, known, fc.boolean(), (a, b, is64) => {
        const taken = (is64 ? evalJump64 : evalJump32)(code, a.value, b.value);
        const refined = refine(is64, code, a.scalar, b.scalar, taken);
        expect(refined).toBeDefined();
        expect(contains(refined!.dst, a.value)).toBe(true);
        expect(contains(refined!.src, b.value)).toBe(true);
        expect(isWithin(refined!.dst, a.scalar)).toBe(true);
        expect(isWithin(refined!.src, b.scalar)).toBe(true);
      }),
      { numRuns: 500 },
    );
  });

  it.each<[name: string, got: Scalar, want: [bigint, bigint]]>([
    ["add of ranges", aluScalar(true, op.ALU_ADD, 0, u(1n, 5n), u(10n, 20n)), [11n, 25n]],
    ["sub that may wrap", aluScalar(true, op.ALU_SUB, 0, u(0n, 5n), constant(1n)), [0n, U64_MAX]],
    ["and with a mask", aluScalar(true, op.ALU_AND, 0, unknownScalar, constant(0xf8n)), [0n, 0xf8n]],
    [
      "32-bit and of a negative mask",
      aluScalar(false, op.ALU_AND, 0, unknownScalar, constant(-8n)),
      [0n, 0xffff_fff8n],
    ],
    ["shift right by 32", aluScalar(true, op.ALU_RSH, 0, unknownScalar, constant(32n)), [0n, U32_MAX]],
    ["mod by 10", aluScalar(true, op.ALU_MOD, 0, unknownScalar, constant(10n)), [0n, 9n]],
    ["mod by what may be 0", aluScalar(true, op.ALU_MOD, 0, u(0n, 99n), u(0n, 10n)), [0n, 99n]],
    ["div by 10", aluScalar(true, op.ALU_DIV, 0, u(0n, 99n), constant(10n)), [0n, 9n]],
    ["mul of small ranges", aluScalar(true, op.ALU_MUL, 0, u(0n, 7n), constant(64n)), [0n, 448n]],
    ["32-bit add that wraps", aluScalar(false, op.ALU_ADD, 0, constant(0xffff_ffffn), u(1n, 1n)), [0n, 0n]],
    ["movsx of a byte below 128", aluScalar(true, op.ALU_MOV, 8, constant(0n), u(0n, 127n)), [0n, 127n]],
    [
      "signed shift of a signed range",
      aluScalar(true, op.ALU_ARSH, 0, signedRange(0n, 1024n), constant(4n)),
      [0n, 64n],
    ],
  ])("is exact for %s", (_name, got, want) => {
    expect(range(got)).toEqual(want);
  });

  it.each<
    [
      name: string,
      code: number,
      is64: boolean,
      dst: Scalar,
      src: Scalar,
      taken: boolean,
      want: [bigint, bigint] | undefined,
    ]
  >([
    ["lt taken", op.JMP_JLT, true, unknownScalar, constant(8n), true, [0n, 7n]],
    ["lt not taken", op.JMP_JLT, true, u(0n, 100n), constant(8n), false, [8n, 100n]],
    ["sgt -1 then lt bounds", op.JMP_JSGT, true, signedRange(-10n, 10n), constant(-1n), true, [0n, 10n]],
    ["eq in a range", op.JMP_JEQ, true, u(0n, 100n), constant(8n), true, [8n, 8n]],
    ["eq outside a range", op.JMP_JEQ, true, u(0n, 100n), constant(101n), true, undefined],
    ["ne at an end", op.JMP_JNE, true, u(0n, 100n), constant(0n), true, [1n, 100n]],
    ["ne in the middle", op.JMP_JNE, true, u(0n, 100n), constant(5n), true, [0n, 100n]],
    ["32-bit lt of 32 known bits", op.JMP_JLT, false, u(0n, U32_MAX), constant(4n), true, [0n, 3n]],
    ["set of one bit", op.JMP_JSET, true, u(0n, 1n), constant(1n), true, [1n, 1n]],
    ["set not taken clears", op.JMP_JSET, true, u(0n, 7n), constant(4n), false, [0n, 3n]],
    ["gt against a range", op.JMP_JGT, true, u(0n, 9n), u(5n, 20n), true, [6n, 9n]],
    ["lt impossible", op.JMP_JLT, true, u(8n, 9n), constant(8n), true, undefined],
  ])("refines by %s", (_name, code, is64, dst, src, taken, want) => {
    const refined = refine(is64, code, dst, src, taken);
    expect(refined && range(refined.dst)).toEqual(want);
  });

  it("finds a constant when bits and bounds leave one number", () => {
    const odd = aluScalar(true, op.ALU_OR, 0, u(0n, 3n), constant(1n));
    const refined = refine(true, op.JMP_JGT, odd, constant(2n), true);
    expect(refined && isConstant(refined.dst) && refined.dst.value).toBe(3n);
  });
});
