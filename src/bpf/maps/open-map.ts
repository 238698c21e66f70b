/** Opens a map that lies in shared memory. */
import type { MapSpec } from "../program.ts";
import { ArrayMap } from "./array-map.ts";
import { BloomMap } from "./bloom-map.ts";
import { HashMap } from "./hash-map.ts";
import { layoutMap } from "./layout.ts";
import { PerCpuArrayMap, PerCpuHashMap } from "./percpu-map.ts";
import { QueueMap } from "./queue-map.ts";
import { RingMap } from "./ring-map.ts";
import type { SharedMemory } from "./shared-memory.ts";
import { ArrayOfMaps, HashOfMaps, ProgArrayMap } from "./slots-map.ts";
import { StackTraceMap } from "./stack-trace-map.ts";

/** By `kind`: `hash` are also LRU hash maps, `percpu_hash` also LRU ones, `ringbuf` also perf event arrays, `queue` also stacks. */
export type OpenedMap =
  | ArrayMap
  | PerCpuArrayMap
  | HashMap
  | PerCpuHashMap
  | RingMap
  | QueueMap
  | StackTraceMap
  | BloomMap
  | ProgArrayMap
  | ArrayOfMaps
  | HashOfMaps;

/**
 * The accessor of a map whose storage begins at `byteOffset`, a multiple of 64, in `memory`. Throws RangeError if
 * the storage does not fit. Several accessors of one map, in several threads, work together.
 */
export function openMap(spec: MapSpec, memory: SharedMemory, byteOffset: number): OpenedMap {
  const layout = layoutMap(spec);
  if (byteOffset % 64 !== 0 || byteOffset + layout.totalBytes > memory.bytes.length) {
    throw new RangeError(
      `open map ${spec.name}: ${layout.totalBytes} bytes at offset ${byteOffset} of ${memory.bytes.length}`,
    );
  }
  switch (layout.kind) {
    case "array":
      return new ArrayMap(spec, layout, memory, byteOffset);
    case "percpu_array":
      return new PerCpuArrayMap(spec, layout, memory, byteOffset);
    case "hash":
      if (spec.kind === "hash_of_maps") return new HashOfMaps(spec, layout, memory, byteOffset);
      return layout.copies === undefined
        ? new HashMap(spec, layout, memory, byteOffset)
        : new PerCpuHashMap(spec, layout, memory, byteOffset);
    case "ringbuf":
      return new RingMap(spec, layout, memory, byteOffset);
    case "queue":
      return new QueueMap(spec, layout, memory, byteOffset);
    case "stack_trace":
      return new StackTraceMap(spec, layout, memory, byteOffset);
    case "bloom_filter":
      return new BloomMap(spec, layout, memory, byteOffset);
    case "prog_array":
      return new ProgArrayMap(spec, layout, memory, byteOffset);
    case "array_of_maps":
      return new ArrayOfMaps(spec, layout, memory, byteOffset);
    default:
      return layout satisfies never;
  }
}
