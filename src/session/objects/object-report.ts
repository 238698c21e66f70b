/** What an object's programs have collected: its maps and globals with the types that the object has of them. */
import {
  type BpfObject,
  type BtfValue,
  decodeBtfValue,
  findRecordType,
  type ObjectMap,
  printBtfValue,
} from "../../bpf/object/index.ts";
import type { SharedMaps } from "../attach/shared-maps.ts";

/** Maps that libbpf's headers define for themselves. */
const OWN_MAPS = "__bpf_usdt_";

/** One map as it is shown. */
export type MapReport =
  | {
      readonly kind: "globals";
      readonly section: string;
      readonly variables: readonly { readonly name: string; readonly value: BtfValue }[];
    }
  | {
      readonly kind: "entries";
      readonly map: ObjectMap["spec"];
      /** In the order of their keys. An array's elements that are all zero are left out. */
      readonly entries: readonly { readonly key: BtfValue; readonly value: ReportedValue }[];
    }
  /** A queue or a stack, the next first. */
  | { readonly kind: "list"; readonly map: ObjectMap["spec"]; readonly values: readonly BtfValue[] }
  | {
      readonly kind: "stacks";
      readonly map: ObjectMap["spec"];
      readonly stacks: readonly { readonly id: number; readonly frames: readonly string[] }[];
    };

export type ReportedValue =
  | { readonly kind: "value"; readonly value: BtfValue }
  /** One of each processor: the sum of numbers, or those copies of anything else that are not all zero. */
  | { readonly kind: "sum"; readonly value: BtfValue }
  | { readonly kind: "copies"; readonly values: readonly BtfValue[] }
  /** The name of a map or of a program. */
  | { readonly kind: "named"; readonly text: string };

export interface ReportInput {
  readonly object: BpfObject;
  readonly maps: SharedMaps;
  /** An address of a target with its symbol. */
  readonly describe: (at: bigint) => string;
}

/** The value of a record that was sent to a ring of the object. */
export function recordValue(object: BpfObject, map: number, record: Uint8Array): BtfValue {
  const type = findRecordType(object, map, record.length);
  return type === undefined ? { kind: "bytes", bytes: record } : decodeBtfValue(object.btf, type, record);
}

/** All maps that hold something to be shown, in the order of the object. */
export function reportMaps(input: ReportInput): MapReport[] {
  return input.object.maps.flatMap((map, index) => {
    const report =
      map.isHidden || map.spec.name.startsWith(OWN_MAPS) ? undefined : reportMap(input, map, index);
    return report === undefined ? [] : [report];
  });
}

function reportMap(input: ReportInput, map: ObjectMap, index: number): MapReport | undefined {
  const { btf } = input.object;
  const { spec } = map;
  const opened = input.maps.maps[index];
  if (opened === undefined) return undefined;
  if (map.variables !== undefined)
    return opened.kind === "array" ? reportGlobals(btf, map, opened) : undefined;
  const keyed = (rows: readonly { readonly key: Uint8Array; readonly value: ReportedValue }[]) =>
    reportEntries(
      spec,
      rows.map(({ key, value }) => ({ key: decodeBtfValue(btf, map.keyType, key), value })),
    );
  switch (opened.kind) {
    case "array":
    case "hash": {
      const entries = [...opened.entries()].filter(({ value }) => opened.kind === "hash" || isSet(value));
      return keyed(
        entries.map(({ key, value }) => ({
          key,
          value: { kind: "value", value: decodeBtfValue(btf, map.valueType, value) },
        })),
      );
    }
    case "percpu_array":
    case "percpu_hash": {
      const entries = [...opened.entries()].filter(
        ({ values }) => opened.kind === "percpu_hash" || values.some(isSet),
      );
      return keyed(
        entries.map(({ key, values }) => ({ key, value: joinCopies(btf, map.valueType, values) })),
      );
    }
    case "queue":
      return {
        kind: "list",
        map: spec,
        values: opened.values().map((value) => decodeBtfValue(btf, map.valueType, value)),
      };
    case "stack_trace":
      return {
        kind: "stacks",
        map: spec,
        stacks: [...opened.entries()].map(({ id, addresses }) => ({
          id,
          frames: addresses.map(input.describe),
        })),
      };
    case "prog_array":
    case "array_of_maps":
    case "hash_of_maps":
      return reportSlots(input.object, map);
    // A filter cannot be read, and records have been shown as they came.
    case "bloom_filter":
    case "ringbuf":
      return undefined;
    default:
      return opened satisfies never;
  }
}

function reportGlobals(
  btf: BpfObject["btf"],
  { spec, variables }: ObjectMap,
  opened: { read(index: number): Uint8Array | undefined },
): MapReport | undefined {
  const bytes = opened.read(0);
  if (spec.isReadOnly === true || bytes === undefined) return undefined;
  return {
    kind: "globals",
    section: spec.name,
    variables: variables!.map(({ name, offset, sizeBytes, type }) => ({
      name,
      value: decodeBtfValue(btf, type, bytes.subarray(offset, offset + sizeBytes)),
    })),
  };
}

/** Programs and maps cannot change what stands in such a map, so the object knows it. */
function reportSlots({ maps }: BpfObject, { spec, slots }: ObjectMap): MapReport {
  return reportEntries(
    spec,
    slots.map(({ index, target }) => ({
      key: { kind: "integer", value: BigInt(index) },
      value: {
        kind: "named",
        text: target.kind === "program" ? target.name : maps[target.map]!.spec.name,
      },
    })),
  );
}

function reportEntries(
  map: ObjectMap["spec"],
  rows: readonly { readonly key: BtfValue; readonly value: ReportedValue }[],
): MapReport {
  return { kind: "entries", map, entries: sortByKey(rows) };
}

/** What programs have counted on each processor is one number. */
function joinCopies(
  btf: BpfObject["btf"],
  type: number | undefined,
  copies: readonly Uint8Array[],
): ReportedValue {
  const values = copies.map((copy) => decodeBtfValue(btf, type, copy));
  let sum = 0n;
  for (const value of values) {
    if (value.kind !== "integer")
      return {
        kind: "copies",
        values: values.filter((_, index) => isSet(copies[index]!)),
      };
    sum += value.value;
  }
  return { kind: "sum", value: { kind: "integer", value: sum } };
}

function isSet(value: Uint8Array): boolean {
  return value.some((byte) => byte !== 0);
}

/** As people order them: numbers in text by their value. */
function sortByKey<T extends { readonly key: BtfValue }>(rows: readonly T[]): T[] {
  return rows
    .map((row) => ({ row, text: printBtfValue(row.key) }))
    .sort((a, b) => a.text.localeCompare(b.text, "en", { numeric: true }))
    .map(({ row }) => row);
}
