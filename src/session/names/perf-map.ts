/**
 * Our code in /tmp/perf-PID.map, where perf looks for names of code that has no file: lines `START SIZE name` in hex
 * (tools/perf/Documentation/jit-interface.txt). The number is the one that the process itself knows, and the folder that of
 * its own mount namespace, as perf has it.
 *
 * Somebody else may own this file: a JIT in the process that writes to it all the time (node --perf-basic-prof). It holds the
 * file open at its own position, and would write over what somebody else appends. So where the process has it open,
 * it is written through the same open file, whose position moves with it; and lines that end are overwritten with newlines,
 * which perf skips, in place.
 *
 * /tmp is open to everybody: no link is ever followed, the file is created exclusively, and one that belongs to anybody but
 * us or the process's user, or has other names, is left alone. A file that has nothing but our lines is removed with them.
 * Whatever goes wrong here is no failure of a session.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  type Stats,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { openPidFd, takeDescriptor } from "../../target/process/libc.ts";
import { readStatus } from "../../target/process/proc-fs.ts";
import type { AddrRange } from "../../target/target.ts";
import { CODE_NAME_PREFIX, type NamedCode } from "./code-names.ts";

const { O_RDONLY, O_WRONLY, O_RDWR, O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_DIRECTORY } =
  constants;
const NEWLINE = 10;
/** A file larger than this is not searched. */
const MOST_BYTES = 512 << 20;

export type PerfMapResult =
  | { readonly kind: "written"; readonly path: string; readonly lines: number }
  | { readonly kind: "refused"; readonly path: string; readonly reason: string };

/** The perf map of one process. Stays usable when the process has ended. */
export class PerfMap implements Disposable {
  readonly #pid: number;
  readonly #folder: number;
  readonly #name: string;
  readonly #owner: { readonly uid: number; readonly gid: number };
  /** Ranges of code whose lines are written. */
  readonly #written: AddrRange[] = [];

  private constructor(pid: number, folder: number, name: string, owner: { uid: number; gid: number }) {
    this.#pid = pid;
    this.#folder = folder;
    this.#name = name;
    this.#owner = owner;
  }

  /** Undefined: the process's /tmp may not be looked into. */
  static find(pid: number): PerfMap | undefined {
    try {
      const status = readStatus(pid);
      const own = lstatSync(`/proc/${pid}`);
      const folder = openSync(`/proc/${pid}/root/tmp`, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      const name = `perf-${status.nsPids.at(-1) ?? pid}.map`;
      return new PerfMap(pid, folder, name, { uid: status.uids[1] ?? own.uid, gid: own.gid });
    } catch {
      return undefined;
    }
  }

  get path(): string {
    return `/tmp/${this.#name}`;
  }

  /** Appends a line for each piece of code. */
  append(codes: readonly NamedCode[]): PerfMapResult {
    const { path } = this;
    try {
      const text = codes.map(lineOf).join("");
      const reason = this.#write(Buffer.from(text));
      if (reason !== undefined) return { kind: "refused", path, reason };
      for (const { at, bytes } of codes) this.#written.push({ start: at, end: at + BigInt(bytes.length) });
      return { kind: "written", path, lines: codes.length };
    } catch (error) {
      return { kind: "refused", path, reason: (error as { code?: string }).code ?? String(error) };
    }
  }

  /** Takes out what `append` has written. */
  remove(): void {
    if (this.#written.length > 0) this.removeIn(this.#written);
    this.#written.length = 0;
  }

  /** Takes out all lines of ours for code in some ranges: also what a tracer has left that has died. */
  removeIn(ranges: readonly AddrRange[]): void {
    try {
      const fd = this.#open(O_RDWR);
      if (typeof fd !== "number") return;
      try {
        this.#blank(fd, ranges);
      } finally {
        closeSync(fd);
      }
    } catch {
      // It is gone, or never was.
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#folder);
  }

  get #at(): string {
    return `/proc/self/fd/${this.#folder}/${this.#name}`;
  }

  /** Returns why it cannot be written to, if it cannot. */
  #write(block: Buffer): string | undefined {
    const created = this.#create();
    if (created !== undefined) {
      try {
        writeAll(created, block);
      } finally {
        closeSync(created);
      }
      return undefined;
    }
    const reading = this.#open(O_RDONLY);
    if (typeof reading !== "number") return reading.reason;
    try {
      const stat = fstatSync(reading);
      if (!endsLine(reading, stat.size))
        return "its last line is not complete: the application is writing it";
      const theirs = this.#findTheirs(stat);
      const fd = theirs ?? this.#open(O_WRONLY | O_APPEND);
      if (typeof fd !== "number") return fd.reason;
      try {
        writeAll(fd, block);
      } finally {
        closeSync(fd);
      }
      return undefined;
    } finally {
      closeSync(reading);
    }
  }

  /** A new file, for the process's user, so that a JIT in the process that starts later can write to it. */
  #create(): number | undefined {
    let fd: number;
    try {
      fd = openSync(this.#at, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW, 0o644);
    } catch (error) {
      if ((error as { code?: string }).code === "EEXIST") return undefined;
      throw error;
    }
    fchmodSync(fd, 0o644);
    const { uid, gid } = this.#owner;
    if (process.geteuid?.() === 0 && uid !== 0) fchownSync(fd, uid, gid);
    return fd;
  }

  /** The file, if it is one that may be written to. */
  #open(flags: number): number | { readonly reason: string } {
    const fd = openSync(this.#at, flags | O_NOFOLLOW | O_NONBLOCK);
    const stat = fstatSync(fd);
    const reason = !stat.isFile()
      ? "it is no regular file"
      : stat.nlink !== 1
        ? "it has several names"
        : ![this.#owner.uid, process.geteuid?.()].includes(stat.uid)
          ? `it belongs to user ${stat.uid}`
          : undefined;
    if (reason === undefined) return fd;
    closeSync(fd);
    return { reason };
  }

  /** A copy of the descriptor that the process writes to the file with: with the same position. */
  #findTheirs(file: Stats): number | undefined {
    for (const fd of findDescriptors(this.#pid, file)) {
      const flags = Number.parseInt(
        /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/${this.#pid}/fdinfo/${fd}`, "latin1"))?.[1] ?? "0",
        8,
      );
      const isWritable = (flags & 3) !== O_RDONLY;
      if (!isWritable || (flags & O_APPEND) !== 0) continue;
      const pidFd = openPidFd(this.#pid);
      try {
        return takeDescriptor(pidFd, Number(fd));
      } finally {
        closeSync(pidFd);
      }
    }
    return undefined;
  }

  #blank(fd: number, ranges: readonly AddrRange[]): void {
    const { size } = fstatSync(fd);
    if (size > MOST_BYTES) return;
    const text = Buffer.alloc(size);
    for (let done = 0; done < size; ) {
      const got = readSync(fd, text, done, size - done, done);
      if (got === 0) break;
      done += got;
    }
    let isChanged = false;
    for (const { from, to } of ourLines(text, ranges)) {
      text.fill(NEWLINE, from, to);
      writeSync(fd, text, from, to - from, from);
      isChanged = true;
    }
    const isEmpty = text.every((byte) => byte === NEWLINE);
    if (isChanged && isEmpty && !this.#isOpenInProcess(fd)) this.#unlink(fd);
  }

  #isOpenInProcess(fd: number): boolean {
    try {
      return !findDescriptors(this.#pid, fstatSync(fd)).next().done;
    } catch {
      // It has ended.
      return false;
    }
  }

  #unlink(fd: number): void {
    const [opened, named] = [fstatSync(fd), lstatSync(this.#at)];
    if (opened.ino === named.ino && opened.dev === named.dev && opened.size === named.size)
      unlinkSync(this.#at);
  }
}

const lineOf = ({ at, bytes, name }: NamedCode): string =>
  `${at.toString(16)} ${bytes.length.toString(16)} ${name.includes("\n") ? name.replaceAll("\n", "?") : name}\n`;

function writeAll(fd: number, block: Buffer): void {
  for (let done = 0; done < block.length; ) done += writeSync(fd, block, done);
}

function endsLine(fd: number, size: number): boolean {
  const last = Buffer.alloc(1);
  return size === 0 || readSync(fd, last, 0, 1, size - 1) === 0 || last[0] === NEWLINE;
}

/** Numbers of a process's descriptors of a file. */
function* findDescriptors(pid: number, file: Stats): Generator<string> {
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    let stat: Stats;
    try {
      stat = statSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      continue;
    }
    if (stat.ino === file.ino && stat.dev === file.dev) yield fd;
  }
}

/** Where lines of ours for code in these ranges lie in a map; newlines not included. */
export function* ourLines(
  text: Buffer,
  ranges: readonly AddrRange[],
): Generator<{ readonly from: number; readonly to: number }> {
  const mark = ` ${CODE_NAME_PREFIX}`;
  let found = text.indexOf(mark);
  while (found >= 0) {
    const from = text.lastIndexOf(NEWLINE, found) + 1;
    const end = text.indexOf(NEWLINE, found);
    const to = end < 0 ? text.length : end;
    const head = /^([0-9a-f]+) [0-9a-f]+$/.exec(text.toString("latin1", from, found));
    const at = head === null ? undefined : BigInt(`0x${head[1]}`);
    if (at !== undefined && ranges.some(({ start, end: stop }) => at >= start && at < stop))
      yield { from, to };
    found = text.indexOf(mark, to);
  }
}
