/**
 * Undoing what a journal says was done: the one way out, for the tracer that did it and for another that finds the
 * target after it has died.
 *
 * A record says what may have been written. What is there now decides: a site is put back only if it holds exactly what
 * was to be written there, as a jump or as an `int3`; a site that holds its old bytes needs nothing; anything else was
 * written by somebody else and is left alone and reported.
 */
import type { AddrRange, Move, RemoteCall, SitePoke, Transaction } from "../target/target.ts";
import { isBesideSite, type JournalContents, type JournalSite } from "./journal.ts";

const INT3 = 0xcc;
/** `e8 rel32` */
const CALL = 0xe8;
const CALL_BYTES = 5;
const SYS_MUNMAP = 11;
const SYS_RT_SIGACTION = 13;
const SIGTRAP = 5n;
/** `struct sigaction` as the kernel takes it: handler, flags, restorer, and a mask of this many bytes. */
const SIGSET_BYTES = 8n;
/** Offset in `struct sigaction` of the handler. */
const NO_POINTER = 0n;

export type SiteState = "jump" | "int3" | "original" | "foreign";

/**
 * What a site holds now, `found` being as long as the record's bytes. A `call` leads now here, now there, and a tracer may
 * have died between saying so and doing it: what calls our own code is ours.
 */
export function siteState(site: JournalSite, found: Uint8Array, code: readonly AddrRange[] = []): SiteState {
  if (same(found, site.oldBytes)) return "original";
  if (same(found, trapBytes(site.oldBytes))) return "int3";
  if (same(found, site.newBytes)) return "jump";
  if (site.mechanism === "call" && found[0] === CALL && found.length === CALL_BYTES) {
    const to = site.at + BigInt(CALL_BYTES) + BigInt(new DataView(found.slice().buffer).getInt32(1, true));
    if (code.some(({ start, end }) => to >= start && to < end)) return "jump";
  }
  return "foreign";
}

/** `cc` over the first byte; the rest of the region stays as it is. */
export function trapBytes(oldBytes: Uint8Array): Uint8Array {
  const bytes = oldBytes.slice();
  bytes[0] = INT3;
  return bytes;
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

export interface RestorationInput {
  readonly journal: JournalContents;
  /** Where the memory with the journal is mapped in the target. */
  readonly journalMemory: AddrRange;
  /** What each site of the journal holds now, in the journal's order. */
  readonly found: readonly Uint8Array[];
  /** What handles SIGTRAP in the target now; undefined where that does not matter. */
  readonly trapHandler: bigint | undefined;
  /** From copies of instructions in detours to their originals; empty when another tracer made the detours. */
  readonly moves: readonly Move[];
}

export interface Restoration {
  readonly transaction: Transaction;
  /** Sites that are put back. */
  readonly restored: number;
  /** Sites that hold neither the old bytes nor ours. */
  readonly foreign: readonly JournalSite[];
}

/** The transaction that puts everything back. It frees memory only in a stop in which nobody uses the code. */
export function planRestoration(input: RestorationInput): Restoration {
  const { journal, found } = input;
  const sites: SitePoke[] = [];
  const foreign: JournalSite[] = [];
  const trapSites: bigint[] = [];
  const moves = new HomeMoves(input);
  const code = journal.memory
    .filter((memory) => memory.kind === "code" && memory.state !== "removed")
    .map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) }));
  let restored = 0;
  // What a site needs stands before it in the journal, and goes after it.
  for (let index = journal.sites.length - 1; index >= 0; index--) {
    const site = journal.sites[index]!;
    const state = siteState(site, found[index]!, code);
    // A trap may have been taken just before the byte was changed from `int3` to something else.
    if (journal.trapAction !== undefined) trapSites.push(site.at);
    if (state === "foreign") foreign.push(site);
    if (state !== "jump" && state !== "int3") continue;
    const isBeside = isBesideSite(site.mechanism);
    if (!isBeside) restored++;
    sites.push({
      at: site.at,
      expect: found[index]!,
      write: site.oldBytes,
      // A handler may return to the jump that stands there: then it has to stay.
      fallback: isBeside ? undefined : site.oldBytes,
      moves: isBeside ? moves.takeInto(site) : [],
      isSide: isBeside,
      hasNoStart: site.mechanism === "padding",
    });
  }
  return {
    transaction: {
      sites,
      moves: moves.others,
      trapSites,
      returnTables: journal.returnTable === undefined ? [] : [journal.returnTable],
      vacate: code,
      usesTraps: false,
      finalCalls: finalCalls(input, code),
      why: "restore",
    },
    restored,
    foreign,
  };
}

/** Where threads go on when the text is put back. */
class HomeMoves {
  readonly #byTarget = new Map<bigint, Move[]>();

  constructor({ journal, moves }: RestorationInput) {
    for (const move of moves) this.#add(move);
    // On the way from a site to its detour, at the detour's slot, or from displaced text to its copy, nothing of either has been executed.
    for (const { mechanism, at, leadsTo, detour } of journal.sites) {
      // A call has pushed its return address.
      if (mechanism === "padding" || mechanism === "none" || mechanism === "call") continue;
      for (const from of [leadsTo, detour]) if (from !== 0n) this.#add({ from, to: at });
    }
  }

  /** Those that lead behind the first byte of a site: to be made only if the site is written. */
  takeInto(site: JournalSite): Move[] {
    const taken: Move[] = [];
    for (let at = site.at + 1n; at < site.at + BigInt(site.oldBytes.length); at++) {
      taken.push(...(this.#byTarget.get(at) ?? []));
      this.#byTarget.delete(at);
    }
    return taken;
  }

  /** Those that nobody has taken. */
  get others(): Move[] {
    return [...this.#byTarget.values()].flat();
  }

  #add(move: Move): void {
    const moves = this.#byTarget.get(move.to);
    if (moves === undefined) this.#byTarget.set(move.to, [move]);
    else moves.push(move);
  }
}

/** The journal goes last: as long as there is something to undo, there is a record of it. */
function finalCalls(input: RestorationInput, code: readonly AddrRange[]): RemoteCall[] {
  const { journal } = input;
  const calls: RemoteCall[] = [];
  const { trapAction } = journal;
  if (trapAction !== undefined && input.trapHandler === trapAction.handler)
    calls.push({
      name: "rt_sigaction",
      number: SYS_RT_SIGACTION,
      args: [SIGTRAP, trapAction.previous, NO_POINTER, SIGSET_BYTES],
    });
  for (const range of code) calls.push(unmap(range));
  for (const memory of journal.memory)
    if (memory.kind === "memory")
      calls.push(unmap({ start: memory.at, end: memory.at + BigInt(memory.lenBytes) }));
  const { privateMemory } = journal;
  if (privateMemory !== undefined)
    calls.push(unmap({ start: privateMemory.at, end: privateMemory.at + BigInt(privateMemory.lenBytes) }));
  calls.push(unmap(input.journalMemory));
  return calls;
}

function unmap({ start, end }: AddrRange): RemoteCall {
  return { name: "munmap", number: SYS_MUNMAP, args: [start, end - start] };
}

/** The call that asks what handles SIGTRAP; the answer's first word, at `into`, is the handler. */
export function askTrapAction(into: bigint): RemoteCall {
  return { name: "rt_sigaction", number: SYS_RT_SIGACTION, args: [SIGTRAP, NO_POINTER, into, SIGSET_BYTES] };
}

/** The call that installs a `struct sigaction` for SIGTRAP. */
export function setTrapAction(action: Uint8Array): RemoteCall {
  return {
    name: "rt_sigaction",
    number: SYS_RT_SIGACTION,
    args: [SIGTRAP, action, NO_POINTER, SIGSET_BYTES],
  };
}
