import { describe, expect, test } from "vitest";
import { Assembler, type Label } from "./assembler.ts";
import type { CodeImage } from "./code-image.ts";
import { findPatchableEntries } from "./patchable-entry.ts";
import { ImageCode } from "./regions.ts";
import { RAX, RBX, RDI } from "./registers.ts";

const TEXT = 0x7f12_3400_0000n;

interface Built {
  readonly code: ImageCode;
  readonly fn: bigint;
}

/** An image with two functions: `f`, and `caller` behind it. */
function build(
  f: (asm: Assembler, start: Label) => void,
  caller?: (asm: Assembler, f: bigint) => void,
  name?: string,
): Built {
  const asm = new Assembler(TEXT);
  const start = asm.here("f");
  f(asm, start);
  asm.ret();
  const middle = asm.here("caller");
  caller?.(asm, TEXT);
  asm.ret();
  const bytes = asm.finish();
  const split = asm.addressOf(middle);
  const end = TEXT + BigInt(bytes.length);
  const image: CodeImage = {
    name: "made",
    text: [{ start: TEXT, bytes }],
    findFunction: (addr) =>
      addr < TEXT || addr >= end
        ? undefined
        : addr < split
          ? { start: TEXT, end: split, name: name ?? "f" }
          : { start: split, end, name: "caller" },
    pointersInto: () => [],
    landingPads: () => [],
    readData: () => undefined,
  };
  return { code: new ImageCode(image), fn: TEXT };
}

const single = (asm: Assembler, count: number) => {
  for (let i = 0; i < count; i++) asm.nop(1);
};
const bytes =
  (...values: number[]) =>
  (asm: Assembler) => {
    asm.bytes(Uint8Array.from(values));
    asm.mov(RAX, RDI);
  };

describe("is a patchable entry", () => {
  const cases: readonly {
    readonly name: string;
    readonly emit: (asm: Assembler) => void;
    readonly offset: bigint;
    readonly insns: number;
  }[] = [
    { name: "the 5-byte nop", emit: bytes(0x0f, 0x1f, 0x44, 0, 0), offset: 0n, insns: 1 },
    { name: "the 5-byte nop that clang writes", emit: bytes(0x0f, 0x1f, 0x44, 0, 8), offset: 0n, insns: 1 },
    { name: "a prefixed 4-byte nop", emit: bytes(0x66, 0x0f, 0x1f, 0x40, 0), offset: 0n, insns: 1 },
    {
      name: "two nops of five bytes together",
      emit: bytes(0x66, 0x66, 0x90, 0x66, 0x90),
      offset: 0n,
      insns: 2,
    },
    { name: "a sled of five", emit: (asm) => single(asm, 5), offset: 0n, insns: 5 },
    { name: "a sled of sixteen", emit: (asm) => single(asm, 16), offset: 0n, insns: 5 },
    {
      name: "a 5-byte nop behind endbr64",
      emit: (asm) => {
        asm.endbr64();
        asm.nop(5);
      },
      offset: 4n,
      insns: 1,
    },
    {
      name: "a sled behind endbr64",
      emit: (asm) => {
        asm.endbr64();
        single(asm, 8);
      },
      offset: 4n,
      insns: 5,
    },
    {
      name: "a loop behind the sled",
      emit: (asm) => {
        single(asm, 5);
        const again = asm.here();
        asm.dec(RDI);
        asm.jcc("ne", again);
      },
      offset: 0n,
      insns: 5,
    },
    {
      name: "an indirect jump of which nothing is known, behind the sled",
      emit: (asm) => {
        single(asm, 5);
        asm.jmpTo(RAX);
      },
      offset: 0n,
      insns: 5,
    },
  ];
  for (const { name, emit, offset, insns } of cases)
    test(name, () => {
      const { code, fn } = build(emit);
      const [found] = findPatchableEntries(code, [fn]);
      expect(found).toMatchObject({ kind: "region", region: { start: fn + offset, lenBytes: 5 } });
      if (found?.kind === "region") expect(found.region.insns.length).toBe(insns);
    });
});

describe("is none", () => {
  const cases: readonly {
    readonly name: string;
    readonly emit: (asm: Assembler, start: Label) => void;
    readonly caller?: (asm: Assembler, f: bigint) => void;
    readonly symbol?: string;
    readonly at?: bigint;
    readonly armed?: readonly bigint[];
    readonly reason: string;
  }[] = [
    { name: "a function with a frame", emit: (asm) => asm.push(RBX), reason: "no-patchable-entry" },
    {
      name: "pause is no nop",
      emit: bytes(0xf3, 0x90, 0x90, 0x90, 0x90, 0x90),
      reason: "no-patchable-entry",
    },
    {
      name: "an instruction that begins like a nop",
      emit: bytes(0x0f, 0xb6, 0xc0),
      reason: "no-patchable-entry",
    },
    { name: "four nops", emit: (asm) => single(asm, 4), reason: "short-nop-sled" },
    { name: "a nop of eight bytes", emit: (asm) => asm.nop(8), reason: "nop-behind-call" },
    {
      name: "three nops and one of four bytes",
      emit: (asm) => {
        single(asm, 3);
        asm.nop(4);
      },
      reason: "nop-behind-call",
    },
    {
      name: "a nop behind the entry",
      emit: (asm) => single(asm, 9),
      at: TEXT + 1n,
      reason: "not-a-function-entry",
    },
    {
      name: "a loop back to the first nop",
      emit: (asm, start) => {
        single(asm, 5);
        asm.dec(RDI);
        asm.jcc("ne", start);
      },
      reason: "not-a-function-entry",
    },
    { name: "a cold part", emit: (asm) => single(asm, 5), symbol: "f.cold", reason: "not-a-function-entry" },
    {
      name: "a jump of its own into the sled",
      emit: (asm) => {
        single(asm, 3);
        const inside = asm.here();
        single(asm, 2);
        asm.dec(RDI);
        asm.jcc("ne", inside);
      },
      reason: "jump-into-region",
    },
    {
      name: "a jump of another function into the sled",
      emit: (asm) => single(asm, 5),
      caller: (asm, f) => asm.jmp32(f + 2n),
      reason: "jump-into-region",
    },
    {
      name: "a jump past the endbr64",
      emit: (asm) => {
        asm.endbr64();
        asm.nop(5);
      },
      caller: (asm, f) => asm.jmp32(f + 4n),
      reason: "jump-into-region",
    },
    {
      name: "another probe inside",
      emit: (asm) => single(asm, 5),
      armed: [TEXT + 3n],
      reason: "other-probe-in-region",
    },
    {
      name: "another probe at the nop behind the endbr64",
      emit: (asm) => {
        asm.endbr64();
        asm.nop(5);
      },
      armed: [TEXT + 4n],
      reason: "other-probe-in-region",
    },
  ];
  for (const { name, emit, caller, symbol, at, armed = [], reason } of cases)
    test(`${name}: ${reason}`, () => {
      const { code, fn } = build(emit, caller, symbol);
      const [found] = findPatchableEntries(code, [at ?? fn], { armed });
      expect(found).toMatchObject({ kind: "refused", refusal: { reason } });
    });
});

test("calls and tail calls of others lead to the entry as before", () => {
  const { code, fn } = build(
    (asm) => single(asm, 5),
    (asm, f) => {
      asm.call(f);
      asm.jmp32(f);
    },
  );
  expect(findPatchableEntries(code, [fn])[0]?.kind).toBe("region");
});
