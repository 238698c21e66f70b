/**
 * Where code lies that replaced return addresses lead to: for all sessions of a process in one window of its addresses. So a
 * session knows that a return address was replaced, and how often, also when another session did it (patch/return-table.ts).
 * Nothing else in the window is ever returned to: it lies far from where the kernel maps anything by itself.
 */
import type { AddrRange } from "../target/target.ts";

/** Between what programs and libraries get and what sanitizers use as shadow (x86-64, 47 bits of addresses). */
export const RETURN_WINDOW: AddrRange = { start: 0x3a5d_0000_0000n, end: 0x3a5d_4000_0000n };

const GRAIN = 0x1_0000n;

export const isInReturnWindow = ({ start, end }: AddrRange): boolean =>
  start >= RETURN_WINDOW.start && end <= RETURN_WINDOW.end;

/** The lowest free place of so many bytes; undefined when the window is full. `mappings` in address order. */
export function findWindowPlace(mappings: readonly AddrRange[], lenBytes: number): AddrRange | undefined {
  const size = (BigInt(lenBytes) + GRAIN - 1n) & -GRAIN;
  let { start } = RETURN_WINDOW;
  for (const mapping of mappings) {
    if (mapping.end <= start) continue;
    if (mapping.start >= start + size) break;
    start = (mapping.end + GRAIN - 1n) & -GRAIN;
  }
  return start + size <= RETURN_WINDOW.end ? { start, end: start + size } : undefined;
}
