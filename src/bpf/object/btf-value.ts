/**
 * Values of maps and globals as text, by their BTF type: `{size: 16, name: "sh"}`. Without a type, or with one that does
 * not fit the bytes, they are shown as a number if they have the size of one, and else in hex.
 */
import type { Btf, BtfMember, BtfType } from "./btf.ts";
import { ObjectError } from "./object-error.ts";

const MAX_DEPTH = 8;
/** Elements of an array and members of a struct that are shown. */
const MAX_PARTS = 64;

export function printBtfValue(btf: Btf | undefined, type: number | undefined, bytes: Uint8Array): string {
  if (btf === undefined || type === undefined) return printUntyped(bytes);
  try {
    return printTyped(btf, type, bytes, 0);
  } catch (error) {
    if (!(error instanceof ObjectError)) throw error;
    return printUntyped(bytes);
  }
}

function printTyped(btf: Btf, id: number, bytes: Uint8Array, depth: number): string {
  const type = btf.resolve(id);
  const size = btf.findSize(id);
  if (size === undefined || size > bytes.length || depth > MAX_DEPTH) return printUntyped(bytes);
  const own = bytes.subarray(0, size);
  switch (type.kind) {
    case "int":
      return printInteger(type, own);
    case "enum": {
      const value = numberOf(own, type.isSigned);
      return type.values.get(value) ?? type.values.get(BigInt.asIntN(size * 8, value)) ?? `${value}`;
    }
    case "pointer":
      return `0x${numberOf(own, false).toString(16)}`;
    case "float":
      return printFloat(own);
    case "array":
      return printArray(btf, type, own, depth);
    case "struct":
    case "union":
      return `{${printParts(type.members.map((member) => () => printMember(btf, member, own, depth)))}}`;
    default:
      return printUntyped(own);
  }
}

function printInteger(type: Extract<BtfType, { kind: "int" }>, bytes: Uint8Array): string {
  const value = numberOf(bytes, type.encoding === "signed");
  return type.encoding === "bool" && value <= 1n ? `${value === 1n}` : `${value}`;
}

function printArray(
  btf: Btf,
  type: Extract<BtfType, { kind: "array" }>,
  bytes: Uint8Array,
  depth: number,
): string {
  const element = btf.resolve(type.of);
  // `char` is a signed or plain number of one byte, u8 an unsigned one.
  if (element.kind === "int" && element.sizeBytes === 1 && element.name === "char") {
    const text = printString(bytes);
    if (text !== undefined) return text;
  }
  const stride = btf.findSize(type.of) ?? 0;
  const elements = Array.from(
    { length: Math.min(type.count, MAX_PARTS + 1) },
    (_, i) => () => printTyped(btf, type.of, bytes.subarray(i * stride, (i + 1) * stride), depth + 1),
  );
  return `[${printParts(elements)}]`;
}

function printMember(btf: Btf, member: BtfMember, bytes: Uint8Array, depth: number): string {
  const name = member.name === "" ? "" : `${member.name}: `;
  if (member.bitSize === 0)
    return name + printTyped(btf, member.type, bytes.subarray(member.bitOffset >> 3), depth + 1);
  const type = btf.resolve(member.type);
  const all = numberOf(bytes.subarray(member.bitOffset >> 3, (member.bitOffset >> 3) + 9), false);
  const bits = BigInt.asUintN(member.bitSize, all >> BigInt(member.bitOffset & 7));
  const isSigned = type.kind === "int" && type.encoding === "signed";
  return `${name}${isSigned ? BigInt.asIntN(member.bitSize, bits) : bits}`;
}

function printParts(parts: readonly (() => string)[]): string {
  const shown = parts.slice(0, MAX_PARTS).map((print) => print());
  return (parts.length > MAX_PARTS ? [...shown, "..."] : shown).join(", ");
}

/** In quotes up to the first NUL; undefined if it is no text. */
function printString(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  const text = bytes.subarray(0, end < 0 ? bytes.length : end);
  if (text.some((byte) => byte < 0x20 || byte > 0x7e)) return undefined;
  return JSON.stringify(String.fromCharCode(...text));
}

function printFloat(bytes: Uint8Array): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length === 4) return `${view.getFloat32(0, true)}`;
  return bytes.length === 8 ? `${view.getFloat64(0, true)}` : printHex(bytes);
}

function printUntyped(bytes: Uint8Array): string {
  const isNumber = [1, 2, 4, 8].includes(bytes.length);
  return isNumber ? `${numberOf(bytes, false)}` : printHex(bytes);
}

export function printHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

/** Little endian. */
function numberOf(bytes: Uint8Array, isSigned: boolean): bigint {
  let value = 0n;
  for (const byte of bytes.toReversed()) value = (value << 8n) | BigInt(byte);
  return isSigned ? BigInt.asIntN(bytes.length * 8, value) : value;
}
