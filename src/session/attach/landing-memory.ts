/**
 * Which addresses of a process may hold landings: what is free, and not what the heap or the stack is about to grow into.
 * The heap stops where something is mapped; the C library then goes on elsewhere, but other programs may not.
 */
import { LandingPlaces } from "../../patch/landing-places.ts";
import { type MapEntry, readMaps } from "../../target/process/proc-fs.ts";
import type { AddrRange } from "../../target/target.ts";

export const HEAP_GROWTH = 256n << 20n;
/** How far behind a program's data the kernel puts the beginning of a heap that is not there yet. */
export const HEAP_DISTANCE = 1n << 30n;
const STACK_GROWTH = 128n << 20n;

export function landingPlacesOf(pid: number): LandingPlaces {
  return new LandingPlaces(occupiedBy(readMaps(pid)));
}

/** All mappings, and what is to stay free beside them. */
export function occupiedBy(maps: readonly MapEntry[]): AddrRange[] {
  const occupied: AddrRange[] = maps.map(({ start, end }) => ({ start, end }));
  const heap = maps.find(({ path }) => path === "[heap]");
  // The program lies lowest; without a heap it may be about to get one.
  const program = maps[0]?.path;
  const brk = heap?.end ?? maps.findLast(({ path }) => path === program)?.end;
  if (brk !== undefined)
    occupied.push({ start: brk, end: brk + (heap === undefined ? HEAP_DISTANCE : 0n) + HEAP_GROWTH });
  for (const { start, path } of maps)
    if (path === "[stack]") occupied.push({ start: start - STACK_GROWTH, end: start });
  return occupied;
}
