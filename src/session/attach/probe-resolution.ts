/**
 * From attach points to planned probe points in one process: which addresses they mean, what runs at each, how each can be
 * changed, and in words what is wrong with those that cannot be probed.
 */
import { HELPER_OVERRIDE_RETURN, HELPER_TAIL_CALL, type Proof } from "../../bpf/index.ts";
import { isGlob, type Place } from "../../elf/index.ts";
import type { UserAttachPoint } from "../../lang/index.ts";
import {
  blacklistText,
  findBlacklistedImage,
  findOverrideRefusal,
  findReturnRefusal,
  type Mechanism,
  type OtherTracers,
  type PlannedSite,
  type PlanOptions,
  planSites,
  type Refusal,
  refusalText,
} from "../../patch/index.ts";
import type { ProcessImages, ResolvedLocation } from "../../target/process/images.ts";
import { describeLocationRefusal } from "../../target/process/location-refusal.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import { ImageCode } from "../../x86/regions.ts";
import type { GateLevel, ReturnChoice } from "../options.ts";
import { blacklistOf } from "./image-blacklist.ts";
import { landingPlacesOf } from "./landing-memory.ts";
import type { AttachedProbe, PlannedPoint } from "./point-builder.ts";
import { isGoProgram, type ReturnRole, ReturnWays } from "./return-ways.ts";

/** A program with one of its attach points. */
export interface AttachRequest {
  readonly attachPoint: UserAttachPoint;
  readonly programIndex: number;
  /** Which of the session's bundles the program is in; the first unless told. */
  readonly bundle?: number | undefined;
  /** Number of the probe's account in the session; undefined: its hits are not accounted for. */
  readonly account?: number | undefined;
  /** What its program is to run behind; undefined: nobody has said. */
  readonly gate?: GateLevel | undefined;
  /** Undefined: a number for the probe's name. */
  readonly cookie?: bigint;
  /** A static probe of the image, whose places and cookies this finds; the attach point's own place is not looked at. */
  readonly usdt?: UsdtFinder;
}

/** One place of a static probe; addresses are those of the file. */
export interface UsdtSite {
  readonly addr: bigint;
  readonly cookie: bigint;
  /** A 16-bit counter of those who listen: at 0 the program passes the place by. Undefined: it always comes there. */
  readonly semaphore: bigint | undefined;
}

/** Finds the places of a static probe. */
export interface UsdtFinder {
  find(image: MappedImage): {
    readonly sites: readonly UsdtSite[];
    readonly problem: string | undefined;
  };
}

/** An address with the cookie that programs see there. */
interface FoundPlace {
  readonly location: ResolvedLocation;
  readonly cookie: bigint;
  readonly semaphore?: bigint | undefined;
}

/** What is wrong with one attach point. */
export interface ProbeProblem {
  readonly probe: string;
  readonly reason: string;
  readonly hint: string | undefined;
  /** The image is not mapped (yet): all else may be right. */
  readonly isMissingImage: boolean;
}

export interface ResolvedProbes {
  readonly points: readonly PlannedPoint[];
  /** Attach points that name something that cannot be probed: errors. */
  readonly problems: readonly ProbeProblem[];
  /** Places that a wildcard also selects and that cannot be probed: left out. */
  readonly skipped: readonly ProbeProblem[];
  /** Run-time addresses of counters that have to be above 0 for points to be reached. */
  readonly semaphores: readonly bigint[];
  /** Probes at all places that are probed; a return probe counts once, whatever number of exits its function has. */
  readonly probes: number;
}

/** Names of probes by attach cookie: cookie n is name n. Shared by all targets of a session. */
export class ProbeNames {
  readonly #names: string[] = [];
  readonly #cookies = new Map<string, bigint>();

  cookieOf(name: string): bigint {
    let cookie = this.#cookies.get(name);
    if (cookie === undefined) {
      cookie = BigInt(this.#names.length);
      this.#names.push(name);
      this.#cookies.set(name, cookie);
    }
    return cookie;
  }

  nameOf(cookie: bigint): string | undefined {
    return this.#names[Number(cookie)];
  }
}

/** Decoded code of images, kept while a session resolves probes. */
export class CodeCache {
  readonly #codes = new Map<MappedImage, ImageCode>();

  of(image: MappedImage): ImageCode {
    let code = this.#codes.get(image);
    if (code === undefined) {
      code = new ImageCode(image.code);
      this.#codes.set(image, code);
    }
    return code;
  }

  /** An image is mapped no more. */
  forget(image: MappedImage): void {
    this.#codes.get(image)?.release();
    this.#codes.delete(image);
  }

  /** Forgets what was decoded. */
  release(): void {
    for (const code of this.#codes.values()) code.release();
  }
}

export interface ResolveOptions {
  readonly mechanism: "auto" | Mechanism;
  readonly names: ProbeNames;
  readonly codes: CodeCache;
  /** Probe points that are armed already: their regions are not touched again. */
  readonly armed: readonly bigint[];
  /** What other tracers have planted in the process. */
  readonly others?: OtherTracers | undefined;
  /** Only these images are looked at; undefined: all. */
  readonly only?: ReadonlySet<MappedImage>;
  /** Where returns are probed: `auto` unless told. */
  readonly returns?: ReturnChoice | undefined;
  /** Why return addresses cannot be replaced in this process, if they cannot. */
  readonly returnObstacle?: string | undefined;
  /** Programs that may decide what the probed function returns (`findOverriders`); none unless told. */
  readonly overriders?: ReadonlySet<number>;
}

/** Indexes of the programs that may override the probed function, by themselves or by one that they go to. */
export function findOverriders(proofs: readonly Proof[]): ReadonlySet<number> {
  const overrides = (proof: Proof) => proof.helpers.has(HELPER_OVERRIDE_RETURN);
  const isGoneTo = proofs.some(overrides);
  const found = proofs.flatMap((proof, index) =>
    overrides(proof) || (isGoneTo && proof.helpers.has(HELPER_TAIL_CALL)) ? [index] : [],
  );
  return new Set(found);
}

interface Site {
  readonly location: ResolvedLocation;
  readonly probes: AttachedProbe[];
  /** Attach points that name it, to be blamed if it cannot be probed. */
  readonly requests: AttachRequest[];
}

export function resolveProbes(
  images: ProcessImages,
  requests: readonly AttachRequest[],
  options: ResolveOptions,
): ResolvedProbes {
  const problems: ProbeProblem[] = [];
  const skipped: ProbeProblem[] = [];
  const sites = new Map<bigint, Site>();
  const semaphores = new Set<bigint>();
  for (const request of requests) {
    const { attachPoint } = request;
    const found = findPlaces(images, request, options);
    if ("reason" in found) {
      problems.push(found);
      continue;
    }
    for (const { location, cookie, semaphore } of found.places) {
      if (options.only !== undefined && !options.only.has(location.image)) continue;
      if (semaphore !== undefined) semaphores.add(semaphore + location.image.bias);
      const site = sites.get(location.addr) ?? { location, probes: [], requests: [] };
      sites.set(location.addr, site);
      site.requests.push(request);
      site.probes.push({
        run: {
          kind: "program",
          bundle: request.bundle,
          index: request.programIndex,
          account: request.account,
        },
        when: attachPoint.kind === "uretprobe" ? "return" : "entry",
        cookie,
        gate: request.gate,
      });
    }
  }
  const { points, probes } = planAll(images, [...sites.values()], options, problems, skipped);
  return { points, problems, skipped, semaphores: [...semaphores], probes };
}

function findPlaces(
  images: ProcessImages,
  request: AttachRequest,
  { names }: ResolveOptions,
): { readonly places: readonly FoundPlace[] } | ProbeProblem {
  const { attachPoint, cookie, usdt } = request;
  if (usdt !== undefined && images.find(attachPoint.image).length > 0) return findUsdt(images, request, usdt);
  const barred = findBlacklistedImage(attachPoint.image);
  if (barred !== undefined)
    return { probe: attachPoint.name, reason: blacklistText(barred), hint: undefined, isMissingImage: false };
  const { locations, refusal } = images.resolve(attachPoint.image, placeOf(attachPoint));
  if (refusal === undefined)
    return {
      places: locations.map((location) => ({
        location,
        cookie: cookie ?? names.cookieOf(fullName(attachPoint, location)),
      })),
    };
  const { message, hint } = describeLocationRefusal(refusal);
  return {
    probe: attachPoint.name,
    reason: message,
    hint,
    // A pattern of images may match one with such a function later.
    isMissingImage: refusal.kind === "unknown-image" || isGlob(attachPoint.image),
  };
}

function findUsdt(
  images: ProcessImages,
  { attachPoint }: AttachRequest,
  usdt: UsdtFinder,
): { readonly places: readonly FoundPlace[] } | ProbeProblem {
  const places: FoundPlace[] = [];
  let problem: string | undefined;
  for (const image of images.find(attachPoint.image)) {
    const found = usdt.find(image);
    problem ??= found.problem;
    for (const { addr, cookie, semaphore } of found.sites) {
      const place: Place = { kind: "address", address: addr };
      const location = images.resolve(image.path, place).locations.find((each) => each.image === image);
      if (location !== undefined) places.push({ location, cookie, semaphore });
    }
  }
  if (places.length > 0 && problem === undefined) return { places };
  return {
    probe: attachPoint.name,
    reason: problem ?? "the process has no executable mapping of its places",
    hint: undefined,
    isMissingImage: isGlob(attachPoint.image),
  };
}

function planAll(
  images: ProcessImages,
  sites: readonly Site[],
  options: ResolveOptions,
  problems: ProbeProblem[],
  skipped: ProbeProblem[],
): { readonly points: PlannedPoint[]; readonly probes: number } {
  const points: PlannedPoint[] = [];
  let probes = 0;
  const byImage = new Map<MappedImage, Site[]>();
  for (const site of sites) {
    const others = byImage.get(site.location.image);
    if (others === undefined) byImage.set(site.location.image, [site]);
    else others.push(site);
  }
  for (const [image, imageSites] of byImage) {
    const code = options.codes.of(image);
    const planned = planImage(images, code, image, imageSites, options);
    const failed = new Set<Site>();
    for (const site of imageSites) {
      const problem = problemOf(images, site, planned, options);
      if (problem === undefined) {
        probes += site.probes.length;
        continue;
      }
      failed.add(site);
      const isWild = site.requests.every(({ attachPoint }) => isWildcard(attachPoint));
      (isWild ? skipped : problems).push(problem);
    }
    const range = { start: image.start, end: image.end };
    for (const { plan, parts, returns } of planned.places.values()) {
      const attached = parts.filter(({ site }) => !failed.has(site));
      if (attached.length === 0 || plan?.kind !== "planned") continue;
      points.push({
        plan,
        code,
        image: { name: image.name, range },
        probes: attached.map(({ probe }) => probe),
        returns,
        isOptional: attached.every(({ site }) =>
          site.requests.every(({ attachPoint }) => isWildcard(attachPoint)),
        ),
      });
    }
  }
  return { points, probes };
}

/** An address that is to be changed, for the sites that need it. */
interface PlannedPlace {
  plan: PlannedSite | undefined;
  readonly parts: { readonly site: Site; readonly probe: AttachedProbe }[];
  returns: ReturnRole | undefined;
}

interface PlannedImage {
  readonly places: ReadonlyMap<bigint, PlannedPlace>;
  readonly ways: ReturnWays;
}

function hasReturns(site: Site): boolean {
  return site.probes.some(({ when }) => when === "return");
}

/** Plans all sites together, again when that shows that returns are better probed in another way. */
function planImage(
  images: ProcessImages,
  code: ImageCode,
  image: MappedImage,
  sites: readonly Site[],
  options: ResolveOptions,
): PlannedImage {
  const { mechanism, armed, others, returns: choice = "auto", returnObstacle: obstacle } = options;
  const functions = sites.filter(hasReturns).map(({ location }) => location.addr);
  const print = (at: bigint) => images.symbolize(at).text;
  const isGo = functions.length > 0 && isGoProgram(image);
  const blacklist = blacklistOf(image);
  const ways = new ReturnWays({ code, isGo, choice, obstacle, print }, functions);
  for (;;) {
    const places = placesOf(sites, ways);
    const landings = mechanism === "jump" || mechanism === "call" ? undefined : landingPlacesOf(images.pid);
    const planOptions: PlanOptions = {
      mechanism,
      armed,
      others,
      places: landings,
      blacklist,
      callObstacle: (at) => findCallObstacle(at, places.get(at), options),
    };
    const plans = planSites(code, [...places.keys()], planOptions);
    [...places.values()].forEach((place, index) => {
      place.plan = plans[index];
    });
    if (functions.length === 0 || !ways.revise((at) => places.get(at)?.plan, planOptions))
      return { places, ways };
  }
}

/** What is to run there may need the return address on top of the stack: a call would put its own there. */
function findCallObstacle(
  at: bigint,
  place: PlannedPlace | undefined,
  { overriders, returnObstacle }: ResolveOptions,
): Refusal | undefined {
  const probes = place?.parts.map(({ probe }) => probe) ?? [];
  if (probes.some(({ when }) => when !== "entry")) return { reason: "return-address-claimed", at };
  const overrides = probes.some(({ run }) => run.kind === "program" && overriders?.has(run.index) === true);
  return overrides && returnObstacle !== undefined
    ? { reason: "override-under-shadow-stack", at }
    : undefined;
}

/** What is to run where: returns at the exits of their functions, or from the entry on. */
function placesOf(sites: readonly Site[], ways: ReturnWays): Map<bigint, PlannedPlace> {
  const places = new Map<bigint, PlannedPlace>();
  const add = (at: bigint, site: Site, probe: AttachedProbe, returns?: ReturnRole) => {
    const place = places.get(at) ?? { plan: undefined, parts: [], returns: undefined };
    places.set(at, place);
    place.parts.push({ site, probe });
    place.returns ??= returns;
  };
  for (const site of sites) {
    const { addr } = site.location;
    const way = ways.of(addr);
    for (const probe of site.probes) {
      if (probe.when !== "return" || way === undefined || way.kind === "impossible") add(addr, site, probe);
      else if (way.kind === "stack") add(addr, site, probe, way);
      else
        for (const { kind, at } of way.exits) {
          const when = kind === "return" ? "leaving" : "return";
          add(at, site, { ...probe, when }, { kind: "exit", of: addr, exit: kind });
        }
    }
  }
  return places;
}

const rungNames: Readonly<Record<Mechanism, string>> = {
  call: "a call",
  jump: "a jump",
  punned: "a punned jump",
  int3: "an int3",
};

function problemOf(
  images: ProcessImages,
  site: Site,
  { places, ways }: PlannedImage,
  options: ResolveOptions,
): ProbeProblem | undefined {
  const print = (at: bigint) => images.symbolize(at).text;
  const probe = site.requests[0]!.attachPoint.name;
  const fail = (reason: string, hint: string | undefined): ProbeProblem => ({
    probe,
    reason,
    hint,
    isMissingImage: false,
  });
  const { addr } = site.location;
  const place = places.get(addr);
  const plan = place?.parts.some((part) => part.site === site) === true ? place.plan : undefined;
  if (plan?.kind === "refused") {
    const last = plan.refused.at(-1)!;
    if (last.refusal.reason === "inside-instruction" || last.refusal.reason === "blacklisted")
      return fail(refusalText(last.refusal, print), undefined);
    const where = `${print(plan.at)} at 0x${plan.at.toString(16)}`;
    const reason = `${where} cannot take ${rungNames[last.mechanism]}: ${refusalText(last.refusal, print)}`;
    return fail(
      reason,
      options.mechanism === "auto" || options.mechanism === "int3"
        ? undefined
        : `without --mechanism ${options.mechanism} it gets what is possible there`,
    );
  }
  for (const { attachPoint, programIndex } of site.requests) {
    if (options.overriders?.has(programIndex) !== true) continue;
    const when = attachPoint.kind === "uretprobe" ? "return" : "entry";
    const refusal = findOverrideRefusal(plan ?? { at: addr, isEntry: true }, when);
    if (refusal !== undefined)
      return { ...fail(refusalText(refusal, print), undefined), probe: attachPoint.name };
  }
  const way = ways.of(addr);
  if (way?.kind === "impossible") return fail(`${print(addr)}: ${way.reason}`, returnHint(options));
  if (way?.kind !== "stack" || plan === undefined) return undefined;
  const refusal = findReturnRefusal(plan, options.codes.of(site.location.image));
  if (refusal === undefined)
    return options.returnObstacle === undefined ? undefined : fail(options.returnObstacle, undefined);
  const exits =
    way.refusal.reason === "stack-forced"
      ? ""
      : `; and its returns cannot be probed at its exits: ${refusalText(way.refusal, print)}`;
  return fail(`${refusalText(refusal, print)}${exits}`, returnHint(options));
}

function returnHint({ returns = "auto" }: ResolveOptions): string | undefined {
  return returns === "auto" ? undefined : `without --return ${returns} it gets what is possible there`;
}

export function isWildcard(attachPoint: UserAttachPoint): boolean {
  const { location } = attachPoint;
  return isGlob(attachPoint.image) || (location.kind === "symbol" && isGlob(location.symbol));
}

export function placeOf(attachPoint: UserAttachPoint): Place {
  const { location } = attachPoint;
  return location.kind === "address"
    ? { kind: "address", address: location.address }
    : { kind: "symbol", symbol: location.symbol, offsetBytes: Number(location.offset) };
}

/** The probe's name with what its wildcards and short names stand for. */
function fullName(attachPoint: UserAttachPoint, location: ResolvedLocation): string {
  const { image, symbol, offsetBytes, fileAddr } = location;
  const place =
    symbol === undefined
      ? `0x${fileAddr.toString(16)}`
      : offsetBytes === 0
        ? symbol
        : `${symbol}+${offsetBytes}`;
  return `${attachPoint.kind}:${image.path}:${place}`;
}
