/**
 * Taking everything out of a process by its journal: at the end of a session, and for a target whose tracer has died.
 *
 * Text is put back in the first stop. The code is freed in the first stop in which no thread is in it: programs are short,
 * so that is usually the same one, and otherwise one a few milliseconds later. A thread that sleeps in a signal handler that
 * interrupted our code can hold it for longer; then the code stays, unreachable, with the journal, for whoever comes next.
 */
import { readdirSync } from "node:fs";
import { SIGNAL_ACTION_BYTES } from "../../patch/index.ts";
import {
  changedSignals,
  findJournalDamage,
  JOURNAL_HEADER_BYTES,
  type Journal,
  type JournalContents,
  JournalError,
  parseJournal,
  usedBytes,
} from "../../probe/journal.ts";
import { ArmError } from "../../probe/probe-set.ts";
import { askSignalAction, dataRanges, planRestoration, type SignalChain } from "../../probe/restoration.ts";
import { membersBySite, placesOf, type ReadText } from "../../probe/site-chains.ts";
import { findMapping, type MapEntry, readMaps } from "../../target/process/proc-fs.ts";
import { JOURNAL_MEMORY_NAME } from "../../target/process/traced-process.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange, Inspection, Move, Occupant, SitePoke } from "../../target/target.ts";
import { unlinkPokes } from "../names/gdb-jit.ts";
import { PerfMap } from "../names/perf-map.ts";
import { FileText } from "./file-text.ts";
import { soundJournal } from "./sound-journal.ts";
import { findStrayJumps } from "./stray-jumps.ts";

/** Path under which memory shared with a target appears among its mappings. */
export const JOURNAL_MAPPING_PATH = `/memfd:${JOURNAL_MEMORY_NAME} (deleted)`;

export interface RestoreReport {
  /** Sites that were put back. */
  readonly sites: number;
  /** Addresses that hold something that neither we nor the file put there. */
  readonly foreign: readonly bigint[];
  readonly returnsRestored: number;
  /** Who still uses our code: empty when everything is freed. */
  readonly occupants: readonly Occupant[];
  /** Records of sites whose text had to stay for another session; all memory stays with them. */
  readonly husks: readonly number[];
  /** Longest time that threads stood. */
  readonly stoppedNs: bigint;
  readonly stops: number;
  /** What of our memory the target has written over, for people. */
  readonly damage: readonly string[];
  /** What was asked for a proof. */
  readonly evidence?: RestoreEvidence | undefined;
}

/** What the way out has seen of the process: for a proof that nothing is left. */
export interface RestoreEvidence {
  /** The journal before anything was undone. */
  readonly journal: JournalContents;
  /** The threads in the last stop. */
  readonly inspection: Inspection | undefined;
  /** Memory of ours, and whether the process gave it back. */
  readonly memory: readonly { readonly range: AddrRange; readonly isFreed: boolean }[];
  /** The protection key of that memory, and whether the process has it back. */
  readonly key: { readonly number: number; readonly isFreed: boolean } | undefined;
}

const RETRY_AFTER_MS = [1, 2, 5, 10, 20, 50, 100, 200, 400, 800] as const;

/**
 * Puts a process back. `moves` lead out of detours whose maker is still at hand; `own` is its journal. Of another's journal only
 * what fits the process is believed.
 */
export async function restoreProcess(
  target: ProcessTarget,
  journalMemory: AddrRange,
  moves: readonly Move[],
  wantsEvidence = false,
  own?: Pick<Journal, "written">,
): Promise<RestoreReport> {
  return await target.locked(() => restoreLocked(target, journalMemory, moves, wantsEvidence, own));
}

async function restoreLocked(
  target: ProcessTarget,
  journalMemory: AddrRange,
  moves: readonly Move[],
  wantsEvidence: boolean,
  own: Pick<Journal, "written"> | undefined,
): Promise<RestoreReport> {
  const damage = own === undefined ? [] : await repairJournal(target, journalMemory, own.written);
  let firstJournal: JournalContents | undefined;
  const lost: string[] = [];
  let sites = 0;
  let returnsRestored = 0;
  let stoppedNs = 0n;
  for (let stops = 1; ; stops++) {
    const maps = readMaps(target.pid);
    const bytes = own?.written ?? (await readJournalBytes(target, journalMemory));
    using files = own === undefined ? new FileText(target.pid, maps) : undefined;
    const { journal, doubts, keepsMemory } = soundJournal(parseJournal(bytes), maps, files);
    firstJournal ??= journal;
    const places = journal.sites.map(({ at, oldBytes }) => ({ at, lenBytes: oldBytes.length }));
    const foundNow = await target.findMany(places);
    // An image can be unloaded at any moment.
    if (!foundNow.every((bytes) => bytes !== undefined) && stops <= RETRY_AFTER_MS.length) continue;
    const found = foundNow.map((bytes) => bytes ?? new Uint8Array(0));
    const others = await readOtherJournals(target, journalMemory);
    const handlers = await readChains(target, journal, others);
    const read = await readShared(target, journal, others, found);
    const plan = planRestoration({ journal, journalMemory, found, handlers, moves, others, read });
    const unlinking: SitePoke[] = [];
    for (const record of journal.debug) unlinking.push(...(await unlinkPokes(target, record)));
    const strays =
      files === undefined
        ? []
        : findStrayJumps(target.pid, maps, files, codeOf(journal), [
            ...plan.transaction.sites.map(({ at, expect }) => ({ at, lenBytes: expect.length })),
            ...others.flatMap(({ sites: theirs }) =>
              theirs.map(({ at, newBytes }) => ({ at, lenBytes: newBytes.length })),
            ),
            ...plan.husks.map(({ at, newBytes }) => ({ at, lenBytes: newBytes.length })),
          ]);
    const pokes = [...plan.transaction.sites, ...strays, ...unlinking].filter((poke) => mayWrite(poke, maps));
    const transaction = {
      ...plan.transaction,
      sites: pokes,
      ...(keepsMemory ? { vacate: [], finalCalls: [] } : {}),
    };
    const ours = wantsEvidence ? ourMemory(journal, journalMemory) : undefined;
    const report = await target.commit(ours === undefined ? transaction : { ...transaction, inspect: ours });
    if (report.kind === "refused") {
      if (report.reason.kind === "text-differs" && stops <= RETRY_AFTER_MS.length) continue;
      throw new ArmError(`restore process ${target.pid}`, report.reason);
    }
    sites += plan.restored;
    for (const { at } of strays)
      lost.push(`the record of a site at 0x${at.toString(16)} was lost; it is put back as its file has it`);
    returnsRestored += report.returnsRestored;
    if (report.stoppedNs > stoppedNs) stoppedNs = report.stoppedNs;
    const waitMs = RETRY_AFTER_MS[stops - 1];
    if (report.occupants.length === 0) removeNames(target.pid, plan.transaction.vacate);
    if (report.occupants.length === 0 || waitMs === undefined)
      return {
        sites,
        foreign: plan.foreign.map((site) => site.at),
        returnsRestored,
        occupants: report.occupants,
        husks: plan.husks.map((site) => site.record),
        stoppedNs,
        stops,
        damage: [...damage, ...describeDoubts([...doubts, ...lost], keepsMemory)],
        evidence: ours && {
          journal: firstJournal,
          inspection: report.inspection,
          memory: ours.map((range) => ({
            range,
            isFreed: plan.transaction.finalCalls.some(
              ({ name, args }, index) =>
                name === "munmap" && args[0] === range.start && report.callResults[index] === 0n,
            ),
          })),
          key:
            journal.key === undefined
              ? undefined
              : {
                  number: journal.key,
                  isFreed: plan.transaction.finalCalls.some(
                    ({ name }, index) => name === "pkey_free" && report.callResults[index] === 0n,
                  ),
                },
        },
      };
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

const codeOf = ({ memory }: JournalContents): AddrRange[] =>
  memory
    .filter(({ kind }) => kind === "code")
    .map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) }));

/** Code that is gone has no names any more. */
function removeNames(pid: number, code: readonly AddrRange[]): void {
  using perfMap = PerfMap.find(pid);
  perfMap?.removeIn(code);
}

/** All memory that the journal says was put into the process. */
function ourMemory(journal: JournalContents, journalMemory: AddrRange): AddrRange[] {
  const { memory, debug } = journal;
  const code = memory.filter(({ kind, state }) => kind === "code" && state !== "removed");
  return [
    ...[...debug, ...code].map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) })),
    ...dataRanges(journal, journalMemory),
  ];
}

/** Text, or code of ours, or for a word of data memory that the process may write itself. */
function mayWrite({ at, expect, isData }: SitePoke, maps: readonly MapEntry[]): boolean {
  const map = findMapping(maps, at);
  return (
    map !== undefined &&
    at + BigInt(expect.length) <= map.end &&
    map.perms[isData === true ? 1 : 2] === (isData === true ? "w" : "x")
  );
}

/** Writes a session's own journal anew where the target has written over it, for whoever may have to go on. Returns what was wrong. */
async function repairJournal(
  target: ProcessTarget,
  memory: AddrRange,
  written: Uint8Array,
): Promise<readonly string[]> {
  const [found] = await target.findMany([{ at: memory.start, lenBytes: written.length }]);
  if (found === undefined)
    return ["the process has unmapped our journal; it is put back by what the tracer remembers"];
  const damage = findJournalDamage(written, found);
  if (damage === undefined) return [];
  await target.write(memory.start, written);
  const { header, records, ofRecords } = damage;
  const what = [
    ...(header ? ["its head"] : []),
    ...(records > 0 ? [`${records} of ${ofRecords} records`] : []),
  ];
  return [
    `the process has written over our journal (${what.join(" and ")}); it is put back by what the tracer remembers`,
  ];
}

const MOST_SHOWN = 8;

function describeDoubts(doubts: readonly string[], keepsMemory: boolean): string[] {
  if (doubts.length === 0) return [];
  const more = doubts.length > MOST_SHOWN ? [`and ${doubts.length - MOST_SHOWN} more`] : [];
  return [
    `the process has written over our journal; what makes no sense there is left as it is${
      keepsMemory ? ", and so is our memory: end the process when you can" : ""
    }`,
    ...doubts.slice(0, MOST_SHOWN),
    ...more,
  ];
}

type JournalPort = Pick<ProcessTarget, "read">;

/** Memory comes in pages. */
const FIRST_BYTES = 4096;

/** The part of a journal's memory that is in use, and always its first page. */
export async function readJournalBytes(target: JournalPort, memory: AddrRange): Promise<Uint8Array> {
  const header = await target.read(memory.start, JOURNAL_HEADER_BYTES);
  const lenBytes = Math.min(usedBytes(header), Number(memory.end - memory.start));
  // With what lies behind the header, since the header may have been written over.
  return await target.read(memory.start, Math.max(lenBytes, FIRST_BYTES));
}

/** The journals of other sessions in the process. One that is damaged is no journal. */
export async function readOtherJournals(target: ProcessTarget, own?: AddrRange): Promise<JournalContents[]> {
  const journals: JournalContents[] = [];
  for (const memory of findJournalMappings(target.pid)) {
    if (memory.start === own?.start) continue;
    try {
      const bytes = await readJournalBytes(target, memory);
      journals.push(soundJournal(parseJournal(bytes), readMaps(target.pid)).journal);
    } catch (error) {
      if (!(error instanceof JournalError)) throw error;
    }
  }
  return journals;
}

/** The handlers of signals now; asked only where one of this journal's was installed. */
async function readChains(
  target: ProcessTarget,
  journal: JournalContents,
  others: readonly JournalContents[],
): Promise<Map<number, SignalChain>> {
  const changed = changedSignals(journal);
  const current = await askSignalActions(
    target,
    changed.map(({ signal }) => signal),
    journal.scratch,
  );
  const previous = await target.readMany(
    changed.map(({ previousAt }) => ({ at: previousAt, lenBytes: SIGNAL_ACTION_BYTES })),
  );
  const chains = new Map<number, SignalChain>();
  for (const [index, { signal, handler }] of changed.entries())
    chains.set(signal, {
      current: firstWord(current[index]!),
      previous: previous[index]!,
      chained: await findChained(target, signal, handler, others),
    });
  return chains;
}

/** What is done with signals now; `scratch` is memory of ours that the calls can answer to, where there is some. */
export async function askSignalActions(
  target: Pick<ProcessTarget, "call" | "read" | "readSignalActions">,
  signals: readonly number[],
  scratch: bigint | undefined,
): Promise<Uint8Array[]> {
  if (signals.length === 0) return [];
  if (scratch === undefined) return await target.readSignalActions(signals);
  await target.call(
    signals.map((signal, index) => askSignalAction(signal, scratch + BigInt(index * SIGNAL_ACTION_BYTES))),
  );
  const bytes = await target.read(scratch, signals.length * SIGNAL_ACTION_BYTES);
  return signals.map((_, index) =>
    bytes.slice(index * SIGNAL_ACTION_BYTES, (index + 1) * SIGNAL_ACTION_BYTES),
  );
}

/** Where another session's handler keeps this one as what was there before it. */
export async function findChained(
  target: Pick<ProcessTarget, "read">,
  signal: number,
  handler: bigint,
  others: readonly JournalContents[],
): Promise<SignalChain["chained"]> {
  for (const other of others) {
    const action = changedSignals(other).find((each) => each.signal === signal);
    if (action === undefined) continue;
    const at = action.previousAt;
    const bytes = await target.read(at, SIGNAL_ACTION_BYTES);
    if (firstWord(bytes) === handler) return { at, bytes };
  }
  return undefined;
}

const firstWord = (bytes: Uint8Array): bigint =>
  new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);

/** What is to be known of the sites that other sessions have as well. */
async function readShared(
  target: ProcessTarget,
  journal: JournalContents,
  others: readonly JournalContents[],
  found: readonly Uint8Array[],
): Promise<ReadText> {
  const shared = membersBySite(others);
  const own = membersBySite([journal]);
  const places = [...own].flatMap(([at, members]) => {
    const rest = shared.get(at);
    return rest === undefined ? [] : placesOf([...members, ...rest]);
  });
  const bytes = await target.findMany(places);
  const known = new Map<string, Uint8Array | undefined>();
  places.forEach(({ at, lenBytes }, index) => {
    known.set(`${at} ${lenBytes}`, bytes[index]);
  });
  journal.sites.forEach(({ at }, index) => {
    known.set(`${at} ${found[index]!.length}`, found[index]!);
  });
  return (at, lenBytes) => known.get(`${at} ${lenBytes}`);
}

/**
 * Other processes that have the same journal mapped: children that the target has forked since, with copies of the changed
 * text and of the code.
 */
export function findHeirs(journalInode: bigint, target: number): number[] {
  const heirs: number[] = [];
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === target || pid === process.pid) continue;
    try {
      if (readMaps(pid).some(({ inode, path }) => inode === journalInode && path === JOURNAL_MAPPING_PATH))
        heirs.push(pid);
    } catch {
      // It has ended, or belongs to somebody else: then it is no child of the target.
    }
  }
  return heirs;
}

/** Where the journals of tracers are mapped in a process: one for each session. */
export function findJournalMappings(pid: number): AddrRange[] {
  return readMaps(pid)
    .filter((entry) => entry.path === JOURNAL_MAPPING_PATH && entry.offset === 0n)
    .map(({ start, end }) => ({ start, end }));
}
