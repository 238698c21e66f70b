/** What the files have that lie in a process: text as it was before anybody changed it there. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { findMapping, type MapEntry } from "../../target/process/proc-fs.ts";
import { TargetRoot } from "../../target/process/target-root.ts";

/** The file that is mapped, not one that has its name now; undefined where it cannot be opened. To be closed by the caller. */
export function openMapped(pid: number, root: TargetRoot, map: MapEntry): number | undefined {
  const range = `${map.start.toString(16)}-${map.end.toString(16)}`;
  const candidates = [`/proc/${pid}/map_files/${range}`, root.toOpen(root.fromNamespace(map.path))];
  for (const path of candidates)
    try {
      const fd = openSync(path, "r");
      if (fstatSync(fd, { bigint: true }).ino === map.inode) return fd;
      closeSync(fd);
    } catch {
      // The next one, or none.
    }
  return undefined;
}

/** Zeroes behind the file's end, as the kernel maps it. */
export function readFilePart(fd: number, map: MapEntry, offset: number, lenBytes: number): Buffer {
  const bytes = Buffer.alloc(lenBytes);
  for (let done = 0; done < lenBytes; ) {
    const got = readSync(fd, bytes, done, lenBytes - done, Number(map.offset) + offset + done);
    if (got === 0) break;
    done += got;
  }
  return bytes;
}

/** Reads the files of one process, each opened once. */
export class FileText implements Disposable {
  readonly #pid: number;
  readonly #root: TargetRoot;
  readonly #maps: readonly MapEntry[];
  readonly #files = new Map<MapEntry, number | undefined>();

  constructor(pid: number, maps: readonly MapEntry[]) {
    this.#pid = pid;
    this.#root = TargetRoot.of(pid);
    this.#maps = maps;
  }

  /** Undefined where the file cannot be read, or the place has none. */
  read(at: bigint, lenBytes: number): Uint8Array | undefined {
    const map = findMapping(this.#maps, at);
    if (map === undefined || map.inode === 0n || at + BigInt(lenBytes) > map.end) return undefined;
    if (!this.#files.has(map)) this.#files.set(map, openMapped(this.#pid, this.#root, map));
    const fd = this.#files.get(map);
    return fd === undefined
      ? undefined
      : new Uint8Array(readFilePart(fd, map, Number(at - map.start), lenBytes));
  }

  [Symbol.dispose](): void {
    for (const fd of this.#files.values()) if (fd !== undefined) closeSync(fd);
    this.#files.clear();
  }
}
