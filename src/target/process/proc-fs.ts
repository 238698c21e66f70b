/** Reading a process's files under /proc. */
import { readFileSync } from "node:fs";

/** One line of /proc/PID/maps. */
export interface MapEntry {
  readonly start: bigint;
  readonly end: bigint;
  readonly perms: string;
  readonly offset: bigint;
  readonly dev: string;
  readonly inode: bigint;
  readonly path: string;
}

/** All mappings in address order. */
export function readMaps(pid: number): MapEntry[] {
  return readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const match = /^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/.exec(line)!;
      return {
        start: BigInt(`0x${match[1]}`),
        end: BigInt(`0x${match[2]}`),
        perms: match[3]!,
        offset: BigInt(`0x${match[4]}`),
        dev: match[5]!,
        inode: BigInt(match[6]!),
        path: match[7]!,
      };
    });
}
