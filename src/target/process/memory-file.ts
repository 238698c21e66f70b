/**
 * The target's memory through /proc/PID/mem. Writing works on pages that the target itself may not write: the
 * kernel then copies the page for this process alone (mm/gup.c, FOLL_FORCE), so no file and no other process changes.
 */
import { closeSync, fstatSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { tryLockFile, unlockFile } from "./libc.ts";
import { processFolder } from "./proc-fs.ts";

/** Memory could not be read or written. `code` is the errno's name. */
export class MemoryError extends Error {
  readonly code: string;
  constructor(operation: string, at: bigint, cause: unknown) {
    const code = (cause as { code?: string }).code ?? "EIO";
    super(`${operation} at 0x${at.toString(16)}: ${code}`, { cause });
    this.name = "MemoryError";
    this.code = code;
  }
}

export class MemoryFile {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  static open(pid: number, mode: "r" | "r+" = "r+"): MemoryFile {
    return new MemoryFile(openSync(`${processFolder(pid)}/mem`, mode));
  }

  /** Reads exactly `lenBytes`; throws `MemoryError` when any of it is not mapped. */
  read(at: bigint, lenBytes: number): Uint8Array {
    const bytes = new Uint8Array(lenBytes);
    const got = this.readInto(at, bytes);
    if (got < lenBytes) throw new MemoryError(`read ${lenBytes} bytes`, at, { code: "EFAULT" });
    return bytes;
  }

  /** Reads what is mapped from `at` on, and returns how many bytes that were. */
  readInto(at: bigint, bytes: Uint8Array): number {
    let done = 0;
    while (done < bytes.length) {
      let got = 0;
      try {
        got = readSync(this.#fd, bytes, done, bytes.length - done, Number(at) + done);
      } catch {
        return done;
      }
      if (got === 0) return done;
      done += got;
    }
    return done;
  }

  write(at: bigint, bytes: Uint8Array): void {
    let done = 0;
    try {
      while (done < bytes.length) {
        const put = writeSync(this.#fd, bytes, done, bytes.length - done, Number(at) + done);
        // A process that has ended takes nothing, and that is no error for the kernel.
        if (put === 0) throw Object.assign(new Error("nothing was written"), { code: "ESRCH" });
        done += put;
      }
    } catch (cause) {
      throw new MemoryError(`write ${bytes.length} bytes`, at + BigInt(done), cause);
    }
  }

  /** Makes this process the only one that has the lock of the target. The kernel takes it back when the process dies. */
  tryLock(): boolean {
    return tryLockFile(this.#fd);
  }

  unlock(): void {
    unlockFile(this.#fd);
  }

  /** The process that has the lock, if the kernel tells. */
  findLockHolder(): number | undefined {
    const { ino } = fstatSync(this.#fd, { bigint: true });
    // 1: FLOCK  ADVISORY  WRITE 4242 00:16:123456 0 EOF (proc_locks(5))
    for (const line of readFileSync("/proc/locks", "latin1").split("\n")) {
      const [, kind, , , pid, file] = line.trim().split(/\s+/);
      if (kind === "FLOCK" && file?.split(":")[2] === `${ino}`) return Number(pid);
    }
    return undefined;
  }

  close(): void {
    closeSync(this.#fd);
  }
}
