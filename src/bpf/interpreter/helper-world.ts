/** What one run of the interpreter has for its helpers, and their arguments in memory. */
import { s64 } from "../alu.ts";
import type { HelperHost, RingMapAccess } from "./host.ts";
import type { InterpreterMaps } from "./map-regions.ts";
import { type AddressSpace, MemoryFault } from "./memory.ts";

/** `noteWritten` is told which memory a helper filled. */
export interface HelperWorld {
  readonly host: HelperHost;
  readonly maps: InterpreterMaps;
  readonly space: AddressSpace;
  /** Takes the records of printk; undefined: nobody reads them. */
  readonly printk: RingMapAccess | undefined;
  noteWritten(addr: bigint, lenBytes: number): void;
  noteRead(addr: bigint, lenBytes: number): void;
}

/** The memory of an argument that a helper fills. */
export function bytesAt(world: HelperWorld, addr: bigint, lenBytes: bigint): Uint8Array {
  if (lenBytes === 0n) return new Uint8Array(0);
  if (s64(lenBytes) < 0n || lenBytes > 0x7fffffffn)
    throw new MemoryFault(`helper argument of ${s64(lenBytes)} bytes`);
  const len = Number(lenBytes);
  const { region, at } = world.space.getSpot(addr, len, true);
  world.noteWritten(addr, len);
  return region.block.bytes.subarray(at, at + len);
}

/** A copy of the memory of an argument that a helper reads. */
export function copyIn(world: HelperWorld, addr: bigint, lenBytes: number): Uint8Array {
  const { region, at } = world.space.getSpot(addr, lenBytes, false);
  world.noteRead(addr, lenBytes);
  return region.block.bytes.slice(at, at + lenBytes);
}

/** The constant string at an address, without its NUL. */
export function textAt(world: HelperWorld, addr: bigint): Uint8Array {
  const bytes = world.space.findBytes(addr, Number.MAX_SAFE_INTEGER);
  const end = bytes?.indexOf(0) ?? -1;
  if (bytes === undefined || end < 0)
    throw new MemoryFault(`text at 0x${addr.toString(16)}: no NUL in the memory that holds it`);
  return bytes.slice(0, end);
}
