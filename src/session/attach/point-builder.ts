/**
 * From planned sites to code in the target: programs, return trampolines, detours and the trap handler are emitted for
 * where they will be, and written. Nothing leads there yet; arming is the probe set's work.
 */

import type { ReturnLookup } from "../../bpf/jit/index.ts";
import {
  emitStackRoutines,
  type GateKey,
  type GateProgram,
  type StackRoutines,
  type ThreadSource,
  type WrittenCode,
} from "../../gate/index.ts";
import {
  type Detour,
  type DetourSpec,
  emitDetour,
  type PrivateStackHook,
  SLOT_BYTES,
} from "../../patch/detour.ts";
import { APPROACH_SPACE_BYTES, type FunctionTrampoline } from "../../patch/function-trampoline.ts";
import { planAsTrap, type SitePlan } from "../../patch/plan.ts";
import type { Refusal } from "../../patch/refusal.ts";
import { emitReturnTrampoline, type ReturnTrampoline } from "../../patch/return-probe.ts";
import {
  emitReturnRuntime,
  RETURN_ADDRESS_OFFSET,
  RETURN_ENTRY_BYTES,
  RETURN_KEY_OFFSET,
  type ReturnRuntime,
  returnTableBytes,
  returnTableEntries,
} from "../../patch/return-table.ts";
import { evictedBy, landingsOf } from "../../patch/route.ts";
import { reaches } from "../../probe/arena.ts";
import type { PointCode } from "../../probe/probe-set.ts";
import { RETURN_WINDOW } from "../../probe/return-window.ts";
import type { AddrRange, Retirement, ReturnTable } from "../../target/target.ts";
import type { ImageCode } from "../../x86/regions.ts";
import type { GateLevel } from "../options.ts";
import type { CodeSpace, CodeSpaces, SpaceRequest } from "./code-space.ts";
import { highest } from "./gate-level.ts";
import {
  approachTo,
  type BuiltRoute,
  blockOf,
  callCode,
  canChain,
  emitRoute,
  POINT_SPACE_BYTES,
  pointCode,
} from "./point-code.ts";
import type { PlacedProgram, ProgramCompiler, Runnable } from "./program-compiler.ts";
import type { ReturnRole } from "./return-ways.ts";
import { type PlacedTrampoline, TrampolineStore, type WriteBytes } from "./trampoline-store.ts";

/** One probe on one address. */
export interface AttachedProbe {
  readonly run: Runnable;
  /**
   * `entry`: when the site is reached. `return`: when what is on top of the stack at the site has been returned to, by
   * replacing it. `leaving`: when the site, a `ret`, is reached, with the context of the return.
   */
  readonly when: "entry" | "return" | "leaving";
  readonly cookie: bigint;
  /** What was asked for; undefined: what the process has. */
  readonly gate?: GateLevel | undefined;
}

/** A planned site with what is to run there. */
export interface PlannedPoint {
  readonly plan: SitePlan;
  readonly code: ImageCode;
  readonly image: { readonly name: string; readonly range: AddrRange };
  readonly probes: readonly AttachedProbe[];
  /** What it has to do with the returns of a function. */
  readonly returns?: ReturnRole | undefined;
  /** Nobody has named it but by a wildcard: the others are armed without it if it must be. */
  readonly isOptional?: boolean;
}

/** A punned point's own record, one for text that it keeps, one for text beside it, and two for each of two landings, which may lie on two pages. */
const RECORDS_OF_PUNNED = 7;

/** Most records of the journal that the points will take. */
export function journalRecords(points: readonly PlannedPoint[]): number {
  const punned = points.filter(({ plan }) => plan.mechanism === "punned").length;
  const held = points.filter(({ plan }) => plan.held !== undefined).length;
  return points.length + held + punned * (RECORDS_OF_PUNNED - 1);
}

/** A point whose code is in the target. */
export interface BuiltPoint {
  readonly planned: PlannedPoint;
  /** As planned, or one rung lower when an address that is known only now refused the jump. */
  readonly plan: SitePlan;
  /** What the site leads to: its own detour, or for a `call` the trampoline that it shares with others. */
  readonly detour: Detour | FunctionTrampoline;
  /** The trampoline in its block, for a `call`. */
  readonly called?: PlacedTrampoline | undefined;
  /** For a punned plan: what its route does to the text, and the copy of what it displaces beside the site. */
  readonly route: BuiltRoute | undefined;
  readonly trampoline: ReturnTrampoline | undefined;
  /** What the detour calls, in order. */
  readonly programs: readonly PlacedProgram[];
  readonly code: PointCode;
}

export interface RefusedPoint {
  readonly planned: PlannedPoint;
  readonly refusal: Refusal;
}

/** Where points keep what they need beside their code; decided once for a target. */
export interface PointMemory {
  /** Address of the table in the target's private memory. */
  readonly tableAt: bigint;
  readonly entries: number;
  /** Address of the counter of returns that these probes have missed. */
  missedAt(probes: readonly AttachedProbe[]): bigint;
  /** Told when all that points need is in place, and nothing leads to it yet. */
  placed?(near: PlannedPoint["image"], stacks: StackRoutines | undefined): Promise<void>;
  /** Private stacks, and the counters of hits that find theirs in use; undefined: threads use their own. */
  readonly stacks:
    | {
        readonly base: bigint;
        /** What a probe runs behind. */
        levelOf(probe: AttachedProbe): GateLevel;
        /** Whether threads on an alternate stack are to be found at a point of this level. */
        findsAlternate(level: GateLevel): boolean;
        /** How threads are told apart in the code of an image. */
        threadIn(image: PlannedPoint["image"]): ThreadSource;
        recursedAt(account: number): bigint;
      }
    | undefined;
  /** What programs use is under this key. */
  readonly key: GateKey | undefined;
}

/** The part of a target that code is written through. */
export interface CodeWritePort {
  write(at: bigint, bytes: Uint8Array): Promise<void>;
}

/** What the switch to a private stack adds to a point; the routines for all of them. */
const SWITCH_SPACE_BYTES = 640;
const EVICTED_SPACE_BYTES = 256;
const TRAMPOLINE_SPACE_BYTES = 1024;
/** Least room for code that functions return to: there is one such space, and probes may be added later. */
const RETURN_SPACE_BYTES = 1 << 20;

export class PointBuilder {
  readonly #target: CodeWritePort;
  readonly #spaces: CodeSpaces;
  readonly #compiler: ProgramCompiler;
  readonly trampolines: TrampolineStore;
  /** Where the programs of each image were put last. */
  readonly #programSpaces = new Map<string, CodeSpace>();
  readonly #memory: PointMemory;
  #stackRoutines: StackRoutines | undefined;
  /** Where detours were that nothing leads to and nobody is in any more. */
  readonly #freeBlocks: AddrRange[] = [];
  /** One space for everything that functions return to, so that a return address of ours is known by its range. */
  #returnSpace: { readonly space: CodeSpace; readonly runtime: ReturnRuntime } | undefined;

  constructor(target: CodeWritePort, spaces: CodeSpaces, compiler: ProgramCompiler, memory: PointMemory) {
    this.#target = target;
    this.#spaces = spaces;
    this.#compiler = compiler;
    this.trampolines = new TrampolineStore(spaces);
    this.#memory = memory;
  }

  /** The table of return addresses as a restorer needs to know it; undefined as long as nothing uses it. */
  get returnTable(): ReturnTable | undefined {
    if (this.#returnSpace === undefined) return undefined;
    return {
      at: this.#memory.tableAt,
      entries: this.#memory.entries,
      entryBytes: RETURN_ENTRY_BYTES,
      slotOffset: RETURN_KEY_OFFSET,
      returnAddressOffset: RETURN_ADDRESS_OFFSET,
    };
  }

  /** What was compiled to be called at an address. */
  findProgram(entry: bigint): PlacedProgram | undefined {
    return this.#compiler.findAt(entry);
  }

  /** All programs that are in place. */
  get programs(): Iterable<PlacedProgram> {
    return this.#compiler.placed();
  }

  /** The routines of the table of return addresses; undefined as long as nothing uses them. */
  get returnRuntime(): ReturnRuntime | undefined {
    return this.#returnSpace?.runtime;
  }

  /** How walks of the stack find what was in replaced return addresses; undefined as long as nothing replaces them. */
  get returnLookup(): ReturnLookup | undefined {
    if (this.#returnSpace === undefined) return undefined;
    const { space, runtime } = this.#returnSpace;
    return { stubs: space.range, routine: runtime.peek };
  }

  /** To be asked of a transaction: is nobody in the detours, which nothing leads to any more? */
  retirementOf(detours: readonly Pick<Detour, "at" | "bytes" | "frame">[]): Retirement {
    const spaces = this.#spaces.spaces.map(({ range }) => range);
    return {
      ranges: detours.map(blockOf),
      // The table of returns is called from detours.
      callees: this.#returnSpace === undefined ? spaces : [...spaces, this.#returnSpace.space.range],
      stackBytes: Math.max(...detours.map(({ frame }) => frame.stackBytes)),
    };
  }

  /** Their memory is used again. */
  free(detours: readonly Pick<Detour, "at" | "bytes">[]): void {
    const blocks = [...this.#freeBlocks, ...detours.map(blockOf)].sort((a, b) =>
      a.start < b.start ? -1 : 1,
    );
    const joined: { start: bigint; end: bigint }[] = [];
    for (const { start, end } of blocks) {
      const last = joined.at(-1);
      if (last?.end === start) last.end = end;
      else joined.push({ start, end });
    }
    this.#freeBlocks.splice(0, this.#freeBlocks.length, ...joined);
  }

  /** Where each image's code goes: where its programs are already, if there is room. */
  async #provideSpaces(
    images: readonly {
      readonly key: string;
      readonly request: SpaceRequest;
      readonly runs: readonly Runnable[];
    }[],
  ): Promise<Map<string, CodeSpace>> {
    const promised = new Map<CodeSpace, number>();
    const spaceOf = new Map<string, CodeSpace>();
    const others: (typeof images)[number][] = [];
    for (const each of images) {
      const { key, request, runs } = each;
      const space = this.#programSpaces.get(key);
      const missing = runs.filter((run) => space === undefined || !this.#compiler.isIn(space, run));
      const known =
        this.#compiler.spaceBytes(runs) - (missing.length === 0 ? 0 : this.#compiler.spaceBytes(missing));
      const lenBytes = request.lenBytes - known + (promised.get(space!) ?? 0);
      if (space === undefined || space.freeBytes < lenBytes) others.push(each);
      else {
        promised.set(space, lenBytes);
        spaceOf.set(key, space);
      }
    }
    // Those that are promised room already may not lose it to others.
    const isTaken = promised.size > 0 && others.length > 0;
    const wanted = isTaken ? images : others;
    const spaces = await this.#spaces.provide(wanted.map(({ request }) => request));
    wanted.forEach(({ key }, index) => {
      spaceOf.set(key, spaces[index]!);
    });
    return spaceOf;
  }

  /** Emits and writes the code of all points. Those that no mechanism can take are returned as refused. */
  async build(points: readonly PlannedPoint[]): Promise<{
    readonly built: readonly BuiltPoint[];
    readonly refused: readonly RefusedPoint[];
  }> {
    const images = new Map<
      string,
      { image: PlannedPoint["image"]; count: number; evicted: number; runs: Runnable[] }
    >();
    for (const point of points) {
      const key = `${point.image.range.start}`;
      const entry = images.get(key) ?? { image: point.image, count: 0, evicted: 0, runs: [] };
      if (point.plan.mechanism !== "call") entry.count++;
      entry.runs.push(...point.probes.map(({ run }) => run));
      if (point.plan.route !== undefined && evictedBy(point.plan.route) !== undefined) entry.evicted++;
      images.set(key, entry);
    }
    const requests = [...images].map(([key, { image, count, evicted, runs }]) => ({
      key,
      runs,
      request: {
        name: image.name,
        image: image.range,
        lenBytes:
          this.#compiler.spaceBytes(runs) +
          count * (POINT_SPACE_BYTES + (this.#memory.stacks === undefined ? 0 : SWITCH_SPACE_BYTES)) +
          evicted * EVICTED_SPACE_BYTES,
      },
    }));
    // Landings have no choice where they are, so they come first.
    const landings = points.flatMap(({ plan }) => (plan.route === undefined ? [] : landingsOf(plan.route)));
    const unmapped = await this.#spaces.mapLandings(landings);
    const spaceOf = await this.#provideSpaces(requests);

    const writes: { at: bigint; bytes: Uint8Array }[] = [];
    const write = (space: CodeSpace, at: bigint, bytes: Uint8Array) => {
      space.take(Number(at - space.next) + bytes.length);
      writes.push({ at, bytes });
    };

    if (this.#memory.stacks !== undefined) this.#provideStackRoutines([...spaceOf.values()][0]!, write);
    const withReturns = points.filter(hasReturnProbe);
    if (withReturns.length > 0) await this.#provideReturns(points[0]!.image, withReturns, write);
    const trampolines = new Map<PlannedPoint, ReturnTrampoline>();
    for (const point of withReturns) {
      const { space, runtime } = this.#returnSpace!;
      const programs = this.#programs(space, point, "return", write);
      const trampoline = emitReturnTrampoline({
        at: space.next,
        programs,
        runtime,
        privateStack: this.#privateStack(point, true),
        nmissed: this.#memory.missedAt(point.probes.filter(isReturnProbe)),
      });
      write(space, trampoline.at, trampoline.bytes);
      trampolines.set(point, trampoline);
    }

    // Between blocks lie others, which may be running.
    const blockWrites: { at: bigint; bytes: Uint8Array }[] = [];
    const called = points.filter(({ plan }) => plan.mechanism === "call");
    for (const [key, space] of spaceOf) this.#programSpaces.set(key, space);
    const built = await this.#buildCalls(called, (point) => spaceOf.get(`${point.image.range.start}`)!, {
      inSpace: write,
      bytes: (at, bytes) => blockWrites.push({ at, bytes }),
    });
    const refused: RefusedPoint[] = [];
    for (const planned of points) {
      if (planned.plan.mechanism === "call") continue;
      const space = spaceOf.get(`${planned.image.range.start}`)!;
      const programs = this.#programs(space, planned, "entry", write);
      const leaving = this.#programs(space, planned, "leaving", write);
      const trampoline = trampolines.get(planned);
      const emitAt = (at: bigint) => this.#emit(planned, at, { programs, leaving }, trampoline, unmapped);
      const isPlain = planned.plan.route === undefined && planned.plan.held === undefined;
      const again = isPlain ? this.#emitInBlock(planned, emitAt) : undefined;
      const result = again ?? emitAt(space.next);
      if ("refusal" in result) {
        refused.push({ planned, refusal: result.refusal });
        continue;
      }
      const { plan, detour, route, approach } = result;
      if (approach !== undefined) write(space, approach.at, approach.bytes);
      if (again === undefined) write(space, detour.at, detour.bytes);
      else blockWrites.push(detour);
      if (route?.evicted !== undefined) write(space, route.evicted.at, route.evicted.bytes);
      for (const landing of route?.patch.landings ?? []) writes.push(landing);
      built.push({
        planned,
        plan,
        detour,
        route,
        trampoline,
        programs: [...programs, ...leaving],
        code: pointCode(plan, detour, route),
      });
    }
    await Promise.all(
      [...mergeWrites(writes), ...blockWrites].map(({ at, bytes }) => this.#target.write(at, bytes)),
    );
    if (points.length > 0) await this.#memory.placed?.(points[0]!.image, this.#stackRoutines);
    return { built, refused };
  }

  /** In memory that is used again, if there is a piece that it fits into. */
  #emitInBlock(
    { image }: PlannedPoint,
    emitAt: (at: bigint) => EmittedPoint | { readonly refusal: Refusal },
  ): EmittedPoint | undefined {
    for (const [index, block] of this.#freeBlocks.entries()) {
      if (!reaches(block, image.range)) continue;
      const result = emitAt(block.start);
      if ("refusal" in result || result.route !== undefined) continue;
      const end = blockOf(result.detour).end;
      if (end > block.end) continue;
      this.#freeBlocks.splice(index, 1);
      if (end < block.end) this.#freeBlocks.push({ start: end, end: block.end });
      return result;
    }
    return undefined;
  }

  /** Points with calls alone, with as little new code as they need. */
  async buildCalls(points: readonly PlannedPoint[]): Promise<BuiltPoint[]> {
    const images = new Map(points.map(({ image }) => [`${image.range.start}`, image]));
    for (const [key, image] of images) {
      const runs = points
        .filter((point) => point.image.range.start === image.range.start)
        .flatMap(({ probes }) => probes.map(({ run }) => run));
      const space = this.#programSpaces.get(key);
      const missing = runs.filter((run) => space === undefined || !this.#compiler.isIn(space, run));
      if (missing.length === 0) continue;
      if (space !== undefined && space.freeBytes >= this.#compiler.spaceBytes(missing)) continue;
      const lenBytes = this.#compiler.spaceBytes(runs);
      const [provided] = await this.#spaces.provide([{ name: image.name, image: image.range, lenBytes }]);
      this.#programSpaces.set(key, provided!);
    }
    const writes: { at: bigint; bytes: Uint8Array }[] = [];
    const built = await this.#buildCalls(
      points,
      (point) => this.#programSpaces.get(`${point.image.range.start}`)!,
      {
        inSpace: (space, at, bytes) => {
          space.take(Number(at - space.next) + bytes.length);
          writes.push({ at, bytes });
        },
        bytes: (at, bytes) => writes.push({ at, bytes }),
      },
    );
    // Nothing is put between them: there may be code that runs.
    for (const { at, bytes } of writes) await this.#target.write(at, bytes);
    if (points.length > 0) await this.#memory.placed?.(points[0]!.image, this.#stackRoutines);
    return built;
  }

  /** Calls need no code of their own, only a trampoline for what they run. */
  async #buildCalls(
    points: readonly PlannedPoint[],
    spaceOf: (point: PlannedPoint) => CodeSpace,
    write: {
      readonly inSpace: (space: CodeSpace, at: bigint, bytes: Uint8Array) => void;
      readonly bytes: WriteBytes;
    },
  ): Promise<BuiltPoint[]> {
    if (this.#memory.stacks !== undefined && points.length > 0)
      this.#provideStackRoutines(spaceOf(points[0]!), write.inSpace);
    const needs = points.map((planned) => ({
      privateStack: this.#privateStack(planned),
      plan: planned.plan,
      image: planned.image,
      programs: this.#programs(spaceOf(planned), planned, "entry", write.inSpace),
    }));
    const trampolines = await this.trampolines.provide(needs, write.bytes);
    return points.map((planned, index): BuiltPoint => {
      const trampoline = trampolines[index]!;
      const { plan } = planned;
      return {
        planned,
        plan,
        detour: trampoline.code,
        called: trampoline,
        route: undefined,
        trampoline: undefined,
        programs: needs[index]!.programs,
        code: callCode(plan, trampoline.code.entry),
      };
    });
  }

  /** Where an `int3` at a point leads: for a call, to what stands for it. */
  async provideTrapEntry({ planned, detour, called }: BuiltPoint): Promise<bigint> {
    if (called === undefined) return detour.entry;
    const writes: { at: bigint; bytes: Uint8Array }[] = [];
    const need = { plan: planned.plan, image: planned.image, programs: called.programs };
    const entry = await this.trampolines.approach(need, called, (at, bytes) => writes.push({ at, bytes }));
    for (const { at, bytes } of writes) await this.#target.write(at, bytes);
    return entry;
  }

  /** A detour of its own, and its route. */
  #emit(
    planned: PlannedPoint,
    at: bigint,
    run: Pick<DetourSpec, "programs" | "leaving">,
    trampoline: ReturnTrampoline | undefined,
    unmapped: ReadonlySet<bigint>,
  ): EmittedPoint | { readonly refusal: Refusal } {
    const returnHook =
      trampoline === undefined
        ? undefined
        : { trampoline: trampoline.stubs, claim: this.#returnSpace!.runtime.claim };
    const { plan } = planned;
    const reaches = plan.held && [plan.held.slot, ...(plan.held.call ? [plan.held.call.trampoline] : [])];
    if (plan.held !== undefined && !reaches!.every((to) => canChain(to, at)))
      return { refusal: { reason: "detour-out-of-reach", site: plan.held.slot, detour: at } };
    const behind = plan.held && plan.held.slot + BigInt(SLOT_BYTES);
    const hooks = { returnHook, privateStack: this.#privateStack(planned), key: this.#memory.key };
    const approach = approachTo(plan, at);
    const detourAt = approach === undefined ? at : at + BigInt(APPROACH_SPACE_BYTES);
    const isCalling = plan.held?.mechanism === "call";
    const detour = emitDetour({ plan, at: detourAt, ...run, ...hooks, behind: isCalling ? at : behind });
    const routed = detour.kind === "refused" ? detour : emitRoute(plan, detour, unmapped);
    if (detour.kind !== "refused" && routed.kind !== "refused")
      return { plan, detour, route: routed.route, approach };
    const refusal = detour.kind === "refused" ? detour.refusal : (routed as { refusal: Refusal }).refusal;
    if (plan.mechanism === "int3" || plan.held !== undefined) return { refusal };
    const lower = planAsTrap(planned.code, plan, refusal);
    if (lower.kind === "refused") return { refusal };
    const trap = emitDetour({ plan: lower, at, ...run, ...hooks });
    return trap.kind === "refused"
      ? { refusal: trap.refusal }
      : { plan: lower, detour: trap, route: undefined, approach: undefined };
  }

  /** For what runs at the site, or when the function returns. The engine's own code that waits or unwinds stays on the thread's stack. */
  #privateStack({ probes, image }: PlannedPoint, isReturn = false): PrivateStackHook | undefined {
    const { stacks, key } = this.#memory;
    const runsThen = probes.filter(({ when }) => (when === "return") === isReturn);
    if (stacks === undefined || runsThen.some(({ run }) => isOnThreadStack(run))) return undefined;
    const accounts = runsThen.flatMap(({ run }) =>
      run.kind === "program" && run.account !== undefined ? [run.account] : [],
    );
    const level = highest(runsThen.map((probe) => stacks.levelOf(probe)));
    if (level === "none") return undefined;
    return {
      stacks: {
        base: stacks.base,
        defersSignals: level === "strict",
        findsAlternate: stacks.findsAlternate(level),
        key,
        thread: stacks.threadIn(image),
        routines: this.#stackRoutines!,
      },
      turnedAway: accounts.map((account) => stacks.recursedAt(account)),
    };
  }

  #provideStackRoutines(
    space: CodeSpace,
    write: (space: CodeSpace, at: bigint, bytes: Uint8Array) => void,
  ): void {
    if (this.#stackRoutines !== undefined) return;
    const routines = emitStackRoutines(space.next, this.#memory.stacks!.base);
    write(space, routines.at, routines.bytes);
    this.#stackRoutines = routines;
  }

  #programs(
    space: CodeSpace,
    point: PlannedPoint,
    when: AttachedProbe["when"],
    write: (space: CodeSpace, at: bigint, bytes: Uint8Array) => void,
  ): (PlacedProgram & GateProgram)[] {
    return point.probes
      .filter((probe) => probe.when === when)
      .map((probe) => ({ ...this.#compiler.programIn(space, probe.run, write), cookie: probe.cookie }));
  }

  async #provideReturns(
    near: PlannedPoint["image"],
    points: readonly PlannedPoint[],
    write: (space: CodeSpace, at: bigint, bytes: Uint8Array) => void,
  ): Promise<void> {
    const runs = points.flatMap(({ probes }) => probes.filter(isReturnProbe).map(({ run }) => run));
    const needed = this.#compiler.spaceBytes(runs) + points.length * TRAMPOLINE_SPACE_BYTES;
    if (this.#returnSpace !== undefined && this.#returnSpace.space.freeBytes >= needed) return;
    if (this.#returnSpace !== undefined) throw new Error("no room is left for more return probes");
    const space = await this.#spaces.provideForReturns(near.name, Math.max(needed * 4, RETURN_SPACE_BYTES));
    const runtime = emitReturnRuntime(space.next, {
      at: this.#memory.tableAt,
      entries: this.#memory.entries,
      trampolines: RETURN_WINDOW,
      own: space.range,
      key: this.#memory.key,
    });
    write(space, runtime.at, runtime.bytes);
    this.#returnSpace = { space, runtime };
  }
}

export { returnTableBytes, returnTableEntries };

type EmittedPoint = Pick<BuiltPoint, "plan" | "route"> & {
  readonly detour: Detour;
  readonly approach: WrittenCode | undefined;
};

const isOnThreadStack = ({ kind }: Runnable): boolean => kind === "load-gate" || kind === "unwind-hook";

function hasReturnProbe(point: PlannedPoint): boolean {
  return point.probes.some(isReturnProbe);
}

function isReturnProbe({ when }: AttachedProbe): boolean {
  return when === "return";
}

/** Joins writes that lie close together into one. Gaps are filled with `int3`. */
function mergeWrites(
  writes: readonly { readonly at: bigint; readonly bytes: Uint8Array }[],
): { readonly at: bigint; readonly bytes: Uint8Array }[] {
  const INT3 = 0xcc;
  const MAX_GAP = 256n;
  const sorted = [...writes].sort((a, b) => (a.at < b.at ? -1 : 1));
  const merged: { at: bigint; end: bigint; parts: { at: bigint; bytes: Uint8Array }[] }[] = [];
  for (const write of sorted) {
    const last = merged.at(-1);
    const end = write.at + BigInt(write.bytes.length);
    if (last !== undefined && write.at - last.end <= MAX_GAP) {
      last.parts.push(write);
      last.end = end;
    } else merged.push({ at: write.at, end, parts: [write] });
  }
  return merged.map(({ at, end, parts }) => {
    const bytes = new Uint8Array(Number(end - at)).fill(INT3);
    for (const part of parts) bytes.set(part.bytes, Number(part.at - at));
    return { at, bytes };
  });
}
