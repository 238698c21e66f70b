/** Opens a map that lies in shared memory. */
import type { MapSpec } from "../program.ts";
import { ArrayMap } from "./array-map.ts";
import { HashMap } from "./hash-map.ts";
import { layoutMap } from "./layout.ts";
import { RingMap } from "./ring-map.ts";
import type { SharedMemory } from "./shared-memory.ts";

export type OpenedMap = ArrayMap | HashMap | RingMap;

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
    case "hash":
      return new HashMap(spec, layout, memory, byteOffset);
    case "ringbuf":
      return new RingMap(spec, layout, memory, byteOffset);
    default:
      return layout satisfies never;
  }
}
