/**
 * Where the jumps of punned sites may land: free memory at addresses that the bytes of the text dictate.
 *
 * A pun leads to one of few addresses, anywhere within 2 GiB of its site. There a page is mapped, and in it stands a jump
 * on to the detour: 14 bytes, which reach everything. Landings share a page where their windows allow it.
 *
 * Invariants: nothing is taken that is mapped, that lies close to what is mapped, or that the heap or a stack would soon
 * grow into. The number of pages is bounded: each costs the process 4 KiB and mostly a mapping of its own.
 *
 * Addresses are numbers here: user space ends below 2^47.
 */

/** `ff 25 00000000` and the target's 8 bytes: `jmp [rip+0]`. */
export const LANDING_BYTES = 14;

const PAGE = 4096;
const LOWEST = 0x1_0000;
const HIGHEST = 0x7fff_ffff_f000;
/** Left free around every mapping, so that what ends there can grow a little and overruns still fault. */
const CLEARANCE = 16 * PAGE;
/** 16 MiB. The kernel allows a process 65530 mappings. */
const MOST_PAGES = 4096;
const TRIES = 32;

interface Range {
  readonly start: bigint;
  readonly end: bigint;
}

export class LandingPlaces {
  /** Free ranges, ascending, on page boundaries. */
  readonly #gaps: { readonly start: number; readonly end: number }[] = [];
  /** What is taken in each page: offsets of landings. */
  readonly #pages = new Map<number, number[]>();
  /** Numbers of the pages, ascending. */
  #sorted: number[] = [];
  readonly #mostPages: number;

  /** `occupied`: everything that is mapped, and what is to stay free beside it; ascending or not. */
  constructor(occupied: readonly Range[], mostPages = MOST_PAGES) {
    this.#mostPages = mostPages;
    const ranges = occupied
      .map(({ start, end }) => ({ start: Number(start), end: Number(end) }))
      .filter(({ start }) => start < HIGHEST)
      .sort((a, b) => a.start - b.start);
    let free = LOWEST;
    for (const { start, end } of [...ranges, { start: HIGHEST, end: HIGHEST }]) {
      const gap = { start: free, end: start - CLEARANCE };
      if (gap.end - gap.start >= PAGE) this.#gaps.push(gap);
      free = Math.max(free, Math.ceil(end / PAGE) * PAGE + CLEARANCE);
    }
  }

  /**
   * A free place for a landing at one of `first + i * stride`, `i` below `count`; undefined when there is none. Pages that
   * are in use already come first.
   */
  find(first: bigint, count: number, stride = 1): bigint | undefined {
    const low = Number(first);
    const found = this.#findInUse(low, count, stride) ?? this.#findFresh(low, count, stride);
    return found === undefined ? undefined : BigInt(found);
  }

  /** Takes a place that `find` has returned. */
  take(at: bigint): void {
    const start = Number(at);
    for (const page of pagesOf(start)) {
      const used = this.#pages.get(page);
      if (used !== undefined) used.push(start);
      else {
        this.#pages.set(page, [start]);
        this.#sorted.splice(this.#indexOf(page), 0, page);
      }
    }
  }

  /** The pages in use, neighbours joined: to be mapped before anything lands there. */
  get ranges(): Range[] {
    const ranges: { start: bigint; end: bigint }[] = [];
    for (const page of this.#sorted) {
      const start = BigInt(page) * BigInt(PAGE);
      const last = ranges.at(-1);
      if (last?.end === start) last.end += BigInt(PAGE);
      else ranges.push({ start, end: start + BigInt(PAGE) });
    }
    return ranges;
  }

  get isFull(): boolean {
    return this.#pages.size >= this.#mostPages;
  }

  #findInUse(low: number, count: number, stride: number): number | undefined {
    const high = low + (count - 1) * stride;
    let tries = 0;
    for (let i = this.#indexOf(Math.floor(low / PAGE)); i < this.#sorted.length && tries < TRIES; i++) {
      const page = this.#sorted[i]!;
      if (page * PAGE > high) return undefined;
      tries++;
      // Behind the last landing there is the most room.
      const behind = Math.max(page * PAGE, ...this.#pages.get(page)!.map((start) => start + LANDING_BYTES));
      const at = alignUp(Math.max(low, behind), low, stride);
      if (at <= high && at < (page + 1) * PAGE && this.#isFree(at)) return at;
    }
    return undefined;
  }

  #findFresh(low: number, count: number, stride: number): number | undefined {
    const high = low + (count - 1) * stride;
    for (let i = this.#firstGapBehind(low); i < this.#gaps.length; i++) {
      const gap = this.#gaps[i]!;
      if (gap.start > high) return undefined;
      // From a page's beginning, if the window holds one: there the most landings can share it.
      let at = alignUp(Math.max(low, gap.start), low, stride);
      const aligned = alignUp(Math.ceil(at / PAGE) * PAGE, low, stride);
      if (stride < PAGE && aligned <= high) at = aligned;
      for (let tries = 0; tries < TRIES && at <= high && at + LANDING_BYTES <= gap.end; tries++) {
        if (this.#isFree(at)) return at;
        at = alignUp(stride === 1 ? at + LANDING_BYTES : at + 1, low, stride);
      }
    }
    return undefined;
  }

  #isFree(at: number): boolean {
    const gap = this.#gaps[this.#firstGapBehind(at)];
    if (gap === undefined || at < gap.start || at + LANDING_BYTES > gap.end) return false;
    return pagesOf(at).every((page) => {
      const used = this.#pages.get(page);
      if (used === undefined) return !this.isFull;
      return used.every((start) => at >= start + LANDING_BYTES || at + LANDING_BYTES <= start);
    });
  }

  /** Index of the first gap that ends behind an address. */
  #firstGapBehind(at: number): number {
    let low = 0;
    let high = this.#gaps.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#gaps[middle]!.end <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Index of the first page in use that is not below a page. */
  #indexOf(page: number): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#sorted[middle]! < page) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

function pagesOf(start: number): number[] {
  const first = Math.floor(start / PAGE);
  const last = Math.floor((start + LANDING_BYTES - 1) / PAGE);
  return first === last ? [first] : [first, last];
}

/** The first of `from`, `from + stride`, ... that is not below `at`. */
function alignUp(at: number, from: number, stride: number): number {
  return at <= from ? from : from + Math.ceil((at - from) / stride) * stride;
}

/** The code of a landing. */
export function encodeLanding(to: bigint): Uint8Array {
  const bytes = new Uint8Array(LANDING_BYTES);
  bytes.set([0xff, 0x25, 0, 0, 0, 0]);
  new DataView(bytes.buffer).setBigUint64(6, to, true);
  return bytes;
}
