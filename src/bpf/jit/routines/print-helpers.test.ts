/** bpf_snprintf: compiled code and interpreter against what the kernel's vsnprintf makes of the same. */
import { afterAll, describe, expect, it } from "vitest";
import { CASE_BYTES, HelperCases, memoryWith } from "../../../../test/support/helper-case.ts";
import { SeededRandom } from "../../../../test/support/seeded-random.ts";
import { HELPER_SNPRINTF } from "../../helpers.ts";
import { checkFormat } from "../../printk.ts";

const cases = new HelperCases();
afterAll(() => cases[Symbol.dispose]());

const OUT = 0;
const FORMAT = 1024;
const DATA = 2048;
const TEXTS = 3072;

/** Offset of a text in the memory of the cases, as an argument. */
interface At {
  readonly at: number;
}

interface Print {
  readonly format: string;
  readonly args?: readonly (bigint | At)[];
  readonly size?: number;
  readonly texts?: string | Uint8Array;
  /** Bytes of arguments that are announced. */
  readonly lenBytes?: number;
}

function print({ format, args = [], size = 200, texts = "", lenBytes = 8 * args.length }: Print) {
  const data = new Uint8Array(8 * 12);
  const view = new DataView(data.buffer);
  args.forEach((arg, i) => {
    const value = typeof arg === "bigint" ? arg : cases.memoryAt + BigInt(TEXTS + arg.at);
    view.setBigUint64(8 * i, BigInt.asUintN(64, value), true);
  });
  const before = memoryWith([
    [OUT, new Uint8Array(1024).fill(0xee)],
    [FORMAT, format],
    [DATA, data],
    [TEXTS, texts],
  ]);
  const { result, memory } = cases.run({
    helper: HELPER_SNPRINTF,
    args: [size === 0 ? 0 : { memory: OUT }, size, { memory: FORMAT }, { memory: DATA }, lenBytes],
    before,
    text: Uint8Array.from(Buffer.from(format, "latin1")),
    host: {
      // The addresses of compiled code mean the same memory.
      readUser(addr, into) {
        const at = addr - cases.memoryAt;
        if (at < 0n || at + BigInt(into.length) > BigInt(CASE_BYTES)) return false;
        into.set(before.subarray(Number(at), Number(at) + into.length));
        return true;
      },
    },
  });
  const end = memory.indexOf(0);
  expect(
    memory.subarray(Math.max(size, 0), 1024).every((byte) => byte === 0xee),
    "behind the memory",
  ).toBe(true);
  return { result: Number(result), text: Buffer.from(memory.subarray(OUT, end)).toString("latin1") };
}

describe("snprintf", () => {
  const MINUS = -1n;
  it.each([
    { format: "", args: [], want: "" },
    { format: "no arguments, 100%%", args: [], want: "no arguments, 100%" },
    { format: "%d %i", args: [42n, -42n], want: "42 -42" },
    { format: "%d", args: [0x1_8000_0000n], want: "-2147483648" },
    {
      format: "%ld|%lld",
      args: [-(2n ** 63n), 2n ** 63n - 1n],
      want: "-9223372036854775808|9223372036854775807",
    },
    { format: "%u %lu %llu", args: [MINUS, MINUS, 0n], want: "4294967295 18446744073709551615 0" },
    {
      format: "%x %X %lx %llX",
      args: [0xabcn, 0xabcn, MINUS, 0xdead_beef_cafen],
      want: "abc ABC ffffffffffffffff DEADBEEFCAFE",
    },
    { format: "[%5d] [%-5d] [%05d]", args: [42n, 42n, 42n], want: "[   42] [42   ] [00042]" },
    { format: "[%5d] [%-5d] [%05d]", args: [-42n, -42n, -42n], want: "[  -42] [-42  ] [-0042]" },
    { format: "[%+d] [% d] [%+ d] [%+d]", args: [1n, 1n, 1n, -1n], want: "[+1] [ 1] [+1] [-1]" },
    {
      format: "[%+05d] [%+5d] [%-+5d] [%0-5d]",
      args: [7n, 7n, 7n, 7n],
      want: "[+0007] [   +7] [+7   ] [7    ]",
    },
    {
      format: "[%+x] [%8x] [%08lx] [%-8X]|",
      args: [1n, 255n, 255n, 255n],
      want: "[1] [      ff] [000000ff] [FF      ]|",
    },
    { format: "[%2d] [%1x]", args: [12345n, 0xabcn], want: "[12345] [abc]" },
    { format: "[%c%c] [%3c] [%-3c]", args: [0x48n, 0x169n, 0x78n, 0x78n], want: "[Hi] [  x] [x  ]" },
    {
      format: "[%s] [%8s] [%-8s] [%2s]",
      args: [{ at: 0 }, { at: 0 }, { at: 0 }, { at: 0 }],
      texts: "hello",
      want: "[hello] [   hello] [hello   ] [hello]",
    },
    { format: "%08s|", args: [{ at: 0 }], texts: "zeros", want: "   zeros|" },
    {
      format: "%s %pks %pus.",
      args: [{ at: 7 }, { at: 0 }, { at: 7 }],
      texts: "kernel\0user",
      want: "user kernel user.",
    },
    { format: "[%s] [%4s]", args: [0n, 0x10n], want: "[] [    ]" },
    {
      format: "%px %p %pK",
      args: [0x7f00n, 0n, MINUS],
      want: "0000000000007f00 0000000000000000 ffffffffffffffff",
    },
    { format: "[%8px] [%-20px]", args: [0x7f00n, 0x7f00n], want: "[    7f00] [7f00                ]" },
    { format: "%ps %pS %pB", args: [0x401000n, 0n, 0x401000n], want: "0x401000 0x0 0x401000" },
    { format: "[%12ps]", args: [0x401000n], want: "[    0x401000]" },
    {
      format: "%pxabc,%pI4xyz.",
      args: [1n, { at: 0 }],
      texts: Uint8Array.of(1, 2, 3, 4),
      want: "0000000000000001,1.2.3.4.",
    },
    {
      format: "%pI4 %pi4",
      args: [{ at: 0 }, { at: 0 }],
      texts: Uint8Array.of(127, 0, 10, 1),
      want: "127.0.10.1 127.000.010.001",
    },
    { format: "%pI4", args: [0n], want: "0.0.0.0" },
    {
      format: "%pI6 %pi6",
      args: [{ at: 0 }, { at: 0 }],
      texts: Uint8Array.from({ length: 16 }, (_, i) => i * 17),
      want: "0011:2233:4455:6677:8899:aabb:ccdd:eeff 00112233445566778899aabbccddeeff",
    },
    {
      format: "%d%d%d%d%d%d%d%d%d%d%d%d",
      args: Array.from({ length: 12 }, (_, i) => BigInt(i)),
      want: "01234567891011",
    },
    { format: "\ttab\nline\r\v\f", args: [], want: "\ttab\nline\r\v\f" },
  ] as readonly (Print & { readonly want: string })[])("$format", ({ want, ...input }) => {
    expect(print(input)).toEqual({ result: want.length + 1, text: want });
    expect(checkFormat(input.format, input.args!.length)).toBeUndefined();
  });

  it.each([
    { name: "one byte", size: 1, want: "" },
    { name: "in a text", size: 3, want: "ab" },
    { name: "in padding", size: 6, want: "ab:  " },
    { name: "in a number", size: 9, want: "ab:   12" },
    { name: "one short", size: 18, want: "ab:   123 hello w" },
    { name: "exactly", size: 19, want: "ab:   123 hello wo" },
  ])("cut $name", ({ size, want }) => {
    const got = print({ format: "ab:%6d %s", args: [123n, { at: 0 }], texts: "hello wo", size });
    expect(got).toEqual({ result: 19, text: want });
  });

  it("counts where there is no memory", () => {
    expect(print({ format: "%100d", args: [1n], size: 0 }).result).toBe(101);
  });

  it("strings are cut at 511 bytes", () => {
    const texts = "x".repeat(600);
    const got = print({ format: "%s!", args: [{ at: 0 }], texts, size: 1000 });
    expect(got).toEqual({ result: 513, text: `${"x".repeat(511)}!` });
  });

  it("a huge width ends at the end of the memory", () => {
    const got = print({ format: "%99999999d", args: [1n], size: 10 });
    expect(got).toEqual({ result: 8388608, text: " ".repeat(9) });
  });

  it.each([
    { name: "no conversion", format: "%" },
    { name: "unknown", format: "%y" },
    { name: "precision", format: "%.3d" },
    { name: "alternative form", format: "%#x" },
    { name: "floating point", format: "%f" },
    { name: "three times long", format: "%llld" },
    { name: "short", format: "%hd" },
    { name: "a width from an argument", format: "%*d" },
    { name: "octal", format: "%o" },
    { name: "percent in a field", format: "%5%" },
    { name: "string and letters", format: "%sx" },
    { name: "kernel string and letters", format: "%pksx" },
    { name: "unknown pointer", format: "%pq" },
    { name: "hardware address", format: "%pM" },
    { name: "IP of no version", format: "%pI5" },
    { name: "not ASCII", format: "\xe9" },
    { name: "not printable", format: "\x01" },
    { name: "missing argument", format: "%d %d %d" },
  ])("refused: $name", ({ format }) => {
    expect(print({ format, args: [1n, 2n] }).result).toBe(-22);
    expect(checkFormat(Buffer.from(format, "latin1"), 2)).toBe("Invalid format string");
  });

  it.each([7, 97, 104])("%i bytes of arguments are refused", (lenBytes) => {
    expect(print({ format: "x", lenBytes }).result).toBe(-22);
  });

  it("formats at random", () => {
    const random = new SeededRandom(11);
    const numbers = [
      0n,
      1n,
      9n,
      10n,
      -1n,
      -10n,
      2n ** 31n,
      2n ** 32n - 1n,
      2n ** 63n,
      0x1234_5678_9abc_def0n,
    ];
    for (let i = 0; i < 120; i++) {
      const count = 1 + random.below(4);
      const specs = Array.from({ length: count }, () => {
        const flags = Array.from({ length: random.below(3) }, () => random.pick([..."0 +-"])).join("");
        const width = random.pick(["", "1", "5", "12", "30"]);
        const type = random.pick([
          "d",
          "i",
          "u",
          "x",
          "X",
          "ld",
          "lu",
          "llx",
          "lX",
          "c",
          "s",
          "p",
          "px",
          "pK",
          "ps",
        ]);
        return `%${flags}${width}${type}`;
      });
      const args = specs.map((spec) => (spec.endsWith("s") ? { at: random.below(5) } : random.pick(numbers)));
      print({
        format: specs.join(random.pick(["", "-", " and "])),
        args,
        texts: "abcde",
        size: 1 + random.below(80),
      });
    }
  });
});
