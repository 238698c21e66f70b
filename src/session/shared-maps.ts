/**
 * The maps of one session in the memory that its targets share with the tracer: where each lies, and access to them.
 *
 *     0    counters: one 64-bit word each
 *     64   the maps, one after another, each at a multiple of 64
 */

import type { MapSpec } from "../bpf/index.ts";
import { layoutMap, type OpenedMap, openMap, RingConsumer, sharedMemoryOf } from "../bpf/maps/index.ts";

/** Return probes that found no free entry in the table of return addresses. */
export const MISSED_RETURNS_OFFSET = 0;
const COUNTER_BYTES = 64;

export interface SharedMapsLayout {
  readonly offsets: readonly number[];
  readonly totalBytes: number;
}

export function layoutSharedMaps(specs: readonly MapSpec[]): SharedMapsLayout {
  let at = COUNTER_BYTES;
  const offsets = specs.map((spec) => {
    const offset = at;
    at += layoutMap(spec).totalBytes;
    return offset;
  });
  const PAGE = 4096;
  return { offsets, totalBytes: Math.ceil(at / PAGE) * PAGE };
}

export class SharedMaps {
  readonly maps: readonly OpenedMap[];
  /** Readers of ring buffers, by index of the map. */
  readonly rings: ReadonlyMap<number, RingConsumer>;
  readonly #counters: BigInt64Array;

  constructor(specs: readonly MapSpec[], layout: SharedMapsLayout, buffer: ArrayBuffer) {
    const memory = sharedMemoryOf(buffer);
    this.#counters = new BigInt64Array(buffer, 0, COUNTER_BYTES / 8);
    this.maps = specs.map((spec, index) => openMap(spec, memory, layout.offsets[index]!));
    const nowMs = () => performance.now();
    this.rings = new Map(
      specs.flatMap((spec, index) => {
        const ring = layoutMap(spec);
        if (ring.kind !== "ringbuf") return [];
        return [[index, new RingConsumer(ring, memory, layout.offsets[index]!, { nowMs })]];
      }),
    );
  }

  /** Reader of the first ring buffer, if there is one. */
  get ring(): RingConsumer | undefined {
    return this.rings.values().next().value;
  }

  get missedReturns(): bigint {
    return Atomics.load(this.#counters, MISSED_RETURNS_OFFSET / 8);
  }
}
