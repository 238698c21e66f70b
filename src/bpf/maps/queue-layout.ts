/**
 * Queues and stacks: an array of cells that name nodes, and a state that one word names.
 *
 *     header       0 state word   64 nodes: free list, used   80 records: free list, used
 *     cells        a word each: the node at this position
 *     records      0 u32 position of the oldest, u32 count   8 cell word before   16 cell word after   24 free link
 *     nodes        the value; in a free node the first word is the free link
 *
 * The state is a record that never changes while the state word names it (after N. Shafiei, "Non-blocking
 * array-based algorithms for stacks and queues", 2009). Every operation makes a new record and exchanges the state
 * word; that exchange is the moment at which it happens. A push leaves the write of its cell to whoever comes next:
 * the record says how the cell was and how it will be, and the write is an exchange too, so that it is done once.
 *
 * Nobody waits: who finds the write undone does it. A thread that dies leaves a whole state behind and loses
 * the node and the record that it has in its hands, no more. What was read from a record, cell or node counts only if
 * the state word is unchanged afterwards. There are some more nodes and records than entries, for those on their way.
 */
import type { MapSpec } from "../program.ts";
import { CACHE_LINE_BYTES, MAX_ELEMENTS_OFFSET, MAX_POOL_BYTES, roundUp } from "./layout-sizes.ts";
import type { PoolLayout } from "./tagged-words.ts";

export interface QueueLayout {
  readonly kind: "queue";
  readonly totalBytes: number;
  /** Whether the youngest comes out first. */
  readonly isStack: boolean;
  readonly nodes: PoolLayout;
  readonly records: PoolLayout;
}

export const QUEUE_STATE = 0;
export const QUEUE_CELLS = 128;
export const RECORD_BOUNDS = 0;
export const RECORD_CELL_BEFORE = 8;
/** 0: there is nothing to write. */
export const RECORD_CELL_AFTER = 16;
const RECORD_LINK = 24;
const RECORD_BYTES = 32;
const IN_FLIGHT = 64;

export function layoutQueue(spec: MapSpec): QueueLayout {
  const count = spec.maxEntries + IN_FLIGHT;
  const recordsOffset = roundUp(QUEUE_CELLS + spec.maxEntries * 8, CACHE_LINE_BYTES);
  const nodesOffset = roundUp(recordsOffset + count * RECORD_BYTES, CACHE_LINE_BYTES);
  const stride = roundUp(spec.valueBytes, 8);
  const totalBytes = roundUp(nodesOffset + count * stride, CACHE_LINE_BYTES);
  if (totalBytes > MAX_POOL_BYTES || nodesOffset > MAX_ELEMENTS_OFFSET)
    throw new RangeError(
      `lay out map ${spec.name}: ${totalBytes} bytes exceed ${MAX_POOL_BYTES}, or ${spec.maxEntries} entries are too many`,
    );
  const pool = (header: number, offset: number, elementBytes: number, link: number): PoolLayout => ({
    free: header,
    used: header + 8,
    elementsOffset: offset,
    stride: elementBytes,
    poolBytes: count * elementBytes,
    region: { offset, lenBytes: count * elementBytes },
    link,
  });
  return {
    kind: "queue",
    totalBytes,
    isStack: spec.kind === "stack",
    nodes: pool(64, nodesOffset, stride, 0),
    records: pool(80, recordsOffset, RECORD_BYTES, RECORD_LINK),
  };
}
