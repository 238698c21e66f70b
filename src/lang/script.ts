/**
 * A compiled script: plain data that says what to run where, and how to read what comes out.
 */
import type { Bundle } from "../bpf/index.ts";
import type { AttachPoint } from "./attach-point.ts";
import type { FormatPart } from "./format.ts";
import type { AggregateName } from "./types.ts";
import type { ValueType } from "./value-type.ts";

export interface Script {
  /** The maps of `maps` come first, in that order; then those of the code itself (ring buffer, zeros, exit flag). */
  readonly bundle: Bundle;
  /** By name, in the order of their characters. */
  readonly maps: readonly ScriptMap[];
  readonly probes: readonly ScriptProbe[];
  /** By event id, which is the first u64 of a record. */
  readonly events: readonly ScriptEvent[];
  /** Index of the ring buffer in `bundle.maps`; undefined if nothing is ever sent. */
  readonly ringMap: number | undefined;
  /**
   * Index of an array map with one u64: not 0 once `exit()` was called but found no room in the ring. Undefined if
   * there is no `exit()`.
   */
  readonly exitMap: number | undefined;
  /**
   * Index of the map that stands for the account of a hit's attach point: its storage is another for each of them. Undefined
   * if programs keep no accounts.
   */
  readonly accountMap: number | undefined;
}

/** One map with a name in the script. */
export interface ScriptMap {
  /** With the `@`. */
  readonly name: string;
  /** Index in `bundle.maps`. */
  readonly map: number;
  /** Empty for a map without keys, which is an array map with one element. */
  readonly keys: readonly ValueType[];
  readonly value: MapValue;
  /**
   * Programs that do nothing else with this count than `@ = count()` first thing in every hit: they do not touch the map, but
   * the accounts of their attach points are copies of its value.
   */
  readonly countedBy: readonly number[];
}

export type MapValue =
  /** In a map without keys the value is followed by a u64 that is not 0 once the map was assigned. */
  { readonly kind: "plain"; readonly type: ValueType } | ShardedValue;

/** Collected in `shards` copies, `strideBytes` apart, each of which some processors write. */
export interface ShardedValue {
  readonly kind: "sharded";
  readonly fn: AggregateName;
  readonly signed: boolean;
  readonly shards: number;
  readonly strideBytes: number;
  /** Words of 8 bytes in a shard: see shard-layout.ts. */
  readonly words: number;
  /** For lhist. */
  readonly linear?: { readonly min: bigint; readonly max: bigint; readonly step: bigint };
}

/** One action block. */
export interface ScriptProbe {
  readonly attachPoints: readonly AttachPoint[];
  /** The attach points as written, for messages. */
  readonly spec: string;
  /** Index in `bundle.programs`. */
  readonly programIndex: number;
}

/** A value in a record. */
export interface EventField {
  readonly offset: number;
  readonly type: ValueType;
}

export type ScriptEvent =
  | {
      readonly kind: "printf";
      readonly format: readonly FormatPart[];
      /** One per conversion. */
      readonly fields: readonly EventField[];
      readonly recordBytes: number;
    }
  | { readonly kind: "print-value"; readonly field: EventField; readonly recordBytes: number }
  | {
      readonly kind: "print-map";
      /** Index in `Script.maps`. */
      readonly map: number;
      /** 0: all. */
      readonly top: number;
      /** 0 or 1: values as they are. */
      readonly div: bigint;
      readonly recordBytes: number;
    }
  | {
      /** `print(@x[key])`. */
      readonly kind: "print-element";
      readonly map: number;
      readonly keys: readonly EventField[];
      readonly value: EventField;
      readonly recordBytes: number;
    }
  | { readonly kind: "clear" | "zero"; readonly map: number; readonly recordBytes: number }
  /** `format` is a byte string for strftime. */
  | { readonly kind: "time"; readonly format: string; readonly recordBytes: number }
  | {
      readonly kind: "join";
      /** Byte string. */
      readonly delimiter: string;
      /** Strings from `offset`, `argBytes` apart; the first that is empty ends the list. */
      readonly offset: number;
      readonly args: number;
      readonly argBytes: number;
      readonly recordBytes: number;
    }
  | { readonly kind: "exit"; readonly recordBytes: number };
