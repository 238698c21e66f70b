/**
 * What is printed, as plain data: values, and maps as they were read at one moment.
 *
 * All text in here is byte strings, one UTF-16 unit per byte: programs collect bytes, and widths, precisions and
 * order count bytes. Outputs decode them (UTF-8) when they write. `encodeText` makes one of ordinary text.
 */

/** A single value. */
export type OutputValue =
  /** `value` is within 64 bits, negative only if `signed`. */
  | { readonly kind: "integer"; readonly value: bigint; readonly signed: boolean }
  | { readonly kind: "string"; readonly text: string }
  /** From `buf()`: bytes that are not printable are written as `\x1f`. */
  | { readonly kind: "bytes"; readonly bytes: Uint8Array }
  /** `text` is the name, or the address in hex if it has none. */
  | { readonly kind: "symbol"; readonly address: bigint; readonly text: string }
  | { readonly kind: "probe"; readonly text: string }
  /** From `strftime()`, formatted. */
  | { readonly kind: "timestamp"; readonly text: string }
  | { readonly kind: "tuple"; readonly elements: readonly OutputValue[] };

/** The value of a map or of one of its elements, merged over all processors. */
export type MapValue =
  /** Assigned values, and what count, sum, min and max have come to. */
  | { readonly kind: "plain"; readonly value: OutputValue }
  | { readonly kind: "avg"; readonly count: bigint; readonly total: bigint }
  | { readonly kind: "stats"; readonly count: bigint; readonly total: bigint }
  | Log2Histogram
  | LinearHistogram;

/** Buckets, missing ones are 0: values below 0, then 0, then [2^i, 2^(i+1)) for i from 0 to 63. */
export interface Log2Histogram {
  readonly kind: "hist";
  readonly counts: readonly bigint[];
}

/** Buckets: below min, then one for each step from min, then max and above. */
export interface LinearHistogram {
  readonly kind: "lhist";
  readonly min: bigint;
  readonly max: bigint;
  readonly step: bigint;
  readonly counts: readonly bigint[];
}

export type MapView =
  | {
      readonly kind: "scalar";
      /** With the `@`. */
      readonly name: string;
      readonly valueKind: MapValue["kind"];
      /** Undefined if it was never assigned, or cleared since. */
      readonly value: MapValue | undefined;
    }
  | {
      readonly kind: "keyed";
      readonly name: string;
      readonly valueKind: MapValue["kind"];
      /** In any order. All values have the kind `valueKind`. */
      readonly entries: readonly MapEntry[];
    };

export interface MapEntry {
  readonly keys: readonly OutputValue[];
  readonly value: MapValue;
}

/** Bytes as a byte string. */
export function byteString(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/** Ordinary text as a byte string. */
export function encodeText(text: string): string {
  return isAscii(text) ? text : byteString(new TextEncoder().encode(text));
}

/** The bytes of a byte string. */
export function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(text, (unit) => unit.charCodeAt(0));
}

export function isAscii(text: string): boolean {
  for (let at = 0; at < text.length; at++) if (text.charCodeAt(at) > 0x7f) return false;
  return true;
}
