/**
 * ELF files opened for reading, each parsed once.
 *
 * Files are kept open and read piece by piece: a program can have hundreds of megabytes, and its path can be replaced
 * (an upgrade) or become unreachable (the process ends) while it is still being asked about. A file is known by
 * device, inode, size and time of change, so that processes in several containers share what is the same file.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { type ByteSource, type ElfFile, parseElf } from "../../elf/index.ts";

/** An open file as the cache knows it. */
export interface OpenedElf {
  readonly elf: ElfFile;
  readonly dev: bigint;
  readonly inode: bigint;
}

export class ElfCache implements Disposable {
  readonly #files = new Map<string, { readonly opened: OpenedElf; readonly fd: number }>();

  /**
   * Opens and parses a file, or returns it as parsed before. Throws what `openSync` throws, and `ElfError`.
   * `accept` can turn down the file that the path leads to, by its device and inode: the result is then undefined.
   */
  open(
    path: string,
    name: string,
    accept: (file: { dev: bigint; inode: bigint }) => boolean = () => true,
  ): OpenedElf | undefined {
    const fd = openSync(path, "r");
    let kept = false;
    try {
      const stat = fstatSync(fd, { bigint: true });
      if (!stat.isFile() || !accept({ dev: stat.dev, inode: stat.ino })) return undefined;
      const key = `${stat.dev}:${stat.ino}:${stat.size}:${stat.mtimeNs}`;
      const known = this.#files.get(key);
      if (known) return known.opened;
      const elf = parseElf(sourceOfFile(fd, Number(stat.size)), { name });
      const opened = { elf, dev: stat.dev, inode: stat.ino };
      this.#files.set(key, { opened, fd });
      kept = true;
      return opened;
    } finally {
      if (!kept) closeSync(fd);
    }
  }

  /** Closes the files: what has not been read of them can no longer be. */
  [Symbol.dispose](): void {
    for (const { fd } of this.#files.values()) closeSync(fd);
    this.#files.clear();
  }
}

function sourceOfFile(fd: number, sizeBytes: number): ByteSource {
  return {
    sizeBytes,
    read(offset, lenBytes) {
      if (offset < 0 || lenBytes < 0 || offset + lenBytes > sizeBytes) return undefined;
      // A buffer of its own, so that word views are aligned and a small read does not pin a large pool.
      const bytes = new Uint8Array(lenBytes);
      for (let done = 0; done < lenBytes; ) {
        const got = readSync(fd, bytes, done, lenBytes - done, offset + done);
        if (got === 0) return undefined;
        done += got;
      }
      return bytes;
    },
  };
}
