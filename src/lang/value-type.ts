/**
 * How values lie in memory: in map keys, map values and event records.
 *
 * Everything is a multiple of 8 bytes and 8-byte aligned, little endian:
 *
 *   integer, symbol, probe, timestamp   8 bytes
 *   string                              its bytes, padded with zeros to a multiple of 8
 *   buffer                              8 bytes: length; then its bytes, padded
 *   tuple                               its elements, one after the other
 */
import type { Type } from "./types.ts";

/** A type of stored values, as plain data for those who read them. */
export type ValueType =
  | { readonly kind: "integer"; readonly signed: boolean }
  | { readonly kind: "pointer" }
  | { readonly kind: "string"; readonly sizeBytes: number }
  | { readonly kind: "buffer"; readonly sizeBytes: number }
  | { readonly kind: "symbol" }
  | { readonly kind: "probe"; readonly shows: "probe" | "function" }
  | { readonly kind: "timestamp"; readonly format: string }
  | { readonly kind: "tuple"; readonly elements: readonly ValueType[] };

export function roundUp8(bytes: number): number {
  return (bytes + 7) & ~7;
}

/** Bytes that a value takes, a multiple of 8. */
export function valueTypeBytes(type: ValueType): number {
  switch (type.kind) {
    case "integer":
    case "pointer":
    case "symbol":
    case "probe":
    case "timestamp":
      return 8;
    case "string":
      return roundUp8(type.sizeBytes);
    case "buffer":
      return 8 + roundUp8(type.sizeBytes);
    case "tuple":
      return type.elements.reduce((sum, element) => sum + valueTypeBytes(element), 0);
  }
}

/** The stored form of an expression's type; undefined for what cannot be stored. */
export function findValueType(type: Type): ValueType | undefined {
  switch (type.kind) {
    case "integer":
      return { kind: "integer", signed: type.signed };
    case "pointer":
      return { kind: "pointer" };
    case "string":
    case "buffer":
    case "symbol":
    case "probe":
    case "timestamp":
      return type;
    case "tuple": {
      const elements = type.elements.map(findValueType);
      if (elements.includes(undefined)) return undefined;
      return { kind: "tuple", elements: elements.filter((element) => element !== undefined) };
    }
    case "unknown":
    case "none":
    case "aggregate":
      return undefined;
  }
}
