/** Functions of the program, callbacks and tail calls. */
import { describe, expect, it } from "vitest";
import { InsnBuilder, type Label, r0, r1, r2, r3, r4, r6, r7, r10 } from "../builder.ts";
import { HELPER_FOR_EACH_MAP_ELEM, HELPER_LOOP, HELPER_TAIL_CALL } from "../helpers.ts";
import type { Insn } from "../insn.ts";
import { type InterpreterInput, interpret } from "./interpreter.ts";
import { fakeArray, fakeHash, fakeHost, fakePrograms } from "./test-world.ts";

function run(insns: readonly Insn[], more: Partial<InterpreterInput> = {}) {
  const entry = { kind: "context", bytes: new Uint8Array(168) } as const;
  return interpret({ insns, maps: [], host: fakeHost(), entry, checkInitialised: true, ...more });
}

function build(write: (b: InsnBuilder) => void): Insn[] {
  const b = new InsnBuilder();
  write(b);
  return b.build().insns;
}

function resultOf(insns: readonly Insn[], more: Partial<InterpreterInput> = {}): bigint {
  const result = run(insns, more);
  if (result.kind !== "returned") throw new Error(`${result.message} at ${result.at}`);
  return result.value;
}

const value = (write: (b: InsnBuilder) => void, more: Partial<InterpreterInput> = {}) =>
  resultOf(build(write), more);

function faultOf(write: (b: InsnBuilder) => void, more: Partial<InterpreterInput> = {}): string {
  const result = run(build(write), more);
  return result.kind === "faulted" ? result.message : `returned ${result.value}`;
}

const u = (x: bigint) => BigInt.asUintN(64, x);

const nested = (depth: number) => (b: InsnBuilder) => {
  const functions = Array.from({ length: depth }, () => b.label());
  for (const next of functions) b.callLocal(next).mov64(r0, 1).exit().bind(next);
  b.mov64(r0, 1).exit();
};
const readsFrame = (b: InsnBuilder) => b.ldx(8, r0, r10, -8).exit();
const bytes = (x: number) => Uint8Array.of(x, 0, 0, 0, 0, 0, 0, 0);

describe("local functions", () => {
  it("take arguments, return r0, and leave r6 to r9 and r10 as they were", () => {
    const insns = build((b) => {
      const add = b.label("add");
      b.mov64(r6, 5).st(8, r10, -8, 7).mov64(r1, 30).mov64(r2, 12).callLocal(add);
      b.alu64("mul", r0, 100).alu64("add", r0, r6).ldx(8, r1, r10, -8).alu64("mul", r0, 10);
      b.alu64("add", r0, r1).exit();
      b.bind(add).mov64(r6, r1).alu64("add", r6, r2).st(8, r10, -8, 0).mov64(r0, r6).exit();
    });
    expect(resultOf(insns)).toBe(42057n);
  });

  it("write into the frame of their caller through a pointer", () => {
    const insns = build((b) => {
      const fill = b.label("fill");
      b.mov64(r1, r10).alu64("add", r1, -8).callLocal(fill).ldx(8, r0, r10, -8).exit();
      b.bind(fill).st(8, r1, 0, 9).mov64(r0, 0).exit();
    });
    expect(resultOf(insns)).toBe(9n);
  });

  it("need not give a result that nobody reads", () => {
    expect(
      value((b) => {
        const nothing = b.label();
        b.callLocal(nothing).mov64(r0, 3).exit().bind(nothing).exit();
      }),
    ).toBe(3n);
  });

  it("run on 8 frames and no more", () => {
    expect(value(nested(7))).toBe(1n);
    expect(faultOf(nested(8))).toMatch(/call stack of 8 frames is full/);
  });

  it.each<[name: string, write: (b: InsnBuilder, fn: Label) => void, message: RegExp]>([
    [
      "a result that the function never wrote",
      (b, fn) => b.callLocal(fn).exit().bind(fn).exit(),
      /r0, which was never/,
    ],
    [
      "r1 after the call",
      (b, fn) => b.mov64(r1, 1).callLocal(fn).mov64(r0, r1).exit().bind(fn).mov64(r0, 0).exit(),
      /r1, which was never/,
    ],
    [
      "the caller's r6",
      (b, fn) => b.mov64(r6, 1).callLocal(fn).exit().bind(fn).mov64(r0, r6).exit(),
      /r6, which was never/,
    ],
    [
      "the frame of a function that returned",
      (b, fn) => b.callLocal(fn).ldx(8, r0, r0, -8).exit().bind(fn).st(8, r10, -8, 0).mov64(r0, r10).exit(),
      /read of 8 bytes at 0x/,
    ],
    [
      "what an earlier call left in the frame",
      (b, fn) => {
        b.mov64(r1, 1).callLocal(fn).mov64(r1, 0).callLocal(fn).exit();
        const reads = b.label();
        b.bind(fn).jmp("eq", r1, 0, reads).st(8, r10, -8, 5).bind(reads).ldx(8, r0, r10, -8).exit();
      },
      /not all written before/,
    ],
  ])("fault on a read of %s", (_name, write, message) => {
    expect(faultOf((b) => write(b, b.label()))).toMatch(message);
  });

  it("read zeros from a frame that was not written, where that is allowed", () => {
    expect(value(readsFrame, { uninitStack: "allow" })).toBe(0n);
    expect(faultOf(readsFrame)).toMatch(/not all written/);
  });

  it("count towards one limit of steps", () => {
    const forever = build((b) => {
      const [top, fn] = [b.label(), b.label()];
      b.bind(top).callLocal(fn).goto(top).bind(fn).mov64(r0, 0).exit();
    });
    expect(run(forever, { maxSteps: 1000 })).toMatchObject({
      message: "no exit within 1000 steps",
      steps: 1001,
    });
  });
});

/** r0 = the helper's result * 1000 + what the callback added up at fp-8. */
const loop =
  (count: number, stopAt: number, flags = 0) =>
  (b: InsnBuilder) => {
    const [body, goOn] = [b.label("body"), b.label()];
    b.st(8, r10, -8, 0)
      .mov64(r1, count)
      .ldFunction(r2, body)
      .mov64(r3, r10)
      .alu64("add", r3, -8)
      .mov64(r4, flags);
    b.call(HELPER_LOOP).ldx(8, r1, r10, -8).alu64("mul", r0, 1000).alu64("add", r0, r1).exit();
    b.bind(body).ldx(8, r3, r2, 0).alu64("add", r3, r1).stx(8, r2, 0, r3);
    b.mov64(r0, 0).jmp("lt", r1, stopAt, goOn).mov64(r0, 1).bind(goOn).exit();
  };

/** The same over the elements of map 0, adding 10 * key + value. */
const forEach = (b: InsnBuilder) => {
  const body = b.label("body");
  b.st(8, r10, -8, 0).ldMapFd(r1, 0).ldFunction(r2, body).mov64(r3, r10).alu64("add", r3, -8).mov64(r4, 0);
  b.call(HELPER_FOR_EACH_MAP_ELEM).ldx(8, r1, r10, -8).alu64("mul", r0, 1000).alu64("add", r0, r1).exit();
  b.bind(body).ldx(4, r2, r2, 0).ldx(8, r3, r3, 0).alu64("mul", r2, 10).alu64("add", r3, r2);
  b.ldx(8, r2, r4, 0).alu64("add", r3, r2).stx(8, r4, 0, r3).mov64(r0, 0).exit();
};

const writesKey = (b: InsnBuilder) => {
  const body = b.label();
  b.ldMapFd(r1, 0).ldFunction(r2, body).mov64(r3, 0).mov64(r4, 0).call(HELPER_FOR_EACH_MAP_ELEM).exit();
  b.bind(body).st(4, r2, 0, 1).mov64(r0, 0).exit();
};
const callsNumber = (b: InsnBuilder) =>
  b.mov64(r1, 1).mov64(r2, 5).mov64(r3, 0).mov64(r4, 0).call(HELPER_LOOP).exit();

describe("callbacks", () => {
  it.each([
    { name: "to the end", program: loop(5, 99), result: 5010n },
    { name: "until the callback stops", program: loop(5, 2), result: 3003n },
    { name: "no iterations", program: loop(0, 99), result: 0n },
    { name: "flags", program: loop(5, 99, 1), result: u(-22000n) },
    { name: "too many iterations", program: loop((1 << 23) + 1, 99), result: u(-7000n) },
  ])("bpf_loop: $name", ({ program, result }) => {
    expect(value(program)).toBe(result);
  });

  it("bpf_for_each_map_elem visits all of an array and what is in a hash", () => {
    const array = fakeArray(3, 8);
    array.memory.words.set([1n, 2n, 3n]);
    expect(value(forEach, { maps: [array] })).toBe(3036n);
    const hash = fakeHash(4, 4, 8);
    for (const key of [7, 9]) hash.update(bytes(key).subarray(0, 4), bytes(100), 0n);
    expect(value(forEach, { maps: [hash] })).toBe(2360n);
  });

  it("does not let a callback write the key", () => {
    expect(faultOf(writesKey, { maps: [fakeArray(1, 8)] })).toMatch(/key of map array is read only/);
  });

  it("is no function: fault", () => {
    expect(faultOf(callsNumber)).toMatch(/which is no function/);
  });
});

const tailCall = (b: InsnBuilder, index: number) => b.ldMapFd(r2, 0).mov64(r3, index).call(HELPER_TAIL_CALL);

const fromFunction = (b: InsnBuilder) => {
  const fn = b.label();
  b.mov64(r7, 1000).callLocal(fn).alu64("add", r0, r7).exit();
  b.bind(fn).mov64(r7, 1);
  tailCall(b, 1).mov64(r0, 0).exit();
};
const leavesFrame = (b: InsnBuilder) =>
  tailCall(b.st(8, r10, -8, 1), 1)
    .mov64(r0, 0)
    .exit();

describe("tail calls", () => {
  const answer = build((b) => b.ldx(8, r0, r1, 8).alu64("add", r0, 7).exit());
  const ctx = { entry: { kind: "context", bytes: new Uint8Array(168).fill(1, 8, 9) } } as const;
  const programs = [{ insns: answer }];
  const maps = [fakePrograms([undefined, 0, 5])];

  it.each([
    { name: "a program", index: 1, result: 8n },
    { name: "an empty slot", index: 0, result: 100n },
    { name: "a slot that names no program", index: 2, result: 100n },
    { name: "a slot beyond the last", index: 3, result: 100n },
  ])("to $name", ({ index, result }) => {
    expect(value((b) => tailCall(b, index).mov64(r0, 100).exit(), { ...ctx, maps, programs })).toBe(result);
  });

  it("from a function returns to the function's caller, whose registers are as they were", () => {
    expect(value(fromFunction, { ...ctx, maps, programs })).toBe(1008n);
  });

  it("begins with an empty frame", () => {
    const reads = { insns: build((b) => b.ldx(8, r0, r10, -8).exit()) };
    expect(faultOf(leavesFrame, { maps, programs: [reads] })).toMatch(/not all written/);
  });

  it("are 33 at most", () => {
    // Counts in the array and calls itself; what falls through returns the count.
    const self = build((b) => {
      b.ldMapValue(r6, 1).ldx(8, r2, r6, 0).alu64("add", r2, 1).stx(8, r6, 0, r2);
      tailCall(b, 1).ldx(8, r0, r6, 0).exit();
    });
    expect(resultOf(self, { maps: [...maps, fakeArray(1, 8)], programs: [{ insns: self }] })).toBe(34n);
  });
});

describe("the other forms of ldimm64 and of the jumps", () => {
  it("sources 5 and 6 are maps and their values by index", () => {
    const array = fakeArray(1, 16);
    array.memory.words.set([1n, 2n]);
    const insns = build((b) => b.ldMapValue(r1, 0, 8).ldx(8, r0, r1, 0).exit());
    expect(resultOf([{ ...insns[0]!, src: 6 }, ...insns.slice(1)], { maps: [array] })).toBe(2n);
  });

  it.each([
    { name: "callx", opcode: 0x8d, src: 0 },
    { name: "a call of a kernel function", opcode: 0x85, src: 2 },
    { name: "exit with a source register", opcode: 0x9d, src: 0 },
    { name: "exit of the 32-bit class", opcode: 0x96, src: 0 },
  ])("$name faults", ({ opcode, src }) => {
    expect(run([{ opcode, dst: 0, src, off: 0, imm: 1 }])).toMatchObject({ kind: "faulted" });
  });
});
