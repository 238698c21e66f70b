import { describe, expect, it } from "vitest";
import { Btf, type BtfType } from "./btf.ts";
import { btfValueJson, decodeBtfValue, printBtfValue } from "./btf-value.ts";
import { ByteReader } from "./byte-reader.ts";

const types: readonly BtfType[] = [
  { kind: "void" },
  { kind: "int", name: "int", sizeBytes: 4, encoding: "signed" },
  { kind: "int", name: "char", sizeBytes: 1, encoding: "signed" },
  { kind: "array", of: 2, count: 4 },
  { kind: "pointer", to: 0 },
  { kind: "enum", name: "state", sizeBytes: 4, isSigned: true, values: new Map([[-1n, "BROKEN"]]) },
  {
    kind: "struct",
    name: "pair",
    sizeBytes: 8,
    members: [
      { name: "number", type: 1, bitOffset: 0, bitSize: 0 },
      { name: "text", type: 3, bitOffset: 32, bitSize: 0 },
    ],
  },
  { kind: "alias", name: "pair_t", of: 6 },
  {
    kind: "struct",
    name: "bits",
    sizeBytes: 4,
    members: [
      { name: "low", type: 1, bitOffset: 0, bitSize: 3 },
      { name: "high", type: 9, bitOffset: 3, bitSize: 5 },
    ],
  },
  { kind: "int", name: "unsigned int", sizeBytes: 4, encoding: "unsigned" },
  { kind: "int", name: "_Bool", sizeBytes: 1, encoding: "bool" },
  { kind: "array", of: 1, count: 2 },
  { kind: "alias", name: "round", of: 12 },
  { kind: "float", name: "double", sizeBytes: 8 },
  {
    kind: "union",
    name: "",
    sizeBytes: 4,
    members: [
      { name: "a", type: 1, bitOffset: 0, bitSize: 0 },
      { name: "b", type: 9, bitOffset: 0, bitSize: 0 },
    ],
  },
  {
    kind: "struct",
    name: "outer",
    sizeBytes: 4,
    members: [{ name: "", type: 14, bitOffset: 0, bitSize: 0 }],
  },
];
const btf = new Btf(types, new ByteReader(new Uint8Array(1), "strings"));

const decode = (type: number | undefined, hex: string) =>
  decodeBtfValue(btf, type, Uint8Array.from(Buffer.from(hex, "hex")));

describe("printing values by their type", () => {
  const cases: readonly {
    readonly name: string;
    readonly type: number | undefined;
    readonly hex: string;
    readonly text: string;
  }[] = [
    { name: "negative number", type: 1, hex: "fefffffe", text: "-16777218" },
    { name: "text up to its end", type: 3, hex: "61620063", text: '"ab"' },
    { name: "text without an end", type: 3, hex: "61626364", text: '"abcd"' },
    { name: "bytes that are no text", type: 3, hex: "61ff0000", text: "[97, -1, 0, 0]" },
    { name: "pointer", type: 4, hex: "0010000000000000", text: "0x1000" },
    { name: "named value", type: 5, hex: "ffffffff", text: "BROKEN" },
    { name: "value without a name", type: 5, hex: "02000000", text: "2" },
    { name: "struct by another name", type: 7, hex: "0500000061000000", text: '{number: 5, text: "a"}' },
    { name: "bit fields, signed and unsigned", type: 8, hex: "ff000000", text: "{low: -1, high: 31}" },
    { name: "truth", type: 10, hex: "01", text: "true" },
    { name: "array", type: 11, hex: "01000000ffffffff", text: "[1, -1]" },
    { name: "floating point", type: 13, hex: "000000000000f83f", text: "1.5" },
    { name: "number without a type", type: undefined, hex: "ff00000000000000", text: "255" },
    { name: "bytes without a type", type: undefined, hex: "0102ff", text: "01 02 ff" },
    { name: "too few bytes for the type", type: 6, hex: "010203", text: "01 02 03" },
    { name: "type that is not there", type: 99, hex: "01", text: "1" },
    { name: "type that is its own name", type: 12, hex: "01", text: "1" },
  ];
  it.each(cases)("$name", ({ type, hex, text }) => {
    expect(printBtfValue(decode(type, hex))).toBe(text);
  });

  it.each([
    { name: "number", type: 1, hex: "fefffffe", json: -16777218 },
    { name: "number of 64 bits", type: undefined, hex: "ff00000000000000", json: 255 },
    { name: "text", type: 3, hex: "61c3a900", json: "a\u00e9" },
    { name: "named value", type: 5, hex: "ffffffff", json: "BROKEN" },
    { name: "pointer", type: 4, hex: "0010000000000000", json: "0x1000" },
    { name: "truth", type: 10, hex: "00", json: false },
    { name: "array", type: 11, hex: "01000000ffffffff", json: [1, -1] },
    { name: "struct", type: 6, hex: "0500000061000000", json: { number: 5, text: "a" } },
    {
      name: "struct with members of a union without a name",
      type: 15,
      hex: "01000000",
      json: { a: 1, b: 1 },
    },
    { name: "infinity", type: 13, hex: "000000000000f07f", json: null },
    { name: "bytes", type: undefined, hex: "0102ff", json: "01 02 ff" },
  ])("as JSON: $name", ({ type, hex, json }) => {
    expect(JSON.parse(btfValueJson(decode(type, hex)))).toEqual(json);
  });
});
