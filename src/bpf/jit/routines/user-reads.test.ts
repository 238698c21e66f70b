/** Reads of memory that may not be there, on pages of the test process. */
import koffi from "koffi";
import { afterAll, describe, expect, it } from "vitest";
import { contextOf, insnsOf, NativeBpf } from "../../../../test/support/native-bpf.ts";
import { nativeMemory } from "../../../../test/support/native-code.ts";
import {
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  type InsnBuilder,
  r0,
  r1,
  r2,
  r3,
  r10,
} from "../../index.ts";

const libc = koffi.load("libc.so.6");
const mmap = libc.func("intptr_t mmap(intptr_t addr, size_t len, int prot, int flags, int fd, long off)");
const munmap = libc.func("int munmap(intptr_t addr, size_t len)");
const s64 = (value: bigint) => BigInt.asIntN(64, value);
/** Leaves with 0 where the size is out of range, which it never is. */
function outOfRange(b: InsnBuilder) {
  const [skip, over] = [b.label(), b.label()];
  b.goto(skip).bind(over).mov64(r0, 0).exit().bind(skip);
  return over;
}

describe("reads of the program's memory", () => {
  const SIZE = 600;
  const native = new NativeBpf({
    maps: [{ name: "a", kind: "array", keyBytes: 4, valueBytes: SIZE + 8, maxEntries: 1 }],
  });
  const read = (helper: number) =>
    native.compile(
      insnsOf((b) =>
        b
          .ldx(8, r3, r1, 0)
          .ldx(8, r2, r1, 8)
          .alu64("and", r2, 1023)
          .jmp("gt", r2, SIZE, outOfRange(b))
          .ldMapValue(r1, 0)
          .call(helper),
      ),
    );
  /** Two pages of text with a hole behind them. */
  const pages = nativeMemory(2 * 4096);
  const holeAt = BigInt(mmap(0n, 3 * 4096, 3, 0x22, -1, 0) as number | bigint);
  munmap(holeAt + 4096n, 4096);
  afterAll(() => {
    pages[Symbol.dispose]();
    native[Symbol.dispose]();
  });
  const lastPage = new Uint8Array(koffi.view(holeAt, 4096));

  const run = (program: ReturnType<typeof read>, from: bigint, size: number) => {
    native.memory.bytes.fill(0xee, 0, SIZE + 8);
    const result = s64(
      native.run(
        program,
        contextOf((offset) => (offset === 0 ? from : BigInt(size))),
      ),
    );
    return { result, bytes: native.memory.bytes.slice(0, SIZE + 8) };
  };
  const expected = (content: Uint8Array) => {
    const want = new Uint8Array(SIZE + 8).fill(0xee);
    want.set(content);
    return want;
  };
  let readMemory: ReturnType<typeof read>;
  let readString: ReturnType<typeof read>;
  const programs = () => {
    readMemory ??= read(HELPER_PROBE_READ_USER);
    readString ??= read(HELPER_PROBE_READ_USER_STR);
    return { readMemory, readString };
  };

  it("memory across a page boundary", () => {
    for (let i = 0; i < pages.bytes.length; i++) pages.bytes[i] = i * 7;
    for (const size of [1, 7, 8, 100, 600]) {
      const { result, bytes } = run(programs().readMemory, pages.at + 4000n, size);
      expect(result).toBe(0n);
      expect(bytes).toEqual(expected(pages.bytes.subarray(4000, 4000 + size)));
    }
  });

  it.each([
    { name: "no memory at all", from: () => 0n, size: 64 },
    { name: "the end of the address space", from: () => 0xffff_ffff_ffff_fff0n, size: 64 },
    { name: "not canonical", from: () => 0x8000_0000_0000_0000n, size: 8 },
    { name: "kernel memory", from: () => 0xffff_8000_0000_0000n, size: 8 },
    { name: "memory that runs into a hole", from: () => holeAt + 4000n, size: 200 },
    { name: "a hole", from: () => holeAt + 4096n, size: 1 },
  ])("$name: -EFAULT and zeros", ({ from, size }) => {
    lastPage.fill(65);
    for (const program of [programs().readMemory, programs().readString]) {
      const { result, bytes } = run(program, from(), size);
      expect(result).toBe(-14n);
      expect(bytes).toEqual(expected(new Uint8Array(size)));
    }
  });

  it("no bytes is no error", () => {
    for (const program of [programs().readMemory, programs().readString]) {
      expect(run(program, 0n, 0)).toEqual({ result: 0n, bytes: expected(new Uint8Array(0)) });
    }
  });

  it.each([
    { name: "empty", text: "", size: 16 },
    { name: "short", text: "hello", size: 64 },
    { name: "filling its place with the NUL", text: "seven77", size: 8 },
    { name: "one too long", text: "eight888", size: 8 },
    { name: "much too long", text: "x".repeat(500), size: 100 },
    { name: "longer than a part", text: "y".repeat(300), size: 600 },
    { name: "exactly a part with the NUL", text: "z".repeat(255), size: 600 },
    { name: "exactly a part", text: "z".repeat(256), size: 600 },
    { name: "cut to one byte", text: "abc", size: 1 },
  ])("string: $name, at every kind of place", ({ text, size }) => {
    for (const at of [0, 1, 3800, 4095, 4096, 8192 - text.length - 1]) {
      pages.bytes.fill(0xcc);
      pages.bytes.set([...Buffer.from(text), 0], at);
      const { result, bytes } = run(programs().readString, pages.at + BigInt(at), size);
      const kept = Math.min(text.length, size - 1);
      expect(result).toBe(BigInt(kept + 1));
      expect(bytes).toEqual(expected(new Uint8Array([...Buffer.from(text.slice(0, kept)), 0])));
    }
  });

  it("a string that ends right before a hole", () => {
    lastPage.fill(0x42);
    lastPage[4095] = 0;
    const { result, bytes } = run(programs().readString, holeAt + 4090n, 600);
    expect(result).toBe(6n);
    expect(bytes).toEqual(expected(new Uint8Array([0x42, 0x42, 0x42, 0x42, 0x42, 0])));
  });

  it.each([-512, -400, -256, -40, -20, -16])("a string in the program's stack, at %i", (at) => {
    // Somewhere among these the page of the routine's own frame ends.
    const text = "on the stack";
    const words = [...Buffer.from(`${text}\0\0\0\0`).values()];
    for (const size of [64, 13, 12, 5, 1]) {
      const insns = insnsOf((b) => {
        b.st(8, r10, -512, -1);
        for (let i = 0; i < 16; i += 4)
          b.st(4, r10, at + i, Buffer.from(words.slice(i, i + 4)).readInt32LE(0));
        b.ldMapValue(r1, 0).mov64(r2, size).mov64(r3, r10).alu64("add", r3, at);
        b.call(HELPER_PROBE_READ_USER_STR);
      });
      native.memory.bytes.fill(0xee, 0, SIZE + 8);
      const result = native.run(
        native.compile(insns),
        contextOf(() => 0n),
      );
      const kept = text.slice(0, size - 1);
      expect(result).toBe(BigInt(kept.length + 1));
      expect(native.memory.bytes.slice(0, SIZE + 8)).toEqual(
        expected(new Uint8Array([...Buffer.from(kept), 0])),
      );
    }
  });
});
