import { describe, expect, test } from "vitest";
import {
  emitReturnRuntime,
  readReturnTable,
  returnsToRestore,
  returnTableBytes,
  returnTableEntries,
} from "./return-table.ts";

const trampolines = { start: 0x2000_0000n, end: 0x2001_0000n };

function tableOf(entries: readonly (readonly [key: bigint, returnAddress: bigint])[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(entries.flat()).buffer);
}

describe("return addresses to put back", () => {
  const cases: readonly {
    readonly name: string;
    readonly entries: readonly (readonly [bigint, bigint])[];
    readonly stack: Readonly<Record<string, bigint>>;
    readonly expect: readonly { readonly slot: bigint; readonly returnAddress: bigint }[];
  }[] = [
    {
      name: "empty table",
      entries: [
        [0n, 0n],
        [0n, 5n],
      ],
      stack: {},
      expect: [],
    },
    {
      name: "hijacked slot",
      entries: [
        [0n, 0n],
        [0x1000n, 0x40_0000n],
      ],
      stack: { "4096": 0x2000_0080n },
      expect: [{ slot: 0x1000n, returnAddress: 0x40_0000n }],
    },
    {
      name: "stale entry: the slot holds something else by now",
      entries: [[0x1000n, 0x40_0000n]],
      stack: { "4096": 0x7fff_0000n },
      expect: [],
    },
    { name: "stale entry: the stack is gone", entries: [[0x1000n, 0x40_0000n]], stack: {}, expect: [] },
    {
      name: "chain of tail calls: the innermost return address",
      entries: [
        [0x1001n, 0x2000_0080n],
        [0x1000n, 0x40_0000n],
        [0x1002n, 0x2000_0190n],
      ],
      stack: { "4096": 0x2000_02a0n },
      expect: [{ slot: 0x1000n, returnAddress: 0x40_0000n }],
    },
    {
      name: "two entries of one key: the first is valid",
      entries: [
        [0x1000n, 0x40_0000n],
        [0x1000n, 0x50_0000n],
      ],
      stack: { "4096": 0x2000_0080n },
      expect: [{ slot: 0x1000n, returnAddress: 0x40_0000n }],
    },
  ];
  for (const { name, entries, stack, expect: expected } of cases) {
    test(name, () => {
      const read = readReturnTable(tableOf(entries));
      expect(returnsToRestore(read, trampolines, (addr) => stack[String(addr)])).toEqual(expected);
    });
  }
});

test("the table has room to spare", () => {
  expect([1, 4, 5, 100, 1024].map(returnTableEntries)).toEqual([8, 8, 16, 256, 2048]);
  expect(returnTableBytes(1024)).toBe(16_384);
});

describe("a table that cannot work is refused", () => {
  test("entries that are no power of two", () => {
    expect(() => emitReturnRuntime(0x1000n, { at: 0x1_0000n, entries: 24, trampolines })).toThrow(
      "no power of two",
    );
  });
  test("unaligned", () => {
    expect(() => emitReturnRuntime(0x1000n, { at: 0x1_0040n, entries: 64, trampolines })).toThrow(
      "not aligned",
    );
  });
});
