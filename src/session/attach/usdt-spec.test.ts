import { describe, expect, it } from "vitest";
import { encodeUsdtSpec, USDT_SPEC_BYTES } from "./usdt-spec.ts";

function specOf(args: string) {
  const result = encodeUsdtSpec(args);
  if (result.kind === "bad") return result.reason;
  const view = new DataView(result.bytes.buffer);
  expect(result.bytes.length).toBe(USDT_SPEC_BYTES);
  return Array.from({ length: view.getInt16(200, true) }, (_, i) => ({
    value: view.getBigInt64(i * 16, true),
    kind: ["constant", "register", "memory"][view.getUint32(i * 16 + 8, true)],
    at: view.getInt16(i * 16 + 12, true),
    isSigned: view.getUint8(i * 16 + 14) === 1,
    shift: view.getUint8(i * 16 + 15),
  }));
}

const one = (value: bigint, kind: string, at: number, isSigned: boolean, shift: number) => [
  { value, kind, at, isSigned, shift },
];

describe("arguments of static probes", () => {
  it.each([
    { args: "", spec: [] },
    { args: "8@%rdi", spec: one(0n, "register", 112, false, 0) },
    { args: "-4@%eax", spec: one(0n, "register", 80, true, 32) },
    { args: "-2@%r9w", spec: one(0n, "register", 64, true, 48) },
    { args: "1@%sil", spec: one(0n, "register", 104, false, 56) },
    { args: "8@-16(%rbp)", spec: one(-16n, "memory", 32, false, 0) },
    { args: "-4@(%rsp)", spec: one(0n, "memory", 152, true, 32) },
    { args: "4@$7", spec: one(7n, "constant", 0, false, 32) },
    { args: "-8@$-0x10", spec: one(-16n, "constant", 0, true, 0) },
    { args: "8f@%rdx", spec: one(0n, "register", 96, false, 0) },
  ])("$args", ({ args, spec }) => {
    expect(specOf(args)).toEqual(spec);
  });

  it("stand in their order", () => {
    expect(specOf("-4@%edi 8@8(%rdx)  1@$1")).toMatchObject([
      { at: 112 },
      { at: 96, value: 8n },
      { value: 1n },
    ]);
  });

  it.each([
    ["an index register", "8@8(%rax,%rbx,4)", "its argument 0, 8@8(%rax,%rbx,4), cannot be described"],
    ["a place relative to rip", "4@$1 8@x(%rip)", "its argument 1, 8@x(%rip), cannot be described"],
    ["the second byte of a register", "1@%ah", "its argument 0, 1@%ah, cannot be described"],
    ["a size that no register has", "16@%rax", "its argument 0, 16@%rax, cannot be described"],
    [
      "too many",
      Array.from({ length: 13 }, () => "8@%rax").join(" "),
      "it has 13 arguments, and at most 12 can be described",
    ],
  ])("%s are refused", (_name, args, reason) => {
    expect(specOf(args)).toBe(reason);
  });
});
