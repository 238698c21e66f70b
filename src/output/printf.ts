/**
 * printf, with C's rules (ISO C 7.23.6.1): flags, width, precision and length. Values have 64 bits; as in C and in
 * bpftrace, a conversion without a length takes the low 32 of them.
 *
 * Takes a format that has been split already.
 */
import type { OutputValue } from "./value.ts";
import { printBytes, printHexByte, printValue } from "./value-text.ts";

export type FormatPart = { readonly kind: "text"; readonly text: string } | FormatConversion;

export interface FormatConversion {
  readonly kind: "conversion";
  /** Any of `-`, `+`, space, `#`, `0`. */
  readonly flags: string;
  readonly width: number;
  /** -1 where none is given. */
  readonly precision: number;
  readonly length: "" | "hh" | "h" | "l" | "ll" | "z" | "t" | "j";
  /** `r`: a buffer; `rx`: all its bytes as `\x1f`; `rh`: as `1f 2e`. */
  readonly conversion: "d" | "i" | "u" | "x" | "X" | "o" | "c" | "p" | "s" | "r" | "rx" | "rh";
}

/** A byte string. `args` has one value for each conversion. */
export function formatPrintf(parts: readonly FormatPart[], args: readonly OutputValue[]): string {
  let text = "";
  let next = 0;
  for (const part of parts) {
    if (part.kind === "text") {
      text += part.text;
      continue;
    }
    const arg = args[next++];
    if (arg === undefined) throw new Error(`printf: conversion ${next} of %${part.conversion} has no value`);
    text += formatConversion(part, arg);
  }
  return text;
}

function formatConversion(part: FormatConversion, arg: OutputValue): string {
  switch (part.conversion) {
    case "s": {
      const text = printValue(arg);
      return padBlank(part, part.precision < 0 ? text : text.slice(0, part.precision));
    }
    case "r":
    case "rx":
    case "rh":
      return padBlank(part, formatBytes(part.conversion, arg));
    case "c":
      // C strings carry the text from here on: one that is 0 ends it.
      return padBlank(part, String.fromCharCode(Number(integerOf(arg) & 0xffn))).replace(/\0.*/s, "");
    case "p":
      return formatPointer(part, BigInt.asUintN(64, integerOf(arg)));
    case "d":
    case "i": {
      const value = BigInt.asIntN(lengthBits[part.length], integerOf(arg));
      const plus = part.flags.includes("+") ? "+" : part.flags.includes(" ") ? " " : "";
      return formatDigits(part, value < 0n ? "-" : plus, String(value < 0n ? -value : value));
    }
    case "u":
    case "x":
    case "X":
    case "o":
      return formatUnsigned(part, BigInt.asUintN(lengthBits[part.length], integerOf(arg)));
  }
}

const lengthBits = { hh: 8, h: 16, "": 32, l: 64, ll: 64, z: 64, t: 64, j: 64 } as const;

function integerOf(arg: OutputValue): bigint {
  switch (arg.kind) {
    case "integer":
      return arg.value;
    case "symbol":
      return arg.address;
    default:
      throw new Error(`printf: a ${arg.kind} where an integer belongs`);
  }
}

function formatBytes(conversion: "r" | "rx" | "rh", arg: OutputValue): string {
  if (arg.kind !== "bytes") return printValue(arg);
  switch (conversion) {
    case "r":
      return printBytes(arg.bytes);
    case "rx":
      return Array.from(arg.bytes, (byte) => `\\x${printHexByte(byte)}`).join("");
    case "rh":
      return Array.from(arg.bytes, printHexByte).join(" ");
  }
}

function formatPointer(part: FormatConversion, value: bigint): string {
  return value === 0n ? padBlank(part, "(nil)") : formatDigits(part, "0x", value.toString(16));
}

function formatUnsigned(part: FormatConversion, value: bigint): string {
  const isAlternate = part.flags.includes("#");
  switch (part.conversion) {
    case "x":
      return formatDigits(part, isAlternate && value !== 0n ? "0x" : "", value.toString(16));
    case "X":
      return formatDigits(part, isAlternate && value !== 0n ? "0X" : "", value.toString(16).toUpperCase());
    case "o": {
      // The alternate form has a leading 0 that counts as a digit.
      const digits = value.toString(8);
      return formatDigits(part, "", isAlternate && value !== 0n ? `0${digits}` : digits, isAlternate);
    }
    default:
      return formatDigits(part, "", String(value));
  }
}

/** `sign` may be any prefix that zeros go behind. With precision 0, a 0 has no digits unless `showsZero`. */
function formatDigits(part: FormatConversion, sign: string, digits: string, showsZero = false): string {
  const isLeft = part.flags.includes("-");
  if (part.precision >= 0) {
    const isBlank = part.precision === 0 && digits === "0" && !showsZero;
    const padded = isBlank ? "" : digits.padStart(part.precision, "0");
    return padBlank(part, sign + padded);
  }
  if (part.flags.includes("0") && !isLeft) return sign + digits.padStart(part.width - sign.length, "0");
  return padBlank(part, sign + digits);
}

function padBlank(part: FormatConversion, text: string): string {
  return part.flags.includes("-") ? text.padEnd(part.width) : text.padStart(part.width);
}
