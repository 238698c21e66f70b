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
 * An `int3` displaces one instruction and needs none of these rules, only an instruction that can be relocated.
 */
import { type BranchInto, findBranchesInto, findShortBranch } from "./branch-scan.ts";
import { type CodeImage, textBytes } from "./code-image.ts";
import { boundaryAt, type CodeBlock, type Insn } from "./decode.ts";
import { analyseFunction, type EntrySource, type FunctionCode, mayBeColdPart } from "./function-code.ts";
import { allOffsetTableTargets } from "./indirect-jumps.ts";

/** Length of `e9 rel32`. */
export const JUMP_BYTES = 5;

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
  | { readonly reason: "other-probe-in-region"; readonly at: bigint };

export type RegionResult =
  | { readonly kind: "region"; readonly region: Region; readonly fn: FunctionCode }
  | { readonly kind: "refused"; readonly refusal: RegionRefusal; readonly fn: FunctionCode | undefined };

/** Functions of one image, decoded once; and the searches that need the whole image. */
export class ImageCode {
  readonly image: CodeImage;
  readonly #functions = new Map<bigint, FunctionCode | undefined>();
  #tableTargets: Set<bigint> | undefined;

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
    const wanted = new Set<bigint>();
    for (const result of results) {
      if (result.kind === "region") for (const addr of interior(result.region)) wanted.add(addr);
    }
    const far = findBranchesInto(this.image, [...wanted], (addr) => this.functionAt(addr));
    return results.map((result) => this.#refuseForeign(result, far));
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

  #localRegion(site: bigint, probes: readonly bigint[]): RegionResult {
    const fn = this.functionAt(site);
    if (fn === undefined)
      return { kind: "refused", refusal: { reason: "no-function", at: site }, fn: undefined };
    const found = this.#displace(fn, site);
    if ("reason" in found) return { kind: "refused", refusal: found, fn };
    const refusal = localRefusal(fn, found) ?? otherProbe(found, probes);
    return refusal === undefined ? { kind: "region", region: found, fn } : { kind: "refused", refusal, fn };
  }

  /** Collects instructions until the jump fits. */
  #displace(fn: FunctionCode, site: bigint): Region | RegionRefusal {
    const { code } = fn;
    const boundary = boundaryAt(code, site);
    if (boundary.kind !== "boundary") return boundaryRefusal(boundary, site);
    const undecodable = code.undecodableAt;
    if (undecodable !== undefined) return { reason: "undecodable", at: undecodable };

    const insns: Insn[] = [];
    let lenBytes = 0;
    for (let i = code.indexAt(Number(site - fn.start)); ; i++) {
      if (i === code.count) return this.#usePadding(fn, site, insns, lenBytes);
      const insn = code.insn(i);
      insns.push(insn);
      lenBytes += insn.lenBytes;
      if (lenBytes >= JUMP_BYTES) return regionOf(insns, 0, code.fallsThrough(i));
      if (insn.flow === "call" || insn.flow === "call-indirect")
        return { reason: "call-inside-region", at: insn.addr };
      if (insn.flow === "syscall") return { reason: "syscall-in-region", at: insn.addr };
      if (!code.fallsThrough(i)) {
        const end = site + BigInt(lenBytes);
        const missing = JUMP_BYTES - lenBytes;
        const inFunction = Math.min(missing, Number(fn.end - end));
        const padding = code.bytes.subarray(Number(end - fn.start), Number(end - fn.start) + inFunction);
        if (!isPadding(code, i + 1, padding.length)) return { reason: "unreached-code-in-region", at: end };
        if (padding.length === missing) return regionOf(insns, missing, false);
        return this.#usePadding(fn, site, insns, lenBytes + padding.length, padding.length);
      }
    }
  }

  /** The function is over before the jump fits: there may be padding up to the next one. */
  #usePadding(
    fn: FunctionCode,
    site: bigint,
    insns: Insn[],
    lenBytes: number,
    padded = 0,
  ): Region | RegionRefusal {
    const crosses: RegionRefusal = { reason: "region-crosses-function-end", end: fn.end };
    const last = insns.at(-1);
    if (last === undefined || (padded === 0 && fallsOut(last))) return crosses;
    const missing = JUMP_BYTES - lenBytes;
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

  #refuseForeign(result: RegionResult, far: ReadonlyMap<bigint, BranchInto>): RegionResult {
    if (result.kind === "refused") return result;
    const { region, fn } = result;
    const inside = interior(region);
    let branch = inside.map((addr) => far.get(addr)).find((hit) => hit !== undefined);
    const nearEdge = region.start - fn.start < 130n || fn.end - region.start < 130n;
    if (branch === undefined && nearEdge)
      branch = findShortBranch(this.image, inside, fn, (addr) => this.functionAt(addr));
    if (branch !== undefined)
      return { kind: "refused", refusal: { reason: "jump-into-region", ...branch }, fn };
    if (mayBeColdPart(fn)) {
      const to = inside.find((addr) => this.tableTargets().has(addr));
      if (to !== undefined)
        return { kind: "refused", refusal: { reason: "jump-table-into-region", from: to, to }, fn };
    }
    return result;
  }
}

function regionOf(insns: readonly Insn[], paddingBytes: number, fallsThrough: boolean): Region {
  const lenBytes = insns.reduce((sum, insn) => sum + insn.lenBytes, paddingBytes);
  return { start: insns[0]!.addr, lenBytes, insns, paddingBytes, fallsThrough };
}

/**
 * Every address behind the first byte that the jump overwrites. What belongs to the last displaced instruction behind
 * that stays as it is, and so do jumps that enter there (behind a lock prefix, for example).
 */
function interior(region: Region): bigint[] {
  return Array.from({ length: JUMP_BYTES - 1 }, (_, i) => region.start + BigInt(i + 1));
}

function boundaryRefusal(
  boundary: Exclude<ReturnType<typeof boundaryAt>, { kind: "boundary" }>,
  site: bigint,
): RegionRefusal {
  if (boundary.kind === "undecodable") return { reason: "undecodable", at: boundary.at };
  return { reason: "inside-instruction", at: site, before: boundary.before, after: boundary.after };
}

function localRefusal(fn: FunctionCode, region: Region): RegionRefusal | undefined {
  const first = Number(region.start - fn.start);
  for (let offset = first + 1; offset < first + JUMP_BYTES; offset++) {
    const source = fn.entries.get(offset);
    if (source !== undefined) return entryRefusal(source, fn.start + BigInt(offset));
  }
  if (fn.unresolvedAt !== undefined) return { reason: "indirect-jump-unresolved", at: fn.unresolvedAt };
  return undefined;
}

function entryRefusal(source: EntrySource, to: bigint): RegionRefusal {
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

/** Do `lenBytes` bytes from instruction `index` on consist of nops and int3? */
function isPadding(code: CodeBlock, index: number, lenBytes: number): boolean {
  if (lenBytes === 0) return true;
  const from = code.offsets[index];
  if (from === undefined || index >= code.count) return false;
  return nopOrInt3Bytes(code.bytes.subarray(from, Math.min(code.bytes.length, from + 16))) >= lenBytes;
}

/** How many bytes from the beginning are nop instructions of any length, or int3. */
function nopOrInt3Bytes(bytes: Uint8Array): number {
  let at = 0;
  while (at < bytes.length) {
    const length = nopLength(bytes, at);
    if (length === 0) break;
    at += length;
  }
  return Math.min(at, bytes.length);
}

/** Length of the nop or int3 at an offset, 0 if it is something else. `nop` = 90, `nop r/m` = 0f 1f /0. */
function nopLength(bytes: Uint8Array, from: number): number {
  let at = from;
  while (bytes[at] === 0x66 || bytes[at] === 0x2e) at++;
  if (bytes[at] === 0x90) return at + 1 - from;
  if (bytes[at] === 0xcc) return at === from ? 1 : 0;
  if (bytes[at] !== 0x0f || bytes[at + 1] !== 0x1f) return 0;
  const modRm = bytes[at + 2];
  if (modRm === undefined || (modRm & 0x38) !== 0) return 0;
  const mod = modRm >> 6;
  const hasSib = (modRm & 7) === 4 && mod !== 3;
  const dispBytes = mod === 1 ? 1 : mod === 2 || (mod === 0 && (modRm & 7) === 5) ? 4 : 0;
  return at + 3 + (hasSib ? 1 : 0) + dispBytes - from;
}

/** Can execution leave this last instruction of a function at its end? A call there never comes back. */
function fallsOut(last: Insn): boolean {
  return !["jump", "jump-indirect", "return", "stop", "call", "call-indirect"].includes(last.flow);
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
