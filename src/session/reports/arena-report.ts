/** What a session's data takes in a target, for people and for programs. */
import { type ArenaAccounts, partUses } from "../../probe/data-arena.ts";
import type { HugePages } from "../../target/process/huge-memory.ts";

/** What is said of one target's data. */
export interface ArenaReport {
  readonly pid: number;
  readonly accounts: ArenaAccounts;
  /** Protection key of it. */
  readonly key: number | undefined;
  /** The kind of huge pages that the maps lie in; undefined: none. */
  readonly hugeMaps: HugePages | undefined;
}

const pageNames = { "1g": "1 GiB pages", "2m": "2 MiB pages", thp: "transparent huge pages" } as const;

/** `data: 68.4 MiB reserved, 4.3 MiB mapped: journal 4.0 MiB, ...` */
export function describeArena({ accounts, key, hugeMaps }: ArenaReport): string {
  const { reservedBytes, usedBytes, spareBytes, guardBytes, freeBytes } = accounts;
  const used = partUses.filter((use) => usedBytes.has(use));
  const parts = used.map((use) => `${use} ${sizeText(usedBytes.get(use)!)}`);
  return (
    `data: ${sizeText(reservedBytes)} of addresses reserved, ${sizeText(sum(usedBytes))} mapped (${parts.join(", ")}), ` +
    `${sizeText(sum(spareBytes))} spare, ${sizeText(guardBytes)} guards, ${sizeText(freeBytes)} free; ` +
    `maps in ${hugeMaps === undefined ? "4 KiB pages" : pageNames[hugeMaps]}; ` +
    (key === undefined ? "no protection key" : `protection key ${key}`)
  );
}

export function arenaJson({ pid, accounts, key, hugeMaps }: ArenaReport): string {
  const { reservedBytes, usedBytes, spareBytes, guardBytes, freeBytes } = accounts;
  const parts = partUses
    .filter((use) => usedBytes.has(use))
    .map((use) => [use, { used: usedBytes.get(use), spare: spareBytes.get(use) }]);
  const data = {
    pid,
    reserved: reservedBytes,
    used: sum(usedBytes),
    spare: sum(spareBytes),
    guards: guardBytes,
    free: freeBytes,
    parts: Object.fromEntries(parts),
    pages: hugeMaps ?? "4k",
    key: key ?? null,
  };
  return `${JSON.stringify({ type: "arena", data })}\n`;
}

const sum = (bytes: ReadonlyMap<string, number>): number =>
  [...bytes.values()].reduce((total, value) => total + value, 0);

const UNITS = ["bytes", "KiB", "MiB", "GiB"] as const;

function sizeText(bytes: number): string {
  const unit = UNITS.findLastIndex((_, index) => bytes >= 1024 ** index);
  const value = bytes / 1024 ** Math.max(0, unit);
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${UNITS[Math.max(0, unit)]}`;
}
