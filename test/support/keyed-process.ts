/** Mappings of a process with what the kernel says of their pages, and the program that reads where it is told to. */
import { readFileSync } from "node:fs";
import { buildFixture } from "./fixtures.ts";
import { UnmanagedChild } from "./unmanaged-child.ts";

export interface KeyedMapping {
  readonly start: bigint;
  readonly end: bigint;
  readonly perms: string;
  readonly path: string;
  readonly key: number;
  /** Bytes that are mapped by huge pages, of shared memory or hugetlb. */
  readonly hugeKib: number;
}

/** All mappings of a process with their keys. */
export function readSmaps(pid: number): KeyedMapping[] {
  const text = readFileSync(`/proc/${pid}/smaps`, "latin1");
  return text.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m).map((part) => {
    const [, start, end, perms, path] = /^(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)$/m.exec(part)!;
    const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(part)?.[1] ?? "0");
    return {
      start: BigInt(`0x${start}`),
      end: BigInt(`0x${end}`),
      perms: perms!,
      path: path!,
      key: field("ProtectionKey"),
      hugeKib: field("ShmemPmdMapped") + field("Shared_Hugetlb") + field("Private_Hugetlb"),
    };
  });
}

export const nameOf = ({ perms, path }: KeyedMapping): string =>
  `${perms} ${/^\/memfd:(\S+) \(deleted\)$/.exec(path)?.[1] ?? path}`;

export const keyedFixture = buildFixture("keyed");

/** Two threads that read where they are told to (test/fixtures/keyed.c). */
export async function startKeyed() {
  const child = await UnmanagedChild.start([keyedFixture]);
  const ask = async (line: string) => {
    child.send(`${line}\n`);
    return await child.line();
  };
  return { child, ask };
}
