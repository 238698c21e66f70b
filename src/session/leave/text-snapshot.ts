/**
 * A process's program text at one moment, to be compared byte by byte with what is there later: every executable mapping of
 * a file, as it is in memory.
 *
 * Most of it is what its file says. So only pages that differ from the file are kept, and whole mappings whose file cannot
 * be opened any more; the files stay open as long as the snapshot, because they may be replaced meanwhile. Mappings that
 * come later are compared with their files.
 *
 * For a process whose tracer has died, the text as it was before is not at hand, but the journal has all bytes that were
 * there: a snapshot can be taken as if these had been put back (`undone`).
 *
 * Code that the process writes itself (a JIT's) is not part of it: it has no file, and changes without anybody's help.
 */
import { createHash } from "node:crypto";
import { closeSync } from "node:fs";
import { MemoryFile } from "../../target/process/memory-file.ts";
import { type MapEntry, readMaps } from "../../target/process/proc-fs.ts";
import { TargetRoot } from "../../target/process/target-root.ts";
import { openMapped, readFilePart } from "./file-text.ts";

const PAGE = 4096;
const CHUNK_BYTES = 1 << 20;
/** More differences than this are counted, not listed. */
const MOST_DIFFERENCES = 64;
/** Bytes that differ and lie this close together are one difference. */
const MAX_GAP = 8;

/** Bytes that are, or are to be, at an address. */
export interface TextPiece {
  readonly at: bigint;
  readonly bytes: Uint8Array;
}

/** A place that holds other bytes than expected. */
export interface TextDifference {
  readonly at: bigint;
  readonly path: string;
  readonly expected: Uint8Array;
  readonly found: Uint8Array;
}

export interface TextComparison {
  /** Mappings that are as they were mapped at both moments. */
  readonly ranges: number;
  readonly totalBytes: number;
  /** SHA-256 in hex of these mappings, at both moments. */
  readonly digestBefore: string;
  readonly digestAfter: string;
  readonly differences: readonly TextDifference[];
  /** How many places there are beside those in `differences`. */
  readonly moreDifferences: number;
  /** Files that were mapped before and are not any more. */
  readonly gone: readonly string[];
  /** Files that were mapped since. */
  readonly added: readonly string[];
  /** Where these hold something else than their files. */
  readonly addedDifferences: readonly TextDifference[];
  /** Bytes that differed from the files already at the first moment: by other tools, or by relocations in text. */
  readonly unlikeFilesBefore: number;
}

interface Snapped {
  readonly map: MapEntry;
  readonly digest: Uint8Array;
  readonly file: number | undefined;
  /** By number of the page: what is not as in the file. */
  readonly kept: ReadonlyMap<number, Uint8Array>;
  readonly unlikeFile: number;
}

export class TextSnapshot implements Disposable {
  readonly #mappings: readonly Snapped[];

  private constructor(mappings: readonly Snapped[]) {
    this.#mappings = mappings;
  }

  /** Reads all executable mappings of files; `undone` is taken to be there already. The process need not stand. */
  static take(pid: number, undone: readonly TextPiece[] = []): TextSnapshot {
    using memory = openMemory(pid);
    const root = TargetRoot.of(pid);
    return new TextSnapshot(textMappings(pid).map((map) => snap(pid, root, memory.file, map, undone)));
  }

  /**
   * What differs now, `undone` being taken to be there. `pid` may be another process than the snapshot's: a child that it has
   * forked.
   */
  compare(pid: number, undone: readonly TextPiece[] = []): TextComparison {
    using memory = openMemory(pid);
    const root = TargetRoot.of(pid);
    const now = new Map(textMappings(pid).map((map) => [keyOf(map), map]));
    const before = createHash("sha256");
    const after = createHash("sha256");
    const differences = new DifferenceList();
    const addedDifferences = new DifferenceList();
    const gone: string[] = [];
    let ranges = 0;
    let totalBytes = 0;
    for (const snapped of this.#mappings) {
      const { map } = snapped;
      if (!now.delete(keyOf(map))) {
        gone.push(map.path);
        continue;
      }
      ranges++;
      totalBytes += lengthOf(map);
      const head = `${map.start.toString(16)} ${map.path}\n`;
      const digest = digestOf(memory.file, map, undone);
      before.update(head).update(snapped.digest);
      after.update(head).update(digest);
      if (!Buffer.from(digest).equals(snapped.digest))
        findDifferences(memory.file, snapped, undone, differences);
    }
    for (const map of now.values()) {
      const fd = openMapped(pid, root, map);
      if (fd === undefined) continue;
      const asFile = { map, digest: new Uint8Array(0), file: fd, kept: new Map(), unlikeFile: 0 };
      findDifferences(memory.file, asFile, undone, addedDifferences);
      closeSync(fd);
    }
    return {
      ranges,
      totalBytes,
      digestBefore: before.digest("hex"),
      digestAfter: after.digest("hex"),
      differences: differences.shown,
      moreDifferences: differences.more,
      gone: [...new Set(gone)],
      added: [...new Set([...now.values()].map(({ path }) => path))],
      addedDifferences: addedDifferences.shown,
      unlikeFilesBefore: this.#mappings.reduce((sum, { unlikeFile }) => sum + unlikeFile, 0),
    };
  }

  [Symbol.dispose](): void {
    for (const { file } of this.#mappings) if (file !== undefined) closeSync(file);
  }
}

function textMappings(pid: number): MapEntry[] {
  return readMaps(pid).filter(
    ({ perms, inode, path }) => perms[2] === "x" && inode !== 0n && !path.startsWith("/memfd:trapline"),
  );
}

const keyOf = ({ start, end, path, offset }: MapEntry) => `${start} ${end} ${offset} ${path}`;
const lengthOf = ({ start, end }: MapEntry) => Number(end - start);

function openMemory(pid: number): { readonly file: MemoryFile } & Disposable {
  const file = MemoryFile.open(pid, "r");
  return { file, [Symbol.dispose]: () => file.close() };
}

function snap(
  pid: number,
  root: TargetRoot,
  memory: MemoryFile,
  map: MapEntry,
  undone: readonly TextPiece[],
): Snapped {
  const file = openMapped(pid, root, map);
  const kept = new Map<number, Uint8Array>();
  const hash = createHash("sha256");
  let unlikeFile = 0;
  for (const { offset, bytes } of chunksOf(memory, map)) {
    layOver(bytes, map.start + BigInt(offset), undone);
    hash.update(bytes);
    const original = file === undefined ? undefined : readFilePart(file, map, offset, bytes.length);
    if (original !== undefined && Buffer.from(bytes.buffer).equals(original)) continue;
    for (let at = 0; at < bytes.length; at += PAGE) {
      const page = bytes.subarray(at, at + PAGE);
      const inFile = original?.subarray(at, at + PAGE);
      if (inFile?.equals(page)) continue;
      kept.set((offset + at) / PAGE, page.slice());
      if (inFile !== undefined)
        unlikeFile += page.reduce((sum, byte, i) => sum + (byte === inFile[i] ? 0 : 1), 0);
    }
  }
  return { map, digest: hash.digest(), file, kept, unlikeFile };
}

function layOver(bytes: Uint8Array, start: bigint, pieces: readonly TextPiece[]): void {
  const end = start + BigInt(bytes.length);
  for (const { at, bytes: piece } of pieces)
    for (let index = 0; index < piece.length; index++) {
      const address = at + BigInt(index);
      if (address >= start && address < end) bytes[Number(address - start)] = piece[index]!;
    }
}

/** What cannot be read (behind the end of a truncated file) counts as zeroes. */
function* chunksOf(
  memory: MemoryFile,
  map: MapEntry,
): Generator<{ readonly offset: number; readonly bytes: Uint8Array<ArrayBuffer> }> {
  const lenBytes = lengthOf(map);
  for (let offset = 0; offset < lenBytes; offset += CHUNK_BYTES) {
    const bytes = new Uint8Array(Math.min(CHUNK_BYTES, lenBytes - offset));
    for (let done = 0; done < bytes.length; ) {
      const got = memory.readInto(map.start + BigInt(offset + done), bytes.subarray(done));
      done += got;
      // On to the next page behind one that cannot be read.
      if (done < bytes.length) done = (Math.floor(done / PAGE) + 1) * PAGE;
    }
    yield { offset, bytes };
  }
}

function digestOf(memory: MemoryFile, map: MapEntry, undone: readonly TextPiece[]): Uint8Array {
  const hash = createHash("sha256");
  for (const { offset, bytes } of chunksOf(memory, map)) {
    layOver(bytes, map.start + BigInt(offset), undone);
    hash.update(bytes);
  }
  return hash.digest();
}

class DifferenceList {
  readonly shown: TextDifference[] = [];
  more = 0;

  add(difference: TextDifference): void {
    if (this.shown.length < MOST_DIFFERENCES) this.shown.push(difference);
    else this.more++;
  }
}

function findDifferences(
  memory: MemoryFile,
  { map, file, kept }: Snapped,
  undone: readonly TextPiece[],
  list: DifferenceList,
): void {
  for (const { offset, bytes } of chunksOf(memory, map)) {
    layOver(bytes, map.start + BigInt(offset), undone);
    const expected =
      file === undefined ? Buffer.alloc(bytes.length) : readFilePart(file, map, offset, bytes.length);
    for (let at = 0; at < bytes.length; at += PAGE) expected.set(kept.get((offset + at) / PAGE) ?? [], at);
    if (expected.equals(bytes)) continue;
    for (const [from, to] of differingRuns(expected, bytes))
      list.add({
        at: map.start + BigInt(offset + from),
        path: map.path,
        expected: new Uint8Array(expected.subarray(from, to)),
        found: bytes.slice(from, to),
      });
  }
}

/** Half-open runs of bytes that differ. */
export function differingRuns(a: Uint8Array, b: Uint8Array): [number, number][] {
  const runs: [number, number][] = [];
  for (let at = 0; at < a.length; at++) {
    if (a[at] === b[at]) continue;
    const last = runs.at(-1);
    if (last !== undefined && at - last[1] < MAX_GAP) last[1] = at + 1;
    else runs.push([at, at + 1]);
  }
  return runs;
}
