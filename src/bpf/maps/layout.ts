/**
 * Where everything lies in the memory of a map; one file per family of kinds has the details. Both sides read it: the
 * tracer's accessors in this folder and the routines that the JIT emits. All memory begins as zeros, and a map of
 * zeros is an empty map.
 */
import type { MapKind, MapSpec } from "../program.ts";
import {
  type ArrayLayout,
  layoutArray,
  layoutPerCpuArray,
  layoutSlots,
  type PerCpuArrayLayout,
  type SlotsLayout,
} from "./array-layout.ts";
import { type BloomLayout, layoutBloom } from "./bloom-layout.ts";
import { type HashLayout, layoutHash } from "./hash-layout.ts";
import { isCount, MAX_MAP_BYTES } from "./layout-sizes.ts";
import { layoutQueue, type QueueLayout } from "./queue-layout.ts";
import { layoutRing, type RingLayout } from "./ring-layout.ts";
import { layoutStackTrace, type StackTraceLayout } from "./stack-trace-layout.ts";

export type MapLayout =
  | ArrayLayout
  | PerCpuArrayLayout
  | SlotsLayout
  | HashLayout
  | RingLayout
  | QueueLayout
  | StackTraceLayout
  | BloomLayout;

/** An offset of another map in a map of maps. */
const OFFSET_BYTES = 8;
const MAX_CPUS = 8192;

/** What a key must be: of 4 bytes, of any size but 0, or not there. */
const keys: Readonly<Record<MapKind, "index" | "some" | "none" | "index or none">> = {
  array: "index",
  percpu_array: "index",
  prog_array: "index",
  array_of_maps: "index",
  stack_trace: "index",
  hash: "some",
  lru_hash: "some",
  percpu_hash: "some",
  lru_percpu_hash: "some",
  hash_of_maps: "some",
  perf_event_array: "index or none",
  ringbuf: "none",
  queue: "none",
  stack: "none",
  bloom_filter: "none",
};

/** Sizes and offsets of a map. Throws RangeError for a specification that no map can have. */
export function layoutMap(spec: MapSpec): MapLayout {
  checkSpec(spec);
  const layout = layoutOf(spec);
  if (layout.totalBytes > MAX_MAP_BYTES)
    throw new RangeError(`lay out map ${spec.name}: ${layout.totalBytes} bytes exceed ${MAX_MAP_BYTES}`);
  return layout;
}

function layoutOf(spec: MapSpec): MapLayout {
  switch (spec.kind) {
    case "array":
      return layoutArray(spec);
    case "percpu_array":
      return layoutPerCpuArray(spec, cpusOf(spec));
    case "hash":
    case "lru_hash":
      return layoutHash(spec, spec.valueBytes, undefined);
    case "percpu_hash":
    case "lru_percpu_hash":
      return layoutHash(spec, spec.valueBytes, cpusOf(spec));
    case "hash_of_maps":
      return layoutHash(spec, OFFSET_BYTES, undefined);
    case "prog_array":
    case "array_of_maps":
      return layoutSlots(spec.kind, spec);
    case "ringbuf":
    case "perf_event_array":
      return layoutRing(spec);
    case "queue":
    case "stack":
      return layoutQueue(spec);
    case "stack_trace":
      return layoutStackTrace(spec);
    case "bloom_filter":
      return layoutBloom(spec);
    default:
      return spec.kind satisfies never;
  }
}

function checkSpec(spec: MapSpec): void {
  const wanted = keys[spec.kind];
  const isKeyRight =
    (wanted === "some" && isCount(spec.keyBytes)) ||
    (wanted.startsWith("index") && spec.keyBytes === 4) ||
    (wanted.endsWith("none") && spec.keyBytes === 0);
  if (!isKeyRight)
    throw new RangeError(`lay out map ${spec.name}: key of ${spec.keyBytes} bytes for kind ${spec.kind}`);
  if (!isCount(spec.valueBytes) || (spec.kind === "stack_trace" && spec.valueBytes % 8 !== 0))
    throw new RangeError(`lay out map ${spec.name}: value of ${spec.valueBytes} bytes`);
  if (!isCount(spec.maxEntries)) throw new RangeError(`lay out map ${spec.name}: ${spec.maxEntries} entries`);
}

function cpusOf(spec: MapSpec): number {
  const cpus = spec.cpus ?? 0;
  if (!isCount(cpus) || cpus > MAX_CPUS)
    throw new RangeError(`lay out map ${spec.name}: ${cpus} copies of each value for kind ${spec.kind}`);
  return cpus;
}
