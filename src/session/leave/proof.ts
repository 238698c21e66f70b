/**
 * Proof that a process is as it was before it was probed: what was seen of it before the first change, what the last stop
 * saw of its threads, and what is there now.
 *
 * What is read before and after needs no stop (but one of a single thread, to ask for the actions of signals). In the last
 * stop itself, only the live stacks are looked through once more. What other tracers have changed is looked past, before and
 * after: it is theirs.
 *
 * What counts: text as before, byte by byte; no thread and no signal frame in our code, by the same checks that decide
 * whether the code can be freed; the actions of the signals that have handlers of ours; all our memory given back; no descriptor of ours. What does not:
 * words on stacks that look like addresses of ours. A thread that was in our code leaves such words in the unused parts of
 * frames; they are counted and shown, and nothing can return to them, since all who could were found outside.
 */
import { readdirSync, readlinkSync } from "node:fs";
import { constants } from "node:os";
import { FAULT_SIGNALS, SIGTRAP } from "../../patch/index.ts";
import { changedSignals, type JournalContents } from "../../probe/journal.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import { JOURNAL_MEMORY_NAME } from "../../target/process/traced-process.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange, Inspection, Occupant } from "../../target/target.ts";
import { changedPieces, handlerOf, readOtherChanges } from "./other-changes.ts";
import type { RestoreReport } from "./restore-process.ts";
import { type TextComparison, type TextPiece, TextSnapshot } from "./text-snapshot.ts";

export interface ProofThread {
  readonly tid: number;
  readonly ip: bigint;
  readonly where: string;
  readonly isInside: boolean;
  /** Positions that signal handlers return to, and how many of them are in our memory. */
  readonly signalFrames: number;
  readonly signalFramesInside: number;
}

export interface DetachProof {
  readonly pid: number;
  /** Whether everything is as before. */
  readonly holds: boolean;
  /** What is not. */
  readonly reasons: readonly string[];
  /** What the text was compared with: its state before, or that which a dead tracer's journal says. */
  readonly basis: "before" | "journal";
  readonly text: TextComparison;
  readonly threads: readonly ProofThread[];
  readonly stackWords: number;
  readonly lookAlikes: number;
  readonly shownLookAlikes: Inspection["shown"];
  readonly occupants: readonly Occupant[];
  readonly memory: {
    readonly ranges: number;
    readonly totalBytes: number;
    readonly left: readonly AddrRange[];
  };
  /** Descriptors of ours that are still open in the process. */
  readonly descriptors: readonly string[];
  /** The protection key of our memory, if it was not given back. */
  readonly key: number | undefined;
  /** What the process does with each signal that has a handler of ours while there are probes. */
  readonly actions: readonly {
    readonly signal: number;
    readonly before: Uint8Array;
    readonly after: Uint8Array;
  }[];
  /** Tracers that are still in the process: what they have changed in it is not looked at. */
  readonly otherTracers: readonly number[];
}

/** Signals that may have handlers of ours. */
export const HANDLED_SIGNALS: readonly number[] = [SIGTRAP, ...FAULT_SIGNALS];

async function readActions(target: ProcessTarget): Promise<Map<number, Uint8Array>> {
  const actions = await target.readSignalActions(HANDLED_SIGNALS);
  return new Map(HANDLED_SIGNALS.map((signal, index) => [signal, actions[index]!]));
}

/** `SIGSEGV` */
export function signalName(signal: number): string {
  const name = Object.entries(constants.signals).find(([, number]) => number === signal)?.[0];
  return name ?? `signal ${signal}`;
}

/** Names an address for people. */
export type DescribeAddress = (at: bigint) => string;

/** Proves that a process is as before, when all of it is undone. */
export type ProveTarget = (target: ProcessTarget, report: RestoreReport) => Promise<DetachProof>;

/** What was seen of a process before anything was changed in it. */
export class Witness implements Disposable {
  readonly #text: TextSnapshot;
  readonly #actions: ReadonlyMap<number, Uint8Array>;
  readonly #basis: DetachProof["basis"];

  private constructor(
    text: TextSnapshot,
    actions: ReadonlyMap<number, Uint8Array>,
    basis: DetachProof["basis"],
  ) {
    this.#text = text;
    this.#actions = actions;
    this.#basis = basis;
  }

  /** To be called before the first change. */
  static async of(target: ProcessTarget): Promise<Witness> {
    const others = await readOtherChanges(target);
    const actions = others.actionsBeneath(await readActions(target));
    return new Witness(TextSnapshot.take(target.pid, others.undone), actions, "before");
  }

  /** For a process whose tracer has died: what was there before is what the journals say. */
  static async fromJournals(target: ProcessTarget, journals: readonly JournalContents[]): Promise<Witness> {
    const actions = await readActions(target);
    const undone: TextPiece[] = [];
    for (const journal of journals) undone.push(...(await changedPieces(target, journal)));
    // Each session found the handler of the one before it; what the first one found belongs to the process.
    for (const [signal, now] of actions) {
      const ours = journals
        .flatMap(changedSignals)
        .find((each) => each.signal === signal && each.handler === handlerOf(now));
      if (ours !== undefined) actions.set(signal, ours.previous);
    }
    return new Witness(TextSnapshot.take(target.pid, undone), actions, "journal");
  }

  /** To be called when everything is undone. `target` may be a child that the process has forked. */
  async prove(
    target: ProcessTarget,
    reports: readonly RestoreReport[],
    describe: DescribeAddress,
  ): Promise<DetachProof> {
    const others = await readOtherChanges(target);
    const text = this.#text.compare(target.pid, others.undone);
    const after = others.actionsBeneath(await readActions(target));
    const evidence = reports.flatMap((report) => report.evidence ?? []);
    const inspections = evidence.flatMap(({ inspection }) => inspection ?? []);
    const last = inspections.at(-1);
    const memory = evidence.flatMap((seen) => seen.memory);
    const inside = (at: bigint) => memory.some(({ range }) => at >= range.start && at < range.end);
    const threads = (last?.threads ?? []).map(
      ({ tid, ip, savedIps }): ProofThread => ({
        tid,
        ip,
        where: describe(ip),
        isInside: inside(ip),
        signalFrames: savedIps.length,
        signalFramesInside: savedIps.filter(inside).length,
      }),
    );
    const facts = {
      pid: target.pid,
      basis: this.#basis,
      text,
      threads,
      stackWords: inspections.reduce((sum, { stackWords }) => sum + stackWords, 0),
      lookAlikes: inspections.reduce((sum, { lookAlikes }) => sum + lookAlikes, 0),
      shownLookAlikes: inspections.flatMap(({ shown }) => shown),
      occupants: reports.flatMap(({ occupants }) => occupants),
      memory: {
        ranges: memory.length,
        totalBytes: memory.reduce((sum, { range }) => sum + Number(range.end - range.start), 0),
        left: leftMemory(target.pid, memory, others.memory),
      },
      descriptors: ourDescriptors(target.pid),
      key: evidence.findLast(({ key }) => key?.isFreed === false)?.key?.number,
      actions: HANDLED_SIGNALS.map((signal) => ({
        signal,
        before: this.#actions.get(signal)!,
        after: after.get(signal)!,
      })),
      otherTracers: others.tracers,
    };
    const sites = evidence.flatMap(({ journal }) => journal.sites);
    const reasons = findReasons(facts, reports, sites, describe);
    return { ...facts, holds: reasons.length === 0, reasons };
  }

  [Symbol.dispose](): void {
    this.#text[Symbol.dispose]();
  }
}

/**
 * Memory that was not given back. What the process maps at the same addresses afterwards is its own, so the answers of the
 * system calls decide, and the names in the list of mappings.
 */
function leftMemory(
  pid: number,
  memory: readonly { readonly range: AddrRange; readonly isFreed: boolean }[],
  others: readonly AddrRange[],
): AddrRange[] {
  const isOthers = ({ start, end }: AddrRange) =>
    others.some((range) => start < range.end && end > range.start);
  const maps = readMaps(pid).filter((map) => !isOthers(map));
  const named = maps.filter(({ path }) => path.startsWith(`/memfd:${JOURNAL_MEMORY_NAME}`));
  const kept = memory.filter(
    ({ range, isFreed }) => !isFreed && maps.some(({ start, end }) => start < range.end && end > range.start),
  );
  const ranges = [...kept.map(({ range }) => range), ...named.map(({ start, end }) => ({ start, end }))];
  return ranges.filter(({ start }, index) => ranges.findIndex((other) => other.start === start) === index);
}

function ourDescriptors(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith(`/memfd:${JOURNAL_MEMORY_NAME}`);
    } catch {
      return false;
    }
  });
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

function findReasons(
  facts: Omit<DetachProof, "holds" | "reasons">,
  reports: readonly RestoreReport[],
  sites: JournalContents["sites"],
  describe: DescribeAddress,
): string[] {
  const reasons: string[] = [];
  const { text } = facts;
  for (const { at, expected, found } of text.differences)
    reasons.push(`text at ${describe(at)} is ${hex(found)}, was ${hex(expected)}`);
  if (text.moreDifferences > 0) reasons.push(`text differs in ${text.moreDifferences} more places`);
  // A library that came later may have been relocated, or patched by others: only where we wrote is it ours to answer for.
  for (const { at, expected, found } of text.addedDifferences)
    if (sites.some((site) => overlaps(site, at, found.length)))
      reasons.push(`text at ${describe(at)} is ${hex(found)}, its file has ${hex(expected)}`);
  for (const report of reports)
    for (const at of report.foreign)
      reasons.push(`${describe(at)} was patched by another tool, and left alone`);
  for (const { tid, ip, how } of facts.occupants)
    reasons.push(
      how === "running"
        ? `our code cannot be freed yet: thread ${tid} is in it, at ${describe(ip)}`
        : how === "unwinding"
          ? `our code cannot be freed yet: thread ${tid} may be unwinding through it, at ${describe(ip)}`
          : `our code cannot be freed yet: a signal handler of thread ${tid} will return to it, at ${describe(ip)}`,
    );
  for (const { start, end } of facts.memory.left)
    reasons.push(`memory of ours is still mapped: 0x${start.toString(16)}-0x${end.toString(16)}`);
  for (const fd of facts.descriptors) reasons.push(`descriptor ${fd} of ours is still open`);
  if (facts.key !== undefined) reasons.push(`protection key ${facts.key} of ours is still allocated`);
  for (const { signal, before, after } of facts.actions)
    if (hex(before) !== hex(after))
      reasons.push(
        `the action of ${signalName(signal)} is ${describeAction(after, describe)}, was ${describeAction(before, describe)}`,
      );
  return reasons;
}

function overlaps(site: JournalContents["sites"][number], at: bigint, lenBytes: number): boolean {
  return at < site.at + BigInt(site.oldBytes.length) && at + BigInt(lenBytes) > site.at;
}

/** `struct sigaction` for people. */
export function describeAction(action: Uint8Array, describe: DescribeAddress): string {
  const handler = handlerOf(action);
  return handler === 0n ? "the default" : handler === 1n ? "to ignore it" : `handler ${describe(handler)}`;
}
