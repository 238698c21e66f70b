/** The memory of private stacks in one target: reserved as a whole, used as far as threads come by. */
import { guardPages, PRIVATE_STACKS_BYTES, STACK_STRIDE } from "../../gate/index.ts";
import { findArenaPlace } from "../../probe/arena.ts";
import type { Journal } from "../../probe/journal.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { MOST_TRIES, NoCodeSpaceError } from "./code-space.ts";

/**
 * Maps it and returns its address. A record in the journal precedes the mapping. The process may be quicker to map something
 * there: then it is elsewhere.
 */
export async function createStackMemory(
  target: ProcessTarget,
  journal: Journal,
  near: AddrRange,
  key: number | undefined,
): Promise<bigint> {
  const lenBytes = PRIVATE_STACKS_BYTES + STACK_STRIDE;
  const stride = BigInt(STACK_STRIDE);
  for (let tries = 1; tries <= MOST_TRIES; tries++) {
    const place = findArenaPlace(readMaps(target.pid), near, lenBytes);
    if (place === undefined) break;
    const base = (place.start + stride - 1n) & -stride;
    // What does not bear our name is left alone by whoever reads the record, so it may stand for nothing.
    journal.addMemory("memory", base, PRIVATE_STACKS_BYTES);
    if (await target.createStacks(base, PRIVATE_STACKS_BYTES, guardPages(base), key)) return base;
  }
  throw new NoCodeSpaceError("the journal", lenBytes);
}
