/**
 * How a site that is too short for a jump gets to its detour all the same: the tactics of the punned rung, as data.
 *
 *     pun         site: e9 + bytes that are there ──► landing ──► detour
 *     padding     site: eb ──► padding: e9 ──► detour
 *     neighbour   site: eb ──► 5 bytes inside a displaced neighbour: e9 ──► detour
 *     successor   site: e9 + bytes of the displaced successor's own jump ──► landing ──► detour
 *
 * A displaced neighbour or successor is a region like that of a jump (regions.ts), and its jump leads to a copy of it
 * without any gate. All places of landings are part of the route; addresses of copies and detours are not known yet.
 *
 * The order of writes matters, because the tracer may die between two of them: what the site leads to is written
 * before the site, and put back after it.
 */
import { encodeHop, encodeJump, JUMP_BYTES } from "../x86/punning.ts";
import type { Region } from "../x86/regions.ts";
import { encodeLanding } from "./landing-places.ts";

export interface PunRoute {
  readonly tactic: "pun";
  /** What the site's region gets. */
  readonly siteBytes: Uint8Array;
  /** The bytes behind the region that the jump ends with. */
  readonly kept: Uint8Array;
  readonly landing: bigint;
}

export interface PaddingRoute {
  readonly tactic: "padding";
  /** Five bytes that nothing executes. */
  readonly pad: bigint;
  readonly padBytes: Uint8Array;
}

export interface NeighbourRoute {
  readonly tactic: "neighbour";
  /** Ten bytes of it are replaced by two jumps. */
  readonly evicted: Region;
  readonly evictedBytes: Uint8Array;
}

export interface SuccessorRoute {
  readonly tactic: "successor";
  readonly siteBytes: Uint8Array;
  readonly landing: bigint;
  readonly evicted: Region;
  /** What the evicted region's first five bytes are, and what they become. */
  readonly evictedBytes: Uint8Array;
  readonly evictedJump: Uint8Array;
  readonly evictedLanding: bigint;
}

export type Route = PunRoute | PaddingRoute | NeighbourRoute | SuccessorRoute;

/** A piece of text beside the site that changes with it. */
export interface SidePatch {
  /** In `padding` nothing stands before; in an `evicted` region threads may, and its first instruction is a place like any. */
  readonly kind: "padding" | "evicted";
  readonly at: bigint;
  readonly oldBytes: Uint8Array;
  readonly newBytes: Uint8Array;
  /** Where its first byte leads when it is written. */
  readonly leadsTo: bigint;
}

/** What the route does to the text and beside it, once it is known where the detour and the evicted copy are. */
export interface RoutePatch {
  readonly siteBytes: Uint8Array;
  /** Where the site's first jump leads: a thread there has not begun the detour. */
  readonly leadsTo: bigint;
  readonly sides: readonly SidePatch[];
  readonly landings: readonly { readonly at: bigint; readonly bytes: Uint8Array }[];
}

/** The places of landings that the route needs. */
export function landingsOf(route: Route): bigint[] {
  switch (route.tactic) {
    case "pun":
      return [route.landing];
    case "successor":
      return [route.landing, route.evictedLanding];
    case "padding":
    case "neighbour":
      return [];
    default:
      return route satisfies never;
  }
}

/** The region that the route displaces beside the site's own. */
export function evictedBy(route: Route): Region | undefined {
  return route.tactic === "neighbour" || route.tactic === "successor" ? route.evicted : undefined;
}

/** Undefined: the detour or the copy is out of reach. `site` is the region that the route leads away from. */
export function patchRoute(
  route: Route,
  site: { readonly at: bigint; readonly oldBytes: Uint8Array },
  detour: bigint,
  copy: bigint | undefined,
): RoutePatch | undefined {
  switch (route.tactic) {
    case "pun":
      return {
        siteBytes: route.siteBytes,
        leadsTo: route.landing,
        sides: [],
        landings: [{ at: route.landing, bytes: encodeLanding(detour) }],
      };
    case "padding": {
      const newBytes = encodeJump(route.pad, detour);
      if (newBytes === undefined) return undefined;
      const side: SidePatch = {
        kind: "padding",
        at: route.pad,
        oldBytes: route.padBytes,
        newBytes,
        leadsTo: detour,
      };
      return {
        siteBytes: encodeHop(site.at, route.pad, site.oldBytes),
        leadsTo: route.pad,
        sides: [side],
        landings: [],
      };
    }
    case "neighbour": {
      const at = route.evicted.start;
      const pad = at + BigInt(JUMP_BYTES);
      const away = copy === undefined ? undefined : encodeJump(at, copy);
      const jump = encodeJump(pad, detour);
      if (away === undefined || jump === undefined) return undefined;
      const newBytes = Uint8Array.of(...away, ...jump);
      const side: SidePatch = {
        kind: "evicted",
        at,
        oldBytes: route.evictedBytes,
        newBytes,
        leadsTo: copy!,
      };
      return {
        siteBytes: encodeHop(site.at, pad, site.oldBytes),
        leadsTo: pad,
        sides: [side],
        landings: [],
      };
    }
    case "successor": {
      if (copy === undefined) return undefined;
      const side: SidePatch = {
        kind: "evicted",
        at: route.evicted.start,
        oldBytes: route.evictedBytes,
        newBytes: route.evictedJump,
        leadsTo: route.evictedLanding,
      };
      return {
        siteBytes: route.siteBytes,
        leadsTo: route.landing,
        sides: [side],
        landings: [
          { at: route.landing, bytes: encodeLanding(detour) },
          { at: route.evictedLanding, bytes: encodeLanding(copy) },
        ],
      };
    }
    default:
      return route satisfies never;
  }
}
