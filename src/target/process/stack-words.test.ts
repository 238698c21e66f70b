import { describe, expect, test } from "vitest";
import { findStackWords } from "./stack-words.ts";

const STACK = { start: 0x7ffc_0000_0000n, end: 0x7ffc_0000_0100n };
const OURS = { start: 0x7f00_1000_0000n, end: 0x7f00_1000_1000n };

/** Memory of 256 bytes at STACK, by word. */
function stackOf(words: readonly (readonly [number, bigint])[]) {
  const bytes = new Uint8Array(256);
  const view = new DataView(bytes.buffer);
  for (const [index, word] of words) view.setBigUint64(index * 8, word, true);
  return {
    readInto(at: bigint, into: Uint8Array): number {
      const from = Number(at - STACK.start);
      const part = bytes.subarray(from, from + into.length);
      into.set(part);
      return part.length;
    },
  };
}

const cases: readonly {
  readonly name: string;
  readonly words: readonly (readonly [number, bigint])[];
  readonly starts: readonly bigint[];
  readonly ranges?: readonly { readonly start: bigint; readonly end: bigint }[];
  readonly found: readonly number[];
  readonly looked: number;
}[] = [
  { name: "nothing of ours", words: [[3, 1n]], starts: [STACK.start], found: [], looked: 32 },
  {
    name: "first and last address of a range",
    words: [
      [3, OURS.start],
      [5, OURS.end - 1n],
    ],
    starts: [STACK.start],
    found: [3, 5],
    looked: 32,
  },
  {
    name: "the end of a range, and a word with only the same upper half",
    words: [
      [3, OURS.end],
      [4, OURS.start - 1n],
    ],
    starts: [STACK.start],
    found: [],
    looked: 32,
  },
  {
    name: "below the stack pointer",
    words: [
      [3, OURS.start],
      [4, OURS.start],
    ],
    starts: [STACK.start + 32n],
    found: [4],
    looked: 28,
  },
  {
    name: "of two stack pointers the lower one counts, once",
    words: [[9, OURS.start]],
    starts: [STACK.start + 64n, STACK.start + 8n],
    found: [9],
    looked: 31,
  },
  {
    name: "a stack pointer that is not aligned",
    words: [[2, OURS.start]],
    starts: [STACK.start + 9n],
    found: [2],
    looked: 30,
  },
  {
    name: "a range over a boundary of upper halves",
    words: [
      [2, 0x7f00_ffff_fff8n],
      [3, 0x7f01_0000_0008n],
    ],
    starts: [STACK.start],
    ranges: [{ start: 0x7f00_ffff_fff0n, end: 0x7f01_0000_0010n }],
    found: [2, 3],
    looked: 32,
  },
  { name: "a stack pointer to nowhere", words: [], starts: [0x10n], found: [], looked: 0 },
];

describe("words of a stack that look like addresses of ours", () => {
  for (const { name, words, starts, ranges = [OURS], found, looked } of cases)
    test(name, () => {
      const scan = findStackWords(stackOf(words), [STACK], starts, ranges);
      expect(scan.found.map(({ at }) => Number(at - STACK.start) / 8)).toEqual(found);
      expect(scan.words).toBe(looked);
    });
});
