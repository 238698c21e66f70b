/** Rounding, and what a size in a map's specification may be. */

/** Every part that different threads write lies on a cache line of its own. */
export const CACHE_LINE_BYTES = 64;

/** An 8-byte word can name any element of a pool: refs count 8-byte words. */
export const MAX_POOL_BYTES = 2 ** 31 * 8;
/** More than this no process can map for one map. */
export const MAX_MAP_BYTES = 2 ** 40;

/** Code reaches the elements of a map by a displacement of 32 bits. */
export const MAX_ELEMENTS_OFFSET = 0x7fff_0000;

export function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

export function powerOfTwo(atLeast: number): number {
  return 2 ** Math.ceil(Math.log2(atLeast));
}

export function isCount(value: number): boolean {
  return Number.isInteger(value) && value > 0 && value <= 0x7fffffff;
}
