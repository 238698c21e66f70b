/**
 * What the programs of a script share: its maps, its events, and the maps that the generated code needs itself.
 */
import { ACCOUNT_BYTES, type MapSpec } from "../../bpf/index.ts";
import type { Analysis, MapTypes } from "../analysis.ts";
import type { CallExpr } from "../ast.ts";
import type { EventField, MapValue, ScriptEvent, ScriptMap, ShardedValue } from "../script.ts";
import { shardStrideBytes, shardWords } from "../shard-layout.ts";
import { findValueType, type ValueType, valueTypeBytes } from "../value-type.ts";

export interface PlanOptions {
  /** Copies of an aggregated value, a power of two. */
  readonly shards: number;
  /** Entries of a map with keys. */
  readonly maxMapKeys: number;
  /** Memory for the records of the ring buffer. */
  readonly ringBytes: number;
  /** What `elapsed` counts from, in the clock of helper 5. */
  readonly startNs: bigint;
  /** Most bytes of one string of join(), with its end mark. */
  readonly joinArgBytes: number;
  /** Whether programs count what becomes of their hits. */
  readonly accounts: boolean;
}

/** A field of a record before it has an offset. */
export type FieldTypes = readonly ValueType[];

/** Maps of the generated code itself. */
type OwnMap = "ring" | "zeros" | "exit" | "account";

/** The event id lies before the fields. */
const EVENT_ID_BYTES = 8;
const MIN_RING_RECORDS = 64;
const MAX_RING_RECORDS = 65536;

export class ScriptPlan {
  readonly analysis: Analysis;
  readonly options: PlanOptions;
  readonly maps: readonly ScriptMap[];
  readonly events: ScriptEvent[] = [];
  readonly #mapsByName: ReadonlyMap<string, ScriptMap>;
  /** A call that is generated several times (unroll) sends the same event. */
  readonly #eventOfCall = new Map<CallExpr, number>();
  /** Maps of the code itself, in the order of their first use. */
  readonly #ownMaps: OwnMap[] = [];
  #zeroBytes = 0;

  constructor(analysis: Analysis, options: PlanOptions) {
    this.analysis = analysis;
    this.options = options;
    // By name, as they are printed at the end.
    const used = [...analysis.maps.values()]
      .filter((map) => map.value.kind !== "unknown")
      .sort((a, b) => (a.name < b.name ? -1 : 1));
    this.maps = used.map((map, i) => planMap(map, i, options.shards));
    this.#mapsByName = new Map(this.maps.map((map) => [map.name, map]));
  }

  map(name: string): ScriptMap {
    const map = this.#mapsByName.get(name);
    if (!map) throw new Error(`generate bpf: map ${name} has no plan`);
    return map;
  }

  /** Index of the ring buffer. */
  get ring(): number {
    return this.#ownMap("ring");
  }

  /** Index of an array map whose one u64 says that exit() was called. */
  get exitFlag(): number {
    return this.#ownMap("exit");
  }

  /** Index of an array map that holds at least this many zeros, as a source for new map values. */
  zeros(bytes: number): number {
    this.#zeroBytes = Math.max(this.#zeroBytes, bytes);
    return this.#ownMap("zeros");
  }

  /** The id of the event that a call sends; made by the first generation of that call. */
  eventId(call: CallExpr, make: () => ScriptEvent): number {
    const known = this.#eventOfCall.get(call);
    if (known !== undefined) return known;
    const id = this.events.length;
    this.events.push(make());
    this.#eventOfCall.set(call, id);
    return id;
  }

  /** Index of the map whose place is taken by the account of the attach point that a program is compiled for. */
  get account(): number {
    return this.#ownMap("account");
  }

  /** The index of one of the code's own maps, if it is used. */
  findOwnMap(kind: "ring" | "exit" | "account"): number | undefined {
    const index = this.#ownMaps.indexOf(kind);
    return index < 0 ? undefined : this.maps.length + index;
  }

  /** All maps of the bundle; complete once all programs are generated. */
  mapSpecs(): MapSpec[] {
    const own: Readonly<Record<OwnMap, () => MapSpec>> = {
      ring: () => this.#ringSpec(),
      zeros: () => arraySpec("zeros", this.#zeroBytes),
      exit: () => arraySpec("exit", 8),
      account: () => arraySpec("account", ACCOUNT_BYTES),
    };
    return [...this.maps.map((map) => this.#mapSpec(map)), ...this.#ownMaps.map((kind) => own[kind]())];
  }

  #mapSpec(map: ScriptMap): MapSpec {
    const bytes = mapValueBytes(map);
    if (map.keys.length === 0) return arraySpec(map.name, bytes);
    return {
      name: map.name,
      kind: "hash",
      keyBytes: mapKeyBytes(map),
      valueBytes: bytes,
      maxEntries: this.options.maxMapKeys,
    };
  }

  #ringSpec(): MapSpec {
    const recordBytes = Math.max(...this.events.map((event) => event.recordBytes), EVENT_ID_BYTES);
    const fitting = Math.floor(this.options.ringBytes / (recordBytes + 16));
    const records = 2 ** Math.floor(Math.log2(Math.max(1, fitting)));
    return {
      name: "events",
      kind: "ringbuf",
      keyBytes: 0,
      valueBytes: recordBytes,
      maxEntries: Math.min(MAX_RING_RECORDS, Math.max(MIN_RING_RECORDS, records)),
    };
  }

  #ownMap(kind: OwnMap): number {
    let index = this.#ownMaps.indexOf(kind);
    if (index < 0) {
      index = this.#ownMaps.length;
      this.#ownMaps.push(kind);
    }
    return this.maps.length + index;
  }
}

/** Puts fields one after the other behind the event id. */
export function layOutFields(types: FieldTypes): {
  readonly fields: EventField[];
  readonly recordBytes: number;
} {
  const fields: EventField[] = [];
  let offset = EVENT_ID_BYTES;
  for (const type of types) {
    fields.push({ offset, type });
    offset += valueTypeBytes(type);
  }
  return { fields, recordBytes: offset };
}

/** Bytes of a map's key: its parts one after the other. */
export function mapKeyBytes(map: ScriptMap): number {
  return map.keys.reduce((sum, key) => sum + valueTypeBytes(key), 0);
}

/** Bytes of a map's value; a plain value without keys is followed by its "assigned" word. */
export function mapValueBytes(map: ScriptMap): number {
  const { value } = map;
  if (value.kind === "sharded") return value.shards * value.strideBytes;
  return valueTypeBytes(value.type) + (map.keys.length === 0 ? 8 : 0);
}

function planMap(map: MapTypes, index: number, shards: number): ScriptMap {
  const keys = (map.keys ?? []).map((key) => storable(map, findValueType(key)));
  return { name: map.name, map: index, keys, value: planValue(map, shards), countedBy: [] };
}

function planValue(map: MapTypes, shards: number): MapValue {
  if (map.value.kind !== "aggregate") {
    return { kind: "plain", type: storable(map, findValueType(map.value)) };
  }
  const { aggregate } = map.value;
  const sharded: ShardedValue = {
    kind: "sharded",
    fn: aggregate.fn,
    signed: aggregate.signed,
    shards,
    strideBytes: shardStrideBytes(aggregate),
    words: shardWords(aggregate),
    ...(aggregate.linear ? { linear: aggregate.linear } : {}),
  };
  return sharded;
}

function storable(map: MapTypes, type: ValueType | undefined): ValueType {
  if (!type) throw new Error(`generate bpf: map ${map.name} holds what cannot be stored`);
  return type;
}

function arraySpec(name: string, valueBytes: number): MapSpec {
  return { name, kind: "array", keyBytes: 4, valueBytes, maxEntries: 1 };
}
