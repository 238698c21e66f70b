/** Comparison and number helpers: compiled code and interpreter against what the kernel's helpers return. */
import { afterAll, describe, expect, it } from "vitest";
import { HelperCases, memoryWith } from "../../../../test/support/helper-case.ts";
import { SeededRandom } from "../../../../test/support/seeded-random.ts";
import { HELPER_STRNCMP, HELPER_STRTOL, HELPER_STRTOUL } from "../../helpers.ts";

const cases = new HelperCases();
afterAll(() => cases[Symbol.dispose]());
const latin1 = (text: string) => Uint8Array.from(Buffer.from(text, "latin1"));

describe("strncmp", () => {
  it.each([
    { name: "the same", text: "nginx", size: 16, known: "nginx", want: 0n },
    { name: "smaller", text: "mginx", size: 16, known: "nginx", want: -1n },
    { name: "larger", text: "nginy", size: 16, known: "nginx", want: 1n },
    { name: "a beginning of the known text", text: "ngi", size: 16, known: "nginx", want: -1n },
    { name: "the known text is a beginning", text: "nginx2", size: 16, known: "nginx", want: 1n },
    { name: "cut where they are still the same", text: "nginx2", size: 5, known: "nginx", want: 0n },
    { name: "cut before they end", text: "nginx", size: 2, known: "ngZ", want: 0n },
    { name: "no text", text: "", size: 16, known: "", want: 0n },
    { name: "nothing is known", text: "a", size: 16, known: "", want: 1n },
    { name: "bytes are unsigned", text: "\xff", size: 4, known: "\x01", want: 1n },
    { name: "what lies behind a NUL does not count", text: "ab\0x", size: 4, known: "ab", want: 0n },
  ])("$name", ({ text, size, known, want }) => {
    const { result } = cases.run({
      helper: HELPER_STRNCMP,
      args: [{ memory: 0 }, size, { memory: 256 }],
      before: memoryWith([
        [0, text],
        [256, known],
      ]),
      text: latin1(known),
    });
    expect(result).toBe(want);
  });
});

const EINVAL = -22n;
const ERANGE = -34n;

function strto(helper: number, text: string, flags: bigint, size = text.length) {
  const { result, memory } = cases.run({
    helper,
    args: [{ memory: 0 }, size, flags, { memory: 512 }],
    before: memoryWith([[0, text]]),
  });
  return [result, new DataView(memory.buffer).getBigInt64(512, true)];
}

describe("strtol and strtoul", () => {
  it.each([
    { text: "42", base: 10n, signed: [2n, 42n], unsigned: [2n, 42n] },
    { text: "42 apples", base: 0n, signed: [2n, 42n], unsigned: [2n, 42n] },
    { text: " \t\n\v\f\r\xa042", base: 10n, signed: [9n, 42n], unsigned: [9n, 42n] },
    { text: "-42", base: 10n, signed: [3n, -42n], unsigned: [EINVAL, 0n] },
    { text: "  -42x", base: 10n, signed: [5n, -42n], unsigned: [EINVAL, 0n] },
    { text: "- 42", base: 10n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "+42", base: 10n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "0x1F", base: 0n, signed: [4n, 31n], unsigned: [4n, 31n] },
    { text: "0X1f", base: 16n, signed: [4n, 31n], unsigned: [4n, 31n] },
    { text: "1F", base: 16n, signed: [2n, 31n], unsigned: [2n, 31n] },
    { text: "0x1F", base: 10n, signed: [1n, 0n], unsigned: [1n, 0n] },
    { text: "0x", base: 0n, signed: [1n, 0n], unsigned: [1n, 0n] },
    { text: "0xg", base: 0n, signed: [1n, 0n], unsigned: [1n, 0n] },
    { text: "0x", base: 16n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "0xg", base: 16n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "017", base: 0n, signed: [3n, 15n], unsigned: [3n, 15n] },
    { text: "0", base: 0n, signed: [1n, 0n], unsigned: [1n, 0n] },
    { text: "08", base: 0n, signed: [1n, 0n], unsigned: [1n, 0n] },
    { text: "19", base: 8n, signed: [1n, 1n], unsigned: [1n, 1n] },
    { text: "8", base: 8n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "", base: 10n, size: 1, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "x", base: 10n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "   ", base: 10n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "-", base: 10n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "12345", base: 10n, size: 3, signed: [3n, 123n], unsigned: [3n, 123n] },
    {
      text: "9223372036854775807",
      base: 10n,
      signed: [19n, 2n ** 63n - 1n],
      unsigned: [19n, 2n ** 63n - 1n],
    },
    { text: "9223372036854775808", base: 10n, signed: [ERANGE, 0n], unsigned: [19n, -(2n ** 63n)] },
    { text: "-9223372036854775808", base: 10n, signed: [20n, -(2n ** 63n)], unsigned: [EINVAL, 0n] },
    { text: "-9223372036854775809", base: 10n, signed: [ERANGE, 0n], unsigned: [EINVAL, 0n] },
    { text: "18446744073709551615", base: 10n, signed: [ERANGE, 0n], unsigned: [20n, -1n] },
    { text: "18446744073709551616", base: 10n, signed: [ERANGE, 0n], unsigned: [ERANGE, 0n] },
    { text: "-18446744073709551615", base: 10n, signed: [ERANGE, 0n], unsigned: [EINVAL, 0n] },
    { text: "0xffffffffffffffff", base: 16n, signed: [ERANGE, 0n], unsigned: [18n, -1n] },
    { text: "0x10000000000000000", base: 16n, signed: [ERANGE, 0n], unsigned: [ERANGE, 0n] },
    { text: `${"0".repeat(62)}77`, base: 10n, signed: [63n, 7n], unsigned: [63n, 7n] },
    { text: `-${"0".repeat(62)}77`, base: 10n, signed: [64n, -7n], unsigned: [EINVAL, 0n] },
    { text: "42", base: 7n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "42", base: 32n + 10n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
    { text: "42", base: -1n, signed: [EINVAL, 0n], unsigned: [EINVAL, 0n] },
  ])("$text, base $base, size $size", ({ text, base, size, signed, unsigned }) => {
    expect(strto(HELPER_STRTOL, text, base, size)).toEqual(signed);
    expect(strto(HELPER_STRTOUL, text, base, size)).toEqual(unsigned);
  });

  it("texts of the characters that matter, at random", () => {
    const random = new SeededRandom(7);
    const alphabet = [..." -0x1f9Xg8\t7\0"];
    for (let i = 0; i < 300; i++) {
      const text = Array.from({ length: 1 + random.below(24) }, () => random.pick(alphabet)).join("");
      for (const base of [0n, 8n, 10n, 16n]) strto(i % 2 === 0 ? HELPER_STRTOL : HELPER_STRTOUL, text, base);
    }
  });
});
