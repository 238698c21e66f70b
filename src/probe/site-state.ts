/** What a site holds, compared with what its record says. */
import type { AddrRange } from "../target/target.ts";
import type { JournalSite } from "./journal.ts";

const INT3 = 0xcc;
/** `e8 rel32` */
const CALL = 0xe8;
const CALL_BYTES = 5;

export type SiteState = "jump" | "int3" | "original" | "foreign";

/**
 * What a site holds now, `found` being as long as the record's bytes. A `call` leads now here, now there, and a tracer may
 * have died between saying so and doing it: what calls our own code is ours.
 */
export function siteState(site: JournalSite, found: Uint8Array, code: readonly AddrRange[] = []): SiteState {
  if (same(found, site.oldBytes)) return "original";
  if (same(found, trapBytes(site.oldBytes))) return "int3";
  if (same(found, site.newBytes)) return "jump";
  if (site.mechanism === "call" && found[0] === CALL && found.length === CALL_BYTES) {
    const to = site.at + BigInt(CALL_BYTES) + BigInt(new DataView(found.slice().buffer).getInt32(1, true));
    if (code.some(({ start, end }) => to >= start && to < end)) return "jump";
  }
  return "foreign";
}

/** `cc` over the first byte; the rest of the region stays as it is. */
export function trapBytes(oldBytes: Uint8Array): Uint8Array {
  const bytes = oldBytes.slice();
  bytes[0] = INT3;
  return bytes;
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}
