/**
 * The cells of a ring buffer. The kernel's ring has a size in bytes; ours has cells of one size, for the largest record
 * that a program sends. So the records decide how many cells the ring's bytes are.
 */
import type { MapSpec } from "../program.ts";

/** What a record takes in the kernel's ring besides itself. */
const RECORD_HEADER_BYTES = 8;
/** The largest record may be much larger than most are. Memory that no record is written to costs nothing. */
const MIN_CELLS = 64;
const MAX_EXTRA_BYTES = 64 << 20;

/** The ring for records of up to `largestBytes`, where the object asks for `ringBytes` in all. */
export function fitRing(spec: MapSpec, ringBytes: number, largestBytes: number): MapSpec {
  const valueBytes = Math.max(8, Math.ceil(largestBytes / 8) * 8);
  const cellBytes = valueBytes + RECORD_HEADER_BYTES;
  const wanted = Math.floor(ringBytes / cellBytes);
  const least = Math.max(2, Math.min(MIN_CELLS, Math.floor(MAX_EXTRA_BYTES / cellBytes)));
  return { ...spec, valueBytes, maxEntries: Math.max(least, wanted) };
}
