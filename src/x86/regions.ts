/**
 * The instructions that a jump at a site displaces, and whether they may be displaced.
 *
 * `jmp rel32` needs five bytes. The instructions that it covers are executed in the detour; the bytes behind the
 * first must be something nobody ever jumps to, returns to, or stands at unnoticed. The rules are those of the
 * kernel's optimized kprobes (`can_optimize`, `__recover_optprobed_insn`), with jump tables read instead of refused:
 *
 *  - the whole function decodes;
 *  - no branch, jump table entry, taken address, static pointer or landing pad falls behind the region's first byte;
 *  - no indirect jump of the function is unresolved;
 *  - no call and no system call inside, unless it ends the region: a return address or a sleeping thread would
 *    point into the overwritten bytes;
 *  - what follows a jump or a return must be padding. A function shorter than five bytes may use the padding behind
 *    it, up to the next function;
 *  - no other probe inside.
 *
 * One instruction that is long enough by itself needs to know of nothing but jumps into its own middle.
 *
 * An `int3` displaces one instruction and needs none of these rules, only an instruction that can be relocated. Between the
 * two are the regions that are too short for a jump (`shortRegions`) and those that have room for two (`wideRegion`), from
 * which the punned rung is built.
 */
import { type BranchInto, findBranchesInto, findShortBranch } from "./branch-scan.ts";
import { type CodeImage, textBytes } from "./code-image.ts";
import { boundaryAt, type Insn } from "./decode.ts";
import { analyseFunction, type EntrySource, type FunctionCode, mayBeColdPart } from "./function-code.ts";
import { allOffsetTableTargets } from "./indirect-jumps.ts";
import {
  fallsOut,
  isPadding,
  nopOrInt3Bytes,
  type PaddingRun,
  paddingBehindFunction,
  paddingInside,
  paddingRuns,
} from "./padding.ts";
import { JUMP_BYTES } from "./punning.ts";

export { JUMP_BYTES };

export interface Region {
  readonly start: bigint;
  /** Sum of the displaced instructions and the padding that the patch uses. */
  readonly lenBytes: number;
  /** Displaced instructions, in order. */
  readonly insns: readonly Insn[];
  /** Padding behind the last instruction that the patch covers; nothing executes it. */
  readonly paddingBytes: number;
  /** Does execution go on behind the region? */
  readonly fallsThrough: boolean;
}

export type RegionRefusal =
  | { readonly reason: "no-function"; readonly at: bigint }
  | { readonly reason: "no-text"; readonly at: bigint }
  | {
      readonly reason: "inside-instruction";
      readonly at: bigint;
      readonly before: bigint;
      readonly after: bigint;
    }
  | { readonly reason: "undecodable"; readonly at: bigint }
  | { readonly reason: "jump-into-region"; readonly from: bigint; readonly to: bigint }
  | { readonly reason: "jump-table-into-region"; readonly from: bigint; readonly to: bigint }
  | { readonly reason: "address-taken-in-region"; readonly from: bigint; readonly to: bigint }
  | { readonly reason: "pointer-into-region"; readonly to: bigint }
  | { readonly reason: "landing-pad-in-region"; readonly to: bigint }
  | { readonly reason: "indirect-jump-unresolved"; readonly at: bigint }
  | { readonly reason: "call-inside-region"; readonly at: bigint }
  | { readonly reason: "syscall-in-region"; readonly at: bigint }
  | { readonly reason: "unreached-code-in-region"; readonly at: bigint }
  | { readonly reason: "region-crosses-function-end"; readonly end: bigint }
  | { readonly reason: "other-probe-in-region"; readonly at: bigint }
  | { readonly reason: "no-shorter-region"; readonly at: bigint };

export type RegionResult =
  | { readonly kind: "region"; readonly region: Region; readonly fn: FunctionCode }
  | { readonly kind: "refused"; readonly refusal: RegionRefusal; readonly fn: FunctionCode | undefined };

/** Regions that are shorter than a jump, the shortest first: each holds the one before it. */
export type ShortRegions =
  | { readonly kind: "regions"; readonly regions: readonly Region[]; readonly fn: FunctionCode }
  | { readonly kind: "refused"; readonly refusal: RegionRefusal; readonly fn: FunctionCode | undefined };

/** Addresses that are about to become the inside of something, and the function whose own jumps are known not to go there. */
export interface Inside {
  readonly addresses: readonly bigint[];
  readonly fn: FunctionCode;
  /** The addresses lie outside of the function: its jumps count, too. */
  readonly isOutside: boolean;
}

/** Functions of one image, decoded once; and the searches that need the whole image. */
export class ImageCode {
  readonly image: CodeImage;
  readonly #functions = new Map<bigint, FunctionCode | undefined>();
  #tableTargets: Set<bigint> | undefined;
  #padding = new WeakMap<FunctionCode, PaddingRun[]>();

  constructor(image: CodeImage) {
    this.image = image;
  }

  /** The analysed function that contains the address. */
  functionAt(addr: bigint): FunctionCode | undefined {
    const range = this.image.findFunction(addr);
    if (range === undefined) return undefined;
    if (this.#functions.has(range.start)) return this.#functions.get(range.start);
    const fn = analyseFunction(this.image, range);
    this.#functions.set(range.start, fn);
    return fn;
  }

  /** Forgets what was decoded: a large image takes tens of megabytes. */
  release(): void {
    this.#functions.clear();
    this.#tableTargets = undefined;
  }

  /** Entries of every jump table of the image. Decodes each function that has one; computed once. */
  tableTargets(): ReadonlySet<bigint> {
    this.#tableTargets ??= collectTableTargets(this);
    return this.#tableTargets;
  }

  /**
   * The region of each site, with all rules applied. `armed` are sites of probes that exist besides these; every
   * site counts as a probe for the others, unless each is to be judged as if it were `alone`.
   */
  jumpRegions(
    sites: readonly bigint[],
    options: { readonly armed?: Iterable<bigint>; readonly alone?: boolean } = {},
  ): RegionResult[] {
    const { armed = [], alone = false } = options;
    const probes = sortedAddresses(alone ? [...armed] : [...sites, ...armed]);
    const results = sites.map((site) => this.#localRegion(site, probes));
    const regions = results.flatMap((result) => (result.kind === "region" ? [result] : []));
    const refusals = this.foreignEntries(
      regions.map(({ region, fn }) => ({
        addresses: interiorOf(region, JUMP_BYTES),
        fn,
        isOutside: false,
      })),
    );
    const refusalOf = new Map(regions.map((result, i) => [result, refusals[i]]));
    return results.map((result): RegionResult => {
      if (result.kind === "refused") return result;
      const refusal = refusalOf.get(result);
      return refusal === undefined ? result : { kind: "refused", refusal, fn: result.fn };
    });
  }

  /**
   * Why something elsewhere in the image may lead to one of the addresses, for each of `insides`; undefined: nothing does.
   * One pass over the image for all of them.
   */
  foreignEntries(insides: readonly Inside[]): (RegionRefusal | undefined)[] {
    const wanted = new Set<bigint>();
    for (const { addresses } of insides) for (const addr of addresses) wanted.add(addr);
    const far = findBranchesInto(this.image, [...wanted], (addr) => this.functionAt(addr));
    return insides.map((inside) => this.#foreignEntry(inside, far));
  }

  /** The runs of padding in and around a function. */
  paddingOf(fn: FunctionCode): readonly PaddingRun[] {
    let runs = this.#padding.get(fn);
    if (runs === undefined) {
      runs = paddingRuns(this.image, fn, (addr) => this.functionAt(addr));
      this.#padding.set(fn, runs);
    }
    return runs;
  }

  /**
   * The regions at a site that are too short for a jump, with the rules that the function itself can tell
   * (`foreignEntries` tells the rest). The last one may have padding at its end.
   */
  shortRegions(site: bigint): ShortRegions {
    const fn = this.functionAt(site);
    if (fn === undefined)
      return { kind: "refused", refusal: { reason: "no-function", at: site }, fn: undefined };
    const boundary = boundaryAt(fn.code, site);
    if (boundary.kind !== "boundary")
      return { kind: "refused", refusal: boundaryRefusal(boundary, site), fn };
    const { code } = fn;
    const regions: Region[] = [];
    const insns: Insn[] = [];
    const first = Number(site - fn.start);
    let lenBytes = 0;
    for (let i = code.indexAt(first); i < code.count; i++) {
      const insn = code.insn(i);
      if (lenBytes + insn.lenBytes >= JUMP_BYTES) break;
      insns.push(insn);
      const region = regionOf([...insns], 0, code.fallsThrough(i));
      const refusal = localRefusal(fn, region, region.lenBytes);
      if (refusal !== undefined)
        return regions.length > 0 ? { kind: "regions", regions, fn } : { kind: "refused", refusal, fn };
      regions.push(region);
      lenBytes = region.lenBytes;
      if (!code.fallsThrough(i)) {
        const padding = this.#paddingBehind(fn, i, JUMP_BYTES - 1 - lenBytes);
        if (padding > 0) regions.push(regionOf([...insns], padding, false));
        break;
      }
      if (insn.flow === "call" || insn.flow === "call-indirect" || insn.flow === "syscall") break;
    }
    if (regions.length > 0) return { kind: "regions", regions, fn };
    // Long enough for a jump, which was refused for a reason that counts here as well.
    const long = regionOf([boundary.insn], 0, true);
    const refusal = localRefusal(fn, long, JUMP_BYTES) ?? { reason: "no-shorter-region", at: site };
    return { kind: "refused", refusal, fn };
  }

  /** A region of at least `lenBytes`, with the rules that the function itself can tell. */
  wideRegion(site: bigint, lenBytes: number): RegionResult {
    return this.#localRegion(site, [], lenBytes);
  }

  /** Usable padding behind an instruction that goes elsewhere. */
  #paddingBehind(fn: FunctionCode, index: number, most: number): number {
    if (fn.unresolvedAt !== undefined || fn.code.undecodableAt !== undefined || most === 0) return 0;
    const inside = paddingInside(fn, index + 1, most);
    const end = fn.code.offsets[index + 1]! + inside;
    if (inside === most || end < fn.code.bytes.length) return inside;
    return inside + paddingBehindFunction(this.image, fn, most - inside);
  }

  /** The one instruction that an int3 at the site displaces. */
  trapRegion(site: bigint): RegionResult {
    const fn = this.functionAt(site);
    if (fn === undefined) return this.#loneInsn(site);
    const boundary = boundaryAt(fn.code, site);
    if (boundary.kind !== "boundary")
      return { kind: "refused", refusal: boundaryRefusal(boundary, site), fn };
    const index = fn.code.indexAt(Number(site - fn.start));
    return { kind: "region", region: regionOf([boundary.insn], 0, fn.code.fallsThrough(index)), fn };
  }

  /**
   * The region of exactly `lenBytes` that somebody has displaced at the site before, by these rules; undefined where the bytes
   * are no such region.
   */
  regionOfLength(site: bigint, lenBytes: number): RegionResult | undefined {
    const one = this.trapRegion(site);
    if (one.kind === "refused") return one;
    const { fn } = one;
    const insns: Insn[] = [];
    let sum = 0;
    for (let i = fn.code.indexAt(Number(site - fn.start)); i < fn.code.count && sum < lenBytes; i++) {
      const insn = fn.code.insn(i);
      insns.push(insn);
      sum += insn.lenBytes;
      const fallsThrough = fn.code.fallsThrough(i);
      if (sum <= lenBytes && (sum === lenBytes || !fallsThrough))
        return { kind: "region", region: regionOf(insns, lenBytes - sum, fallsThrough), fn };
    }
    return undefined;
  }

  /** Without a function nothing tells where instructions begin: the site is taken at its word. */
  #loneInsn(site: bigint): RegionResult {
    const range = this.image.text.find(
      (text) => site >= text.start && site < text.start + BigInt(text.bytes.length),
    );
    if (range === undefined)
      return { kind: "refused", refusal: { reason: "no-text", at: site }, fn: undefined };
    const end = range.start + BigInt(range.bytes.length);
    const fn = analyseFunction(this.image, {
      start: site,
      end: end - site > 15n ? site + 15n : end,
      name: undefined,
    });
    if (fn === undefined || fn.code.count === 0)
      return { kind: "refused", refusal: { reason: "undecodable", at: site }, fn: undefined };
    return {
      kind: "region",
      region: regionOf([fn.code.insn(0)], 0, fn.code.fallsThrough(0)),
      fn: { ...fn, unresolvedAt: site },
    };
  }

  #localRegion(site: bigint, probes: readonly bigint[], minBytes = JUMP_BYTES): RegionResult {
    const fn = this.functionAt(site);
    if (fn === undefined)
      return { kind: "refused", refusal: { reason: "no-function", at: site }, fn: undefined };
    const found = this.#displace(fn, site, minBytes);
    if ("reason" in found) return { kind: "refused", refusal: found, fn };
    const refusal = localRefusal(fn, found, minBytes) ?? otherProbe(found, probes);
    return refusal === undefined ? { kind: "region", region: found, fn } : { kind: "refused", refusal, fn };
  }

  /** Collects instructions until there is room for `minBytes`: usually a jump. */
  #displace(fn: FunctionCode, site: bigint, minBytes: number): Region | RegionRefusal {
    const { code } = fn;
    const boundary = boundaryAt(code, site);
    if (boundary.kind !== "boundary") return boundaryRefusal(boundary, site);
    const { insn: first } = boundary;
    if (first.lenBytes >= minBytes)
      return regionOf([first], 0, code.fallsThrough(code.indexAt(Number(site - fn.start))));
    const undecodable = code.undecodableAt;
    if (undecodable !== undefined) return { reason: "undecodable", at: undecodable };

    const insns: Insn[] = [];
    let lenBytes = 0;
    for (let i = code.indexAt(Number(site - fn.start)); ; i++) {
      if (i === code.count) return this.#usePadding(fn, site, insns, lenBytes, minBytes);
      const insn = code.insn(i);
      insns.push(insn);
      lenBytes += insn.lenBytes;
      if (lenBytes >= minBytes) return regionOf(insns, 0, code.fallsThrough(i));
      if (insn.flow === "call" || insn.flow === "call-indirect")
        return { reason: "call-inside-region", at: insn.addr };
      if (insn.flow === "syscall") return { reason: "syscall-in-region", at: insn.addr };
      if (!code.fallsThrough(i)) {
        const end = site + BigInt(lenBytes);
        const missing = minBytes - lenBytes;
        const inFunction = Math.min(missing, Number(fn.end - end));
        const padding = code.bytes.subarray(Number(end - fn.start), Number(end - fn.start) + inFunction);
        if (!isPadding(code, i + 1, padding.length)) return { reason: "unreached-code-in-region", at: end };
        if (padding.length === missing) return regionOf(insns, missing, false);
        return this.#usePadding(fn, site, insns, lenBytes + padding.length, minBytes, padding.length);
      }
    }
  }

  /** The function is over before the jump fits: there may be padding up to the next one. */
  #usePadding(
    fn: FunctionCode,
    site: bigint,
    insns: Insn[],
    lenBytes: number,
    minBytes: number,
    padded = 0,
  ): Region | RegionRefusal {
    const crosses: RegionRefusal = { reason: "region-crosses-function-end", end: fn.end };
    const last = insns.at(-1);
    if (last === undefined || (padded === 0 && fallsOut(last))) return crosses;
    const missing = minBytes - lenBytes;
    const bytes =
      textBytes(this.image, fn.end, fn.end + 16n) ?? textBytes(this.image, fn.end, fn.end + BigInt(missing));
    if (bytes === undefined || nopOrInt3Bytes(bytes) < missing) return crosses;
    for (let i = 0n; i < BigInt(missing); i++) {
      const owner = this.image.findFunction(fn.end + i);
      if (owner !== undefined) return crosses;
      if (this.image.pointersInto(fn.end + i, fn.end + i + 1n).length > 0) return crosses;
    }
    if (site + BigInt(lenBytes) !== fn.end) return crosses;
    return regionOf(insns, padded + missing, false);
  }

  #foreignEntry(inside: Inside, far: ReadonlyMap<bigint, BranchInto>): RegionRefusal | undefined {
    const { addresses, fn, isOutside } = inside;
    const [first] = addresses;
    if (first === undefined) return undefined;
    let branch = addresses.map((addr) => far.get(addr)).find((hit) => hit !== undefined);
    const nearEdge = isOutside || first - fn.start < 130n || fn.end - first < 130n;
    const own = isOutside ? { start: first, end: first, name: undefined } : fn;
    if (branch === undefined && nearEdge)
      branch = findShortBranch(this.image, addresses, own, (addr) => this.functionAt(addr));
    if (branch !== undefined) return { reason: "jump-into-region", ...branch };
    if (!mayBeColdPart(fn)) return undefined;
    const isInsn = (addr: bigint) => isOutside || fn.code.indexAt(Number(addr - fn.start)) >= 0;
    const to = addresses.find((addr) => this.tableTargets().has(addr) && isInsn(addr));
    return to === undefined ? undefined : { reason: "jump-table-into-region", from: to, to };
  }
}

function regionOf(insns: readonly Insn[], paddingBytes: number, fallsThrough: boolean): Region {
  const lenBytes = insns.reduce((sum, insn) => sum + insn.lenBytes, paddingBytes);
  return { start: insns[0]!.addr, lenBytes, insns, paddingBytes, fallsThrough };
}

/**
 * Every address behind the first byte that `written` bytes overwrite. What belongs to the last displaced instruction behind
 * that stays as it is, and so do jumps that enter there (behind a lock prefix, for example).
 */
export function interiorOf(region: Region, written: number): bigint[] {
  return Array.from({ length: written - 1 }, (_, i) => region.start + BigInt(i + 1));
}

function boundaryRefusal(
  boundary: Exclude<ReturnType<typeof boundaryAt>, { kind: "boundary" }>,
  site: bigint,
): RegionRefusal {
  if (boundary.kind === "undecodable") return { reason: "undecodable", at: boundary.at };
  return { reason: "inside-instruction", at: site, before: boundary.before, after: boundary.after };
}

/**
 * Why a known jump leads behind the first of `written` bytes. Jump tables are read further than they go: what they name in the
 * middle of an instruction is no entry of theirs.
 */
function localRefusal(fn: FunctionCode, region: Region, written: number): RegionRefusal | undefined {
  const first = Number(region.start - fn.start);
  for (let offset = first + 1; offset < first + written; offset++) {
    const source = fn.entries.get(offset);
    if (source?.kind === "jump-table" && fn.code.indexAt(offset) < 0) continue;
    if (source !== undefined) return entryRefusal(source, fn.start + BigInt(offset));
  }
  // A jump of which nothing is known still leads to the beginning of an instruction.
  const isOneInsn = region.insns.length === 1 && region.insns[0]!.lenBytes >= written;
  if (isOneInsn) return undefined;
  if (fn.unresolvedAt !== undefined) return { reason: "indirect-jump-unresolved", at: fn.unresolvedAt };
  const { undecodableAt } = fn.code;
  return undecodableAt === undefined ? undefined : { reason: "undecodable", at: undecodableAt };
}

/** Why nothing may be put over `to`, to which something of the function itself leads. */
export function entryRefusal(source: EntrySource, to: bigint): RegionRefusal {
  switch (source.kind) {
    case "branch":
      return { reason: "jump-into-region", from: source.from, to };
    case "jump-table":
      return { reason: "jump-table-into-region", from: source.from, to };
    case "address-taken":
      return { reason: "address-taken-in-region", from: source.from, to };
    case "pointer":
      return { reason: "pointer-into-region", to };
    case "landing-pad":
      return { reason: "landing-pad-in-region", to };
    default:
      return source satisfies never;
  }
}

function otherProbe(region: Region, probes: readonly bigint[]): RegionRefusal | undefined {
  // The first probe behind the region's start.
  let low = 0;
  let high = probes.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (probes[middle]! <= region.start) low = middle + 1;
    else high = middle;
  }
  const next = probes[low];
  if (next === undefined || next >= region.start + BigInt(region.lenBytes)) return undefined;
  return { reason: "other-probe-in-region", at: next };
}

function sortedAddresses(addresses: readonly bigint[]): bigint[] {
  return BigUint64Array.from(addresses).sort() as unknown as bigint[];
}

/**
 * `movsxd r64, [base + index*4]` reads an entry of an offset table: REX.W 63 /r, mod 00, rm 100, scale 10.
 * Functions with this pattern are decoded, and their tables read.
 */
function collectTableTargets(images: ImageCode): Set<bigint> {
  const targets = new Set<bigint>();
  const done = new Set<bigint>();
  for (const range of images.image.text) {
    const { bytes } = range;
    for (let i = 0; i + 4 <= bytes.length; i++) {
      if (bytes[i + 1] !== 0x63 || (bytes[i]! & 0xf8) !== 0x48) continue;
      if ((bytes[i + 2]! & 0xc7) !== 0x04 || bytes[i + 3]! >> 6 !== 2) continue;
      const fn = images.functionAt(range.start + BigInt(i));
      if (fn === undefined || done.has(fn.start)) continue;
      done.add(fn.start);
      for (const to of allOffsetTableTargets(images.image, fn.code)) targets.add(to);
    }
  }
  return targets;
}
