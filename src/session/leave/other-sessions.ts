/**
 * The sessions that are in a process: those of living tracers, which stay as they are; those of dead ones, which are taken out
 * by whoever comes next; and what some have left for others that hooked into their detours.
 *
 * Everything here is done under the lock of the process, so no living tracer is in the middle of something.
 */
import {
  isBesideSite,
  isUnwritten,
  type JournalContents,
  leftMark,
  parseJournal,
  removedMark,
} from "../../probe/journal.ts";
import { type HeldPlaces, heldPlaces, membersBySite, placesOf } from "../../probe/site-chains.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readMaps, readStat } from "../../target/process/proc-fs.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { freeLeftMemory } from "./left-memory.ts";
import {
  findJournalMappings,
  type RestoreReport,
  readJournalBytes,
  restoreProcess,
} from "./restore-process.ts";
import { soundJournal } from "./sound-journal.ts";

/** One session, by its journal. */
export interface OtherSession {
  readonly memory: AddrRange;
  readonly journal: JournalContents;
  /** Whether its tracer is there and still has to do with the process. */
  readonly isAlive: boolean;
  /** Whether all of its journal can be believed. */
  readonly isWhole: boolean;
}

/** Whether the process with this number and start time still is there. */
export function isSameProcess(pid: number, startTicks: bigint): boolean {
  try {
    const stat = readStat(pid);
    return stat.startTicks === startTicks && stat.state !== "Z" && stat.state !== "X";
  } catch {
    return false;
  }
}

/** Throws `JournalError` for one that is damaged: what it stands for cannot be known. */
export async function readOtherSessions(
  target: Pick<ProcessTarget, "pid" | "read">,
  own?: AddrRange,
): Promise<OtherSession[]> {
  const sessions: OtherSession[] = [];
  for (const memory of findJournalMappings(target.pid)) {
    if (memory.start === own?.start) continue;
    const bytes = await readJournalBytes(target, memory);
    // A tracer that died before it wrote the header has changed nothing.
    if (isUnwritten(bytes)) continue;
    const { journal, doubts } = soundJournal(parseJournal(bytes), readMaps(target.pid));
    const { tracerPid, tracerStart } = journal.header;
    const isAlive = !journal.isLeft && isSameProcess(tracerPid, tracerStart);
    sessions.push({ memory, journal, isAlive, isWhole: doubts.length === 0 });
  }
  return sessions;
}

/** What was done for one session that has no tracer any more. */
export interface TakenOut {
  readonly session: OtherSession;
  readonly report: RestoreReport;
}

/**
 * Takes out what dead tracers have planted, and frees what was left, as far as nobody needs it; `freed` counts memory and
 * descriptors of ours that no journal knew.
 */
export async function takeOutDead(
  target: ProcessTarget,
  own?: AddrRange,
  wantsEvidence = false,
): Promise<{ readonly taken: readonly TakenOut[]; readonly freed: number }> {
  return await target.locked(async () => {
    const taken: TakenOut[] = [];
    for (const session of await readOtherSessions(target, own)) {
      if (session.isAlive) continue;
      const report = await restoreProcess(target, session.memory, [], wantsEvidence);
      if (isStaying(report)) await markLeft(target, session.memory);
      if (report.husks.length > 0) await markRemoved(target, session.memory, report);
      taken.push({ session, report });
    }
    const staying = await readOtherSessions(target);
    // What a journal does not say any more may be in use all the same.
    const freed = staying.every(({ isWhole }) => isWhole) ? await freeLeftMemory(target, staying) : 0;
    return { taken, freed };
  });
}

/** Whether memory of the session is still there. */
export const isStaying = ({ husks, occupants }: RestoreReport): boolean =>
  husks.length > 0 || occupants.length > 0;

/** Says in a journal that its session has ended. */
export async function markLeft(target: Pick<ProcessTarget, "write">, memory: AddrRange): Promise<void> {
  await target.write(memory.start + BigInt(leftMark.offset), leftMark.bytes);
}

/**
 * Says in the journal of a session that had to leave some of its sites which ones are undone. A forked child has the same
 * journal, so it has to be put back by then.
 */
export async function markRemoved(
  target: Pick<ProcessTarget, "read" | "write">,
  memory: AddrRange,
  report: RestoreReport,
): Promise<void> {
  const journal = parseJournal(await readJournalBytes(target, memory));
  for (const record of undoneRecords(journal, report)) {
    const { offset, bytes } = removedMark(record);
    await target.write(memory.start + BigInt(offset), bytes);
  }
}

/** The records of sites that are undone, where some had to stay. */
export function undoneRecords({ sites }: JournalContents, { husks }: RestoreReport): number[] {
  const undone: number[] = [];
  for (let index = sites.length - 1, stays = false; index >= 0; index--) {
    const { record, mechanism } = sites[index]!;
    // What a site needs beside it stands right before it.
    stays = husks.includes(record) || (stays && isBesideSite(mechanism));
    if (!stays) undone.push(record);
  }
  return undone;
}

/** What the others hold in a process now. */
export async function readHeldPlaces(
  target: Pick<ProcessTarget, "pid" | "read" | "findMany">,
  own?: AddrRange,
): Promise<HeldPlaces> {
  return await placesHeldBy(target, await readOtherSessions(target, own));
}

async function placesHeldBy(
  target: Pick<ProcessTarget, "findMany">,
  sessions: readonly OtherSession[],
): Promise<HeldPlaces> {
  const members = membersBySite(sessions.map(({ journal }) => journal));
  const places = [
    ...sessions.flatMap(({ journal }) =>
      journal.sites.map(({ at, oldBytes }) => ({ at, lenBytes: oldBytes.length })),
    ),
    ...[...members.values()].flatMap((list) => placesOf(list)),
  ];
  const bytes = await target.findMany(places);
  const known = new Map<string, Uint8Array | undefined>();
  places.forEach(({ at, lenBytes }, index) => {
    known.set(`${at} ${lenBytes}`, bytes[index]);
  });
  return heldPlaces(sessions, (at, lenBytes) => known.get(`${at} ${lenBytes}`));
}

/** What sessions hold in a process that is only looked at; those of dead tracers would be taken out first. */
export async function lookAtHeldPlaces(pid: number): Promise<HeldPlaces> {
  const memory = MemoryFile.open(pid, "r");
  try {
    const target = {
      pid,
      read: async (at: bigint, lenBytes: number) => memory.read(at, lenBytes),
      findMany: async (places: readonly { readonly at: bigint; readonly lenBytes: number }[]) =>
        places.map(({ at, lenBytes }) => {
          const bytes = new Uint8Array(lenBytes);
          return memory.readInto(at, bytes) === lenBytes ? bytes : undefined;
        }),
    };
    const sessions = await readOtherSessions(target);
    return await placesHeldBy(
      target,
      sessions.filter(({ isAlive, journal }) => isAlive || journal.isLeft),
    );
  } finally {
    memory.close();
  }
}

/** The tracer of another session that has written at an address, be it text or a slot. */
export async function findHolder(
  target: Pick<ProcessTarget, "pid" | "read">,
  place: bigint,
  own: AddrRange,
): Promise<number | undefined> {
  const covers = ({ at, newBytes }: { readonly at: bigint; readonly newBytes: Uint8Array }) =>
    place >= at && place < at + BigInt(newBytes.length);
  const holder = (await readOtherSessions(target, own)).find(
    ({ journal }) =>
      journal.hooks.some(covers) || journal.sites.some((site) => site.state !== "removed" && covers(site)),
  );
  return holder?.journal.header.tracerPid;
}

/** What is to be said about a dead tracer's probes; undefined where there is nothing new. */
export function describeTakenOut(pid: number, { session, report }: TakenOut): string | undefined {
  const { tracerPid } = session.journal.header;
  const whose = session.journal.isLeft
    ? `what process ${tracerPid} had left`
    : `the probes of process ${tracerPid}, which has died`;
  if (report.husks.length > 0)
    return session.journal.isLeft
      ? undefined
      : `process ${pid}: took out ${whose}; its memory stays until another tracer's probes at the same places are gone`;
  if (report.occupants.length > 0)
    return (
      `process ${pid}: took out ${whose}, but thread ${report.occupants[0]!.tid} is still in its code, ` +
      "which is freed by whoever comes next"
    );
  return session.journal.isLeft
    ? `process ${pid}: freed ${whose}`
    : `process ${pid}: took out ${whose}: ${report.sites} ${report.sites === 1 ? "site" : "sites"}`;
}
