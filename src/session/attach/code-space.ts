/**
 * Code memory of one target, handed out from the front: one space for all images that it reaches.
 */
import { LANDING_BYTES } from "../../patch/landing-places.ts";
import { findArenaPlace, reaches } from "../../probe/arena.ts";
import type { Journal } from "../../probe/journal.ts";
import { findWindowPlace } from "../../probe/return-window.ts";
import type { AddrRange } from "../../target/target.ts";

const ALIGN = 64n;
const GRAIN_BYTES = 64 << 10;
const PAGE = 4096n;
/** Places that are tried where a process maps memory all the time. */
export const MOST_TRIES = 16;

/** A range of code memory that is filled from the front. */
export class CodeSpace {
  readonly range: AddrRange;
  #next: bigint;

  constructor(range: AddrRange) {
    this.range = range;
    this.#next = range.start;
  }

  /** Where the next piece of code goes. */
  get next(): bigint {
    return this.#next;
  }

  get freeBytes(): number {
    return Number(this.range.end - this.#next);
  }

  /** Takes the bytes at `next`. */
  take(lenBytes: number): void {
    if (lenBytes > this.freeBytes)
      throw new Error(`code space is too small: ${lenBytes} of ${this.freeBytes} bytes`);
    this.#next = (this.#next + BigInt(lenBytes) + ALIGN - 1n) & -ALIGN;
  }
}

/** The pages of a landing: two, if it lies over the end of one. */
const pagesOf = (at: bigint): readonly bigint[] => [at & -PAGE, (at + BigInt(LANDING_BYTES) - 1n) & -PAGE];

/** The part of a target that maps code memory. */
export interface CodeMemoryPort {
  /** Says which ranges could be mapped. */
  createCodeWhereFree(
    ranges: readonly { readonly at: bigint; readonly lenBytes: number }[],
  ): Promise<boolean[]>;
}

/** No free address range reaches the image. */
export class NoCodeSpaceError extends Error {
  readonly code = "no-code-space";
  constructor(image: string, lenBytes: number) {
    super(`map ${lenBytes} bytes of code memory near ${image}: no free address range within 2 GiB of it`);
    this.name = "NoCodeSpaceError";
  }
}

export interface SpaceRequest {
  readonly name: string;
  readonly image: AddrRange;
  /** Most that this image's code will take. */
  readonly lenBytes: number;
}

/**
 * All code memory of one target. A record in the journal precedes each mapping.
 */
export class CodeSpaces {
  readonly spaces: CodeSpace[] = [];
  readonly #target: CodeMemoryPort;
  readonly #journal: Journal;
  readonly #mappings: () => readonly AddrRange[];
  /** Pages of landings, and whether they could be mapped. */
  readonly #landingPages = new Map<bigint, boolean>();

  constructor(target: CodeMemoryPort, journal: Journal, mappings: () => readonly AddrRange[]) {
    this.#target = target;
    this.#journal = journal;
    this.#mappings = mappings;
  }

  /**
   * Maps the pages of landings, which have to be where they are. Returns which of the landings cannot be used, since
   * the process has put something there meanwhile.
   */
  async mapLandings(landings: readonly bigint[]): Promise<Set<bigint>> {
    const wanted = [...new Set(landings.flatMap(pagesOf))]
      .filter((page) => !this.#landingPages.has(page))
      .sort((a, b) => (a < b ? -1 : 1));
    const ranges: { start: bigint; end: bigint }[] = [];
    for (const page of wanted) {
      const last = ranges.at(-1);
      if (last?.end === page) last.end += PAGE;
      else ranges.push({ start: page, end: page + PAGE });
    }
    if (ranges.length > 0) {
      const mapped = await this.#mapIfFree(ranges);
      for (const [index, { start, end }] of ranges.entries())
        for (let page = start; page < end; page += PAGE) this.#landingPages.set(page, mapped[index]!);
    }
    return new Set(
      landings.filter((at) => pagesOf(at).some((page) => this.#landingPages.get(page) !== true)),
    );
  }

  /** A space for each request, in order; the same one for images that can share it. */
  provide(requests: readonly SpaceRequest[]): Promise<CodeSpace[]> {
    return this.#provide(requests, this.spaces);
  }

  /** A space that is shared with nothing else. */
  async provideOwn(request: SpaceRequest): Promise<CodeSpace> {
    const [space] = await this.#provide([request], []);
    this.spaces.splice(this.spaces.indexOf(space!), 1);
    return space!;
  }

  /** A space for what functions return to: in the window that all sessions share for that, wherever the image is. */
  async provideForReturns(name: string, lenBytes: number): Promise<CodeSpace> {
    for (let tries = 1; tries <= MOST_TRIES; tries++) {
      const range = findWindowPlace(this.#mappings(), lenBytes);
      if (range === undefined) break;
      const [isMapped] = await this.#mapIfFree([range]);
      if (isMapped) return new CodeSpace(range);
    }
    throw new NoCodeSpaceError(name, lenBytes);
  }

  /** The process may map something itself where there was room for ours: then another place is looked for. */
  async #provide(requests: readonly SpaceRequest[], existing: readonly CodeSpace[]): Promise<CodeSpace[]> {
    for (let tries = 1; ; tries++) {
      const { chosen, fresh } = this.#choose(requests, existing);
      if (fresh.length === 0) return chosen;
      const mapped = await this.#mapIfFree(fresh.map(({ range }) => range));
      this.spaces.push(...fresh.filter((_, index) => mapped[index]));
      if (mapped.every(Boolean)) return chosen;
      if (tries === MOST_TRIES) throw new NoCodeSpaceError(requests[0]!.name, requests[0]!.lenBytes);
    }
  }

  /** Maps code memory where nothing is yet. What is not ours must not be unmapped by whoever reads the journal. */
  async #mapIfFree(wanted: readonly AddrRange[]): Promise<boolean[]> {
    const ranges = wanted.map(({ start, end }) => ({ at: start, lenBytes: Number(end - start) }));
    const records = ranges.map(({ at, lenBytes }) => this.#journal.addMemory("code", at, lenBytes));
    const mapped = await this.#target.createCodeWhereFree(ranges);
    mapped.forEach((isMapped, index) => {
      if (!isMapped) this.#journal.setState(records[index]!, "removed");
    });
    return mapped;
  }

  /** A space for each request, among those that exist or in free memory. */
  #choose(
    requests: readonly SpaceRequest[],
    existing: readonly CodeSpace[],
  ): { readonly chosen: CodeSpace[]; readonly fresh: CodeSpace[] } {
    const mappings = [...this.#mappings()];
    const fresh: CodeSpace[] = [];
    const promised = new Map<CodeSpace, number>();
    const chosen = requests.map((request) => {
      const fits = (space: CodeSpace) =>
        reaches(space.range, request.image) &&
        space.freeBytes - (promised.get(space) ?? 0) >= request.lenBytes;
      let space = [...existing, ...fresh].find(fits);
      if (space === undefined) {
        const lenBytes = Math.ceil((request.lenBytes * 2) / GRAIN_BYTES) * GRAIN_BYTES;
        const range = findArenaPlace(mappings, request.image, lenBytes);
        if (range === undefined) throw new NoCodeSpaceError(request.name, lenBytes);
        space = new CodeSpace(range);
        fresh.push(space);
        const index = mappings.findIndex((mapping) => mapping.start > range.start);
        mappings.splice(index < 0 ? mappings.length : index, 0, range);
      }
      promised.set(space, (promised.get(space) ?? 0) + request.lenBytes);
      return space;
    });
    return { chosen, fresh };
  }
}
