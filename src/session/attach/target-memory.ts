/** Memory that a session puts into a target: what is shared with the tracer, and what is the process's own. */
import { findArenaPlace } from "../../probe/arena.ts";
import type { Mapping } from "../../target/process/libc.ts";
import { readMaps, readStatus } from "../../target/process/proc-fs.ts";
import { MAPS_MEMORY_NAME } from "../../target/process/traced-process.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { MOST_TRIES, NoCodeSpaceError } from "./code-space.ts";

export const PAGE = 4096;

export const pages = (lenBytes: number): number => Math.ceil(lenBytes / PAGE) * PAGE;

/**
 * Maps private memory near the journal, whose place is recorded before by `record`. The process may be quicker to map something
 * there: then it is elsewhere.
 */
export async function providePrivate(
  target: Pick<ProcessTarget, "pid" | "createPrivate">,
  journalMemory: AddrRange,
  lenBytes: number,
  record: (at: bigint, lenBytes: number) => void,
): Promise<bigint> {
  for (let tries = 1; tries <= MOST_TRIES; tries++) {
    const place = findArenaPlace(readMaps(target.pid), journalMemory, lenBytes);
    if (place === undefined) break;
    record(place.start, lenBytes);
    if (await target.createPrivate(place.start, lenBytes)) return place.start;
    // What lies there is not ours: nobody may unmap it.
    record(0n, 0);
  }
  throw new NoCodeSpaceError("the journal", lenBytes);
}

/** What is to be mapped where. */
export interface MapsInput {
  readonly target: ProcessTarget;
  readonly mapsLayout: { readonly totalBytes: number };
  /** Memory of the first target's maps, for further targets to share. */
  readonly sharedMapsFd: number | undefined;
}

/** Makes the memory of the session's maps, or maps that of its first target. `scratch` is memory of ours in the target. */
export async function provideMaps(
  input: MapsInput,
  scratch: bigint,
): Promise<{
  readonly mapsAt: bigint;
  readonly ownMaps: { readonly mapping: Mapping; readonly fd: number } | undefined;
}> {
  const { target, mapsLayout, sharedMapsFd } = input;
  if (sharedMapsFd !== undefined) {
    const mapsAt = await target.mapDescriptor(sharedMapsFd, mapsLayout.totalBytes, scratch);
    return { mapsAt, ownMaps: undefined };
  }
  const { at, mapping, fd } = await target.createShared(MAPS_MEMORY_NAME, mapsLayout.totalBytes);
  return { mapsAt: at, ownMaps: { mapping, fd } };
}

/** The ids of a process as the user knows it and as its own namespace does. */
export function pidCacheBytes(pid: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, pid, true);
  view.setUint32(4, readStatus(pid).nsPids.at(-1) ?? pid, true);
  return bytes;
}
