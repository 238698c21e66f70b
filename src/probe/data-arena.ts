/**
 * Where a session's data lies in a target: parts in one reserved range of addresses.
 *
 * Problem: what lies beside our data must not be the application's, so that a stray access of either side hits nothing; what is
 * needed later must find room; and it is to be known at any time what all of it takes. Strategy: a range of addresses is reserved
 * as a whole, out of everybody's reach, and parts are mapped over it. Reserved addresses take no memory.
 *
 *     guard | part, spare | guard | part, spare | guard ...                      | never used
 *
 * - A part takes a slot of a size class, of which there are four to each doubling: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20 ... pages.
 *   So at most a fifth of a slot is spare, and a slot that was given back serves other parts. The spare is not mapped.
 * - Between any two parts, before the first and behind the last lies a guard of at least one page that is never mapped. What an
 *   alignment leaves over is guard, too.
 * - A part is whole pages of its own size, and begins at a multiple of it: no page is ever shared by two parts.
 *
 * Invariant: guards + slots in use + slots given back + what was never used = what is reserved, to the byte.
 *
 * Not handled: slots that were given back are not joined; the few parts of a session have few sizes.
 */
import type { AddrRange } from "../target/target.ts";

const PAGE_BYTES = 4096;
export const GUARD_BYTES = PAGE_BYTES;

/**
 * What a part is for: `open` is what no protection key guards, `private` what each process has of its own, `later maps` those of
 * programs that came while the session ran.
 */
export const partUses = ["journal", "open", "private", "maps", "later maps", "mailboxes", "stacks"] as const;
export type PartUse = (typeof partUses)[number];

export interface PartRequest {
  readonly use: PartUse;
  readonly lenBytes: number;
  /** Size of its pages; 4096 unless told. */
  readonly pageBytes?: number | undefined;
  /** What its address is a multiple of, if that is more than a page. */
  readonly alignBytes?: number | undefined;
}

export interface ArenaPart {
  readonly use: PartUse;
  readonly at: bigint;
  /** Whole pages. */
  readonly lenBytes: number;
  /** Bytes of its slot: the part, and what is spare behind it. */
  readonly slotBytes: number;
}

/** All of it adds up to `reservedBytes`. */
export interface ArenaAccounts {
  readonly reservedBytes: number;
  /** Bytes that are mapped, by what they are for. */
  readonly usedBytes: ReadonlyMap<PartUse, number>;
  /** Ends of slots, by what the slots are for. */
  readonly spareBytes: ReadonlyMap<PartUse, number>;
  readonly guardBytes: number;
  /** Slots that were given back, and what was never used. */
  readonly freeBytes: number;
}

const roundUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit;

/** The number of pages of the smallest class that holds so many. */
export function classPages(pages: number): number {
  if (pages <= 4) return pages;
  // Four classes to each doubling: the two bits behind the leading one count.
  const step = 2 ** (Math.floor(Math.log2(pages)) - 2);
  return roundUp(pages, step);
}

/** How a request is rounded. */
function sizesOf({ lenBytes, pageBytes = PAGE_BYTES, alignBytes = 0 }: PartRequest) {
  const pages = Math.max(1, Math.ceil(lenBytes / pageBytes));
  return {
    lenBytes: pages * pageBytes,
    // Huge pages are too dear to be left over.
    slotBytes: pageBytes === PAGE_BYTES ? classPages(pages) * PAGE_BYTES : pages * pageBytes,
    alignBytes: Math.max(pageBytes, alignBytes),
  };
}

/** Bytes to reserve so that all of these parts fit, wherever the range begins. */
export function arenaBytes(requests: readonly PartRequest[]): number {
  return requests.reduce((sum, request) => {
    const { slotBytes, alignBytes } = sizesOf(request);
    return sum + GUARD_BYTES + (alignBytes - PAGE_BYTES) + slotBytes;
  }, GUARD_BYTES);
}

interface Slot {
  readonly at: bigint;
  readonly slotBytes: number;
}

/** One reserved range. */
export class DataArena {
  readonly range: AddrRange;
  readonly #parts = new Map<bigint, ArenaPart>();
  #free: Slot[] = [];
  /** Nothing behind it was ever used. */
  #next: bigint;
  #guardBytes = 0;

  constructor(start: bigint, lenBytes: number) {
    this.range = { start, end: start + BigInt(lenBytes) };
    this.#next = start;
  }

  get parts(): readonly ArenaPart[] {
    return [...this.#parts.values()];
  }

  /** A place for a part; undefined when there is no room. */
  take(request: PartRequest): ArenaPart | undefined {
    const { lenBytes, slotBytes, alignBytes } = sizesOf(request);
    const slot = this.#takeFree(slotBytes, alignBytes) ?? this.#takeFresh(slotBytes, alignBytes);
    if (slot === undefined) return undefined;
    const part = { ...slot, use: request.use, lenBytes };
    this.#parts.set(part.at, part);
    return part;
  }

  /** The part is unmapped: its slot may be taken again. */
  giveBack(part: ArenaPart): void {
    if (this.#parts.get(part.at) !== part) throw new Error("give back a part: it is none of this arena");
    this.#parts.delete(part.at);
    this.#free.push(part);
  }

  get accounts(): ArenaAccounts {
    const usedBytes = new Map<PartUse, number>();
    const spareBytes = new Map<PartUse, number>();
    for (const { use, lenBytes, slotBytes } of this.#parts.values()) {
      usedBytes.set(use, (usedBytes.get(use) ?? 0) + lenBytes);
      spareBytes.set(use, (spareBytes.get(use) ?? 0) + slotBytes - lenBytes);
    }
    const { start, end } = this.range;
    const neverUsed = Number(end - this.#next);
    return {
      reservedBytes: Number(end - start),
      usedBytes,
      spareBytes,
      // Behind the last part there is a guard in what was never used.
      guardBytes: this.#guardBytes + Math.min(neverUsed, GUARD_BYTES),
      freeBytes:
        this.#free.reduce((sum, { slotBytes }) => sum + slotBytes, 0) + Math.max(0, neverUsed - GUARD_BYTES),
    };
  }

  #takeFree(slotBytes: number, alignBytes: number): Slot | undefined {
    const fitting = this.#free
      .filter((slot) => slot.slotBytes >= slotBytes && slot.at % BigInt(alignBytes) === 0n)
      .sort((a, b) => a.slotBytes - b.slotBytes);
    // A slot of twice the size is kept for what needs it.
    const best = fitting.find((slot) => slot.slotBytes < slotBytes * 2);
    if (best === undefined) return undefined;
    this.#free = this.#free.filter((slot) => slot !== best);
    return { at: best.at, slotBytes: best.slotBytes };
  }

  #takeFresh(slotBytes: number, alignBytes: number): Slot | undefined {
    const align = BigInt(alignBytes);
    const at = ((this.#next + BigInt(GUARD_BYTES) + align - 1n) / align) * align;
    const end = at + BigInt(slotBytes);
    if (end + BigInt(GUARD_BYTES) > this.range.end) return undefined;
    this.#guardBytes += Number(at - this.#next);
    this.#next = end;
    return { at, slotBytes };
  }
}

/** Accounts of several ranges together. */
export function addArenaAccounts(all: readonly ArenaAccounts[]): ArenaAccounts {
  const sum = (pick: (each: ArenaAccounts) => number) => all.reduce((total, each) => total + pick(each), 0);
  const sumByUse = (pick: (each: ArenaAccounts) => ReadonlyMap<PartUse, number>) => {
    const total = new Map<PartUse, number>();
    for (const each of all)
      for (const [use, bytes] of pick(each)) total.set(use, (total.get(use) ?? 0) + bytes);
    return total;
  };
  return {
    reservedBytes: sum(({ reservedBytes }) => reservedBytes),
    usedBytes: sumByUse(({ usedBytes }) => usedBytes),
    spareBytes: sumByUse(({ spareBytes }) => spareBytes),
    guardBytes: sum(({ guardBytes }) => guardBytes),
    freeBytes: sum(({ freeBytes }) => freeBytes),
  };
}
