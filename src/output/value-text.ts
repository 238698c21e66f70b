/** A value as text, as `print` and maps show it. */
import type { MapValue, OutputValue } from "./value.ts";

export function printValue(value: OutputValue): string {
  switch (value.kind) {
    case "integer":
      return String(value.value);
    case "string":
    case "symbol":
    case "probe":
    case "timestamp":
      return value.text;
    case "bytes":
      return printBytes(value.bytes);
    case "tuple":
      return `(${value.elements.map(printValue).join(", ")})`;
  }
}

/** `[1, abc]`; nothing for no keys. */
export function printKeys(keys: readonly OutputValue[]): string {
  return keys.length === 0 ? "" : `[${keys.map(printValue).join(", ")}]`;
}

/** Printable ASCII as it is (the backslash too, as bpftrace does), all else as `\x1f`. */
export function printBytes(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) {
    text += byte >= 0x20 && byte <= 0x7e ? String.fromCharCode(byte) : `\\x${printHexByte(byte)}`;
  }
  return text;
}

export function printHexByte(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}

/** Rounded towards 0; 0 of nothing. */
export function averageOf(value: MapValue & { kind: "avg" | "stats" }): bigint {
  return value.count === 0n ? 0n : value.total / value.count;
}

/** What `print(@x, top, div)` shows of an integer: rounded towards 0. */
export function divideForPrint(value: bigint, div: bigint): bigint {
  return div > 1n ? value / div : value;
}

/** The value with its integer divided; others do not change. */
export function divideValue(value: OutputValue, div: bigint): OutputValue {
  return value.kind === "integer" ? { ...value, value: divideForPrint(value.value, div) } : value;
}
