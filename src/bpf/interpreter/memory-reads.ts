/**
 * Reads of memory that may not be there, for the helpers that copy from any address: the interpreted program's own
 * memory first, then what the host can reach.
 */
import { u64 } from "../alu.ts";
import { EFAULT } from "../error-numbers.ts";
import type { HelperWorld } from "./helper-world.ts";

/** No access to the host's memory crosses a page, so that what lies before a hole can be read. */
const PAGE_BYTES = 4096n;

/** Fills `into` with the bytes at `addr`, or returns false. */
export function readMemory(world: HelperWorld, addr: bigint, into: Uint8Array): boolean {
  for (let done = 0; done < into.length; ) {
    const part = readPart(world, u64(addr + BigInt(done)), into.length - done);
    if (part === undefined) return false;
    into.set(part, done);
    done += part.length;
  }
  return true;
}

/** Length with the NUL, or -EFAULT and a zeroed destination. A string that is too long is cut. */
export function readString(world: HelperWorld, addr: bigint, into: Uint8Array): number {
  for (let done = 0; done < into.length; ) {
    const part = readPart(world, u64(addr + BigInt(done)), into.length - done);
    if (part === undefined) {
      into.fill(0);
      return EFAULT;
    }
    const nul = part.indexOf(0);
    if (nul >= 0) {
      into.set(part.subarray(0, nul + 1), done);
      return done + nul + 1;
    }
    into.set(part, done);
    done += part.length;
  }
  if (into.length > 0) into[into.length - 1] = 0;
  return into.length;
}

/** Some of the bytes at `addr`, at least one and `atMost`; undefined: nothing can be read there. */
function readPart(world: HelperWorld, addr: bigint, atMost: number): Uint8Array | undefined {
  const own = world.space.findBytes(addr, atMost);
  if (own !== undefined) return own.slice();
  const part = new Uint8Array(Math.min(Number(PAGE_BYTES - (addr % PAGE_BYTES)), atMost));
  return world.host.readUser(addr, part) ? part : undefined;
}
