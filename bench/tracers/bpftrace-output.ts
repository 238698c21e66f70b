/**
 * Results of a run as JSON lines in bpftrace's shape, which trapline prints too: maps, histograms, printed text.
 * One reader for both, so that both are counted alike.
 */

/** Hits that the results show: the value of a count, the sum of a histogram, or the number of printed texts. */
export function hitsIn(lines: readonly string[]): number {
  let hits = 0;
  for (const line of lines) {
    const record = parseRecord(line);
    if (record === undefined) continue;
    if (record.type === "printf") hits++;
    else if (record.type === "map") hits += sumOf(record.data, (value) => Number(value));
    else if (record.type === "hist")
      hits += sumOf(record.data, (buckets) =>
        Array.isArray(buckets) ? buckets.reduce((sum: number, { count }) => sum + Number(count), 0) : 0,
      );
  }
  return hits;
}

interface OutputRecord {
  readonly type: string;
  readonly data: unknown;
}

function parseRecord(line: string): OutputRecord | undefined {
  if (!line.startsWith("{")) return undefined;
  try {
    return JSON.parse(line) as OutputRecord;
  } catch {
    return undefined;
  }
}

/** Only `@` counts: what a script keeps to itself is in maps with names. */
function sumOf(data: unknown, count: (value: unknown) => number): number {
  if (typeof data !== "object" || data === null) return 0;
  return "@" in data ? count(data["@"]) : 0;
}
