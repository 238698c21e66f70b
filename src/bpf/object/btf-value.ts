/**
 * Values of maps, globals and records by their BTF type, as plain data, as text (`{size: 16, name: "sh"}`) and as JSON.
 * Without a type, or with one that does not fit the bytes, they are a number if they have the size of one, and else hex.
 */
import type { Btf, BtfMember, BtfType } from "./btf.ts";
import { ObjectError } from "./object-error.ts";

const MAX_DEPTH = 8;
/** Elements of an array and members of a struct that are shown as text. */
const MAX_PARTS = 64;

export type BtfValue =
  | { readonly kind: "integer"; readonly value: bigint }
  | { readonly kind: "bool"; readonly value: boolean }
  /** A value of an enum that has a name. */
  | { readonly kind: "name"; readonly name: string; readonly value: bigint }
  | { readonly kind: "pointer"; readonly address: bigint }
  | { readonly kind: "float"; readonly value: number }
  | { readonly kind: "string"; readonly text: string }
  | { readonly kind: "array"; readonly elements: readonly BtfValue[] }
  /** The name of a member is empty where C has none. */
  | {
      readonly kind: "struct";
      readonly members: readonly { readonly name: string; readonly value: BtfValue }[];
    }
  | { readonly kind: "bytes"; readonly bytes: Uint8Array };

/** Never throws. */
export function decodeBtfValue(btf: Btf | undefined, type: number | undefined, bytes: Uint8Array): BtfValue {
  if (btf === undefined || type === undefined) return decodeUntyped(bytes);
  try {
    return decodeTyped(btf, type, bytes, 0);
  } catch (error) {
    if (!(error instanceof ObjectError)) throw error;
    return decodeUntyped(bytes);
  }
}

export function printBtfValue(value: BtfValue): string {
  switch (value.kind) {
    case "integer":
    case "bool":
    case "float":
      return `${value.value}`;
    case "name":
      return value.name;
    case "pointer":
      return `0x${value.address.toString(16)}`;
    case "string":
      return JSON.stringify(value.text);
    case "array":
      return `[${printParts(value.elements, printBtfValue)}]`;
    case "struct":
      return `{${printParts(value.members, (member) => (member.name === "" ? "" : `${member.name}: `) + printBtfValue(member.value))}}`;
    case "bytes":
      return printHex(value.bytes);
    default:
      return value satisfies never;
  }
}

/** As JSON text. Integers are written with all their digits. */
export function btfValueJson(value: BtfValue): string {
  switch (value.kind) {
    case "integer":
    case "bool":
      return `${value.value}`;
    case "float":
      return JSON.stringify(value.value);
    case "name":
    case "pointer":
    case "bytes":
      return JSON.stringify(printBtfValue(value));
    case "string":
      return JSON.stringify(value.text);
    case "array":
      return `[${value.elements.map(btfValueJson).join(", ")}]`;
    case "struct":
      return `{${membersOf(value)
        .map((member) => `${JSON.stringify(member.name)}: ${btfValueJson(member.value)}`)
        .join(", ")}}`;
    default:
      return value satisfies never;
  }
}

/** Members of members that have no name belong to the struct itself, as in C. */
function membersOf(value: Extract<BtfValue, { kind: "struct" }>): (typeof value.members)[number][] {
  return value.members.flatMap((member) =>
    member.name === "" && member.value.kind === "struct" ? membersOf(member.value) : [member],
  );
}

function decodeTyped(btf: Btf, id: number, bytes: Uint8Array, depth: number): BtfValue {
  const type = btf.resolve(id);
  const size = btf.findSize(id);
  if (size === undefined || size > bytes.length || depth > MAX_DEPTH) return decodeUntyped(bytes);
  const own = bytes.subarray(0, size);
  switch (type.kind) {
    case "int":
      return decodeInteger(type, own);
    case "enum": {
      const value = numberOf(own, type.isSigned);
      const name = type.values.get(value) ?? type.values.get(BigInt.asIntN(size * 8, value));
      return name === undefined ? { kind: "integer", value } : { kind: "name", name, value };
    }
    case "pointer":
      return { kind: "pointer", address: numberOf(own, false) };
    case "float":
      return decodeFloat(own);
    case "array":
      return decodeArray(btf, type, own, depth);
    case "struct":
    case "union":
      return {
        kind: "struct",
        members: type.members.map((member) => ({
          name: member.name,
          value: decodeMember(btf, member, own, depth),
        })),
      };
    default:
      return decodeUntyped(own);
  }
}

function decodeInteger(type: Extract<BtfType, { kind: "int" }>, bytes: Uint8Array): BtfValue {
  const value = numberOf(bytes, type.encoding === "signed");
  return type.encoding === "bool" && value <= 1n
    ? { kind: "bool", value: value === 1n }
    : { kind: "integer", value };
}

function decodeArray(
  btf: Btf,
  type: Extract<BtfType, { kind: "array" }>,
  bytes: Uint8Array,
  depth: number,
): BtfValue {
  const element = btf.resolve(type.of);
  // `char` is a signed or plain number of one byte, u8 an unsigned one.
  if (element.kind === "int" && element.sizeBytes === 1 && element.name === "char") {
    const text = decodeString(bytes);
    if (text !== undefined) return { kind: "string", text };
  }
  const stride = btf.findSize(type.of) ?? 0;
  const count = stride === 0 ? 0 : type.count;
  const elements = Array.from({ length: count }, (_, i) =>
    decodeTyped(btf, type.of, bytes.subarray(i * stride, (i + 1) * stride), depth + 1),
  );
  return { kind: "array", elements };
}

function decodeMember(btf: Btf, member: BtfMember, bytes: Uint8Array, depth: number): BtfValue {
  if (member.bitSize === 0)
    return decodeTyped(btf, member.type, bytes.subarray(member.bitOffset >> 3), depth + 1);
  const type = btf.resolve(member.type);
  const all = numberOf(bytes.subarray(member.bitOffset >> 3, (member.bitOffset >> 3) + 9), false);
  const bits = BigInt.asUintN(member.bitSize, all >> BigInt(member.bitOffset & 7));
  const isSigned = type.kind === "int" && type.encoding === "signed";
  return { kind: "integer", value: isSigned ? BigInt.asIntN(member.bitSize, bits) : bits };
}

function printParts<T>(parts: readonly T[], print: (part: T) => string): string {
  const shown = parts.slice(0, MAX_PARTS).map((part) => print(part));
  return (parts.length > MAX_PARTS ? [...shown, "..."] : shown).join(", ");
}

/** Up to the first NUL; undefined if it is no text. */
function decodeString(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  const text = bytes.subarray(0, end < 0 ? bytes.length : end);
  try {
    const decoded = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(text);
    return [...decoded].some(isControl) ? undefined : decoded;
  } catch {
    return undefined;
  }
}

/** What text does not hold; tabs and newlines it may. */
function isControl(character: string): boolean {
  const code = character.charCodeAt(0);
  return (code < 0x20 && character !== "\t" && character !== "\n") || code === 0x7f;
}

function decodeFloat(bytes: Uint8Array): BtfValue {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length === 4) return { kind: "float", value: view.getFloat32(0, true) };
  return bytes.length === 8 ? { kind: "float", value: view.getFloat64(0, true) } : { kind: "bytes", bytes };
}

function decodeUntyped(bytes: Uint8Array): BtfValue {
  const isNumber = [1, 2, 4, 8].includes(bytes.length);
  return isNumber ? { kind: "integer", value: numberOf(bytes, false) } : { kind: "bytes", bytes };
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
