/**
 * One map as section .maps defines it: by the members of a type.
 *
 *     struct { __uint(type, 1); __uint(max_entries, 64); __type(key, u32); __type(value, u64); } counts SEC(".maps");
 *
 * `__uint(n, x)` is a pointer to an array of x elements, `__type(n, t)` a pointer to t, `__array(values, t)` an array of
 * pointers to t, and `__ulong(n, x)` an enum whose one value is x.
 */
import { findMapKindName } from "../map-kinds.ts";
import type { MapKind, MapSpec } from "../program.ts";
import type { Btf, BtfMember } from "./btf.ts";
import { checkMapFlags, type MapAccess } from "./map-flags.ts";
import { fail } from "./object-error.ts";

export interface MapDefinition {
  /** For a ring buffer `valueBytes` is 0 and `maxEntries` 1: the records that programs send decide (`fitRings`). */
  readonly spec: MapSpec;
  /** Size of a ring buffer as the object asks for it. */
  readonly ringBytes: number | undefined;
  readonly access: MapAccess;
  /** BTF types; undefined where only sizes are known. A ring buffer may name the type of its records as its value. */
  readonly keyType: number | undefined;
  readonly valueType: number | undefined;
  /** Where `values` lie in the map's own variable: what initial values refer to. */
  readonly valuesOffset: number | undefined;
}

const supportedKinds: ReadonlySet<string> = new Set<MapKind>([
  "array",
  "hash",
  "lru_hash",
  "percpu_array",
  "percpu_hash",
  "lru_percpu_hash",
  "ringbuf",
  "perf_event_array",
  "stack_trace",
  "queue",
  "stack",
  "prog_array",
  "array_of_maps",
  "hash_of_maps",
  "bloom_filter",
]);

/** Members that this reads; libbpf refuses others, too. */
const knownNumbers: ReadonlySet<string> = new Set([
  "type",
  "max_entries",
  "map_flags",
  "key_size",
  "value_size",
  "map_extra",
  "numa_node",
  "pinning",
]);

/** libbpf gives every processor so much for the records of a perf event array unless told otherwise. */
const PERF_BYTES = 1 << 20;
const MAX_STACK_FRAMES = 127;

const keyless: ReadonlySet<MapKind> = new Set(["ringbuf", "queue", "stack", "bloom_filter"]);
const arrays: ReadonlySet<MapKind> = new Set([
  "array",
  "percpu_array",
  "perf_event_array",
  "prog_array",
  "array_of_maps",
  "stack_trace",
]);

/** Throws ObjectError. `type` is the type of the variable or of what `values` point to. */
export function readMapDefinition(
  btf: Btf,
  name: string,
  type: number,
  notes: string[],
  isInner = false,
): MapDefinition {
  const definition = btf.resolve(type);
  if (definition.kind !== "struct") fail(`map ${name}: its definition is no struct`);
  const members = definition.members;
  const numbers = new Map<string, number>();
  const types = new Map<string, number>();
  let values: BtfMember | undefined;
  for (const member of members) {
    if (member.name === "key" || member.name === "value")
      types.set(member.name, pointedType(btf, name, member));
    else if (member.name === "values") values = member;
    else if (knownNumbers.has(member.name)) numbers.set(member.name, numberOf(btf, name, member));
    else fail(`map ${name}: there is no attribute ${member.name}`);
  }
  const number = (member: string) => numbers.get(member) ?? 0;
  const kind = kindOf(name, number("type"));
  if (number("pinning") !== 0)
    notes.push(`map ${name}: pinning is ignored: maps live as long as the session`);
  const access = checkMapFlags(name, kind, number("map_flags"));
  const sizes = {
    keyBytes: sizeOf(btf, name, "key", types, numbers),
    valueBytes: sizeOf(btf, name, "value", types, numbers),
  };
  const inner = innerOf(btf, name, kind, values, isInner);
  const spec: MapSpec = {
    name,
    kind,
    ...fitSizes(name, kind, sizes, types.has("value")),
    maxEntries: kind === "ringbuf" || kind === "perf_event_array" ? 1 : number("max_entries"),
    isReadOnly: access.isReadOnly,
    ...(access.isWriteOnly ? { isWriteOnly: true } : {}),
    ...(inner === undefined ? {} : { inner }),
    ...(kind === "bloom_filter" ? { hashFunctions: hashFunctions(name, number("map_extra")) } : {}),
  };
  if (kind !== "bloom_filter" && number("map_extra") !== 0)
    fail(`map ${name}: map_extra has no meaning for a map of kind ${kind}`);
  if (spec.maxEntries === 0) fail(`map ${name}: max_entries is 0`);
  return {
    spec,
    ringBytes: ringBytes(name, kind, number("max_entries")),
    access,
    keyType: types.get("key"),
    valueType: types.get("value"),
    valuesOffset: values === undefined ? undefined : values.bitOffset / 8,
  };
}

function kindOf(name: string, number: number): MapKind {
  const kind = findMapKindName(number) ?? `${number}`;
  if (number === 0) fail(`map ${name}: it does not say of which type it is`);
  if (!supportedKinds.has(kind)) fail(`map ${name}: kind ${kind} is not supported`);
  return kind as MapKind;
}

function sizeOf(
  btf: Btf,
  name: string,
  what: "key" | "value",
  types: ReadonlyMap<string, number>,
  numbers: ReadonlyMap<string, number>,
): number {
  const stated = numbers.get(`${what}_size`);
  const type = types.get(what);
  if (type === undefined) return stated ?? 0;
  const size = btf.findSize(type);
  if (size === undefined) fail(`map ${name}: its ${what} has no size`);
  if (stated !== undefined && stated !== size)
    fail(`map ${name}: its ${what} has ${size} bytes, and ${what}_size says ${stated}`);
  return size;
}

/** The kernel's rules for keys and values of each kind. */
function fitSizes(
  name: string,
  kind: MapKind,
  sizes: { readonly keyBytes: number; readonly valueBytes: number },
  hasValueType: boolean,
): { readonly keyBytes: number; readonly valueBytes: number } {
  const { keyBytes, valueBytes } = sizes;
  if (keyless.has(kind) && keyBytes !== 0) fail(`map ${name}: a map of kind ${kind} has no key`);
  switch (kind) {
    case "ringbuf":
      if (valueBytes !== 0 && !hasValueType)
        fail(`map ${name}: a ring buffer has no value_size; its records are as large as programs send them`);
      return { keyBytes: 0, valueBytes: 0 };
    case "perf_event_array":
      // Key and value are an index and a descriptor, which programs do not see.
      return { keyBytes: 4, valueBytes: 0 };
    case "prog_array":
    case "array_of_maps":
    case "hash_of_maps":
      if (valueBytes !== 0 && valueBytes !== 4)
        fail(`map ${name}: the value of a map of kind ${kind} has 4 bytes, not ${valueBytes}`);
      if (kind === "hash_of_maps") {
        if (keyBytes === 0) fail(`map ${name}: it has no key`);
        return { keyBytes, valueBytes: 4 };
      }
      if (keyBytes !== 0 && keyBytes !== 4)
        fail(`map ${name}: the key of an array has 4 bytes, not ${keyBytes}`);
      return { keyBytes: 4, valueBytes: 4 };
    case "stack_trace":
      if (keyBytes !== 4) fail(`map ${name}: the key of a stack trace has 4 bytes, not ${keyBytes}`);
      if (valueBytes < 8 || valueBytes % 8 !== 0 || valueBytes > MAX_STACK_FRAMES * 8)
        fail(
          `map ${name}: the value of a stack trace has 8 bytes for each of at most ${MAX_STACK_FRAMES} frames, not ${valueBytes}`,
        );
      return { keyBytes, valueBytes };
    default:
      if (arrays.has(kind) && keyBytes !== 4)
        fail(`map ${name}: the key of an array has 4 bytes, not ${keyBytes}`);
      if (!keyless.has(kind) && keyBytes === 0) fail(`map ${name}: it has no key`);
      if (valueBytes === 0) fail(`map ${name}: it has no value`);
      return { keyBytes, valueBytes };
  }
}

function ringBytes(name: string, kind: MapKind, maxEntries: number): number | undefined {
  if (kind === "perf_event_array") return PERF_BYTES;
  if (kind !== "ringbuf") return undefined;
  if (maxEntries === 0) fail(`map ${name}: max_entries is 0`);
  if ((maxEntries & (maxEntries - 1)) !== 0 || maxEntries % 4096 !== 0)
    fail(`map ${name}: max_entries ${maxEntries} is no power of two of at least 4096 bytes`);
  return maxEntries;
}

function hashFunctions(name: string, extra: number): number {
  if (extra > 15) fail(`map ${name}: map_extra ${extra}: a bloom filter has at most 15 hash functions`);
  return extra === 0 ? 5 : extra;
}

/** What every inner map of a map of maps is like. */
function innerOf(
  btf: Btf,
  name: string,
  kind: MapKind,
  values: BtfMember | undefined,
  isInner: boolean,
): MapSpec | undefined {
  const holdsMaps = kind === "array_of_maps" || kind === "hash_of_maps";
  if (values === undefined)
    return holdsMaps
      ? fail(`map ${name}: it does not say what its inner maps are: __array(values, ...)`)
      : undefined;
  if (!holdsMaps && kind !== "prog_array")
    fail(`map ${name}: a map of kind ${kind} has no values of its definition's`);
  const array = btf.resolve(values.type);
  const element = array.kind === "array" ? btf.resolve(array.of) : undefined;
  if (element?.kind !== "pointer") fail(`map ${name}: values is no array of pointers`);
  if (!holdsMaps) return undefined;
  if (isInner) fail(`map ${name}: its inner maps are maps of maps`);
  const inner = readMapDefinition(btf, `${name}.inner`, element.to, [], true);
  return inner.spec;
}

function pointedType(btf: Btf, map: string, member: BtfMember): number {
  const type = btf.resolve(member.type);
  return type.kind === "pointer" ? type.to : fail(`map ${map}: ${member.name} is no pointer to a type`);
}

function numberOf(btf: Btf, map: string, member: BtfMember): number {
  const type = btf.resolve(member.type);
  if (type.kind === "enum") {
    const [value] = type.values.keys();
    if (value !== undefined) return Number(BigInt.asUintN(type.sizeBytes * 8, value));
  }
  const array = type.kind === "pointer" ? btf.resolve(type.to) : undefined;
  return array?.kind === "array" ? array.count : fail(`map ${map}: ${member.name} is no number`);
}
