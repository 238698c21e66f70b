/**
 * What the sessions in a process have changed in it, so that a proof can look past them: each takes out only its own, at its
 * own time.
 */

import { SIGNAL_ACTION_BYTES } from "../../patch/index.ts";
import { changedSignals, type JournalContents } from "../../probe/journal.ts";
import { siteState } from "../../probe/site-state.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange } from "../../target/target.ts";
import { readOtherSessions } from "./other-sessions.ts";
import type { TextPiece } from "./text-snapshot.ts";

export interface OtherChanges {
  /** What stood where the sessions have their bytes now. */
  readonly undone: readonly TextPiece[];
  /** Memory of sessions whose tracers live. */
  readonly memory: readonly AddrRange[];
  /** Process ids of these tracers. */
  readonly tracers: readonly number[];
  /** The process's own actions of these signals, beneath the handlers of sessions. */
  actionsBeneath(actions: ReadonlyMap<number, Uint8Array>): Map<number, Uint8Array>;
}

/** Reads the journals of all sessions that are in the process. */
export async function readOtherChanges(target: ProcessTarget): Promise<OtherChanges> {
  const sessions = await readOtherSessions(target);
  const undone: TextPiece[] = [];
  for (const { journal } of sessions) undone.push(...(await changedPieces(target, journal)));
  const handlers = new Map<string, Uint8Array>();
  const keyOf = (signal: number, handler: bigint) => `${signal} ${handler}`;
  // Not as the journal has it: a session that was beneath may have left meanwhile.
  for (const { journal } of sessions)
    for (const { signal, handler, previousAt } of changedSignals(journal))
      handlers.set(keyOf(signal, handler), await target.read(previousAt, SIGNAL_ACTION_BYTES));
  const alive = sessions.filter(({ isAlive }) => isAlive);
  return {
    undone,
    memory: alive.flatMap(({ memory, journal }) => [memory, ...memoryOf(journal)]),
    tracers: alive.map(({ journal }) => journal.header.tracerPid),
    actionsBeneath(actions) {
      const beneath = new Map(actions);
      // Each session has found the handler of the one before it; what the first one found belongs to the process.
      for (const _ of handlers)
        for (const [signal, action] of beneath)
          beneath.set(signal, handlers.get(keyOf(signal, handlerOf(action))) ?? action);
      return beneath;
    },
  };
}

/** The handler of a `struct sigaction` as the kernel takes it. */
export const handlerOf = (action: Uint8Array): bigint =>
  new DataView(action.buffer, action.byteOffset).getBigUint64(0, true);

/** What stood at the sites that hold something of the session now. */
export async function changedPieces(target: ProcessTarget, { sites }: JournalContents): Promise<TextPiece[]> {
  const found = await target.readMany(sites.map(({ at, oldBytes }) => ({ at, lenBytes: oldBytes.length })));
  return sites
    .filter((site, index) => ["jump", "int3"].includes(siteState(site, found[index]!)))
    .map(({ at, oldBytes }) => ({ at, bytes: oldBytes }));
}

function memoryOf({ memory }: JournalContents): AddrRange[] {
  return memory.map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) }));
}
