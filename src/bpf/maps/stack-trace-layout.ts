/**
 * Stack traces: a word per id that names a pool element with the addresses.
 *
 *     header       0 free list   64 words of pool used
 *     slots        a word per id
 *     elements     0 hash (in a free element the free link)   8 u64 count   16 addresses
 *
 * The id of a stack follows from its hash. An element does not change while a slot names it; what was read
 * from one counts only if the slot is unchanged afterwards. A slot that is used again gets another element.
 */
import type { MapSpec } from "../program.ts";
import {
  CACHE_LINE_BYTES,
  MAX_ELEMENTS_OFFSET,
  MAX_POOL_BYTES,
  powerOfTwo,
  roundUp,
} from "./layout-sizes.ts";
import type { PoolLayout } from "./tagged-words.ts";

export interface StackTraceLayout {
  readonly kind: "stack_trace";
  readonly totalBytes: number;
  /** How many ids there are; a power of two. */
  readonly ids: number;
  /** Most addresses of one stack. */
  readonly frames: number;
  readonly pool: PoolLayout;
}

export const STACK_SLOTS = 128;
export const STACK_HASH = 0;
export const STACK_COUNT = 8;
export const STACK_ADDRESSES = 16;
/** The id is in the bits of the hash from here on. */
export const STACK_ID_SHIFT = 32;

/** For threads that are on their way with an element. */
const IN_FLIGHT = 32;

export function layoutStackTrace(spec: MapSpec): StackTraceLayout {
  const ids = powerOfTwo(spec.maxEntries);
  const frames = Math.floor(spec.valueBytes / 8);
  const stride = STACK_ADDRESSES + frames * 8;
  const offset = roundUp(STACK_SLOTS + ids * 8, CACHE_LINE_BYTES);
  const poolBytes = stride * (ids + IN_FLIGHT);
  const totalBytes = roundUp(offset + poolBytes, CACHE_LINE_BYTES);
  if (totalBytes > MAX_POOL_BYTES || offset > MAX_ELEMENTS_OFFSET)
    throw new RangeError(
      `lay out map ${spec.name}: ${totalBytes} bytes exceed ${MAX_POOL_BYTES}, or ${spec.maxEntries} entries are too many`,
    );
  const region = { offset, lenBytes: poolBytes };
  const pool = { free: 0, used: 64, elementsOffset: offset, stride, poolBytes, region, link: STACK_HASH };
  return { kind: "stack_trace", totalBytes, ids, frames, pool };
}
