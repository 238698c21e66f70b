/**
 * Ring buffers and perf event arrays: a bounded queue of fixed cells with one reader (after D. Vyukov's bounded
 * queue).
 *
 *     header       0 tail (positions handed out)   64 head (positions read)   128 records dropped
 *     cells        0 state   8 u32 record length   12 u32 flags   16 record
 *
 * Position p uses cell i = p & (cells - 1) in lap p - i. The state of the cell is
 *
 *     p - i        free for position p, or handed out and not committed if tail is above p
 *     p - i + 1    committed
 *
 * and the reader frees it for the next lap by adding `cells - 1`. A record that is never committed keeps
 * its cell: the reader steps over it after a while (it retires the cell), and so do writers in later
 * laps, who know it because the ring is not full and the state is not theirs.
 */
import type { MapSpec } from "../program.ts";
import { CACHE_LINE_BYTES, powerOfTwo, roundUp } from "./layout-sizes.ts";

export interface RingLayout {
  readonly kind: "ringbuf";
  readonly totalBytes: number;
  /** A power of two, at least 2. */
  readonly cells: number;
  /** Distance of cells. */
  readonly cellBytes: number;
}

export const RING_TAIL = 0;
export const RING_HEAD = 64;
export const RING_DROPPED = 128;
export const RING_CELLS = 192;
export const CELL_STATE = 0;
export const CELL_LENGTH = 8;
export const CELL_FLAGS = 12;
export const CELL_RECORD = 16;
/** The record was given up by its writer. */
export const CELL_DISCARDED = 1;

/** What bpf_ringbuf_query asks for: bytes not read yet, size, how far readers and writers are. */
export const RING_QUERY_AVAILABLE = 0n;
export const RING_QUERY_SIZE = 1n;
export const RING_QUERY_HEAD = 2n;
export const RING_QUERY_TAIL = 3n;

export function layoutRing(spec: MapSpec): RingLayout {
  const cells = powerOfTwo(Math.max(2, spec.maxEntries));
  const cellBytes = CELL_RECORD + roundUp(spec.valueBytes, 16);
  const totalBytes = roundUp(RING_CELLS + cells * cellBytes, CACHE_LINE_BYTES);
  return { kind: "ringbuf", cells, cellBytes, totalBytes };
}
