/** What probes have done to the text of a process that runs: read from its journals, and from the text itself. */
import type { JournalMechanism } from "../../probe/journal.ts";
import { ProcessImages } from "../../target/process/images.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { findJournals } from "../reports/processes.ts";

export interface ChangedSite {
  readonly at: bigint;
  /** The address in words: function, offset and image. */
  readonly name: string;
  readonly mechanism: JournalMechanism;
  /** What the journal says was there. */
  readonly before: Uint8Array;
  /** What is there now. */
  readonly now: Uint8Array;
  /** Where the site leads to. */
  readonly detour: bigint;
}

/** The sites that are armed, in the order of their addresses. */
export function readChangedSites(pid: number): ChangedSite[] {
  const sites = findJournals(pid)
    .flatMap((journal) => journal.sites)
    .filter(({ state }) => state === "armed")
    .sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
  if (sites.length === 0) return [];
  using images = ProcessImages.open(pid);
  const memory = MemoryFile.open(pid, "r");
  try {
    return sites.map(({ at, mechanism, oldBytes, detour }) => ({
      at,
      name: images.symbolize(at).text,
      mechanism,
      before: oldBytes,
      now: memory.read(at, oldBytes.length),
      detour,
    }));
  } finally {
    memory.close();
  }
}
