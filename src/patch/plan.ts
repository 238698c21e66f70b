/**
 * What will be done to each site, as plain data: which mechanism, which bytes, what must survive there, and why
 * not a higher rung of the ladder.
 *
 * A plan holds no address of anything that has to be allocated first, so it can be printed and compared before the
 * target is touched. `emitDetour` makes code of it, `patchOf` the bytes for the text.
 *
 * The ladder: `call` (over NOPs at a function's entry that are meant for it), `jump`, `punned` (a site that is too short for a
 * jump gets to its detour by one of the tactics of route.ts), `int3`. Sites are planned together, because they exclude each other and because the searches over the
 * whole image are paid once.
 */
import { mayBeColdPart } from "../x86/function-code.ts";
import { everythingLive, type Liveness, liveAt } from "../x86/liveness.ts";
import { findPatchableEntries, type PatchableEntryResult } from "../x86/patchable-entry.ts";
import { encodeCall, encodeJump } from "../x86/punning.ts";
import type { ImageCode, Region, RegionResult } from "../x86/regions.ts";
import { findUnrelocatable } from "../x86/relocate.ts";
import type { Blacklist } from "./blacklist.ts";
import type { LandingPlaces } from "./landing-places.ts";
import { maskedCodeOf } from "./masked-code.ts";
import type { OverrideRefusal, Refusal, ReturnRefusal } from "./refusal.ts";
import type { Route } from "./route.ts";
import { RoutePlanner, type RouteResult } from "./route-planner.ts";
import { TextClaims } from "./text-claims.ts";

export type Mechanism = "call" | "jump" | "punned" | "int3";

/** All rungs, highest first. */
export const mechanisms: readonly Mechanism[] = ["call", "jump", "punned", "int3"];

export interface RefusedRung {
  readonly mechanism: Mechanism;
  readonly refusal: Refusal;
}

export interface SiteFunction {
  readonly name: string | undefined;
  readonly start: bigint;
  readonly end: bigint;
}

export interface SitePlan {
  readonly kind: "planned";
  /** Where the probe is. The text is changed at `region.start`: for a `call` that may lie behind an endbr64. */
  readonly at: bigint;
  readonly image: string;
  readonly fn: SiteFunction | undefined;
  /** A call has just led here: nothing below rsp and no flags are live, and the return address is at [rsp]. */
  readonly isEntry: boolean;
  readonly mechanism: Mechanism;
  /** How a `punned` site gets to its detour. */
  readonly route?: Route | undefined;
  /** Who probes the site already: then its detour leads to this one, and the mechanism is what stands in the text. */
  readonly held?: HeldSite | undefined;
  /** What the detour executes in place of the text; the NOPs that a `call` replaces. */
  readonly region: Region;
  /** The text of the region as it must be before the patch. */
  readonly oldBytes: Uint8Array;
  readonly liveness: Liveness;
  /** Higher rungs, with the reason that refused each. */
  readonly refused: readonly RefusedRung[];
}

export interface RefusedSite {
  readonly kind: "refused";
  readonly at: bigint;
  readonly image: string;
  readonly refused: readonly RefusedRung[];
}

export type PlannedSite = SitePlan | RefusedSite;

export interface PlanOptions {
  /** `auto` takes the highest rung that is safe; another forces that one. */
  readonly mechanism: "auto" | Mechanism;
  /** Sites of probes that are armed already. */
  readonly armed?: Iterable<bigint>;
  /** Judge each site as if it were the only one. */
  readonly alone?: boolean;
  /** Free memory near the image; without it no site is `punned`. */
  readonly places?: LandingPlaces | undefined;
  /** Only the mechanism is asked for: everything counts as live. */
  readonly withoutLiveness?: boolean;
  /** Why a site must not get a `call` though it could, from what is to run there. */
  readonly callObstacle?: (at: bigint) => Refusal | undefined;
  /** Where nothing may be changed. */
  readonly blacklist?: Blacklist | undefined;
  /** What other tracers have planted in the same text. */
  readonly others?: OtherTracers | undefined;
  /** What the target's memory holds, to be compared with the file. */
  readonly readText?: (addr: bigint, lenBytes: number) => Uint8Array | undefined;
}

/** A site that another tracer probes already. */
export interface HeldSite {
  /** Its process id. */
  readonly tracer: number;
  readonly mechanism: Mechanism | "call" | "other";
  /** How many bytes its detour displaces. */
  readonly lenBytes: number;
  /** The slot that leads to the next detour of the site; that one leads on to the gate behind the slot. For a call, the call. */
  readonly slot: bigint;
  /** There is a call, or was before others came: what it is now, and where it leads. */
  readonly call?: HeldCall | undefined;
}

export interface HeldCall {
  readonly bytes: Uint8Array;
  readonly trampoline: bigint;
}

/** Text that another tracer has changed, or relies on. */
export interface HeldText {
  readonly tracer: number;
  readonly at: bigint;
  readonly lenBytes: number;
  /** Changed; else only to stay as it is. */
  readonly isWritten: boolean;
}

/** What other tracers have planted in a target. */
export interface OtherTracers {
  readonly sites: ReadonlyMap<bigint, HeldSite>;
  readonly text: readonly HeldText[];
}

/** Plans for all sites of one image, in order. */
export function planSites(code: ImageCode, sites: readonly bigint[], options: PlanOptions): PlannedSite[] {
  const held = options.others?.sites;
  if (held === undefined || held.size === 0) return planFree(code, sites, options);
  // Sites of others are armed ones, but for those that are asked for: there this comes before what is armed.
  const wanted = new Set(sites);
  const armed = [...(options.armed ?? []), ...[...held.keys()].filter((at) => !wanted.has(at))];
  const heldAt = (at: bigint) => held.get(at) ?? heldBehindMark(code, at, held);
  const heldOf = new Map(sites.map((at) => [at, heldAt(at)]));
  const free = sites.filter((at) => heldOf.get(at) === undefined);
  const joint = sites.filter((at) => heldOf.get(at) !== undefined);
  const plans = new Map<bigint, PlannedSite>();
  for (const plan of planFree(code, free, { ...options, armed: [...armed, ...joint] }))
    plans.set(plan.at, plan);
  for (const at of joint) plans.set(at, planHeld(code, at, heldOf.get(at)!, options));
  return sites.map((at) => plans.get(at)!);
}

/** `endbr64`: the call of a function that begins with it stands behind. */
const ENTRY_MARK_BYTES = 4n;

/** A function's call that does not stand at its first byte. */
function heldBehindMark(code: ImageCode, at: bigint, held: OtherTracers["sites"]): HeldSite | undefined {
  const behind = held.get(at + ENTRY_MARK_BYTES);
  if (behind?.call === undefined) return undefined;
  return patchableEntry(code, at)?.region.start === at + ENTRY_MARK_BYTES ? behind : undefined;
}

function patchableEntry(code: ImageCode, at: bigint) {
  const entry = findPatchableEntries(code, [at], { alone: true })[0]!;
  return entry.kind === "region" ? entry : undefined;
}

/** A site that another tracer has changed: what it displaces is displaced here as well, and the text stays as it is. */
function planHeld(code: ImageCode, at: bigint, held: HeldSite, options: PlanOptions): PlannedSite {
  const { tracer, mechanism } = held;
  const refuse = (refusal: Refusal): PlannedSite => ({
    kind: "refused",
    at,
    image: code.image.name,
    refused: [{ mechanism: "jump", refusal }],
  });
  const result = held.call === undefined ? code.regionOfLength(at, held.lenBytes) : patchableEntry(code, at);
  if (held.call !== undefined && result === undefined)
    return refuse({ reason: "other-tracer-calls", at, tracer });
  if (mechanism === "other" || result === undefined)
    return refuse({ reason: "other-tracer-displaces", at, tracer });
  const refused: RefusedRung[] = [];
  const rung = mechanism === "call" ? "jump" : mechanism;
  const plan = tryRung(code, at, rung, result, refused, { ...options, others: undefined });
  return plan === undefined ? { kind: "refused", at, image: code.image.name, refused } : { ...plan, held };
}

function planFree(code: ImageCode, sites: readonly bigint[], options: PlanOptions): PlannedSite[] {
  const { mechanism, alone } = options;
  const forced: Refusal = { reason: "other-mechanism-forced", mechanism };
  const refused = sites.map((): RefusedRung[] => []);
  const plans: (SitePlan | undefined)[] = sites.map(() => undefined);

  if (mechanism === "auto" || mechanism === "call") {
    const entries = findPatchableEntries(code, sites, options);
    for (const [i, at] of sites.entries())
      plans[i] = tryRung(code, at, "call", withObstacle(at, entries[i]!, options), refused[i]!, options);
  } else for (const rungs of refused) rungs.push({ mechanism: "call", refusal: forced });

  if (mechanism === "auto" || mechanism === "jump") {
    const left = [...sites.keys()].filter((i) => plans[i] === undefined);
    const called = sites.filter((_, i) => plans[i] !== undefined);
    const jumps = code.jumpRegions(
      left.map((i) => sites[i]!),
      alone === true || called.length === 0
        ? options
        : { ...options, armed: [...called, ...(options.armed ?? [])] },
    );
    for (const [n, i] of left.entries())
      plans[i] = tryRung(code, sites[i]!, "jump", jumps[n]!, refused[i]!, options);
  } else if (mechanism !== "call")
    for (const rungs of refused) rungs.push({ mechanism: "jump", refusal: forced });

  if (options.places !== undefined && mechanism !== "jump" && mechanism !== "call") {
    const left = [...sites.keys()].filter((i) => plans[i] === undefined);
    if (mechanism === "int3")
      for (const i of left) refused[i]!.push({ mechanism: "punned", refusal: forced });
    else {
      const routes = planRoutes(code, sites, plans, left, { ...options, places: options.places });
      for (const [n, i] of left.entries())
        plans[i] = tryRung(code, sites[i]!, "punned", routes[n]!, refused[i]!, options);
    }
  }

  return sites.map((at, i) => {
    if (plans[i] === undefined && (mechanism === "auto" || mechanism === "int3"))
      plans[i] = tryRung(code, at, "int3", code.trapRegion(at), refused[i]!, options);
    return plans[i] ?? { kind: "refused", at, image: code.image.name, refused: refused[i]! };
  });
}

function planRoutes(
  code: ImageCode,
  sites: readonly bigint[],
  plans: readonly (SitePlan | undefined)[],
  left: readonly number[],
  options: PlanOptions & { readonly places: LandingPlaces },
): RouteResult[] {
  const { alone = false, armed = [], places } = options;
  const claims = new TextClaims(alone ? armed : [...sites, ...armed]);
  for (const text of options.others?.text ?? [])
    if (text.isWritten) claims.write(text.at, text.lenBytes);
    else claims.keep(text.at, text.lenBytes);
  if (!alone) for (const plan of plans) if (plan) claims.write(plan.region.start, plan.region.lenBytes);
  const planner = new RoutePlanner(code, { places, claims, alone });
  return planner.plan(left.map((i) => sites[i]!));
}

type CallResult = PatchableEntryResult | { readonly kind: "refused"; readonly refusal: Refusal };

function withObstacle(at: bigint, entry: PatchableEntryResult, { callObstacle }: PlanOptions): CallResult {
  const refusal = entry.kind === "region" ? callObstacle?.(at) : undefined;
  return refusal === undefined ? entry : { kind: "refused", refusal };
}

function tryRung(
  code: ImageCode,
  at: bigint,
  mechanism: Mechanism,
  result: RegionResult | RouteResult | CallResult,
  refused: RefusedRung[],
  options: PlanOptions,
): SitePlan | undefined {
  const refusal =
    result.kind === "refused"
      ? (findBarred(at, 1, options) ?? result.refusal)
      : (findBarred(result.region.start, result.region.lenBytes, options) ??
        findUnrelocatable(result.region) ??
        findDifference(code, result.region, options) ??
        findMasked(code, at, mechanism) ??
        findOtherTracer(result.region, mechanism, options));
  if (refusal !== undefined || result.kind === "refused") {
    if (refusal !== undefined) refused.push({ mechanism, refusal });
    return undefined;
  }
  const { region, fn } = result;
  const offset = Number(at - fn.start);
  const isKnown = code.image.findFunction(at) !== undefined;
  const isEntry = isKnown && offset === 0 && !fn.entries.has(0) && !mayBeColdPart(fn);
  const isLiveKnown = isKnown && options.withoutLiveness !== true;
  return {
    kind: "planned",
    at,
    image: code.image.name,
    fn: isKnown ? { name: fn.name, start: fn.start, end: fn.end } : undefined,
    isEntry,
    mechanism,
    route: result.kind === "route" ? result.route : undefined,
    region,
    oldBytes: regionBytes(code, region),
    liveness: isLiveKnown ? liveAt(fn.code, fn.code.indexAt(offset), isEntry) : everythingLive,
    refused: [...refused],
  };
}

function findBarred(at: bigint, lenBytes: number, { blacklist }: PlanOptions): Refusal | undefined {
  const entry = blacklist?.find(at, lenBytes);
  return entry === undefined ? undefined : { reason: "blacklisted", at, entry };
}

/** Whether a trap could come while signals are blocked. */
function findMasked(code: ImageCode, at: bigint, mechanism: Mechanism): Refusal | undefined {
  if (mechanism !== "int3" || !maskedCodeOf(code).has(at)) return undefined;
  return { reason: "signals-blocked", at };
}

/** Another tracer's bytes among those that are to be changed. */
function findOtherTracer(
  { start, lenBytes }: Region,
  mechanism: Mechanism,
  { others }: PlanOptions,
): Refusal | undefined {
  const end = start + BigInt(mechanism === "int3" ? 1 : lenBytes);
  const text = others?.text.find(({ at, lenBytes: length }) => at < end && at + BigInt(length) > start);
  return text && { reason: "other-tracer-in-region", at: text.at, tracer: text.tracer };
}

function findDifference(code: ImageCode, region: Region, options: PlanOptions): Refusal | undefined {
  if (options.readText === undefined) return undefined;
  const found = options.readText(region.start, region.lenBytes);
  if (found === undefined) return { reason: "text-unreadable", at: region.start };
  const expected = regionBytes(code, region);
  if (expected.every((byte, i) => byte === found[i])) return undefined;
  return { reason: "text-differs", at: region.start, expected, found };
}

function regionBytes(code: ImageCode, region: Region): Uint8Array {
  for (const range of code.image.text) {
    const offset = Number(region.start - range.start);
    if (offset >= 0 && offset + region.lenBytes <= range.bytes.length)
      // Not slice: of a node Buffer that would be a view.
      return Uint8Array.from(range.bytes.subarray(offset, offset + region.lenBytes));
  }
  throw new Error(`read region at 0x${region.start.toString(16)}: not in the text`);
}

/** The same site one rung lower, when an address that is known only now refuses the jump. */
export function planAsTrap(code: ImageCode, plan: SitePlan, refusal: Refusal): PlannedSite {
  const refused: RefusedRung[] = [...plan.refused, { mechanism: plan.mechanism, refusal }];
  const trap = tryRung(code, plan.at, "int3", code.trapRegion(plan.at), refused, { mechanism: "int3" });
  return trap ?? { kind: "refused", at: plan.at, image: plan.image, refused };
}

/** Functions that return more than once for one call: a hijacked return address would be used up by the first return. */
const returnsTwice = new Set([
  "vfork",
  "__vfork",
  "setjmp",
  "_setjmp",
  "__setjmp",
  "sigsetjmp",
  "__sigsetjmp",
  "savectx",
  "getcontext",
  "__getcontext",
  "swapcontext",
  "__swapcontext",
]);

/** Does the function return more than once for one call? */
export function doesReturnTwice(name: string | undefined): boolean {
  return name !== undefined && returnsTwice.has(name.replace(/@.*/, ""));
}

/** Why the site's return address cannot be replaced, or undefined. */
export function findReturnRefusal(plan: SitePlan, code?: ImageCode): ReturnRefusal | undefined {
  if (!plan.isEntry) return { reason: "not-a-function-entry", at: plan.at };
  const name = plan.fn?.name?.replace(/@.*/, "");
  // Where the kernel or the loader starts a program: the number of arguments is on top of the stack.
  if (name === "_start") return { reason: "not-a-function-entry", at: plan.at };
  if (name !== undefined && doesReturnTwice(name)) return { reason: "returns-twice", name };
  const fn = code?.functionAt(plan.at);
  for (let i = 0; i < (fn?.code.count ?? 0); i++)
    if (fn?.code.flowAt(i) === "return" && fn.code.bytesAt(i).at(-3) === 0xc2)
      return { reason: "pops-arguments", at: plan.at };
  return undefined;
}

/** Why no program may override the function's result at the site, or undefined. */
export function findOverrideRefusal(
  plan: Pick<SitePlan, "at" | "isEntry">,
  when: "entry" | "return",
): OverrideRefusal | undefined {
  if (when === "return") return { reason: "override-at-return", at: plan.at };
  return plan.isEntry ? undefined : { reason: "override-inside-function", at: plan.at };
}

/** The bytes that replace the region's text, from `region.start` on. All but the first ones are the old ones. */
export function patchOf(plan: SitePlan, mechanism: Mechanism, detour: bigint): Uint8Array {
  const bytes = Uint8Array.from(plan.oldBytes);
  if (mechanism === "int3") {
    bytes[0] = 0xcc;
    return bytes;
  }
  const { start } = plan.region;
  const jump =
    plan.mechanism === "jump"
      ? encodeJump(start, detour)
      : plan.mechanism === "call"
        ? encodeCall(start, detour)
        : undefined;
  if (jump === undefined)
    throw new Error(
      `patch 0x${plan.at.toString(16)}: no ${plan.mechanism === "call" ? "call" : "jump"} to 0x${detour.toString(16)}`,
    );
  bytes.set(jump);
  return bytes;
}
