/** What a probe set needs to know of a point whose code has been emitted: how the site, and text beside it, leads there. */
import type { WrittenCode } from "../../gate/index.ts";
import { type Detour, linkOffset, SLOT } from "../../patch/detour.ts";
import { emitApproach } from "../../patch/function-trampoline.ts";
import { patchOf, type SitePlan } from "../../patch/plan.ts";
import type { Refusal } from "../../patch/refusal.ts";
import { evictedBy, landingsOf, patchRoute, type RoutePatch } from "../../patch/route.ts";
import type { PointCode } from "../../probe/probe-set.ts";
import type { AddrRange } from "../../target/target.ts";
import { encodeJump } from "../../x86/punning.ts";
import { type Relocated, relocate } from "../../x86/relocate.ts";

/** Most that a detour takes without a switch of stacks. */
export const POINT_SPACE_BYTES = 800;

/** What the route of a punned plan does to the text, and the copy of what it displaces beside the site. */
export interface BuiltRoute {
  readonly patch: RoutePatch;
  readonly evicted: Relocated | undefined;
}

/** What stands for the call that another session has, or had, at the site. */
export function approachTo({ held, region }: SitePlan, at: bigint): WrittenCode | undefined {
  if (held?.call === undefined) return undefined;
  return emitApproach(at, region.start + BigInt(region.lenBytes), held.call.trampoline);
}

/** Space between code of different owners, so that listings keep them apart. */
const CODE_ALIGN = 16n;
/** As code spaces hand it out. */
const BLOCK_ALIGN = 64n;

/** The bytes of a punned plan's route, now that the detour has its place. The evicted copy goes behind the detour. */
export function emitRoute(
  plan: SitePlan,
  detour: Detour,
  unmapped: ReadonlySet<bigint>,
): { kind: "routed"; route: BuiltRoute | undefined } | { kind: "refused"; refusal: Refusal } {
  const { route } = plan;
  if (route === undefined) return { kind: "routed", route: undefined };
  const lost = landingsOf(route).find((at) => unmapped.has(at));
  if (lost !== undefined) return { kind: "refused", refusal: { reason: "landing-not-mapped", at: lost } };
  const region = evictedBy(route);
  const behind = (detour.at + BigInt(detour.bytes.length) + CODE_ALIGN - 1n) & -CODE_ALIGN;
  const evicted = region === undefined ? undefined : relocate(region, behind);
  if (evicted?.kind === "refused") return evicted;
  const patch = patchRoute(route, plan, detour.entry, evicted?.at);
  return patch === undefined
    ? {
        kind: "refused",
        refusal: { reason: "detour-out-of-reach", site: plan.at, detour: detour.at },
      }
    : { kind: "routed", route: { patch, evicted } };
}

/** The memory that a detour takes. */
export function blockOf({ at, bytes }: Pick<Detour, "at" | "bytes">): AddrRange {
  return { start: at, end: (at + BigInt(bytes.length) + BLOCK_ALIGN - 1n) & -BLOCK_ALIGN };
}

const toMoves = (twins: Relocated["twins"]) =>
  twins.map(({ original, copy }) => ({ from: original, to: copy }));

export function pointCode(plan: SitePlan, detour: Detour, route: BuiltRoute | undefined): PointCode {
  const common = {
    at: plan.at,
    oldBytes: plan.oldBytes,
    detour: detour.entry,
    copyOffset: detour.displacedOffset,
    twins: toMoves(detour.twins),
  };
  if (plan.held !== undefined && plan.mechanism !== "call") {
    const { slot, call } = plan.held;
    return {
      ...common,
      // A function's call may stand behind its first byte.
      at: call === undefined ? plan.at : plan.region.start,
      jumpBytes: plan.mechanism === "jump" ? patchOf(plan, "jump", detour.entry) : undefined,
      hook: {
        slot,
        oldBytes: plan.held.mechanism === "call" ? call!.bytes : SLOT,
        newBytes: getJump(slot, detour.entry),
        ...(call === undefined ? {} : { hasApproach: true }),
        linkOffset: linkOffset(detour.displacedOffset),
        mechanism: plan.mechanism,
      },
    };
  }
  if (route === undefined)
    return {
      ...common,
      jumpBytes: plan.mechanism === "jump" ? patchOf(plan, "jump", detour.entry) : undefined,
    };
  const { patch, evicted } = route;
  return {
    ...common,
    jumpBytes: patch.siteBytes,
    route: {
      leadsTo: patch.leadsTo,
      kept: plan.route?.tactic === "pun" ? plan.route.kept : new Uint8Array(0),
      sides: patch.sides.map((side) => ({
        ...side,
        detour: evicted?.at ?? detour.entry,
        twins: side.kind === "evicted" && evicted !== undefined ? toMoves(evicted.twins) : [],
      })),
    },
  };
}

export function callCode(plan: SitePlan, trampoline: bigint): PointCode {
  const { region, oldBytes } = plan;
  const behind = region.start + BigInt(region.lenBytes);
  return {
    at: region.start,
    oldBytes,
    jumpBytes: patchOf(plan, "call", trampoline),
    detour: trampoline,
    // A thread between two NOPs has passed the entry.
    twins: region.insns.slice(1).map(({ addr }) => ({ from: addr, to: behind })),
    isCall: true,
  };
}

/** Whether the detours of two sessions can lead to each other; they are at most this long. */
export function canChain(slot: bigint, at: bigint): boolean {
  const margin = BigInt(POINT_SPACE_BYTES);
  return encodeJump(slot, at - margin) !== undefined && encodeJump(slot, at + margin) !== undefined;
}

/** A jump between two detours of one site, which both reach the site. */
function getJump(from: bigint, to: bigint): Uint8Array {
  const bytes = encodeJump(from, to);
  if (bytes === undefined)
    throw new Error(`chain detours: 0x${from.toString(16)} does not reach 0x${to.toString(16)}`);
  return bytes;
}
