/**
 * Undoing what a journal says was done: the one way out, for the tracer that did it and for another that finds the
 * target after it has died.
 *
 * A record says what may have been written. What is there now decides: a site is put back only if it holds exactly what
 * was to be written there, as a jump or as an `int3`; a site that holds its old bytes needs nothing; anything else was
 * written by somebody else and is left alone and reported. What other sessions have of the same site stays theirs
 * (site-chains.ts).
 */
import type { AddrRange, Move, RemoteCall, ReturnTable, SitePoke, Transaction } from "../target/target.ts";
import { changedSignals, isBesideSite, type JournalContents, type JournalSite } from "./journal.ts";
import { isInReturnWindow } from "./return-window.ts";
import { approachesTo, membersBySite, type ReadText, type Unchaining, unchain } from "./site-chains.ts";
import { siteState } from "./site-state.ts";

const SYS_MUNMAP = 11;
const SYS_PKEY_FREE = 331;
const SYS_RT_SIGACTION = 13;
/** `struct sigaction` as the kernel takes it: handler, flags, restorer, and a mask of this many bytes. */
const SIGSET_BYTES = 8n;
/** Where no old action is asked for. */
const NO_POINTER = 0n;

export interface RestorationInput {
  readonly journal: JournalContents;
  /** Where the memory with the journal is mapped in the target. */
  readonly journalMemory: AddrRange;
  /** What each site of the journal holds now, in the journal's order. */
  readonly found: readonly Uint8Array[];
  /** How signals are handled in the target now that the journal has changed. */
  readonly handlers: ReadonlyMap<number, SignalChain>;
  /** From copies of instructions in detours to their originals; empty when another tracer made the detours. */
  readonly moves: readonly Move[];
  /** Journals of other sessions in the target. */
  readonly others: readonly JournalContents[];
  /** What the places of `placesOf` hold now, for all sites that others have as well. */
  readonly read: ReadText;
}

/** Handlers of one signal in the target. */
export interface SignalChain {
  /** The one that the kernel calls. */
  readonly current: bigint;
  /** What the journal's own handler hands foreign traps on to now: a `struct sigaction`. */
  readonly previous: Uint8Array;
  /** Where the handler of another session keeps the address of this one as what was there before it. */
  readonly chained: { readonly at: bigint; readonly bytes: Uint8Array } | undefined;
}

export interface Restoration {
  readonly transaction: Transaction;
  /** Sites that are put back. */
  readonly restored: number;
  /** Sites that hold neither the old bytes nor ours. */
  readonly foreign: readonly JournalSite[];
  /** Sites whose text has to stay for another session, and with it all memory. */
  readonly husks: readonly JournalSite[];
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
  const unwindSites = new Set(journal.unwind.map(({ site }) => site));
  let restored = 0;
  const unchained = unchainings(input);
  const husks: JournalSite[] = [];
  // What a site needs stands before it in the journal, and goes after it.
  for (let index = journal.sites.length - 1; index >= 0; index--) {
    const site = journal.sites[index]!;
    const shared = unchained.get(site);
    if (shared !== undefined && shared.kind !== "alone") {
      const awaitsUnwinders = unwindSites.has(site.at);
      sites.push(...shared.pokes.map((poke) => ({ ...poke, awaitsUnwinders })));
      if (journal.trapAction !== undefined) trapSites.push(site.at);
      moves.keepOutOf(site);
      if (shared.pokes.length > 0) restored++;
      if (shared.kind === "passed-on") continue;
      husks.push(site);
      // What its way to the detour needs stands right before it.
      while (index > 0 && isBesideSite(journal.sites[index - 1]!.mechanism)) {
        index--;
        moves.keepOutOf(journal.sites[index]!);
      }
      continue;
    }
    const state = siteState(site, found[index]!, code);
    // A trap may have been taken just before the byte was changed from `int3` to something else.
    if (journal.trapAction !== undefined) trapSites.push(site.at);
    // It has been put back, and what is there now is nobody's or has a record of its own.
    if (site.state === "removed") continue;
    if (state === "foreign" && !isOthers(site, found[index]!, input.others)) foreign.push(site);
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
      ...(isBeside ? { isSide: true } : {}),
      ...(unwindSites.has(site.at) ? { fallback: undefined, awaitsUnwinders: true } : {}),
      hasNoStart: site.mechanism === "padding",
    });
  }
  const isHusk = husks.length > 0;
  for (const { signal, handler } of isHusk ? [] : changedSignals(journal)) {
    const chain = input.handlers.get(signal);
    if (chain?.chained === undefined || chain.current === handler) continue;
    const { at, bytes } = chain.chained;
    sites.push({ at, expect: bytes, write: chain.previous, fallback: undefined, moves: [] });
  }
  return {
    transaction: {
      sites,
      moves: moves.others,
      trapSites,
      returnTables: returnTables(input, code),
      vacate: isHusk ? [] : [...code, ...usersOf(input), ...approachesTo(code, input.others, input.read)],
      usesTraps: false,
      finalCalls: isHusk ? [] : finalCalls(input, code),
      unwindInfo: [...journal.unwind, ...journal.debug].map(({ at, lenBytes }) => ({
        start: at,
        end: at + BigInt(lenBytes),
      })),
      why: "restore",
    },
    restored,
    foreign,
    husks,
  };
}

/** For each site that others have as well: how it is taken out from among them. */
function unchainings({ journal, others, read }: RestorationInput): Map<JournalSite, Unchaining> {
  const unchained = new Map<JournalSite, Unchaining>();
  if (others.length === 0) return unchained;
  const shared = membersBySite(others);
  for (const [at, [member]] of membersBySite([journal])) {
    const rest = shared.get(at);
    if (rest !== undefined) unchained.set(member!.site, unchain(member!, rest, read));
  }
  return unchained;
}

/** Whether what a site holds is what another session has written there since. */
function isOthers(site: JournalSite, found: Uint8Array, others: readonly JournalContents[]): boolean {
  const end = site.at + BigInt(found.length);
  return others.some(({ sites }) =>
    sites.some((other) => other.at < end && other.at + BigInt(other.newBytes.length) > site.at),
  );
}

const codeOf = ({ memory }: JournalContents): AddrRange[] =>
  memory
    .filter(({ kind, state }) => kind === "code" && state !== "removed")
    .map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) }));

/** The tables that replaced return addresses are taken out of, and those of others that may lie between. */
function returnTables({ journal, others }: RestorationInput, code: readonly AddrRange[]): ReturnTable[] {
  if (journal.returnTable === undefined) return [];
  const tables: ReturnTable[] = [{ ...journal.returnTable, stubs: code }];
  for (const other of others)
    if (other.returnTable !== undefined)
      tables.push({ ...other.returnTable, stubs: codeOf(other), stays: true });
  return tables;
}

/** Code of others in which a thread may just have read an address of this session's code. */
function usersOf({ journal, others }: RestorationInput): AddrRange[] {
  const users: AddrRange[] = [];
  for (const other of others) {
    for (const { signal } of changedSignals(journal)) {
      const action = changedSignals(other).find((each) => each.signal === signal);
      if (action !== undefined) users.push({ start: action.handler, end: action.previousAt });
    }
    if (journal.returnTable !== undefined && other.returnTable !== undefined)
      users.push(...codeOf(other).filter(isInReturnWindow));
  }
  return users;
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

  /** The text of a site stays another's: only who has executed nothing of it goes back there. */
  keepOutOf(site: JournalSite): void {
    this.takeInto(site);
    const toStart = this.#byTarget.get(site.at) ?? [];
    const ways = [site.leadsTo, site.detour];
    this.#byTarget.set(
      site.at,
      toStart.filter(({ from }) => ways.includes(from)),
    );
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

/**
 * The journal goes last: as long as there is something to undo, there is a record of it. Only the key is given back when no memory has
 * it any more: were it free earlier, the process could get it for memory of its own, and another tracer, who sees the journal, free it.
 */
function finalCalls(input: RestorationInput, code: readonly AddrRange[]): RemoteCall[] {
  const { journal } = input;
  const calls: RemoteCall[] = [];
  for (const { signal, handler } of changedSignals(journal)) {
    const chain = input.handlers.get(signal);
    if (chain?.current === handler) calls.push(setSignalAction(signal, chain.previous));
  }
  for (const range of code) calls.push(unmap(range));
  for (const { at, lenBytes } of journal.debug) calls.push(unmap({ start: at, end: at + BigInt(lenBytes) }));
  const data = dataRanges(journal, input.journalMemory);
  calls.push(...data.map(unmap));
  // What is not believed of the journal stays, with its key.
  const isWhole = data.at(-1) !== input.journalMemory;
  if (journal.key !== undefined && isWhole)
    calls.push({ name: "pkey_free", number: SYS_PKEY_FREE, args: [BigInt(journal.key)] });
  return calls;
}

/** Ranges of addresses that a session has for data, that with its journal last. */
export function dataRanges(
  { memory }: Pick<JournalContents, "memory">,
  journalMemory: AddrRange,
): AddrRange[] {
  const ranges = memory
    .filter(({ kind, state }) => kind === "memory" && state !== "removed")
    .map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) }));
  const holdsJournal = ({ start, end }: AddrRange) =>
    start <= journalMemory.start && end >= journalMemory.end;
  const own = ranges.find(holdsJournal) ?? journalMemory;
  return [...ranges.filter((range) => range !== own), own];
}

function unmap({ start, end }: AddrRange): RemoteCall {
  return { name: "munmap", number: SYS_MUNMAP, args: [start, end - start] };
}

/** The call that asks what is done with a signal; the answer, a `struct sigaction`, is at `into`. */
export function askSignalAction(signal: number, into: bigint): RemoteCall {
  return signalCall(signal, NO_POINTER, into);
}

/** The call that installs a `struct sigaction` for a signal. */
export function setSignalAction(signal: number, action: Uint8Array): RemoteCall {
  return signalCall(signal, action, NO_POINTER);
}

function signalCall(signal: number, action: bigint | Uint8Array, into: bigint): RemoteCall {
  return {
    name: "rt_sigaction",
    number: SYS_RT_SIGACTION,
    args: [BigInt(signal), action, into, SIGSET_BYTES],
  };
}
