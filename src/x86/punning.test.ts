/** Puns: what the bytes allow, and that the processor reads them as planned. */
import { describe, expect, test } from "vitest";
import { decodeBlock } from "./decode.ts";
import { encodeHop, encodeJump, encodePun, hopReaches, punsOf } from "./punning.ts";

const AT = 0x7000_0000_0000n;

/** Where the jump at the beginning of `bytes` leads. */
function jumpTarget(bytes: Uint8Array): bigint | undefined {
  const first = decodeBlock(AT, bytes).insn(0);
  expect(first.flow).toBe("jump");
  return first.target;
}

describe("windows of a site", () => {
  const behind = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x78];
  const cases = [
    { lenBytes: 1, expected: [[0, AT + 5n + 0x4433_2211n, 1, 4]] },
    {
      lenBytes: 2,
      expected: [
        [0, AT + 5n + 0x3322_1100n, 256, 3],
        [1, AT + 6n + 0x4433_2211n, 1, 4],
      ],
    },
    {
      lenBytes: 4,
      expected: [
        [0, AT + 5n + 0x1100_0000n, 2 ** 24, 1],
        [1, AT + 6n + 0x2211_0000n, 65_536, 2],
        [2, AT + 7n + 0x3322_1100n, 256, 3],
        [3, AT + 8n + 0x4433_2211n, 1, 4],
      ],
    },
  ];
  for (const { lenBytes, expected } of cases) {
    test(`${lenBytes} bytes`, () => {
      const text = Uint8Array.of(...new Uint8Array(lenBytes).fill(0x90), ...behind);
      const puns = punsOf(text, AT, lenBytes);
      expect(puns.map(({ prefixes, first, count, kept }) => [prefixes, first, count, kept])).toEqual(
        expected,
      );
    });
  }

  test("a high byte above 7f leads down", () => {
    const [pun] = punsOf(Uint8Array.of(0xc3, 0xff, 0xff, 0xff, 0xff), AT, 1);
    expect(pun!.first).toBe(AT + 4n);
  });

  test("bytes that are missing behind the site allow no pun", () => {
    expect(punsOf(Uint8Array.of(0xc3, 1, 2, 3), AT, 1)).toEqual([]);
    expect(punsOf(Uint8Array.of(0x31, 0xc0, 1, 2, 3), AT, 2)).toHaveLength(1);
  });
});

test("the decoder reads every pun as a jump to where it was to lead", () => {
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return state >>> 8;
  };
  for (let round = 0; round < 500; round++) {
    const lenBytes = 1 + (random() % 4);
    const text = Uint8Array.from({ length: 10 }, () => random() & 0xff);
    for (const pun of punsOf(text, AT, lenBytes)) {
      const target = pun.first + BigInt(random() % pun.count);
      const patched = Uint8Array.from(text);
      patched.set(encodePun(pun, target, lenBytes));
      expect(jumpTarget(patched)).toBe(target);
      expect(patched.subarray(lenBytes)).toEqual(text.subarray(lenBytes));
    }
  }
});

test("a jump reaches 2 GiB and no further", () => {
  expect(encodeJump(AT, AT + 5n + 0x7fff_ffffn)).toEqual(Uint8Array.of(0xe9, 0xff, 0xff, 0xff, 0x7f));
  expect(encodeJump(AT, AT + 5n - 0x8000_0000n)).toEqual(Uint8Array.of(0xe9, 0, 0, 0, 0x80));
  expect(encodeJump(AT, AT + 5n + 0x8000_0000n)).toBeUndefined();
  expect(encodeJump(AT, AT + 5n - 0x8000_0001n)).toBeUndefined();
});

test("a hop reaches 127 bytes behind itself and 128 before, and leaves what follows it", () => {
  expect([AT + 129n, AT - 126n].every((to) => hopReaches(AT, to))).toBe(true);
  expect([AT + 130n, AT - 127n].some((to) => hopReaches(AT, to))).toBe(false);
  const bytes = encodeHop(AT, AT - 126n, Uint8Array.of(1, 2, 3, 4));
  expect([...bytes.subarray(2)]).toEqual([3, 4]);
  expect(jumpTarget(bytes)).toBe(AT - 126n);
});
