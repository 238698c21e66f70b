/**
 * Every instruction by which a function is left: its returns, and its tail calls.
 *
 * Strategy: follow the function's own control flow from its entry, with the height of the stack (stack-height.ts), through
 * all of its parts. A part is the function proper, or a stretch that compilers have moved elsewhere (`f.cold`, in a stripped
 * image a range without a name): it belongs to the function if and only if nothing else in the image enters it, and the
 * function enters it by jumps. Whatever else a jump leads to is another function, and the jump a tail call.
 *
 * The result has to be exact in both directions, or there is none:
 *  - no way out is missing: every jump is resolved, every piece of code that could hold another exit is reached;
 *  - no exit belongs to somebody else as well: nothing in the image leads behind the function's entry, and the returns of
 *    subroutines inside of it do not count as its own;
 *  - at an exit the address returned to is on top of the stack.
 * The searches through the whole image are made for all functions together.
 *
 * Not seen: a part of a stripped function that only a jump table or an exception leads to and that never comes back.
 */
import { visitBranchesInto } from "./branch-scan.ts";
import { textBytes } from "./code-image.ts";
import { effectsOf } from "./decode.ts";
import { type FunctionCode, mayBeColdPart } from "./function-code.ts";
import { allOffsetTableTargets, shapeOfIndirectJump } from "./indirect-jumps.ts";
import type { ImageCode } from "./regions.ts";
import { type Heights, heightsBehind, joinHeights, LOST, WEAK } from "./stack-height.ts";

/**
 * `return`: a near return. `tail-jump`: a jump to another function, with the return address on top of the stack;
 * `tail-branch`: the same by a conditional jump.
 */
export interface FunctionExit {
  readonly kind: "return" | "tail-jump" | "tail-branch";
  readonly at: bigint;
}

export type ExitRefusal =
  | { readonly reason: "no-function"; readonly at: bigint }
  | { readonly reason: "undecodable"; readonly at: bigint }
  | { readonly reason: "indirect-jump-unresolved"; readonly at: bigint }
  | { readonly reason: "entered-elsewhere"; readonly from: bigint; readonly to: bigint }
  | { readonly reason: "pointer-into-function"; readonly to: bigint }
  | { readonly reason: "subroutine-inside"; readonly from: bigint; readonly to: bigint }
  | { readonly reason: "leads-into-function"; readonly from: bigint; readonly to: bigint }
  | { readonly reason: "exit-unreached"; readonly at: bigint }
  | { readonly reason: "return-address-unknown"; readonly at: bigint }
  | { readonly reason: "runs-out"; readonly at: bigint };

/** A function that never returns has no exits. */
export type FunctionExits =
  | { readonly kind: "exits"; readonly exits: readonly FunctionExit[] }
  | { readonly kind: "refused"; readonly refusal: ExitRefusal };

/** Parts of parts: more rounds than compilers have reasons for. */
const MOST_ROUNDS = 6;
/** A rel8 branch reaches so far. */
const SHORT_REACH = 130n;

/** The exits of the functions that begin at `starts`, in order. */
export function findExits(code: ImageCode, starts: readonly bigint[]): FunctionExits[] {
  const subjects = starts.map((start) => new Subject(code, start));
  const coldParts = new ColdPartsWithPads(code);
  for (const subject of subjects) subject.consider(coldParts.of(subject.name));
  for (let round = 0; round < MOST_ROUNDS; round++) {
    for (const subject of subjects) subject.explore();
    if (!scan(code, subjects)) break;
  }
  return subjects.map((subject) => subject.result);
}

/** A range that has to be searched for: what enters it? */
interface Search {
  readonly start: bigint;
  readonly end: bigint;
  readonly subject: Subject;
  /** Undefined: the inside of the subject itself. */
  readonly candidate: Candidate | undefined;
}

/** Looks for all entries that have not been looked for yet; false when there was nothing to do. */
function scan(code: ImageCode, subjects: readonly Subject[]): boolean {
  const owners = new Map<bigint, Subject>();
  for (const subject of subjects)
    for (const start of subject.undecided) {
      const other = owners.get(start);
      if (other !== undefined && other !== subject && other.start !== subject.start) {
        other.reject(start);
        subject.reject(start);
      } else owners.set(start, subject);
    }
  const searches = subjects.flatMap((subject) => subject.takeSearches());
  searches.sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
  const functionAt = (addr: bigint) => code.functionAt(addr);
  visitBranchesInto(
    code.image,
    searches,
    functionAt,
    (index) => searches[index]!.subject.isOpen(searches[index]!.candidate),
    (index, { from, to }) => searches[index]!.subject.entered(searches[index]!.candidate, from, to),
  );
  for (const search of searches) visitShortBranches(code, search);
  let isDirty = false;
  for (const subject of subjects) if (subject.decide()) isDirty = true;
  return isDirty;
}

/** Branches with rel8 from the functions around. */
function visitShortBranches(code: ImageCode, { start, end, subject, candidate }: Search): void {
  for (const neighbour of neighboursOf(code, start, end)) {
    const block = neighbour.code;
    for (let i = 0; i < block.count; i++) {
      const flow = block.flowAt(i);
      if ((flow !== "jump" && flow !== "branch") || block.offsets[i + 1]! - block.offsets[i]! >= 5) continue;
      const to = block.start + BigInt(block.targets[i]!);
      if (to >= start && to < end) subject.entered(candidate, block.start + BigInt(block.offsets[i]!), to);
    }
  }
}

function neighboursOf(code: ImageCode, start: bigint, end: bigint): FunctionCode[] {
  const own = code.functionAt(start)?.start;
  const found = new Map<bigint, FunctionCode>();
  const look = (at: bigint): FunctionCode | undefined => {
    const fn = code.functionAt(at);
    if (fn !== undefined && fn.start !== own) found.set(fn.start, fn);
    return fn;
  };
  for (let at = start - 1n; at > start - SHORT_REACH; ) at = (look(at)?.start ?? at) - 1n;
  for (let at = end; at < end + SHORT_REACH; ) {
    const next = look(at)?.end ?? at + 1n;
    at = next > at ? next : at + 1n;
  }
  return [...found.values()];
}

/** Cold parts by the name of their function, where exceptions land in them: perhaps nothing else leads there. */
class ColdPartsWithPads {
  readonly #code: ImageCode;
  #parts: Map<string, Set<bigint>> | undefined;

  constructor(code: ImageCode) {
    this.#code = code;
  }

  of(name: string | undefined): Iterable<bigint> {
    if (name === undefined) return [];
    this.#parts ??= this.#collect();
    return this.#parts.get(name) ?? [];
  }

  #collect(): Map<string, Set<bigint>> {
    const parts = new Map<string, Set<bigint>>();
    const { image } = this.#code;
    let known = 0n;
    for (const { start, bytes } of image.text)
      for (const pad of image.landingPads({ start, end: start + BigInt(bytes.length) })) {
        if (pad < known) continue;
        const fn = image.findFunction(pad);
        if (fn === undefined) continue;
        known = fn.end;
        const base = coldBaseOf(fn.name);
        if (base === undefined) continue;
        const starts = parts.get(base) ?? new Set();
        parts.set(base, starts.add(fn.start));
      }
    return parts;
  }
}

/** The name of the function whose cold part has this name. */
function coldBaseOf(name: string | undefined): string | undefined {
  return name === undefined ? undefined : /^(.+)\.cold(\.\d+)?$/.exec(name)?.[1];
}

interface Part {
  readonly fn: FunctionCode;
  /** By index of the instruction; undefined: not reached. */
  readonly heights: (Heights | undefined)[];
}

/** A range that may be a part of the subject. */
interface Candidate {
  readonly fn: FunctionCode;
  isSearched: boolean;
  isRejected: boolean;
  /** A jump leads behind its beginning, or it jumps back: no function of its own would. */
  isJumpedInto: boolean;
  /** If it is no part, then the subject is entered from elsewhere. */
  entry: { readonly from: bigint; readonly to: bigint } | undefined;
}

const unknownHeights: Heights = { sp: WEAK, fp: WEAK };

/** One function whose exits are looked for. */
class Subject {
  readonly start: bigint;
  readonly name: string | undefined;
  readonly #code: ImageCode;
  readonly #parts = new Map<bigint, Part>();
  readonly #candidates = new Map<bigint, Candidate>();
  /** Starts of ranges that are no parts. */
  readonly #others = new Set<bigint>();
  readonly #exits = new Map<bigint, FunctionExit>();
  readonly #pending: { readonly part: Part; readonly index: number }[] = [];
  /** Behind calls: there execution goes on unless the call does not come back. */
  readonly #behindCalls: { readonly part: Part; readonly index: number; readonly heights: Heights }[] = [];
  #refusal: ExitRefusal | undefined;
  #isExplored = false;
  #isSearched = false;

  constructor(code: ImageCode, start: bigint) {
    this.#code = code;
    this.start = start;
    const fn = code.functionAt(start);
    this.name = fn?.name;
    if (fn === undefined || fn.start !== start) this.#refuse({ reason: "no-function", at: start });
    else this.#addPart(fn);
  }

  get result(): FunctionExits {
    if (this.#refusal !== undefined) return { kind: "refused", refusal: this.#refusal };
    const exits = [...this.#exits.values()].sort((a, b) => (a.at < b.at ? -1 : 1));
    return { kind: "exits", exits };
  }

  /** Candidates that nothing is known about yet. */
  get undecided(): bigint[] {
    return [...this.#candidates.keys()];
  }

  #refuse(refusal: ExitRefusal): void {
    this.#refusal ??= refusal;
  }

  #addPart(fn: FunctionCode): void {
    this.#parts.set(fn.start, { fn, heights: Array.from({ length: fn.code.count }) });
    if (fn.code.undecodableAt !== undefined)
      this.#refuse({ reason: "undecodable", at: fn.code.undecodableAt });
  }

  /** Parts that nothing in the code has to lead to. */
  consider(starts: Iterable<bigint>): void {
    for (const start of starts) this.#suggest(start);
  }

  #suggest(at: bigint, entry?: Candidate["entry"]): Candidate | undefined {
    const fn = this.#code.functionAt(at);
    if (fn === undefined || this.#parts.has(fn.start) || this.#others.has(fn.start)) return undefined;
    let candidate = this.#candidates.get(fn.start);
    if (candidate === undefined) {
      const isRejected = callsItself(fn);
      candidate = { fn, isSearched: false, isRejected, isJumpedInto: false, entry };
      this.#candidates.set(fn.start, candidate);
      this.#isExplored = false;
    }
    if (at !== fn.start || entry !== undefined) candidate.isJumpedInto = true;
    candidate.entry ??= entry;
    return candidate;
  }

  reject(start: bigint): void {
    const candidate = this.#candidates.get(start);
    if (candidate !== undefined) candidate.isRejected = true;
  }

  takeSearches(): Search[] {
    if (this.#refusal !== undefined) return [];
    const searches: Search[] = [];
    if (!this.#isSearched) {
      const { fn } = this.#parts.get(this.start)!;
      if (fn.end > fn.start + 1n)
        searches.push({ start: fn.start + 1n, end: fn.end, subject: this, candidate: undefined });
      this.#isSearched = true;
    }
    for (const candidate of this.#candidates.values()) {
      if (candidate.isSearched || candidate.isRejected) continue;
      candidate.isSearched = true;
      searches.push({ start: candidate.fn.start, end: candidate.fn.end, subject: this, candidate });
    }
    return searches;
  }

  isOpen(candidate: Candidate | undefined): boolean {
    return this.#refusal === undefined && candidate?.isRejected !== true;
  }

  /** Something outside of the range leads into it: into the subject itself, or into a candidate. */
  entered(candidate: Candidate | undefined, from: bigint, to: bigint): void {
    if (!this.isOpen(candidate)) return;
    const source = this.#code.functionAt(from);
    const flow = source?.code.findInsn(from)?.flow;
    const isJump = flow === "jump" || flow === "branch";
    const isOwn = source !== undefined && this.#parts.has(source.start);
    if (candidate !== undefined) {
      const isKnown = isOwn || (source !== undefined && this.#candidates.has(source.start));
      if (!isJump || !isKnown) candidate.isRejected = true;
      return;
    }
    if (isOwn && isJump) return;
    const mayBePart = isJump && source !== undefined && mayBeColdPart(source);
    const other = mayBePart ? this.#suggest(from, { from, to }) : undefined;
    if (other === undefined) this.#refuse({ reason: "entered-elsewhere", from, to });
  }

  /** Turns candidates that nobody else enters into parts. True if that changed what is known. */
  decide(): boolean {
    if (this.#refusal !== undefined) return false;
    let isDirty = false;
    for (const [start, candidate] of this.#candidates) {
      if (!candidate.isSearched && !candidate.isRejected) {
        // Found in this very pass; the next one looks for it.
        isDirty = true;
        continue;
      }
      this.#candidates.delete(start);
      isDirty = true;
      const { fn } = candidate;
      const isPart =
        candidate.isJumpedInto || coldBaseOf(fn.name) !== undefined || !isPointedTo(this.#code, fn);
      if (!candidate.isRejected && isPart) this.#addPart(fn);
      else {
        this.#others.add(start);
        if (candidate.entry !== undefined) this.#refuse({ reason: "entered-elsewhere", ...candidate.entry });
      }
    }
    if (isDirty) this.#isExplored = false;
    return isDirty;
  }

  /** Follows the control flow through all parts that are known. */
  explore(): void {
    if (this.#isExplored || this.#refusal !== undefined) return;
    this.#isExplored = true;
    this.#exits.clear();
    for (const part of this.#parts.values()) part.heights.fill(undefined);
    const own = this.#parts.get(this.start)!;
    this.#reach(own, 0, { sp: 0, fp: LOST });
    for (const part of this.#parts.values()) this.#reachLabels(part);
    this.#drain();
    this.#reachLandingPads();
    this.#drain();
    this.#pending.length = 0;
    this.#behindCalls.length = 0;
    if (this.#refusal === undefined) this.#checkUnreached();
  }

  #drain(): void {
    while (this.#refusal === undefined) {
      const next = this.#pending.pop();
      if (next !== undefined) {
        this.#step(next.part, next.index);
        continue;
      }
      const behind = this.#behindCalls.pop();
      if (behind === undefined) break;
      const known = behind.part.heights[behind.index];
      // Where another way leads with another height, the call does not come back.
      if (known === undefined || known.sp === WEAK) this.#reach(behind.part, behind.index, behind.heights);
    }
  }

  #reach(part: Part, index: number, heights: Heights): void {
    const known = part.heights[index];
    const joined = known === undefined ? heights : joinHeights(known, heights);
    if (joined === known) return;
    part.heights[index] = joined;
    this.#pending.push({ part, index });
  }

  /** Labels whose address is known elsewhere. */
  #reachLabels(part: Part): void {
    const { fn } = part;
    const hasGoto = this.#hasComputedGoto(fn);
    for (const [offset, { kind }] of fn.entries) {
      if (kind !== "address-taken" && kind !== "pointer") continue;
      const index = fn.code.indexAt(offset);
      if (index < 0 || (offset === 0 && fn.start === this.start)) continue;
      if (kind === "pointer" && !hasGoto)
        this.#refuse({ reason: "pointer-into-function", to: fn.start + BigInt(offset) });
      this.#reach(part, index, unknownHeights);
    }
  }

  /** An exception lands with the stack as it was at the call that threw it: known if it is the same at all calls. */
  #reachLandingPads(): void {
    let heights: Heights | undefined;
    for (const { fn, heights: known } of this.#parts.values())
      for (let i = 0; i < fn.code.count; i++) {
        const flow = fn.code.flowAt(i);
        const at = known[i];
        if ((flow !== "call" && flow !== "call-indirect") || at === undefined) continue;
        heights =
          heights === undefined || (heights.sp === at.sp && heights.fp === at.fp) ? at : unknownHeights;
      }
    for (const part of this.#parts.values())
      for (const [offset, { kind }] of part.fn.entries) {
        const index = part.fn.code.indexAt(offset);
        if (kind === "landing-pad" && index >= 0) this.#reach(part, index, heights ?? unknownHeights);
      }
  }

  #hasComputedGoto({ code }: FunctionCode): boolean {
    for (let i = 0; i < code.count; i++) if (code.flowAt(i) === "jump-indirect") return true;
    return false;
  }

  #step(part: Part, index: number): void {
    const { code } = part.fn;
    const heights = part.heights[index]!;
    const at = code.start + BigInt(code.offsets[index]!);
    const flow = code.flowAt(index);
    switch (flow) {
      case "next":
        this.#follow(part, index, heightsBehind(code.bytesAt(index), heights));
        break;
      case "syscall":
        this.#follow(part, index, heights);
        break;
      case "trap":
        if (index + 1 < code.count) this.#follow(part, index, heights);
        break;
      case "stop":
        break;
      case "call":
        this.#checkCall(at, code.start + BigInt(code.targets[index]!));
        this.#followCall(part, index, heights);
        break;
      case "call-indirect":
        this.#followCall(part, index, heights);
        break;
      case "return":
        if (effectsOf(code.bytesAt(index)).mnemonic !== "ret" || (heights.sp !== 0 && heights.sp < WEAK))
          this.#refuse({ reason: "return-address-unknown", at });
        this.#exits.set(at, { kind: "return", at });
        break;
      case "jump":
      case "branch":
        this.#jump(part, index, code.start + BigInt(code.targets[index]!), heights);
        if (flow === "branch") this.#follow(part, index, heights);
        break;
      case "jump-indirect":
        this.#jumpIndirect(part, index, heights);
        break;
      default:
        flow satisfies never;
    }
  }

  #follow(part: Part, index: number, heights: Heights): void {
    const { code } = part.fn;
    if (index + 1 < code.count) this.#reach(part, index + 1, heights);
    else this.#refuse({ reason: "runs-out", at: code.start + BigInt(code.offsets[index]!) });
  }

  #followCall(part: Part, index: number, heights: Heights): void {
    // A call at the end of a function does not come back.
    if (index + 1 < part.fn.code.count) this.#behindCalls.push({ part, index: index + 1, heights });
  }

  /** Recursion calls the entry; anything else inside is a subroutine, whose returns are not those of the function. */
  #checkCall(from: bigint, to: bigint): void {
    if (to !== this.start && this.#partAt(to) !== undefined)
      this.#refuse({ reason: "subroutine-inside", from, to });
  }

  #partAt(addr: bigint): Part | undefined {
    for (const part of this.#parts.values()) if (addr >= part.fn.start && addr < part.fn.end) return part;
    return undefined;
  }

  #jump(part: Part, index: number, to: bigint, heights: Heights): void {
    const from = part.fn.start + BigInt(part.fn.code.offsets[index]!);
    const own = this.#partAt(to);
    if (own !== undefined) {
      const target = insnBeginningAt(own.fn, to);
      if (target < 0) this.#refuse({ reason: "leads-into-function", from, to });
      else this.#reach(own, target, heights);
      return;
    }
    const other = this.#code.functionAt(to);
    if (other !== undefined && !isStub(this.#code, to)) {
      // Not known yet: another round tells what it is.
      if (mayBeColdPart(other) && this.#suggest(to) !== undefined) return;
      if (to !== other.start || coldBaseOf(other.name) !== undefined) {
        this.#refuse({ reason: "leads-into-function", from, to });
        return;
      }
    }
    this.#tailCall(part, index, heights);
  }

  #tailCall(part: Part, index: number, heights: Heights): void {
    const { code } = part.fn;
    const at = code.start + BigInt(code.offsets[index]!);
    const isBranch = code.flowAt(index) === "branch";
    if (heights.sp !== 0 || (isBranch && !isJcc(code.bytesAt(index))))
      this.#refuse({ reason: "return-address-unknown", at });
    else this.#exits.set(at, { kind: isBranch ? "tail-branch" : "tail-jump", at });
  }

  #jumpIndirect(part: Part, index: number, heights: Heights): void {
    const { fn } = part;
    const at = fn.start + BigInt(fn.code.offsets[index]!);
    const shape = shapeOfIndirectJump(fn.code, index);
    if (shape === "unknown" || fn.unresolvedAt !== undefined) {
      this.#refuse({ reason: "indirect-jump-unresolved", at });
      return;
    }
    const tables: number[] = [];
    const labels: number[] = [];
    for (const [offset, { kind, ...source }] of fn.entries) {
      if (fn.code.indexAt(offset) < 0) continue;
      if (kind === "jump-table") {
        tables.push(offset);
        // The address of a table that another instruction reads: this may be the jump that goes by it.
        const from = "from" in source ? fn.code.findInsn(source.from) : undefined;
        if (from?.flow !== "jump-indirect") labels.push(offset);
      }
      if (kind === "pointer" || kind === "address-taken") labels.push(offset);
    }
    if (shape === "pointer") {
      if (labels.length === 0) {
        if (heights.sp === 0) this.#tailCall(part, index, heights);
        else this.#refuse({ reason: "indirect-jump-unresolved", at });
        return;
      }
      // It may be a jump to a label or a tail call.
      if (heights.sp === 0) this.#refuse({ reason: "indirect-jump-unresolved", at });
    }
    for (const offset of shape === "pointer" ? labels : tables)
      this.#reach(part, fn.code.indexAt(offset), heights);
    if (shape !== "offset-table") return;
    for (const to of allOffsetTableTargets(this.#code.image, fn.code))
      if (this.#partAt(to) === undefined) this.#jumpByTable(to);
  }

  /** Tables may be read too far, so what they lead to counts only where the name tells. */
  #jumpByTable(to: bigint): void {
    if (this.name === undefined) return;
    const other = this.#code.image.findFunction(to);
    if (coldBaseOf(other?.name) === this.name) this.#suggest(to);
  }

  /** Code that nothing known leads to may be data, or reached in a way that is not understood. */
  #checkUnreached(): void {
    for (const { fn, heights } of this.#parts.values()) {
      const { code } = fn;
      for (let i = 0; i < code.count; i++) {
        if (heights[i] !== undefined) continue;
        const flow = code.flowAt(i);
        const at = code.start + BigInt(code.offsets[i]!);
        const leaves =
          flow === "return" ||
          flow === "jump-indirect" ||
          ((flow === "jump" || flow === "branch") &&
            this.#partAt(code.start + BigInt(code.targets[i]!)) === undefined);
        if (leaves) this.#refuse({ reason: "exit-unreached", at });
      }
    }
  }
}

/** Index of the instruction that begins there, or, without its lock prefix, one byte behind its beginning. */
function insnBeginningAt(fn: FunctionCode, addr: bigint): number {
  const offset = Number(addr - fn.start);
  const index = fn.code.indexAt(offset);
  if (index >= 0) return index;
  const before = fn.code.indexAt(offset - 1);
  return before >= 0 && fn.code.bytesAt(before)[0] === 0xf0 ? before : -1;
}

/** A function, whoever jumps to it. */
function callsItself({ code }: FunctionCode): boolean {
  for (let i = 0; i < code.count; i++) {
    if (code.flowAt(i) !== "call") continue;
    const to = code.targets[i]!;
    if (to >= 0 && to < code.bytes.length) return true;
  }
  return false;
}

/** Does data point to its beginning? */
function isPointedTo(code: ImageCode, fn: FunctionCode): boolean {
  return code.image.pointersInto(fn.start, fn.start + 1n).length > 0;
}

/** `jmp [rip+x]`, perhaps behind endbr64 or with a bnd prefix: an entry of the procedure linkage table. */
function isStub(code: ImageCode, at: bigint): boolean {
  const bytes = textBytes(code.image, at, at + 7n);
  if (bytes === undefined) return false;
  const isEndbr = bytes[0] === 0xf3 && bytes[1] === 0x0f && bytes[2] === 0x1e && bytes[3] === 0xfa;
  const rest = bytes.subarray(isEndbr ? 4 : 0);
  const jump = rest.subarray(rest[0] === 0xf2 ? 1 : 0);
  return jump[0] === 0xff && jump[1] === 0x25;
}

/** 0f 8x or 7x, perhaps with prefixes. */
function isJcc(bytes: Uint8Array): boolean {
  let at = 0;
  while (bytes[at] === 0x2e || bytes[at] === 0x3e || bytes[at] === 0xf2) at++;
  return (bytes[at]! & 0xf0) === 0x70 || (bytes[at] === 0x0f && (bytes[at + 1]! & 0xf0) === 0x80);
}
