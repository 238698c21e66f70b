/**
 * The function trampolines of one target: one for each list of programs, made when a site first needs it and kept in blocks
 * of code memory of their own.
 *
 * A trampoline that no site leads to any more is retired: it can be taken up again at once, since nothing has changed in it.
 * Its block can be used for another only when nobody is in it and nobody will return to it, which the target finds out while
 * all threads stand (`Retirement`). That is asked only when there is something worth having.
 *
 * Invariant: whoever is handed a trampoline holds it (`hold`) before a site leads there, and lets go of it (`release`) only when
 * that site leads elsewhere.
 */
import type { GateProgram } from "../../gate/index.ts";
import type { PrivateStackHook } from "../../patch/detour.ts";
import {
  emitApproach,
  emitFunctionTrampoline,
  entryDistanceOf,
  type FunctionTrampoline,
  mayServe,
  trampolineKey,
} from "../../patch/function-trampoline.ts";
import type { SitePlan } from "../../patch/plan.ts";
import { reaches } from "../../probe/arena.ts";
import type { AddrRange, Retirement } from "../../target/target.ts";
import type { CodeSpace, CodeSpaces } from "./code-space.ts";

/** Where calls lead, with who runs there. */
export interface PlacedTrampoline {
  readonly key: string;
  readonly code: FunctionTrampoline;
  readonly block: AddrRange;
  readonly chunk: Chunk;
  readonly programs: readonly GateProgram[];
}

/** A site that needs a trampoline. */
export interface TrampolineNeed {
  readonly plan: SitePlan;
  readonly image: { readonly name: string; readonly range: AddrRange };
  readonly programs: readonly GateProgram[];
  /** Programs run on private stacks; undefined: on threads' own. */
  readonly privateStack?: PrivateStackHook | undefined;
}

interface Chunk {
  readonly space: CodeSpace;
  readonly free: AddrRange[];
}

export interface TrampolineStatistics {
  /** Sites lead there. */
  readonly used: number;
  /** Nothing leads there, and the code is still there. */
  readonly retired: number;
  /** Their memory was taken back, since the beginning. */
  readonly reclaimed: number;
  /** Memory mapped for trampolines. */
  readonly bytes: number;
}

/** How the bytes get into the target; nothing leads there yet. */
export type WriteBytes = (at: bigint, bytes: Uint8Array) => void;

const BLOCK_ALIGN = 64n;
const CHUNK_BYTES = 16 << 10;
/** A stub and its constant. */
const APPROACH_BYTES = 64;
/** What a constant too far away may add to the code of a program's call when it moves. */
const SLACK_BYTES = 16;
/** Retired code below this is not worth looking at all stacks for. */
const WORTH_BYTES = 8 << 10;

/** Gates with the same key go the same way to their private stack. */
const keyOfGate = (privateStack: PrivateStackHook | undefined): string =>
  privateStack === undefined
    ? "own stack"
    : `${privateStack.stacks.thread} ${privateStack.stacks.defersSignals}`;

export class TrampolineStore {
  readonly #spaces: CodeSpaces;
  readonly #chunks: Chunk[] = [];
  readonly #placed = new Map<string, PlacedTrampoline[]>();
  readonly #holders = new Map<PlacedTrampoline, number>();
  /** Those whose code something else than sites may lead to: they stay. */
  readonly #pinned = new Set<PlacedTrampoline>();
  #reclaimed = 0;

  constructor(spaces: CodeSpaces) {
    this.#spaces = spaces;
  }

  get statistics(): TrampolineStatistics {
    const all = [...this.#holders.values()];
    return {
      used: all.filter((holders) => holders > 0).length,
      retired: all.filter((holders) => holders === 0).length,
      reclaimed: this.#reclaimed,
      bytes: this.#chunks.reduce((sum, { space }) => sum + Number(space.range.end - space.range.start), 0),
    };
  }

  /** A trampoline for each need, in order; those that are new are handed to `write`. Not yet held. */
  async provide(needs: readonly TrampolineNeed[], write: WriteBytes): Promise<PlacedTrampoline[]> {
    const keys = needs.map(
      ({ plan, programs, privateStack }) =>
        `${trampolineKey(programs, entryDistanceOf(plan))}, ${keyOfGate(privateStack)}`,
    );
    const chosen: PlacedTrampoline[] = [];
    for (const [index, need] of needs.entries()) {
      const key = keys[index]!;
      chosen.push(this.#find(key, need) ?? (await this.#make(key, need, needs, keys, write)));
    }
    return chosen;
  }

  #find(key: string, { plan, image }: TrampolineNeed): PlacedTrampoline | undefined {
    return this.#placed
      .get(key)
      ?.find(({ code, chunk }) => mayServe(code, plan.liveness) && reaches(chunk.space.range, image.range));
  }

  /** One that also serves the other sites with the same key that are about to ask. */
  async #make(
    key: string,
    need: TrampolineNeed,
    needs: readonly TrampolineNeed[],
    keys: readonly string[],
    write: WriteBytes,
  ): Promise<PlacedTrampoline> {
    const { programs, plan, image, privateStack } = need;
    const alike = needs.filter((_, index) => keys[index] === key);
    const spec = {
      programs,
      entryDistance: entryDistanceOf(plan),
      liveRegs: alike.reduce((live, { plan: { liveness } }) => live | liveness.regs, 0),
      privateStack,
    };
    const sizeAt = (at: bigint) => emitFunctionTrampoline({ ...spec, at }).bytes.length + SLACK_BYTES;
    const { block, chunk } = await this.#allocate(image, sizeAt);
    const code = emitFunctionTrampoline({ ...spec, at: block.start });
    if (block.start + BigInt(code.bytes.length) > block.end)
      throw new Error(`emit trampoline at 0x${block.start.toString(16)}: longer than its block`);
    write(code.at, code.bytes);
    const placed: PlacedTrampoline = { key, code, block, chunk, programs };
    this.#placed.set(key, [...(this.#placed.get(key) ?? []), placed]);
    this.#holders.set(placed, 0);
    return placed;
  }

  /** What an `int3` at the site leads to: it pins the trampoline. */
  async approach({ plan, image }: TrampolineNeed, to: PlacedTrampoline, write: WriteBytes): Promise<bigint> {
    const { block } = await this.#allocate(image, () => APPROACH_BYTES);
    const behind = plan.region.start + BigInt(plan.region.lenBytes);
    const { bytes } = emitApproach(block.start, behind, to.code.entry);
    write(block.start, bytes);
    this.#pinned.add(to);
    return block.start;
  }

  hold(trampoline: PlacedTrampoline): void {
    this.#holders.set(trampoline, (this.#holders.get(trampoline) ?? 0) + 1);
  }

  release(trampoline: PlacedTrampoline): void {
    this.#holders.set(trampoline, this.#holders.get(trampoline)! - 1);
  }

  /** What the next transaction is to look at, if it is worth it. `kept` is about to be led to. */
  retirement(
    kept: readonly PlacedTrampoline[],
  ): { readonly retire: Retirement; readonly of: PlacedTrampoline[] } | undefined {
    const keeps = new Set(kept);
    const of = [...this.#holders].flatMap(([each, holders]) =>
      holders === 0 && !this.#pinned.has(each) && !keeps.has(each) ? [each] : [],
    );
    const bytes = of.reduce((sum, { block }) => sum + Number(block.end - block.start), 0);
    if (bytes < WORTH_BYTES) return undefined;
    return {
      of,
      retire: {
        ranges: of.map(({ block }) => block),
        callees: [...this.#spaces.spaces, ...this.#chunks.map(({ space }) => space)].map(
          ({ range }) => range,
        ),
        stackBytes: Math.max(...of.map(({ code }) => code.frame.stackBytes)),
      },
    };
  }

  /** Takes back the memory of those that nobody can be in. */
  reclaim(of: readonly PlacedTrampoline[], isFree: readonly boolean[]): void {
    for (const [index, trampoline] of of.entries()) {
      if (isFree[index] !== true) continue;
      const { key, block, chunk } = trampoline;
      const others = this.#placed.get(key)!.filter((each) => each !== trampoline);
      if (others.length > 0) this.#placed.set(key, others);
      else this.#placed.delete(key);
      this.#holders.delete(trampoline);
      chunk.free.push(block);
      this.#reclaimed++;
    }
  }

  async #allocate(
    image: TrampolineNeed["image"],
    sizeAt: (at: bigint) => number,
  ): Promise<{ readonly block: AddrRange; readonly chunk: Chunk }> {
    for (const chunk of this.#chunks) {
      if (!reaches(chunk.space.range, image.range)) continue;
      const lenBytes = aligned(sizeAt(chunk.space.range.start));
      const block = takeFrom(chunk, lenBytes);
      if (block !== undefined) return { block, chunk };
    }
    const lenBytes = aligned(sizeAt(image.range.start));
    const space = await this.#spaces.provideOwn({
      name: image.name,
      image: image.range,
      lenBytes: Math.max(CHUNK_BYTES, Number(lenBytes)),
    });
    const chunk: Chunk = { space, free: [] };
    this.#chunks.push(chunk);
    return { block: takeFrom(chunk, lenBytes)!, chunk };
  }
}

const aligned = (lenBytes: number): bigint => (BigInt(lenBytes) + BLOCK_ALIGN - 1n) & -BLOCK_ALIGN;

/** The smallest free block that is large enough, else fresh memory. */
function takeFrom({ space, free }: Chunk, lenBytes: bigint): AddrRange | undefined {
  let best = -1;
  for (const [index, { start, end }] of free.entries()) {
    const size = end - start;
    if (size >= lenBytes && (best < 0 || size < free[best]!.end - free[best]!.start)) best = index;
  }
  const found = best < 0 ? undefined : free.splice(best, 1)[0]!;
  if (found !== undefined) {
    const end = found.start + lenBytes;
    if (end < found.end) free.push({ start: end, end: found.end });
    return { start: found.start, end };
  }
  if (BigInt(space.freeBytes) < lenBytes) return undefined;
  const start = space.next;
  space.take(Number(lenBytes));
  return { start, end: start + lenBytes };
}
