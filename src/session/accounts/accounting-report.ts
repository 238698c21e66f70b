/** What became of the hits of each probe, said at the end of a run. */
import { addHitCounts } from "../../bpf/index.ts";
import type { SessionIo, TraceOptions } from "../options.ts";
import type { ProbeCounts } from "./probe-accounts.ts";

/** Probes that are listed; the rest is one line. */
const MOST_PROBES = 20;

type ReportedCounts = Omit<ProbeCounts, "probe" | "mechanisms">;

/**
 * JSON always says it. Text goes to standard error: all probes with `-v`; otherwise those of which something was lost. That
 * a predicate has said no is no loss.
 */
export function reportAccounting(
  probes: readonly ProbeCounts[],
  options: Pick<TraceOptions, "format" | "verbose" | "quiet">,
  io: SessionIo,
): void {
  if (probes.length === 0) return;
  if (options.format === "json") {
    io.out.write(`{"type": "accounting", "data": {"probes": [${probes.map(printJson).join(", ")}]}}\n`);
    if (!options.verbose) return;
  }
  if (options.quiet && !options.verbose) return;
  const shown = options.verbose ? probes : probes.filter(hasLoss);
  const sorted = [...shown].sort((a, b) => (a.hits === b.hits ? 0 : a.hits > b.hits ? -1 : 1));
  for (const counts of sorted.slice(0, MOST_PROBES))
    io.err.write(`${counts.probe}: ${describeCounts(counts)}${describePlaces(counts)}\n`);
  const rest = sorted.slice(MOST_PROBES);
  if (rest.length > 0)
    io.err.write(`${rest.length} more probes: ${describeCounts(rest.reduce(addCounts))}\n`);
}

const words = ["run", "filtered", "recursed", "dropped", "faulted"] as const;

function hasLoss({ recursed, dropped, faulted, missed, ...rest }: ReportedCounts): boolean {
  return (
    isSenseless({ recursed, dropped, faulted, missed, ...rest }) ||
    recursed !== 0n ||
    dropped !== 0n ||
    faulted !== 0n ||
    missed !== 0n
  );
}

/** No hits are counted so: a process has written over the account. */
const isSenseless = ({ hits, run }: ReportedCounts): boolean => run < 0n || hits >= 1n << 62n;

/** `10 hits: 7 run, 2 filtered, 1 dropped; 3 returns missed` */
export function describeCounts(counts: ReportedCounts): string {
  const parts = words.filter((word) => word === "run" || counts[word] !== 0n);
  const missed = counts.missed === 0n ? "" : `; ${counts.missed} returns missed`;
  const unwound = counts.unwound === 0n ? "" : `; ${counts.unwound} unwound`;
  const doubt = isSenseless(counts) ? "; a process has written over these counts" : "";
  return `${counts.hits} hits: ${parts.map((word) => `${counts[word]} ${word}`).join(", ")}${missed}${unwound}${doubt}`;
}

function describePlaces({ mechanisms }: ProbeCounts): string {
  const places = Object.entries(mechanisms).map(([mechanism, count]) => `${count} ${mechanism}`);
  return places.length === 0 ? "" : ` (${places.join(", ")})`;
}

function addCounts(a: ProbeCounts, b: ProbeCounts): ProbeCounts {
  return { ...addHitCounts(a, b), probe: "", mechanisms: {} };
}

/** The counts are integers of 64 bits, which JSON.stringify does not write. */
function printJson({ probe, mechanisms, ...counts }: ProbeCounts): string {
  const numbers = (["hits", ...words, "missed", "unwound"] as const).map(
    (word) => `"${word}": ${counts[word]}`,
  );
  return `{"probe": ${JSON.stringify(probe)}, ${numbers.join(", ")}, "mechanisms": ${JSON.stringify(mechanisms)}}`;
}
