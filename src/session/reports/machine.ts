/**
 * What this machine says about itself, as far as it decides what can be probed: files under /proc and /sys, and what can
 * only be found out by trying it.
 */
import { closeSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { arch, release } from "node:os";
import { createHugeMemory } from "../../target/process/huge-memory.ts";
import { countFreeKeys, errno, errnoName, ptraceRaw } from "../../target/process/libc.ts";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { readMaps } from "../../target/process/proc-fs.ts";
import { type TrialResult, tryProbing } from "./trial.ts";

/** How checks look at a machine. Tests give their own. */
export interface Machine {
  readonly architecture: string;
  readonly kernelRelease: string;
  readonly nodeVersion: string;
  readonly uid: number;
  /** A file's text, trimmed; undefined when it is not there or may not be read. */
  read(path: string): string | undefined;
  /** Names in a folder; empty when it is not there. */
  list(path: string): readonly string[];
  exists(path: string): boolean;
  /** Whether the system call ptrace is let through to the kernel at all. */
  ptraceIsReachable(): boolean;
  /** Whether pages that we may not write can be written through the memory file. */
  canForceMemory(): boolean;
  hasVdso(): boolean;
  /** How many protection keys a process like this one can still have. */
  countFreeKeys(): number;
  /** Why shared memory cannot be joined to transparent huge pages; undefined: it can. */
  joinsHugePages(): string | undefined;
  /** Tries everything that probing needs on a command of our own. */
  tryProbing(): Promise<TrialResult>;
}

const PTRACE_CONT = 7;

export const thisMachine: Machine = {
  architecture: arch(),
  kernelRelease: release(),
  nodeVersion: process.versions.node,
  uid: process.getuid?.() ?? -1,
  read(path) {
    try {
      return readFileSync(path, "utf8").trim();
    } catch {
      return undefined;
    }
  },
  list(path) {
    try {
      return readdirSync(path);
    } catch {
      return [];
    }
  },
  exists: (path) => existsSync(path),
  ptraceIsReachable() {
    // To continue something that is no tracee fails with ESRCH, unless a filter answers in the kernel's place.
    ptraceRaw(PTRACE_CONT, process.pid, 0, 0);
    return errnoName(errno()) === "ESRCH";
  },
  canForceMemory() {
    // A byte of a read-only mapping of ours gets the value that it has.
    const memory = MemoryFile.open(process.pid);
    try {
      for (const { start, perms, inode } of readMaps(process.pid)) {
        if (perms !== "r--p" || inode === 0n) continue;
        memory.write(start, memory.read(start, 1));
        return true;
      }
      return false;
    } catch {
      return false;
    } finally {
      memory.close();
    }
  },
  tryProbing,
  countFreeKeys,
  joinsHugePages() {
    const made = createHugeMemory("trapline-trial", "thp", 1);
    if (made.kind === "refused") return `${made.call}: ${made.code}`;
    made.mapping.unmap();
    closeSync(made.fd);
    return undefined;
  },
  hasVdso: () => readMaps(process.pid).some(({ path }) => path === "[vdso]"),
};
