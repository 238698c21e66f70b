/**
 * Applying a transaction to a process while all of its threads stand.
 *
 * The order keeps every prefix of it harmless, since the tracer may be killed after any step: threads are moved between
 * twins (both copies of an instruction do the same), then text is written, one site in one write; return addresses are
 * put back one by one; code is unmapped only when nobody is in it.
 */
import type {
  AddrRange,
  CommitReport,
  Inspection,
  Occupant,
  Retirement,
  ReturnTable,
  SiteOutcome,
  SitePoke,
  Transaction,
} from "../target.ts";
import { borrowThread } from "./borrowed-thread.ts";
import { Freeze, type FreezeTarget } from "./freeze.ts";
import type { MemoryFile } from "./memory-file.ts";
import { findMapping, hasSignal, type MapEntry, readStatus } from "./proc-fs.ts";
import { SIGTRAP } from "./ptrace.ts";
import { findSavedPositions, type SavedPosition } from "./signal-frames.ts";
import { findStackWords } from "./stack-words.ts";

/** What a commit needs to know about the process beside the transaction. */
export interface CommitPlace extends FreezeTarget {
  readonly stubAt: bigint;
  readonly seccomp: boolean;
  /** All mappings, in address order. */
  readonly mappings: () => readonly MapEntry[];
}

export function commit(place: CommitPlace, transaction: Transaction, held: Freeze | undefined): CommitReport {
  const mappings = place.mappings();
  const freeze = held ?? Freeze.stop(place, new Set(transaction.trapSites));
  let report: CommitReport | undefined;
  try {
    report = applyStopped(place, transaction, freeze, mappings);
  } finally {
    const stoppedNs = held === undefined ? freeze.resume() : freeze.standingNs;
    if (report?.kind === "committed") report = { ...report, stoppedNs };
  }
  return report;
}

function applyStopped(
  place: CommitPlace,
  transaction: Transaction,
  freeze: Freeze,
  mappings: readonly MapEntry[],
): CommitReport {
  const { memory } = place;
  if (freeze.threads.length === 0) return { kind: "refused", reason: { kind: "target-gone" } };
  const unhandled = transaction.usesTraps ? freeze.sharers.find((pid) => !catchesTraps(pid)) : undefined;
  if (unhandled !== undefined)
    return { kind: "refused", reason: { kind: "sigtrap-unhandled", pid: unhandled } };
  const differing = findDiffering(memory, transaction.sites);
  if (differing !== undefined) return { kind: "refused", reason: differing };

  const scanned =
    transaction.sites.some((site) => site.expect.length > 1 && site.hasNoInside !== true) ||
    transaction.vacate.length > 0 ||
    transaction.retire !== undefined;
  const saved = freeze.threads.map(({ regs }) =>
    scanned ? findSavedPositions(memory, mappings, regs.get("rsp")) : [],
  );

  // First, so that on stacks only unwinders have addresses of trampolines.
  const returnsRestored = restoreReturns(memory, transaction.returnTables, mappings);
  const unwinders = findUnwinders(freeze, saved, transaction, mappings, memory);
  const hemmed = findHemmed(transaction.sites, saved.flat());
  // A thread that is still in our code may be about to replace a return address, and then throw.
  if (unwinders.length > 0 || hasStayers(freeze, saved, transaction, mappings, memory))
    for (const site of transaction.sites) if (site.awaitsUnwinders === true) hemmed.add(site);
  moveThreads(freeze, transaction, hemmed);
  const { outcomes, writtenNs } = writeSites(memory, transaction.sites, hemmed);
  const occupants = findOccupants(freeze, saved, transaction.vacate, mappings, memory);
  occupants.push(...unwinders);
  if (transaction.vacate.length > 0)
    occupants.push(...findHolders(freeze, saved, transaction.sites, outcomes));
  if (transaction.finalCalls.length > 0) occupants.push(...findVforkers(freeze));
  const inspection =
    transaction.inspect && inspectThreads(freeze, saved, transaction.inspect, mappings, memory);

  const callResults =
    occupants.length > 0 || transaction.finalCalls.length === 0
      ? []
      : borrowThread(freeze, memory, place.stubAt, place.seccomp, (thread) =>
          transaction.finalCalls.map((call) => thread.call(call)),
        );
  return {
    kind: "committed",
    outcomes,
    occupants,
    callResults,
    stoppedNs: 0n,
    threads: freeze.threads.length,
    returnsRestored,
    inspection,
    writtenNs,
    ...(transaction.retire === undefined
      ? {}
      : { retired: findRetired(freeze, saved, transaction.retire, mappings, memory) }),
  };
}

const STUB_ALIGN = 15n;

/**
 * Who may be unwinding through replaced return addresses: threads whose stack or registers have the address of a stub
 * (`push imm8; jmp`, at a multiple of 16), or of our unwind information. It may be left over from an unwinding that is done.
 */
function findUnwinders(
  freeze: Freeze,
  saved: readonly (readonly SavedPosition[])[],
  { unwindInfo = [], vacate }: Transaction,
  mappings: readonly MapEntry[],
  memory: MemoryFile,
): Occupant[] {
  if (unwindInfo.length === 0) return [];
  const isIn = (ranges: readonly AddrRange[], at: bigint) =>
    ranges.some(({ start, end }) => at >= start && at < end);
  const isStub = (at: bigint) => {
    if ((at & STUB_ALIGN) !== 0n) return false;
    const bytes = new Uint8Array(3);
    return memory.readInto(at, bytes) === 3 && bytes[0] === 0x6a && bytes[1]! < 8 && bytes[2] === 0xe9;
  };
  return freeze.threads.flatMap(({ tid, regs }, index) => {
    const starts = [regs.get("rsp"), ...saved[index]!.map(({ sp }) => sp)];
    const { found } = findStackWords(memory, mappings, starts, vacate);
    const words = [...found.map(({ value }) => value), ...regs.words];
    const isUnwinding = words.some((at) => isIn(unwindInfo, at) || (isIn(vacate, at) && isStub(at)));
    return isUnwinding ? [{ tid, ip: regs.get("rip"), how: "unwinding" as const }] : [];
  });
}

/** Whether somebody is in code that is to be vacated, and not at a position with a twin elsewhere. */
function hasStayers(
  freeze: Freeze,
  saved: readonly (readonly SavedPosition[])[],
  { sites, moves, vacate }: Transaction,
  mappings: readonly MapEntry[],
  memory: MemoryFile,
): boolean {
  if (!sites.some(({ awaitsUnwinders }) => awaitsUnwinders === true)) return false;
  const leaving = new Set([...moves, ...sites.flatMap((site) => site.moves)].map(({ from }) => from));
  return findOccupants(freeze, saved, vacate, mappings, memory).some(
    ({ how, ip }) => how !== "running" || !leaving.has(ip),
  );
}

/** Another process with the same memory has signal actions of its own, unless it was made with those that it has. */
function catchesTraps(pid: number): boolean {
  try {
    const { caught, blocked } = readStatus(pid).signals;
    return hasSignal(caught, SIGTRAP) && !hasSignal(blocked, SIGTRAP);
  } catch {
    // It has ended.
    return true;
  }
}

/** When every thread of the process itself waits in vfork, nobody can make a call in its name. */
function findVforkers({ pid, threads }: Freeze): Occupant[] {
  const own = threads.filter((thread) => thread.pid === pid);
  if (own.some(({ isFixed }) => !isFixed)) return [];
  return own.map(({ tid, regs }) => ({ tid, ip: regs.get("rip"), how: "running" }));
}

/** More look-alikes than this are counted, not listed. */
const MOST_SHOWN = 32;

function inspectThreads(
  freeze: Freeze,
  saved: readonly (readonly SavedPosition[])[],
  ranges: readonly AddrRange[],
  mappings: readonly MapEntry[],
  memory: MemoryFile,
): Inspection {
  const shown: { tid: number; at: bigint; value: bigint }[] = [];
  let stackWords = 0;
  let lookAlikes = 0;
  const threads = freeze.threads.map(({ tid, regs }, index) => {
    // A frame that returns to our own code is one of our trap handler, which the thread would be running: it is dead.
    const positions = saved[index]!.filter(
      ({ restorer }) => !ranges.some(({ start, end }) => restorer >= start && restorer < end),
    );
    const starts = [regs.get("rsp"), ...positions.map(({ sp }) => sp)];
    const { words, found } = findStackWords(memory, mappings, starts, ranges);
    stackWords += words;
    lookAlikes += found.length;
    for (const word of found.slice(0, MOST_SHOWN - shown.length)) shown.push({ tid, ...word });
    return { tid, ip: regs.get("rip"), savedIps: positions.map(({ ip }) => ip) };
  });
  return { threads, stackWords, lookAlikes, shown };
}

type Differing = Extract<CommitReport, { kind: "refused" }>["reason"];

/** Reads neighbouring sites together: a read of /proc/PID/mem costs more than the bytes. */
function findDiffering(memory: MemoryFile, sites: readonly SitePoke[]): Differing | undefined {
  const WINDOW = 16 << 10;
  const sorted = [...sites].sort((a, b) => (a.at < b.at ? -1 : 1));
  let window = new Uint8Array(0);
  let windowStart = 0n;
  for (const site of sorted) {
    const end = site.at + BigInt(site.expect.length);
    if (site.at < windowStart || end > windowStart + BigInt(window.length)) {
      windowStart = site.at;
      const buffer = new Uint8Array(WINDOW);
      window = buffer.subarray(0, memory.readInto(site.at, buffer));
    }
    const offset = Number(site.at - windowStart);
    const found = window.subarray(offset, offset + site.expect.length);
    if (!sameBytes(found, site.expect))
      return { kind: "text-differs", at: site.at, expected: site.expect, found: found.slice() };
  }
  return undefined;
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

function moveThreads(freeze: Freeze, transaction: Transaction, hemmed: ReadonlySet<SitePoke>): void {
  const moves = new Map<bigint, bigint>();
  for (const move of transaction.moves) moves.set(move.from, move.to);
  for (const site of transaction.sites) {
    // Where the text is left as it is, nobody is moved into it.
    if (hemmed.has(site) && site.fallback === undefined) continue;
    for (const move of site.moves) moves.set(move.from, move.to);
  }
  for (const thread of freeze.threads) {
    const to = moves.get(thread.regs.get("rip"));
    if (to === undefined || thread.isFixed) continue;
    thread.regs.set("rip", to);
    freeze.setRegs(thread);
  }
}

/** A handler that returns into the middle of a region would land inside the jump: such a site gets its fallback. */
function findHemmed(sites: readonly SitePoke[], saved: readonly SavedPosition[]): Set<SitePoke> {
  const hemmed = new Set<SitePoke>();
  for (const { ip } of saved) for (const site of sites) if (isInside(site, ip)) hemmed.add(site);
  return hemmed;
}

function isInside(site: SitePoke, ip: bigint): boolean {
  if (site.hasNoInside === true) return false;
  const isBehindStart = site.hasNoStart === true ? ip >= site.at : ip > site.at;
  return isBehindStart && ip < site.at + BigInt(site.write.length);
}

function writeSites(
  memory: MemoryFile,
  sites: readonly SitePoke[],
  hemmed: ReadonlySet<SitePoke>,
): { readonly outcomes: readonly SiteOutcome[]; readonly writtenNs: readonly bigint[] } {
  const outcomes: SiteOutcome[] = [];
  const writtenNs: bigint[] = [];
  for (const site of sites) {
    const lacks = site.requires?.some((index) => outcomes[index] === "left") ?? false;
    const isHeld = lacks || hemmed.has(site);
    const bytes = isHeld ? site.fallback : site.write;
    if (bytes !== undefined) memory.write(site.at, bytes);
    writtenNs.push(bytes === undefined ? 0n : process.hrtime.bigint());
    outcomes.push(bytes === undefined ? "left" : isHeld ? "fallback" : "written");
  }
  return { outcomes, writtenNs };
}

/** Who keeps a site from being written: what it leads to is still in use, then. */
function findHolders(
  freeze: Freeze,
  saved: readonly (readonly SavedPosition[])[],
  sites: readonly SitePoke[],
  outcomes: readonly SiteOutcome[],
): Occupant[] {
  const left = sites.filter((_, index) => outcomes[index] === "left");
  if (left.length === 0) return [];
  return freeze.threads.flatMap(({ tid }, index) =>
    saved[index]!.filter(({ ip }) => left.some((site) => isInside(site, ip))).map(({ ip }) => ({
      tid,
      ip,
      how: "interrupted" as const,
    })),
  );
}

/**
 * Takes out of the chains of replaced return addresses what belongs to tables that do not stay. A slot on the stack holds a stub of
 * one table, whose entry holds what was there before: the stub of another table perhaps, and in the end the application's own
 * return address. A slot that holds no stub is no longer replaced; its entry is a leftover.
 */
function restoreReturns(
  memory: MemoryFile,
  tables: readonly ReturnTable[],
  mappings: readonly MapEntry[],
): number {
  const opened = tables.map((table) => openTable(memory, table));
  // The process can write over the table: nothing but a stack is written to, and nothing but code is returned to.
  const has = (at: bigint, right: "w" | "x") =>
    findMapping(mappings, at)?.perms[right === "w" ? 1 : 2] === right;
  const slots = new Set<bigint>();
  for (const { table, entries } of opened)
    if (table.stays !== true) for (const key of entries.keys()) slots.add(key & ~DEPTH_MASK);
  let restored = 0;
  for (const slot of slots) {
    const word = new Uint8Array(8);
    if (memory.readInto(slot, word) < 8) continue;
    let place = slot;
    let value = wordOf(word);
    let isChanged = false;
    for (let steps = 0; steps <= MOST_DEPTHS * tables.length; steps++) {
      const owner = opened.find(({ stubs }) => stubs.some(({ start, end }) => value >= start && value < end));
      const entry = owner?.entries.get(slot | ((value >> 4n) & DEPTH_MASK));
      if (owner === undefined || entry === undefined) break;
      if (owner.table.stays === true) place = entry.at;
      else {
        if (!has(place, "w") || !has(entry.value, "x")) break;
        memory.write(place, new Uint8Array(BigUint64Array.of(entry.value).buffer));
        isChanged = true;
      }
      ({ value } = entry);
    }
    if (isChanged) restored++;
  }
  return restored;
}

/** The low bits of an entry's key, and the bits from 4 on of a stub's address. */
const DEPTH_MASK = 7n;
const MOST_DEPTHS = 8;

const wordOf = (bytes: Uint8Array): bigint =>
  new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);

interface OpenTable {
  readonly table: ReturnTable;
  readonly stubs: readonly AddrRange[];
  /** By key: where the return address stands, and which it is. */
  readonly entries: ReadonlyMap<bigint, { readonly at: bigint; readonly value: bigint }>;
}

function openTable(memory: MemoryFile, table: ReturnTable): OpenTable {
  const bytes = new Uint8Array(table.entries * table.entryBytes);
  const view = new DataView(bytes.buffer);
  const entries = new Map<bigint, { at: bigint; value: bigint }>();
  // The process may have unmapped it.
  const readable = Math.floor(memory.readInto(table.at, bytes) / table.entryBytes);
  for (let index = 0; index < readable; index++) {
    const offset = index * table.entryBytes;
    const key = view.getBigUint64(offset + table.slotOffset, true);
    // Of several entries with one key the first is the valid one.
    if (key === 0n || entries.has(key)) continue;
    const addressOffset = offset + table.returnAddressOffset;
    entries.set(key, { at: table.at + BigInt(addressOffset), value: view.getBigUint64(addressOffset, true) });
  }
  return { table, stubs: table.stubs ?? [], entries };
}

/** How far above the stack pointer a call out of our code (into the vDSO) can have left its return address. */
const CALL_OUT_BYTES = 1024;

function findOccupants(
  freeze: Freeze,
  saved: readonly (readonly SavedPosition[])[],
  vacate: readonly AddrRange[],
  mappings: readonly MapEntry[],
  memory: MemoryFile,
): Occupant[] {
  if (vacate.length === 0) return [];
  const inside = (ip: bigint) => vacate.some((range) => ip >= range.start && ip < range.end);
  const occupants: Occupant[] = [];
  freeze.threads.forEach(({ tid, regs }, index) => {
    const ip = regs.get("rip");
    if (inside(ip) || returnsInto(memory, mappings, ip, regs.get("rsp"), inside))
      occupants.push({ tid, ip, how: "running" });
    for (const position of saved[index]!) {
      // A frame of our own trap handler: while it lives, the thread is seen to run in our code. It may be long dead.
      if (inside(position.restorer)) continue;
      if (inside(position.ip) || returnsInto(memory, mappings, position.ip, position.sp, inside))
        occupants.push({ tid, ip: position.ip, how: "interrupted" });
    }
  });
  return occupants;
}

const isIn = (ranges: readonly AddrRange[], at: bigint) =>
  ranges.some(({ start, end }) => at >= start && at < end);

/** Which ranges are free: nobody is in them, and nobody in what they call (or in the vDSO) will return there. */
function findRetired(
  freeze: Freeze,
  saved: readonly (readonly SavedPosition[])[],
  { ranges, callees, stackBytes }: Retirement,
  mappings: readonly MapEntry[],
  memory: MemoryFile,
): boolean[] {
  const vdso = mappings.filter(({ path }) => path === "[vdso]");
  const used: bigint[] = [];
  freeze.threads.forEach(({ regs }, index) => {
    const positions = [{ ip: regs.get("rip"), sp: regs.get("rsp") }, ...saved[index]!];
    for (const { ip, sp } of positions) {
      used.push(ip);
      if (!isIn(callees, ip) && !isIn(vdso, ip)) continue;
      const bytes = new Uint8Array((stackBytes + CALL_OUT_BYTES + 7) & ~7);
      const got = memory.readInto(sp, bytes);
      used.push(...new BigUint64Array(bytes.buffer, 0, got >>> 3));
    }
  });
  return ranges.map(({ start, end }) => !used.some((at) => at >= start && at < end));
}

/** Whether a thread in the vDSO was called from our code: the only code beside our own that our code calls. */
function returnsInto(
  memory: MemoryFile,
  mappings: readonly MapEntry[],
  ip: bigint,
  sp: bigint,
  inside: (ip: bigint) => boolean,
): boolean {
  const vdso = mappings.find((mapping) => mapping.path === "[vdso]");
  if (vdso === undefined || ip < vdso.start || ip >= vdso.end) return false;
  const bytes = new Uint8Array(CALL_OUT_BYTES);
  const got = memory.readInto(sp, bytes);
  const words = new BigUint64Array(bytes.buffer, 0, got >>> 3);
  return words.some(inside);
}
