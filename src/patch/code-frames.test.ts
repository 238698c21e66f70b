import { describe, expect, test } from "vitest";
import { type FrameRow, findFrameRows } from "./code-frames.ts";

const AT = 0x7f00_0000_0000n;

const cases: readonly {
  readonly name: string;
  readonly bytes: readonly number[];
  readonly rows: readonly (readonly [
    offset: number,
    height: number,
    saved: readonly (readonly [number, number])[],
  ])[];
}[] = [
  { name: "a leaf", bytes: [0x31, 0xc0, 0xc3], rows: [[0, 0, []]] },
  {
    name: "push and pop of a register that calls preserve",
    bytes: [0x53, 0x31, 0xc0, 0x5b, 0xc3], // push rbx; xor eax, eax; pop rbx; ret
    rows: [
      [0, 0, []],
      [1, 8, [[3, 8]]],
      [4, 0, []],
    ],
  },
  {
    name: "one that calls do not preserve is no part of the description",
    bytes: [0x50, 0x58, 0xc3], // push rax; pop rax; ret
    rows: [
      [0, 0, []],
      [1, 8, []],
      [2, 0, []],
    ],
  },
  {
    name: "lea, and a register stored in its frame",
    // lea rsp, [rsp-24]; mov [rsp+8], rbp; lea rsp, [rsp+24]; ret
    bytes: [0x48, 0x8d, 0x64, 0x24, 0xe8, 0x48, 0x89, 0x6c, 0x24, 0x08, 0x48, 0x8d, 0x64, 0x24, 0x18, 0xc3],
    rows: [
      [0, 0, []],
      [5, 24, []],
      [10, 24, [[5, 16]]],
      [15, 0, []],
    ],
  },
  {
    name: "a routine behind it that it calls begins anew",
    // push rax; call +2; pop rax; ret; push rcx; pop rcx; ret
    bytes: [0x50, 0xe8, 0x02, 0, 0, 0, 0x58, 0xc3, 0x51, 0x59, 0xc3],
    rows: [
      [0, 0, []],
      [1, 8, []],
      [7, 0, []],
      [9, 8, []],
      [10, 0, []],
    ],
  },
  {
    name: "behind a stack pointer that comes from elsewhere nothing is said",
    bytes: [0x4c, 0x89, 0xdc, 0x90, 0xc3], // mov rsp, r11; nop; ret
    rows: [[0, 0, []]],
  },
];

const plain = (row: FrameRow) => [row.offset, row.height, [...row.saved]];

describe("frames of called code", () => {
  for (const { name, bytes, rows } of cases)
    test(name, () => {
      expect(findFrameRows({ at: AT, bytes: Uint8Array.from(bytes) }).map(plain)).toEqual(rows);
    });
});

test("a detour stands for its site until the copies, and these for their originals", () => {
  // lea rsp, [rsp-136]; call rax; lea rsp, [rsp+136]; push rbp (copied); mov ebp, esp (copied); jmp
  const bytes = [0x48, 0x8d, 0xa4, 0x24, 0x78, 0xff, 0xff, 0xff, 0xff, 0xd0]
    .concat([0x48, 0x8d, 0xa4, 0x24, 0x88, 0, 0, 0])
    .concat([0x55, 0x89, 0xe5, 0xe9, 0, 0, 0, 0]);
  const site = 0x40_1000n;
  const rows = findFrameRows({
    at: AT,
    bytes: Uint8Array.from(bytes),
    detour: {
      site,
      displacedOffset: 18,
      twins: [
        { original: site, copy: AT + 18n },
        { original: site + 1n, copy: AT + 19n },
      ],
    },
  });
  expect(rows.map(({ offset, height, caller }) => [offset, height, caller])).toEqual([
    [0, 0, site],
    [8, 136, site],
    [18, 0, site],
    [19, 0, site + 1n],
  ]);
});
