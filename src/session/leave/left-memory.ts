/**
 * What a tracer can leave that died in the middle of attaching, before a journal says anything: memory of ours that is mapped but
 * not recorded, and a descriptor of it that was not closed yet.
 */
import { readdirSync, readlinkSync } from "node:fs";
import type { JournalContents } from "../../probe/journal.ts";
import { processFolder, readMaps } from "../../target/process/proc-fs.ts";
import { STACKS_MEMORY_NAME } from "../../target/process/signal-frames.ts";
import {
  ARENA_MEMORY_NAME,
  JOURNAL_MEMORY_NAME,
  MAILBOX_MEMORY_NAME,
  MAPS_MEMORY_NAME,
} from "../../target/process/traced-process.ts";
import type { ProcessTarget } from "../../target/process/tracer.ts";
import type { AddrRange, RemoteCall } from "../../target/target.ts";

const SYS_CLOSE = 3;
const SYS_MUNMAP = 11;

const paths = [
  ARENA_MEMORY_NAME,
  JOURNAL_MEMORY_NAME,
  MAPS_MEMORY_NAME,
  MAILBOX_MEMORY_NAME,
  STACKS_MEMORY_NAME,
].map((name) => `/memfd:${name} (deleted)`);

/** Sessions that are in the process: their memory stays. */
interface PresentSession {
  readonly memory: AddrRange;
  readonly journal: Pick<JournalContents, "memory">;
}

/**
 * Unmaps and closes what belongs to none of the sessions; returns how many pieces there were. To be called under the lock, so
 * that no tracer is about to enter in its journal what it has just mapped.
 */
export async function freeLeftMemory(
  target: ProcessTarget,
  sessions: readonly PresentSession[],
): Promise<number> {
  const inUse = sessions.flatMap(({ memory, journal }) => [
    memory,
    ...journal.memory.map(({ at, lenBytes }) => ({ start: at, end: at + BigInt(lenBytes) })),
  ]);
  // Protection splits a mapping into several.
  const isInUse = (at: bigint) => inUse.some(({ start, end }) => at >= start && at < end);
  const { pid } = target;
  const calls: RemoteCall[] = [];
  for (const { start, end, path } of readMaps(pid))
    if (paths.includes(path) && !isInUse(start))
      calls.push({ name: "munmap", number: SYS_MUNMAP, args: [start, end - start] });
  for (const fd of readdirSync(`${processFolder(pid)}/fd`))
    if (isOurs(pid, fd)) calls.push({ name: "close", number: SYS_CLOSE, args: [BigInt(fd)] });
  if (calls.length > 0) await target.call(calls);
  return calls.length;
}

function isOurs(pid: number, fd: string): boolean {
  try {
    return paths.includes(readlinkSync(`${processFolder(pid)}/fd/${fd}`));
  } catch {
    return false;
  }
}
