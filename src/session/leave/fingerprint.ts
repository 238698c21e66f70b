/**
 * A fingerprint of a process's program text: one digest for each executable mapping of a file, of the bytes as the
 * process sees them. Taken before probes are planted and after they are gone, it proves that no byte differs.
 *
 * Code that the process writes itself (a JIT's) is not part of it: it has no file, and changes without anybody's help.
 */
import { createHash } from "node:crypto";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readMaps } from "../../target/process/proc-fs.ts";

const CHUNK_BYTES = 1 << 20;

export interface TextMapping {
  readonly path: string;
  readonly start: bigint;
  readonly lenBytes: number;
  /** SHA-256 in hex. */
  readonly digest: string;
}

export interface TextFingerprint {
  readonly pid: number;
  readonly mappings: readonly TextMapping[];
  readonly totalBytes: number;
  /** One digest of all: SHA-256 in hex. */
  readonly digest: string;
}

/** Reads all executable file-backed mappings of a running process. */
export function readTextFingerprint(pid: number): TextFingerprint {
  const memory = MemoryFile.open(pid, "r");
  try {
    const mappings = readMaps(pid)
      .filter(({ perms, inode, path }) => perms[2] === "x" && inode !== 0n && !path.startsWith("/memfd:"))
      .map(({ start, end, path }): TextMapping => {
        const lenBytes = Number(end - start);
        return { path, start, lenBytes, digest: digestOf(memory, start, lenBytes) };
      });
    const all = createHash("sha256");
    for (const { path, start, digest } of mappings) all.update(`${start.toString(16)} ${digest} ${path}\n`);
    return {
      pid,
      mappings,
      totalBytes: mappings.reduce((sum, { lenBytes }) => sum + lenBytes, 0),
      digest: all.digest("hex"),
    };
  } finally {
    memory.close();
  }
}

function digestOf(memory: MemoryFile, start: bigint, lenBytes: number): string {
  const hash = createHash("sha256");
  const chunk = new Uint8Array(CHUNK_BYTES);
  for (let done = 0; done < lenBytes; ) {
    const part = chunk.subarray(0, Math.min(CHUNK_BYTES, lenBytes - done));
    const got = memory.readInto(start + BigInt(done), part);
    hash.update(part.subarray(0, got));
    // A page that cannot be read (past the end of a truncated file) counts as such, and the rest is still read.
    if (got < part.length) hash.update("unreadable");
    done += Math.max(got, Math.min(4096, part.length));
  }
  return hash.digest("hex");
}

export interface TextComparison {
  /** Mappings that hold other bytes than before. */
  readonly changed: readonly TextMapping[];
  /** Mappings that are no longer there: the process has unloaded them. */
  readonly gone: readonly TextMapping[];
  /** Mappings that were not there before: the process has loaded them. */
  readonly added: readonly TextMapping[];
}

const key = ({ start, lenBytes, path }: TextMapping) => `${start} ${lenBytes} ${path}`;

/** Compares two fingerprints of one process. Only `changed` means that text differs. */
export function compareText(before: TextFingerprint, after: TextFingerprint): TextComparison {
  const afterByKey = new Map(after.mappings.map((mapping) => [key(mapping), mapping]));
  const beforeKeys = new Set(before.mappings.map(key));
  return {
    changed: before.mappings.filter((mapping) => {
      const now = afterByKey.get(key(mapping));
      return now !== undefined && now.digest !== mapping.digest;
    }),
    gone: before.mappings.filter((mapping) => !afterByKey.has(key(mapping))),
    added: after.mappings.filter((mapping) => !beforeKeys.has(key(mapping))),
  };
}
