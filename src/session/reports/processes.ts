/**
 * Which processes carry probes: those that have our shared memory mapped. What was done to them stands in the journal at
 * its start, so this works for processes of any tracer, living or dead.
 *
 * A forked child has the shared memory of its parent, and copies of the changed text; the journal names the parent.
 */
import { readdirSync } from "node:fs";
import {
  isBesideSite,
  isUnwritten,
  type JournalContents,
  JournalError,
  type JournalMechanism,
  journalBytes,
  parseJournal,
} from "../../probe/journal.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readStat } from "../../target/process/proc-fs.ts";
import type { AddrRange } from "../../target/target.ts";
import { isSameProcess } from "../leave/other-sessions.ts";
import { findJournalMappings } from "../leave/restore-process.ts";
import type { ReportOptions, SessionIo } from "../options.ts";

/** More than any journal needs: a damaged record count must not make us read gigabytes. */
const MOST_RECORDS = 1 << 20;
/** Where the header has the number of records in use. */
const RECORDS_IN_USE_OFFSET = 16;
const HEADER_BYTES = journalBytes(0);
const PAGE = 4096;

export type TracerState =
  /** The tracer that planted the probes is there. */
  | { readonly kind: "alive"; readonly pid: number }
  /** It has died without taking them out. */
  | { readonly kind: "dead"; readonly pid: number }
  /** It has taken them out, and left what another tracer's probes, or a thread in its code, still needed. */
  | { readonly kind: "left"; readonly pid: number };

/** What one session has done to one process. */
export interface TracedProcessReport {
  readonly pid: number;
  readonly comm: string;
  readonly tracer: TracerState;
  /** The process whose journal this is, when it is not `pid`: an ancestor that has forked. */
  readonly forkedFrom: number | undefined;
  /** Sites that are changed now, by mechanism. */
  readonly sitesByMechanism: ReadonlyMap<JournalMechanism, number>;
  readonly journal: JournalContents;
}

export interface ProcessScan {
  readonly traced: readonly TracedProcessReport[];
  /** Processes with our memory, whose journal does not make sense. */
  readonly damaged: readonly { readonly pid: number; readonly comm: string; readonly why: string }[];
  /** How many processes may not be looked into. */
  readonly unreadable: number;
}

/** Looks at all processes that this user may look into. */
export function findTracedProcesses(): ProcessScan {
  const traced: TracedProcessReport[] = [];
  const damaged: { pid: number; comm: string; why: string }[] = [];
  let unreadable = 0;
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const pid = Number(name);
    try {
      for (const mapping of findJournalMappings(pid)) {
        if (!hasBegun(pid, mapping)) continue;
        const found = readReport(pid, mapping);
        if (found instanceof JournalError)
          damaged.push({ pid, comm: readStat(pid).comm, why: found.message });
        // A tracer has the memory of its targets mapped, too; it carries no probes for that.
        else if (found.tracer.pid !== pid) traced.push(found);
      }
    } catch (error) {
      // One that has just ended is no obstacle; neither is a kernel thread, whose list of mappings is empty.
      if (isRefusal(error)) unreadable++;
    }
  }
  return { traced, damaged, unreadable };
}

/**
 * What each session, living or dead, has done to one process. A session that has mapped its memory and written nothing to
 * it yet has done nothing. Throws `JournalError` for a journal that is damaged.
 */
export function findJournals(pid: number): JournalContents[] {
  return findJournalMappings(pid)
    .filter((mapping) => hasBegun(pid, mapping))
    .map((mapping) => readJournal(pid, mapping));
}

function hasBegun(pid: number, mapping: AddrRange): boolean {
  const memory = MemoryFile.open(pid, "r");
  try {
    return !isUnwritten(memory.read(mapping.start, PAGE));
  } finally {
    memory.close();
  }
}

function readJournal(pid: number, mapping: AddrRange): JournalContents {
  const memory = MemoryFile.open(pid, "r");
  try {
    const mappedBytes = Number(mapping.end - mapping.start);
    const header = memory.read(mapping.start, HEADER_BYTES);
    const used = new DataView(header.buffer).getUint32(RECORDS_IN_USE_OFFSET, true);
    const lenBytes = Math.min(journalBytes(Math.min(used, MOST_RECORDS)), mappedBytes);
    return parseJournal(memory.read(mapping.start, lenBytes));
  } finally {
    memory.close();
  }
}

function readReport(pid: number, mapping: AddrRange): TracedProcessReport | JournalError {
  let journal: JournalContents;
  try {
    journal = readJournal(pid, mapping);
  } catch (error) {
    if (error instanceof JournalError) return error;
    throw error;
  }
  const { tracerPid, tracerStart, targetPid } = journal.header;
  const sitesByMechanism = new Map<JournalMechanism, number>();
  for (const { state, mechanism } of journal.sites)
    if (state === "armed" && !isBesideSite(mechanism))
      sitesByMechanism.set(mechanism, (sitesByMechanism.get(mechanism) ?? 0) + 1);
  return {
    pid,
    comm: readStat(pid).comm,
    tracer: {
      kind: journal.isLeft ? "left" : isSameProcess(tracerPid, tracerStart) ? "alive" : "dead",
      pid: tracerPid,
    },
    forkedFrom: targetPid === pid ? undefined : targetPid,
    sitesByMechanism,
    journal,
  };
}

function isRefusal(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  return code === "EACCES" || code === "EPERM" || code === "not-permitted";
}

/** `trapline ps`: one line for each process that carries probes. */
export async function listTracedProcesses({ format }: ReportOptions, io: SessionIo): Promise<number> {
  const { traced, damaged, unreadable } = findTracedProcesses();
  if (format === "json") for (const process of traced) io.out.write(`${JSON.stringify(toJson(process))}\n`);
  else if (traced.length > 0) io.out.write(toTable(traced));
  for (const { pid, comm, why } of damaged)
    io.err.write(`process ${pid} (${comm}) has memory of a tracer, but: ${why}\n`);
  if (traced.length === 0 && damaged.length === 0 && format === "text")
    io.err.write("no process carries probes\n");
  const abandoned = traced.filter(
    ({ tracer, forkedFrom }) => tracer.kind === "dead" && forkedFrom === undefined,
  );
  for (const pid of new Set(abandoned.map((process) => process.pid)))
    io.err.write(
      `the tracer of process ${pid} has died; to take its probes out: trapline detach -p ${pid}\n`,
    );
  const needed = new Set(traced.filter(({ tracer }) => tracer.kind === "alive").map(({ pid }) => pid));
  const remains = traced.filter(({ pid, tracer }) => tracer.kind === "left" && !needed.has(pid));
  for (const pid of new Set(remains.map((process) => process.pid)))
    io.err.write(`a tracer has left memory in process ${pid}; to free it: trapline detach -p ${pid}\n`);
  if (unreadable > 0)
    io.err.write(
      `skipped: ${unreadable} ${unreadable === 1 ? "process" : "processes"} that you may not look into\n`,
    );
  return 0;
}

function toTable(processes: readonly TracedProcessReport[]): string {
  const rows = [
    ["PID", "COMMAND", "TRACER", "SITES"],
    ...processes.map(({ pid, comm, tracer, forkedFrom, sitesByMechanism }) => [
      `${pid}`,
      comm,
      `${tracer.pid} ${tracer.kind}`,
      describeSites(sitesByMechanism) + (forkedFrom === undefined ? "" : ` (forked from ${forkedFrom})`),
    ]),
  ];
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) => `${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ")}\n`)
    .join("");
}

function describeSites(sites: ReadonlyMap<JournalMechanism, number>): string {
  const total = [...sites.values()].reduce((sum, count) => sum + count, 0);
  if (total === 0) return "0";
  return `${total} (${[...sites].map(([mechanism, count]) => `${count} ${mechanism}`).join(", ")})`;
}

function toJson({ pid, comm, tracer, forkedFrom, sitesByMechanism }: TracedProcessReport): object {
  return {
    type: "process",
    data: {
      pid,
      comm,
      tracer: tracer.pid,
      tracer_alive: tracer.kind === "alive",
      ...(forkedFrom === undefined ? {} : { forked_from: forkedFrom }),
      sites: Object.fromEntries(sitesByMechanism),
    },
  };
}
