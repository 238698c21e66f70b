/**
 * In which pages a session's maps lie.
 *
 * A lookup in a map that is larger than what a processor's second-level TLB reaches with 4 KiB pages (some 2000 of them) waits for a walk of
 * page tables as well as for its cache miss; a huge page saves the walk, or makes it shorter. Below that nothing is won.
 *
 * The rule of `auto`: from 16 MiB on, the largest pages of which at most an eighth is left over, if the machine has set as many aside;
 * else transparent ones, if all of the maps is at most an eighth of what memory is free, since all of it is taken at once; else 4 KiB.
 * What is forced is used whatever is left over, or fails.
 */
import { readFileSync } from "node:fs";
import {
  createHugeMemory,
  type HugeMemory,
  type HugePages,
  type HugeRefusal,
  hugePageBytes,
} from "../../target/process/huge-memory.ts";
import { MAPS_MEMORY_NAME } from "../../target/process/traced-process.ts";
import type { ArenaChoice } from "../options.ts";
import { SessionError } from "../session-error.ts";

/** Smaller maps stay in 4 KiB pages. */
const LEAST_HUGE_BYTES = 16 << 20;
/** At most one part in so many may be left over, or be taken of what is free. */
const PART = 8;

/** The kinds of huge pages to be tried, best first. */
export function hugeCandidates(
  choice: ArenaChoice,
  lenBytes: number,
  availableBytes: number,
): readonly HugePages[] {
  if (choice === "4k") return [];
  if (choice !== "auto") return [choice];
  if (lenBytes < LEAST_HUGE_BYTES) return [];
  return (["1g", "2m", "thp"] as const).filter((pages) => {
    if (pages === "thp") return lenBytes <= availableBytes / PART;
    const size = hugePageBytes[pages];
    const whole = Math.ceil(lenBytes / size) * size;
    return whole - lenBytes <= whole / PART;
  });
}

/** Memory for maps in huge pages; undefined: they lie in 4 KiB pages. Throws where what was asked for is not to be had. */
export function provideHugeMaps(choice: ArenaChoice, lenBytes: number): HugeMemory | undefined {
  if (choice === "4k" || (choice === "auto" && lenBytes < LEAST_HUGE_BYTES)) return undefined;
  for (const pages of hugeCandidates(choice, lenBytes, availableBytes())) {
    const made = createHugeMemory(MAPS_MEMORY_NAME, pages, lenBytes);
    if (made.kind === "huge") return made;
    if (choice !== "auto") throw notGranted(made);
  }
  return undefined;
}

const names = { "1g": "1 GiB pages", "2m": "2 MiB pages", thp: "transparent huge pages" } as const;

function notGranted({ pages, call, code, lenBytes }: HugeRefusal): SessionError {
  return new SessionError(
    "no-huge-pages",
    {
      operation: "map",
      object: `${lenBytes >> 20} MiB of maps in ${names[pages]}`,
      reason: `the machine does not grant them (${call}: ${code})`,
    },
    pages === "thp"
      ? whyNotTransparent(code)
      : howToReserve(pages, Math.ceil(lenBytes / hugePageBytes[pages])),
  );
}

function whyNotTransparent(code: string): string {
  return code === "EINVAL"
    ? "Linux 6.1 or later is needed, with CONFIG_READ_ONLY_THP_FOR_FS, and not deny in /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    : "no 2 MiB of memory are free in one piece: echo 1 > /proc/sys/vm/compact_memory";
}

/** As root; the hint of errors, and of doctor. */
export function howToReserve(pages: "1g" | "2m", count: number): string {
  const folder = `/sys/kernel/mm/hugepages/hugepages-${hugePageBytes[pages] >> 10}kB`;
  const atBoot = pages === "1g" ? ` (or at boot: hugepagesz=1G hugepages=${count})` : "";
  return `reserve ${count} more, as root: echo $(($(cat ${folder}/nr_hugepages) + ${count})) > ${folder}/nr_hugepages${atBoot}`;
}

function availableBytes(): number {
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "latin1"))?.[1];
  return Number(kib ?? "0") * 1024;
}
