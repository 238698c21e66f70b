/**
 * The header of a per-CPU map: an owner word per slot, each on a cache line of its own. A program that uses per-CPU
 * maps takes a slot for the time that it runs, by a compare-and-exchange from 0, because a thread can be stopped in
 * the middle of a program and another one run on the same processor.
 */
import { CACHE_LINE_BYTES } from "./layout-sizes.ts";

export const OWNER_STRIDE = CACHE_LINE_BYTES;

export function ownerBytes(cpus: number): number {
  return cpus * OWNER_STRIDE;
}
