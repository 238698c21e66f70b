/**
 * Finds a route (route.ts) for sites that cannot hold a jump.
 *
 * Strategy: what a site itself and its function can tell is asked for each site; what takes a search through the whole
 * image is asked for all sites together, first for what costs least (puns and padding), then, for the sites that are left,
 * for what displaces other instructions (neighbours and successors).
 *
 * The tactics in the order in which they are tried:
 *  - padding: no memory of its own, nobody else is slowed down;
 *  - pun: a landing page, nobody else is slowed down;
 *  - neighbour: no memory of its own; whoever executes the neighbour makes two jumps more;
 *  - successor: two landing pages, and the same for the successor.
 */
import { textBytes } from "../x86/code-image.ts";
import type { FunctionCode } from "../x86/function-code.ts";
import { encodePun, HOP_BYTES, hopReaches, JUMP_BYTES, type Pun, punsOf } from "../x86/punning.ts";
import { type ImageCode, type Inside, interiorOf, type Region } from "../x86/regions.ts";
import { findUnrelocatable } from "../x86/relocate.ts";
import { LANDING_BYTES, type LandingPlaces } from "./landing-places.ts";
import type { Refusal } from "./refusal.ts";
import type { Route, SuccessorRoute } from "./route.ts";
import type { TextClaims } from "./text-claims.ts";

export type RouteResult =
  | { readonly kind: "route"; readonly region: Region; readonly fn: FunctionCode; readonly route: Route }
  | { readonly kind: "refused"; readonly refusal: Refusal };

export interface RoutePlannerOptions {
  readonly places: LandingPlaces;
  readonly claims: TextClaims;
  /** Judge each site as if it were the only one: nothing is claimed and no place taken. */
  readonly alone: boolean;
}

/** Two jumps: what a neighbour has to have room for. */
const NEIGHBOUR_BYTES = 2 * JUMP_BYTES;
/** Neighbours that are looked at for one site. */
const MOST_NEIGHBOURS = 8;
/** So many sites are searched for in one pass: their candidates are kept in memory together. */
const BATCH_SITES = 16_384;

/** A site with the regions that it may displace. */
interface Candidate {
  readonly site: bigint;
  readonly fn: FunctionCode;
  readonly regions: readonly Region[];
}

/** Regions at a site, and what beside it may serve, with what has to be asked about them. */
interface Question<What> {
  readonly what: What;
  readonly inside: Inside;
}

export class RoutePlanner {
  readonly #code: ImageCode;
  readonly #options: RoutePlannerOptions;

  constructor(code: ImageCode, options: RoutePlannerOptions) {
    this.#code = code;
    this.#options = options;
  }

  /** A route for each site, in order. */
  plan(sites: readonly bigint[]): RouteResult[] {
    const results = new Map<bigint, RouteResult>();
    for (let i = 0; i < sites.length; i += BATCH_SITES) {
      const batch = sites.slice(i, i + BATCH_SITES);
      const left = this.#planOwn(batch, results);
      this.#planWithHelp(left, results);
    }
    return sites.map((site) => results.get(site)!);
  }

  /** Padding and puns. Returns the sites that they do not help, with the regions that stand the test. */
  #planOwn(sites: readonly bigint[], results: Map<bigint, RouteResult>): Candidate[] {
    const candidates: Candidate[] = [];
    for (const site of sites) {
      const short = this.#code.shortRegions(site);
      if (short.kind === "refused") {
        results.set(site, { kind: "refused", refusal: short.refusal });
        continue;
      }
      const refusal = findUnrelocatable(short.regions[0]!);
      if (refusal !== undefined) {
        results.set(site, { kind: "refused", refusal });
        continue;
      }
      const regions = short.regions.filter((region) => findUnrelocatable(region) === undefined);
      candidates.push({ site, fn: short.fn, regions });
    }

    const regionRefusals = this.#ask(candidates, ({ regions, fn }) =>
      regions.map((region) => ({ what: region, inside: insideOf(region, region.lenBytes, fn) })),
    );
    const pads = this.#ask(candidates, (candidate) => this.#padsNear(candidate));

    const left: Candidate[] = [];
    candidates.forEach((candidate, i) => {
      const { site, fn } = candidate;
      const answers = regionRefusals[i]!;
      const regions = answers
        .filter(({ refusal, what }) => refusal === undefined && this.#mayDisplace(what, site))
        .map(({ what }) => what);
      if (regions.length === 0) {
        const refused = answers.find(({ refusal }) => refusal !== undefined)?.refusal;
        results.set(site, {
          kind: "refused",
          refusal: refused ?? { reason: "other-probe-in-region", at: site },
        });
        return;
      }
      const free = pads[i]!.filter(({ refusal }) => refusal === undefined).map(({ what }) => what);
      const found = this.#usePadding(regions, free) ?? this.#pun(regions);
      if (found === undefined) left.push({ site, fn, regions });
      else this.#settle(results, site, fn, found);
    });
    return left;
  }

  /** Neighbours and successors. */
  #planWithHelp(candidates: readonly Candidate[], results: Map<bigint, RouteResult>): void {
    const neighbours = this.#ask(candidates, (candidate) => this.#neighboursOf(candidate));
    const successors = this.#ask(candidates, (candidate) => this.#successorsOf(candidate));
    candidates.forEach(({ site, fn, regions }, i) => {
      const near = neighbours[i]!.filter(({ refusal }) => refusal === undefined).map(({ what }) => what);
      const next = successors[i]!.filter(({ refusal }) => refusal === undefined).map(({ what }) => what);
      const found = this.#evictNeighbour(regions, near) ?? this.#evictSuccessor(next);
      if (found !== undefined) this.#settle(results, site, fn, found);
      else results.set(site, { kind: "refused", refusal: this.#noRoute(site) });
    });
  }

  #noRoute(at: bigint): Refusal {
    return this.#options.places.isFull ? { reason: "landings-used-up", at } : { reason: "no-route", at };
  }

  #settle(
    results: Map<bigint, RouteResult>,
    site: bigint,
    fn: FunctionCode,
    found: { readonly region: Region; readonly route: Route },
  ): void {
    results.set(site, { kind: "route", fn, ...found });
    const { alone, claims, places } = this.#options;
    if (alone) return;
    const { region, route } = found;
    claims.write(region.start, region.lenBytes);
    if (route.tactic === "padding") claims.write(route.pad, JUMP_BYTES);
    if (route.tactic === "pun") {
      claims.keep(region.start + BigInt(region.lenBytes), route.kept.length);
      places.take(route.landing);
    }
    if (route.tactic === "neighbour") claims.write(route.evicted.start, route.evicted.lenBytes);
    if (route.tactic === "successor") {
      claims.write(route.evicted.start, route.evicted.lenBytes);
      places.take(route.landing);
      places.take(route.evictedLanding);
    }
  }

  /** Asks about everything that `questions` has for each candidate in one pass over the image. */
  #ask<What>(
    candidates: readonly Candidate[],
    questions: (candidate: Candidate) => readonly Question<What>[],
  ): { readonly what: What; readonly refusal: Refusal | undefined }[][] {
    const asked = candidates.map(questions);
    const refusals = this.#code.foreignEntries(asked.flat().map(({ inside }) => inside));
    let next = 0;
    return asked.map((group) => group.map(({ what }) => ({ what, refusal: refusals[next++] })));
  }

  #mayDisplace(region: Region, site: bigint): boolean {
    return this.#options.claims.mayWrite(region.start, region.lenBytes, site);
  }

  /** Places of five bytes of padding that a hop from the site reaches, the nearest of each run. */
  #padsNear({ site, fn, regions }: Candidate): Question<bigint>[] {
    const hop = regions.find((region) => region.lenBytes >= HOP_BYTES);
    if (hop === undefined) return [];
    const found: Question<bigint>[] = [];
    for (const run of this.#code.paddingOf(fn)) {
      const low = site + BigInt(HOP_BYTES) - 128n;
      const high = site + BigInt(HOP_BYTES) + 127n;
      const first = run.start > low ? run.start : low;
      const last = run.end - BigInt(JUMP_BYTES) < high ? run.end - BigInt(JUMP_BYTES) : high;
      // Behind the site's own region: its last bytes may be padding, too.
      const end = hop.start + BigInt(hop.lenBytes);
      for (let pad = first; pad <= last; pad += BigInt(JUMP_BYTES)) {
        if (pad < end && pad + BigInt(JUMP_BYTES) > site) continue;
        const addresses = Array.from({ length: JUMP_BYTES }, (_, i) => pad + BigInt(i));
        const isOutside = pad < fn.start || pad >= fn.end;
        found.push({ what: pad, inside: { addresses, fn, isOutside } });
      }
    }
    return found;
  }

  #usePadding(regions: readonly Region[], pads: readonly bigint[]): Found | undefined {
    const region = regions.find((candidate) => candidate.lenBytes >= HOP_BYTES);
    const pad = pads.find((at) => this.#options.claims.mayWrite(at, JUMP_BYTES));
    if (region === undefined || pad === undefined) return undefined;
    const padBytes = this.#text(pad, JUMP_BYTES);
    return padBytes === undefined ? undefined : { region, route: { tactic: "padding", pad, padBytes } };
  }

  #pun(regions: readonly Region[]): Found | undefined {
    for (const region of regions) {
      for (const pun of this.#punsAt(region)) {
        const keptAt = region.start + BigInt(region.lenBytes);
        if (!this.#options.claims.mayKeep(keptAt, pun.kept)) continue;
        const landing = this.#options.places.find(pun.first, pun.count);
        if (landing === undefined) continue;
        const siteBytes = encodePun(pun, landing, region.lenBytes);
        const kept = this.#text(keptAt, pun.kept)!;
        return { region, route: { tactic: "pun", siteBytes, kept, landing } };
      }
    }
    return undefined;
  }

  #punsAt(region: Region): Pun[] {
    for (let lenBytes = 2 * JUMP_BYTES; lenBytes >= JUMP_BYTES; lenBytes--) {
      const text = this.#text(region.start, lenBytes);
      if (text !== undefined) return punsOf(text, region.start, region.lenBytes);
    }
    return [];
  }

  /** Runs of instructions of the function that have room for two jumps, the second of them within a hop. */
  #neighboursOf({ site, fn, regions }: Candidate): Question<Region>[] {
    const hop = regions.find((region) => region.lenBytes >= HOP_BYTES);
    if (hop === undefined) return [];
    const { code } = fn;
    const own = code.indexAt(Number(site - fn.start));
    const found: Question<Region>[] = [];
    const consider = (index: number): boolean => {
      const at = fn.start + BigInt(code.offsets[index]!);
      if (!hopReaches(site, at + BigInt(JUMP_BYTES))) return false;
      const wide = this.#code.wideRegion(at, NEIGHBOUR_BYTES);
      if (wide.kind === "refused") return true;
      const { region } = wide;
      const overlaps =
        region.start < hop.start + BigInt(hop.lenBytes) && region.start + BigInt(region.lenBytes) > site;
      if (!overlaps && findUnrelocatable(region) === undefined)
        found.push({ what: region, inside: insideOf(region, NEIGHBOUR_BYTES, fn) });
      return true;
    };
    for (let i = own - 1; i >= 0 && found.length < MOST_NEIGHBOURS / 2; i--) if (!consider(i)) break;
    for (let i = own + 1; i < code.count && found.length < MOST_NEIGHBOURS; i++) if (!consider(i)) break;
    return found;
  }

  #evictNeighbour(regions: readonly Region[], neighbours: readonly Region[]): Found | undefined {
    const region = regions.find((candidate) => candidate.lenBytes >= HOP_BYTES);
    const evicted = neighbours.find(({ start, lenBytes }) => this.#options.claims.mayWrite(start, lenBytes));
    if (region === undefined || evicted === undefined) return undefined;
    const evictedBytes = this.#text(evicted.start, NEIGHBOUR_BYTES);
    if (evictedBytes === undefined) return undefined;
    return { region, route: { tactic: "neighbour", evicted, evictedBytes } };
  }

  /** For each region of the site, the region that follows it, if that has room for a jump. */
  #successorsOf({ fn, regions }: Candidate): Question<{ readonly region: Region; readonly next: Region }>[] {
    const found: Question<{ readonly region: Region; readonly next: Region }>[] = [];
    for (const region of regions) {
      const wide = this.#code.wideRegion(region.start + BigInt(region.lenBytes), JUMP_BYTES);
      if (wide.kind === "refused" || findUnrelocatable(wide.region) !== undefined) continue;
      const inside = insideOf(wide.region, JUMP_BYTES, wide.fn ?? fn);
      found.push({ what: { region, next: wide.region }, inside });
    }
    return found;
  }

  #evictSuccessor(pairs: readonly { readonly region: Region; readonly next: Region }[]): Found | undefined {
    for (const { region, next } of pairs) {
      if (!this.#options.claims.mayWrite(next.start, next.lenBytes)) continue;
      const evictedBytes = this.#text(next.start, JUMP_BYTES);
      const landings = evictedBytes && this.#findPair(region, next);
      if (landings === undefined) continue;
      const { siteBytes, evictedJump, landing, evictedLanding } = landings;
      const route: SuccessorRoute = {
        tactic: "successor",
        siteBytes,
        landing,
        evicted: next,
        evictedBytes: evictedBytes!,
        evictedJump,
        evictedLanding,
      };
      return { region, route };
    }
    return undefined;
  }

  /**
   * Two landings at once. The site's displacement is its own free bytes, then `e9`, then the low bytes of the
   * successor's; so the site's landing decides the low bytes of the successor's, whose high ones are free.
   *
   *     site (1 byte)   e9 | e9 s1 s2 s3 s4       site's displacement: e9 s1 s2 s3, successor's: s1 s2 s3 s4
   */
  #findPair(
    region: Region,
    next: Region,
  ): Pick<SuccessorRoute, "siteBytes" | "evictedJump" | "landing" | "evictedLanding"> | undefined {
    const { places } = this.#options;
    const own = region.lenBytes - 1;
    const shared = 3 - own;
    const scale = 256n ** BigInt(own);
    const origin = region.start + BigInt(JUMP_BYTES);
    // Windows for the top byte of the site's displacement: where it is e9 itself there is only that one.
    const tops = shared === 0 ? [0] : TOP_BYTES;
    for (const top of tops) {
      const fixed =
        shared === 0
          ? BigInt.asIntN(32, 0xe9n << 24n)
          : BigInt.asIntN(32, (BigInt(top) << 24n) | (0xe9n * scale));
      // With one shared byte that is the top one; otherwise the bytes between e9 and the top are free, too.
      const first = origin + fixed;
      const stride = shared <= 1 ? 1 : Number(scale) * 256;
      const count = shared <= 1 ? Number(scale) : 2 ** 24 / stride;
      const landing = places.find(first, count, stride);
      if (landing === undefined) continue;
      const disp = BigInt.asUintN(32, landing - origin);
      const low = shared === 0 ? 0n : disp >> BigInt(8 * (own + 1));
      // The successor's displacement has `low` in its `shared` low bytes.
      const step = 256n ** BigInt(shared);
      const nextOrigin = next.start + BigInt(JUMP_BYTES);
      const lowest = nextOrigin - 2n ** 31n + low;
      const evictedLanding = this.#findApart(lowest, Number(2n ** 32n / step), Number(step), landing);
      if (evictedLanding === undefined) continue;
      const siteBytes = new Uint8Array(region.lenBytes);
      siteBytes[0] = 0xe9;
      for (let i = 0; i < own; i++) siteBytes[1 + i] = Number((disp >> BigInt(8 * i)) & 0xffn);
      const evictedJump = new Uint8Array(JUMP_BYTES);
      evictedJump[0] = 0xe9;
      const evictedDisp = evictedLanding - nextOrigin;
      for (let i = 0; i < 4; i++) evictedJump[1 + i] = Number((evictedDisp >> BigInt(8 * i)) & 0xffn);
      return { siteBytes, evictedJump, landing, evictedLanding };
    }
    return undefined;
  }

  /** A place that does not overlap one that is chosen and not yet taken. */
  #findApart(first: bigint, count: number, stride: number, other: bigint): bigint | undefined {
    const found = this.#options.places.find(first, count, stride);
    if (found === undefined) return undefined;
    const apart = found >= other + BigInt(LANDING_BYTES) || found + BigInt(LANDING_BYTES) <= other;
    if (apart) return found;
    const skipped = Number((found - first) / BigInt(stride)) + Math.ceil((2 * LANDING_BYTES) / stride);
    if (skipped >= count) return undefined;
    const again = this.#options.places.find(
      first + BigInt(skipped) * BigInt(stride),
      count - skipped,
      stride,
    );
    const isApart =
      again !== undefined &&
      (again >= other + BigInt(LANDING_BYTES) || again + BigInt(LANDING_BYTES) <= other);
    return isApart ? again : undefined;
  }

  #text(start: bigint, lenBytes: number): Uint8Array | undefined {
    const bytes = textBytes(this.#code.image, start, start + BigInt(lenBytes));
    return bytes && Uint8Array.from(bytes);
  }
}

interface Found {
  readonly region: Region;
  readonly route: Route;
}

/** Top bytes of displacements, near the image first: both signs, and not all, since each costs a search. */
const TOP_BYTES = [0xff, 0xfe, 0xfc, 0xf8, 0xf0, 0xe8, 0xe0, 0xd0, 0xc0, 0xb0, 0xa0, 0x90, 0x84].concat([
  0x01, 0x02, 0x04, 0x08, 0x10, 0x18, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x7c,
]);

function insideOf(region: Region, written: number, fn: FunctionCode): Inside {
  return { addresses: interiorOf(region, written), fn, isOutside: false };
}
