/**
 * Bytes of records, keys and map values to values. Pure, and safe on any bytes: what is cut off reads as 0.
 */
import type { EventField, ScriptEvent, ScriptMap, ShardedValue } from "./script.ts";
import { extremeMask, findMarkWord, MARK_ADDED, MARK_ZEROED } from "./shard-layout.ts";
import type { ValueType } from "./value-type.ts";
import { valueTypeBytes } from "./value-type.ts";

/** A value as it was stored; names of symbols and probes are looked up by the caller. */
export type DecodedValue =
  /** Signed as its type says. */
  | { readonly kind: "integer"; readonly value: bigint; readonly signed: boolean }
  | { readonly kind: "pointer"; readonly address: bigint }
  /** Without the end mark. */
  | { readonly kind: "string"; readonly bytes: Uint8Array }
  | { readonly kind: "buffer"; readonly bytes: Uint8Array }
  | { readonly kind: "symbol"; readonly address: bigint }
  /** The attach cookie, for the probe's name or that of the function that it is attached to. */
  | { readonly kind: "probe"; readonly id: bigint; readonly shows: "probe" | "function" }
  | { readonly kind: "timestamp"; readonly ns: bigint; readonly format: string }
  | { readonly kind: "tuple"; readonly elements: readonly DecodedValue[] };

/** A value of `type` at `offset`. */
export function decodeValue(bytes: Uint8Array, offset: number, type: ValueType): DecodedValue {
  switch (type.kind) {
    case "integer": {
      const value = wordAt(bytes, offset);
      return {
        kind: "integer",
        value: type.signed ? BigInt.asIntN(64, value) : value,
        signed: type.signed,
      };
    }
    case "pointer":
    case "symbol":
      return { kind: type.kind, address: wordAt(bytes, offset) };
    case "probe":
      return { kind: "probe", id: wordAt(bytes, offset), shows: type.shows };
    case "timestamp":
      return { kind: "timestamp", ns: wordAt(bytes, offset), format: type.format };
    case "string":
      return { kind: "string", bytes: stringAt(bytes, offset, type.sizeBytes) };
    case "buffer": {
      const length = wordAt(bytes, offset);
      const count = length < BigInt(type.sizeBytes) ? Number(length) : type.sizeBytes;
      return { kind: "buffer", bytes: bytes.slice(offset + 8, offset + 8 + count) };
    }
    case "tuple": {
      let at = offset;
      const elements = type.elements.map((element) => {
        const value = decodeValue(bytes, at, element);
        at += valueTypeBytes(element);
        return value;
      });
      return { kind: "tuple", elements };
    }
  }
}

/** The id of the event that a record is. */
export function decodeEventId(record: Uint8Array): bigint {
  return wordAt(record, 0);
}

/** The values of a record's fields. */
export function decodeFields(record: Uint8Array, fields: readonly EventField[]): DecodedValue[] {
  return fields.map((field) => decodeValue(record, field.offset, field.type));
}

/** The strings of a join() record. */
export function decodeJoin(record: Uint8Array, event: ScriptEvent & { readonly kind: "join" }): Uint8Array[] {
  const strings: Uint8Array[] = [];
  for (let i = 0; i < event.args; i++) {
    const bytes = stringAt(record, event.offset + i * event.argBytes, event.argBytes);
    if (bytes.length === 0) break;
    strings.push(bytes);
  }
  return strings;
}

/** The parts of a map's key. */
export function decodeKey(key: Uint8Array, map: ScriptMap): DecodedValue[] {
  let offset = 0;
  return map.keys.map((type) => {
    const value = decodeValue(key, offset, type);
    offset += valueTypeBytes(type);
    return value;
  });
}

/** What a map's value holds, with the shards put together. */
export type DecodedMapValue =
  | { readonly kind: "plain"; readonly value: DecodedValue }
  | { readonly kind: "count" | "sum"; readonly value: bigint; readonly signed: boolean }
  | { readonly kind: "min" | "max"; readonly value: bigint; readonly signed: boolean }
  | {
      readonly kind: "avg" | "stats";
      readonly count: bigint;
      readonly total: bigint;
      readonly signed: boolean;
    }
  /** `counts` by bucket: see shard-layout.ts. */
  | { readonly kind: "hist"; readonly counts: readonly bigint[] }
  | {
      readonly kind: "lhist";
      readonly counts: readonly bigint[];
      readonly min: bigint;
      readonly max: bigint;
      readonly step: bigint;
    };

/**
 * A map's value from the bytes of the same element in one or several copies of the map (one per target). Undefined
 * if nothing was ever stored there, which only a map without keys can say; a count then is 0 instead.
 */
export function decodeMapValue(copies: readonly Uint8Array[], map: ScriptMap): DecodedMapValue | undefined {
  const { value } = map;
  if (value.kind === "sharded") return decodeSharded(copies, value, map.keys.length === 0);
  const hasMark = map.keys.length === 0;
  const valueBytes = valueTypeBytes(value.type);
  const assigned = hasMark ? copies.filter((bytes) => wordAt(bytes, valueBytes) !== 0n) : copies;
  const last = assigned.at(-1);
  return last === undefined ? undefined : { kind: "plain", value: decodeValue(last, 0, value.type) };
}

function decodeSharded(
  copies: readonly Uint8Array[],
  value: ShardedValue,
  mayBeEmpty: boolean,
): DecodedMapValue | undefined {
  const shards = copies.flatMap((bytes) =>
    Array.from(
      { length: value.shards },
      (_, shard) =>
        (word: number): bigint =>
          wordAt(bytes, shard * value.strideBytes + word * 8),
    ),
  );
  const { fn, signed } = value;
  const sumOf = (word: number): bigint =>
    BigInt.asUintN(
      64,
      shards.reduce((sum, read) => sum + read(word), 0n),
    );
  const shown = (sum: bigint): bigint => (signed ? BigInt.asIntN(64, sum) : sum);
  const markWord = findMarkWord(value);
  const isMarked = markWord !== undefined && shards.some((read) => read(markWord) !== 0n);
  switch (fn) {
    case "count":
      return { kind: fn, value: sumOf(0), signed: true };
    case "sum":
      if (mayBeEmpty && !isMarked) return undefined;
      return { kind: fn, value: shown(sumOf(0)), signed };
    case "avg":
    case "stats": {
      const count = sumOf(1);
      if (mayBeEmpty && count === 0n && !isMarked) return undefined;
      return { kind: fn, count, total: shown(sumOf(0)), signed };
    }
    case "min":
    case "max": {
      if (mayBeEmpty && !isMarked) return undefined;
      const used = shards.filter((read) => read(markWord!) === BigInt(MARK_ADDED));
      if (used.length === 0) return { kind: fn, value: 0n, signed };
      const word = used.map((read) => read(0)).reduce((most, next) => (next > most ? next : most));
      const number = BigInt.asUintN(64, word ^ extremeMask(fn, signed));
      return { kind: fn, value: shown(number), signed };
    }
    case "hist":
    case "lhist": {
      const counts = Array.from({ length: value.words - 1 }, (_, word) => sumOf(word));
      if (mayBeEmpty && !isMarked && counts.every((count) => count === 0n)) return undefined;
      return fn === "hist" ? { kind: fn, counts } : { kind: fn, counts, ...value.linear! };
    }
  }
}

/** The bytes of an element after `zero(@map)`: 0, but assigned; minimum and maximum begin anew. */
export function zeroedMapValue(map: ScriptMap, valueBytes: number): Uint8Array {
  const bytes = new Uint8Array(valueBytes);
  const { value } = map;
  if (value.kind === "plain") {
    if (map.keys.length === 0) bytes[valueTypeBytes(value.type)] = MARK_ADDED;
    return bytes;
  }
  const markWord = findMarkWord(value);
  if (markWord !== undefined) bytes[markWord * 8] = MARK_ZEROED;
  return bytes;
}

function wordAt(bytes: Uint8Array, offset: number): bigint {
  if (offset + 8 > bytes.length) return 0n;
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(offset, true);
}

function stringAt(bytes: Uint8Array, offset: number, sizeBytes: number): Uint8Array {
  const field = bytes.subarray(offset, offset + sizeBytes);
  const end = field.indexOf(0);
  return field.slice(0, end < 0 ? undefined : end);
}
