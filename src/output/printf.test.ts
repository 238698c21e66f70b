import { describe, expect, it } from "vitest";
import type { FormatConversion, FormatPart } from "./printf.ts";
import { formatPrintf } from "./printf.ts";
import type { OutputValue } from "./value.ts";
import { byteString } from "./value.ts";

const int = (value: bigint | number): OutputValue => ({
  kind: "integer",
  value: BigInt(value),
  signed: value < 0,
});
const str = (text: string): OutputValue => ({ kind: "string", text });
const buf = (...bytes: number[]): OutputValue => ({ kind: "bytes", bytes: Uint8Array.from(bytes) });

/** One conversion as it is written: `%-8.2s`. */
function conversion(written: string): FormatPart {
  const found = /^%([-+ #0]*)([0-9]*)(?:\.([0-9]*))?(hh|h|ll|l|z|t|j)?(rx|rh|[a-zA-Z])$/.exec(written);
  if (found === null) throw new Error(`not a conversion: ${written}`);
  return {
    kind: "conversion",
    flags: found[1]!,
    width: Number(found[2]),
    precision: found[3] === undefined ? -1 : Number(found[3]),
    length: (found[4] ?? "") as FormatConversion["length"],
    conversion: found[5] as FormatConversion["conversion"],
  };
}

describe("printf", () => {
  // Expected as printed by bpftrace 0.17; those marked C, where it does not know the form, by glibc.
  const cases: readonly {
    readonly name: string;
    readonly written: string;
    readonly arg: OutputValue;
    readonly text: string;
  }[] = [
    { name: "signed, negative", written: "%d", arg: int(-1), text: "-1" },
    { name: "no length takes 32 bits", written: "%d", arg: int(0x1ffffffffn), text: "-1" },
    { name: "no length takes 32 bits, unsigned", written: "%u", arg: int(0x1ffffffffn), text: "4294967295" },
    { name: "no length takes 32 bits, negative", written: "%u", arg: int(-1), text: "4294967295" },
    { name: "no length takes 32 bits, hex", written: "%x", arg: int(-1), text: "ffffffff" },
    { name: "no length takes 32 bits, upper case", written: "%X", arg: int(-1), text: "FFFFFFFF" },
    { name: "long, all bits", written: "%lu", arg: int(-1), text: "18446744073709551615" },
    { name: "long, unsigned as signed", written: "%ld", arg: int(0xffffffffffffffffn), text: "-1" },
    { name: "long, hex", written: "%lx", arg: int(0x1ffffffffffn), text: "1ffffffffff" },
    { name: "long, hex of a negative", written: "%lx", arg: int(-1), text: "ffffffffffffffff" },
    { name: "long long, signed", written: "%lld", arg: int(-1), text: "-1" },
    { name: "long long, lowest", written: "%lld", arg: int(-(2n ** 63n)), text: "-9223372036854775808" },
    { name: "long long, hex", written: "%llx", arg: int(-1), text: "ffffffffffffffff" },
    { name: "short", written: "%hd", arg: int(70000), text: "4464" },
    { name: "short, hex", written: "%hx", arg: int(70000), text: "1170" },
    { name: "char-sized", written: "%hhd", arg: int(300), text: "44" },
    { name: "char-sized, unsigned", written: "%hhu", arg: int(511), text: "255" },
    { name: "size_t", written: "%zu", arg: int(-1), text: "18446744073709551615" },
    { name: "intmax_t", written: "%jd", arg: int(3), text: "3" },
    { name: "octal", written: "%o", arg: int(42), text: "52" },
    { name: "width", written: "%5d", arg: int(42), text: "   42" },
    { name: "width, to the left", written: "%-5d", arg: int(42), text: "42   " },
    { name: "width, zeros", written: "%05d", arg: int(42), text: "00042" },
    { name: "width, zeros after the sign (C)", written: "%05d", arg: int(-42), text: "-0042" },
    { name: "width, left wins over zeros (C)", written: "%-05d", arg: int(42), text: "42   " },
    { name: "width, hex", written: "%10lx", arg: int(42), text: "        2a" },
    { name: "width, hex, zeros", written: "%010lx", arg: int(42), text: "000000002a" },
    { name: "narrower than the value", written: "%1d", arg: int(-123), text: "-123" },
    { name: "plus (C)", written: "%+d", arg: int(42), text: "+42" },
    { name: "plus of a negative (C)", written: "%+5d", arg: int(-3), text: "   -3" },
    { name: "space (C)", written: "% d", arg: int(42), text: " 42" },
    { name: "plus wins over space (C)", written: "% +d", arg: int(42), text: "+42" },
    { name: "plus is for signed only (C)", written: "%+u", arg: int(42), text: "42" },
    { name: "alternate hex (C)", written: "%#x", arg: int(42), text: "0x2a" },
    { name: "alternate hex, upper case (C)", written: "%#X", arg: int(42), text: "0X2A" },
    { name: "alternate hex of 0 (C)", written: "%#x", arg: int(0), text: "0" },
    { name: "alternate hex, zeros (C)", written: "%#010lx", arg: int(42), text: "0x0000002a" },
    { name: "alternate octal (C)", written: "%#o", arg: int(42), text: "052" },
    { name: "alternate octal of 0 (C)", written: "%#.0o", arg: int(0), text: "0" },
    { name: "alternate octal, precision includes the 0 (C)", written: "%#.4o", arg: int(42), text: "0052" },
    { name: "precision", written: "%.5d", arg: int(42), text: "00042" },
    { name: "precision and width", written: "%8.5d", arg: int(42), text: "   00042" },
    { name: "precision and width, to the left", written: "%-8.5d", arg: int(42), text: "00042   " },
    { name: "precision puts the zero flag out", written: "%08.5d", arg: int(42), text: "   00042" },
    { name: "precision 0 of 0", written: "%.0d", arg: int(0), text: "" },
    { name: "precision of a negative (C)", written: "%.5d", arg: int(-42), text: "-00042" },
    { name: "character", written: "%c", arg: int(65), text: "A" },
    { name: "character, low byte only", written: "%c", arg: int(300), text: "," },
    { name: "character above 127", written: "%c", arg: int(200), text: "\xc8" },
    { name: "character 0 is nothing", written: "%c", arg: int(0), text: "" },
    { name: "character, width", written: "%5c", arg: int(65), text: "    A" },
    { name: "character, to the left", written: "%-5c", arg: int(66), text: "B    " },
    { name: "pointer", written: "%p", arg: int(4096), text: "0x1000" },
    { name: "pointer, width", written: "%20p", arg: int(4096), text: "              0x1000" },
    { name: "pointer, to the left", written: "%-20p", arg: int(4096), text: "0x1000              " },
    { name: "pointer, null", written: "%p", arg: int(0), text: "(nil)" },
    { name: "pointer, all bits", written: "%p", arg: int(-1), text: "0xffffffffffffffff" },
    {
      name: "pointer of a symbol",
      written: "%p",
      arg: { kind: "symbol", address: 0x401130n, text: "main" },
      text: "0x401130",
    },
    { name: "string", written: "%5s", arg: str("abc"), text: "  abc" },
    { name: "string, to the left", written: "%-5s", arg: str("abc"), text: "abc  " },
    { name: "string, cut", written: "%.2s", arg: str("abc"), text: "ab" },
    { name: "string, cut and filled", written: "%8.2s", arg: str("abc"), text: "      ab" },
    { name: "string, cut to nothing (C)", written: "%.0s", arg: str("abc"), text: "" },
    { name: "string, zeros have no meaning (C)", written: "%05s", arg: str("abc"), text: "  abc" },
    { name: "name of a probe", written: "%s", arg: { kind: "probe", text: "BEGIN" }, text: "BEGIN" },
    { name: "symbol", written: "%s", arg: { kind: "symbol", address: 1n, text: "0x1" }, text: "0x1" },
    { name: "timestamp", written: "%s", arg: { kind: "timestamp", text: "2026 11" }, text: "2026 11" },
    {
      name: "buffer",
      written: "%r",
      arg: buf(0x61, 1, 0xff, 0x5c, 0x62, 0x0a, 0x22),
      text: 'a\\x01\\xff\\b\\x0a"',
    },
    { name: "buffer, empty", written: "%r", arg: buf(), text: "" },
    { name: "buffer, all bytes escaped", written: "%rx", arg: buf(0x61, 0x62), text: "\\x61\\x62" },
    { name: "buffer, hex", written: "%rh", arg: buf(0x61, 0x62), text: "61 62" },
  ];
  it.each(cases)("$name: $written", ({ written, arg, text }) => {
    expect(formatPrintf([conversion(written)], [arg])).toBe(text);
  });

  it("puts text and values together in order", () => {
    const parts: FormatPart[] = [
      { kind: "text", text: "pid " },
      conversion("%d"),
      { kind: "text", text: " 100% " },
      conversion("%s"),
      { kind: "text", text: "\n" },
    ];
    expect(formatPrintf(parts, [int(7), str("cat")])).toBe("pid 7 100% cat\n");
  });

  it("counts the bytes of a string, not its characters", () => {
    const text = byteString(new TextEncoder().encode("é"));
    expect(formatPrintf([conversion("%4s")], [str(text)])).toBe(`  ${text}`);
  });

  it.each([
    { name: "a value is missing", args: [], message: "printf: conversion 1 of %d has no value" },
    { name: "text for a number", args: [str("x")], message: "printf: a string where an integer belongs" },
  ])("fails where the caller is wrong: $name", ({ args, message }) => {
    expect(() => formatPrintf([conversion("%d")], args)).toThrow(message);
  });
});
