/**
 * One ELF image as a process has mapped it: which file that is, how to read it, and where it lies.
 *
 * The kernel names the mapped file by a path that may be another file by now (an upgrade), may be gone (`(deleted)`), or
 * belongs to another mount namespace. Tried in this order, each taken only if it is the mapped file by device and inode:
 * the path through the target's root; the kernel's own handle on the mapped file (/proc/PID/map_files, needs
 * privileges); /proc/PID/exe; the path by its inode alone (on layered file systems maps and stat name different devices);
 * the path as the tracer sees it; and at last the memory of the process, where the loaded parts of the image are.
 *
 * Opening is put off until the image is asked for more than its path: a process has hundreds of images.
 */
import type { ByteSource, CodeImage, ElfFile, Segment } from "../../elf/index.ts";
import { codeImageOf, ElfError, parseElf } from "../../elf/index.ts";
import type { ElfCache, OpenedElf } from "./elf-cache.ts";
import { baseName } from "./image-name.ts";
import type { MapEntry } from "./proc-fs.ts";
import { deviceText, type TargetRoot } from "./target-root.ts";

const PT_LOAD = 1;
const PF_X = 1;
const PAGE = 0x1000n;

/** A mapped file could not be read as an ELF image. */
export class ImageError extends Error {
  readonly code = "image-unreadable";
  readonly path: string;
  constructor(path: string, detail: string, cause?: unknown) {
    super(`read image ${path}: ${detail}`, { cause });
    this.name = "ImageError";
    this.path = path;
  }
}

const anyFile = () => true;

/** What images of one process share. */
export interface ImageContext {
  readonly pid: number;
  readonly root: TargetRoot;
  readonly cache: ElfCache;
  /** Reads the process's memory: undefined where nothing is mapped, or when it may not be read at all. */
  readMemory(at: bigint, lenBytes: number): Uint8Array | undefined;
}

interface Opened {
  readonly elf: ElfFile;
  /** Device and inode as stat names them; undefined when read from memory. */
  readonly file: OpenedElf | undefined;
  readonly readFrom: string;
}

export class MappedImage {
  /** Path as the target sees it, without the kernel's ` (deleted)`. */
  readonly path: string;
  /** Base name of the path. */
  readonly name: string;
  /** Whether the path no longer leads to the mapped file. */
  readonly deleted: boolean;
  /** Device and inode as maps names them. */
  readonly dev: string;
  readonly inode: bigint;
  /** Lowest and highest address of the file's mappings. */
  readonly start: bigint;
  readonly end: bigint;
  /** Mapped executable ranges, ascending. */
  readonly execRanges: readonly { readonly start: bigint; readonly end: bigint }[];

  readonly #context: ImageContext;
  readonly #maps: readonly MapEntry[];
  #opened: Opened | undefined;
  #failure: unknown;
  #bias: bigint | undefined;
  #code: CodeImage | undefined;

  /** `maps`: the mappings of one loaded copy of a file, ascending, at least one of them executable. */
  constructor(context: ImageContext, maps: readonly MapEntry[]) {
    const first = maps[0]!;
    this.#context = context;
    this.#maps = maps;
    const shown = first.path.replace(/ \(deleted\)$/, "");
    const named = context.root.fromNamespace(first.path);
    // A file may really be called so: then its literal name still leads to it.
    const isName = shown === first.path || context.root.findStat(named)?.ino === first.inode;
    this.path = isName ? named : context.root.fromNamespace(shown);
    this.deleted = !isName;
    this.name = baseName(this.path);
    this.dev = first.dev;
    this.inode = first.inode;
    this.start = first.start;
    this.end = maps.at(-1)!.end;
    this.execRanges = maps
      .filter((map) => map.perms[2] === "x")
      .map((map) => ({ start: map.start, end: map.end }));
  }

  /** The parsed file. Throws `ImageError` or `ElfError`, at every use the same. */
  get elf(): ElfFile {
    return this.#open().elf;
  }

  /** The path, or other source, that the file was read from. */
  get readFrom(): string {
    return this.#open().readFrom;
  }

  /** Run-time address minus file address. Throws as `elf`. */
  get bias(): bigint {
    this.#bias ??= this.#findBias();
    return this.#bias;
  }

  /** The image as the code analysis wants it. Throws as `elf`. */
  get code(): CodeImage {
    this.#code ??= codeImageOf(this.elf, this.bias, this.path);
    return this.#code;
  }

  /** The library's own name for itself; undefined when it has none or the file cannot be read. */
  soname(): string | undefined {
    try {
      return this.elf.soname;
    } catch {
      return undefined;
    }
  }

  /** Whether the file is the one with this device and inode, as stat names them. */
  isFile(file: { readonly dev: bigint; readonly ino: bigint }): boolean {
    if (file.ino === this.inode && deviceText(file.dev) === this.dev) return true;
    try {
      const opened = this.#open().file;
      return opened !== undefined && opened.inode === file.ino && opened.dev === file.dev;
    } catch {
      return false;
    }
  }

  /** Whether one of the mappings holds the address. */
  contains(addr: bigint): boolean {
    return this.#maps.some((map) => addr >= map.start && addr < map.end);
  }

  isExecutable(addr: bigint): boolean {
    return this.execRanges.some((range) => addr >= range.start && addr < range.end);
  }

  #open(): Opened {
    if (this.#opened) return this.#opened;
    if (this.#failure !== undefined) throw this.#failure;
    try {
      this.#opened = this.#openFile() ?? this.#openMemory();
      return this.#opened;
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  #openFile(): Opened | undefined {
    const { pid, root, cache } = this.#context;
    const first = this.#maps.find((map) => map.perms[2] === "x") ?? this.#maps[0]!;
    const sameInode = (file: { inode: bigint }) => file.inode === this.inode;
    const sameFile = (file: { dev: bigint; inode: bigint }) =>
      file.inode === this.inode && deviceText(file.dev) === this.dev;
    const handle = `/proc/${pid}/map_files/${first.start.toString(16)}-${first.end.toString(16)}`;
    const inRoot = this.deleted ? undefined : root.toOpen(this.path);
    const ways: ReadonlyArray<readonly [string | undefined, typeof sameFile]> = [
      [inRoot, sameFile],
      [handle, anyFile],
      [`/proc/${pid}/exe`, sameFile],
      [inRoot, sameInode],
      [this.deleted ? undefined : this.path, sameFile],
    ];
    for (const [path, accept] of ways) {
      if (path === undefined) continue;
      try {
        const file = cache.open(path, this.path, accept);
        if (file) return { elf: file.elf, file, readFrom: path };
      } catch (error) {
        // It is the right file and no image that can be used: no other way will make it one.
        if (error instanceof ElfError) throw error;
      }
    }
    return undefined;
  }

  /** The image from the process's memory: whatever the loader mapped, and that is all that probes need. */
  #openMemory(): Opened {
    const first = this.#maps[0]!;
    if (first.offset !== 0n) throw new ImageError(this.path, "the file is gone, and its start is not mapped");
    if (this.#context.readMemory(this.start, 4) === undefined)
      throw new ImageError(this.path, "neither the file nor the process's memory can be read");
    const elf = parseElf(this.#memorySource(), {
      name: this.path,
      layout: { kind: "memory", loadAddr: this.start },
    });
    return { elf, file: undefined, readFrom: `memory of process ${this.#context.pid}` };
  }

  #memorySource(): ByteSource {
    const { start } = this;
    const sizeBytes = Number(this.end - start);
    return {
      sizeBytes,
      read: (offset, lenBytes) =>
        offset >= 0 && lenBytes >= 0 && offset + lenBytes <= sizeBytes
          ? this.#context.readMemory(start + BigInt(offset), lenBytes)
          : undefined,
    };
  }

  #findBias(): bigint {
    const elf = this.elf;
    if (this.#opened?.file === undefined) return this.start - lowestPage(elf);
    for (const map of this.#maps) {
      if (map.perms[2] !== "x") continue;
      const bias = biasOf(elf, map);
      if (bias !== undefined) return bias;
    }
    throw new ImageError(this.path, "no executable mapping belongs to an executable segment of the file");
  }
}

function lowestPage(elf: ElfFile): bigint {
  const starts = elf.segments.filter((s) => s.type === PT_LOAD).map((s) => s.addr & ~(PAGE - 1n));
  return starts.reduce((low, start) => (start < low ? start : low));
}

/** Load bias by one executable mapping of the file; undefined when no executable segment explains it. */
export function biasOf(elf: ElfFile, map: MapEntry): bigint | undefined {
  const covers = (segment: Segment) => {
    const start = BigInt(segment.offset) & ~(PAGE - 1n);
    return map.offset >= start && map.offset < BigInt(segment.offset + segment.fileBytes);
  };
  const segment = elf.segments.find((s) => s.type === PT_LOAD && (s.flags & PF_X) !== 0 && covers(s));
  return segment && map.start - (segment.addr + (map.offset - BigInt(segment.offset)));
}
