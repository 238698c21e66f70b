/**
 * Text that leads to a dead session's code, and of which its journal says nothing: the process has written over the record. It is
 * found by comparing all program text with its files, and put back as it is there, before the code is unmapped.
 */
import { MemoryFile } from "../../target/process/memory-file.ts";
import type { MapEntry } from "../../target/process/proc-fs.ts";
import type { AddrRange, SitePoke } from "../../target/target.ts";
import type { FileText } from "./file-text.ts";
import { differingRuns } from "./text-snapshot.ts";

const CHUNK_BYTES = 1 << 20;
/** `e8 rel32` and `e9 rel32` */
const CALL = 0xe8;
const JMP = 0xe9;
const JUMP_BYTES = 5;

/** What puts back the jumps and calls into `code` that are not in `known`. */
export function findStrayJumps(
  pid: number,
  maps: readonly MapEntry[],
  files: FileText,
  code: readonly AddrRange[],
  known: readonly { readonly at: bigint; readonly lenBytes: number }[],
): SitePoke[] {
  if (code.length === 0) return [];
  const pokes: SitePoke[] = [];
  const memory = MemoryFile.open(pid, "r");
  try {
    for (const { start, end, perms, inode, path } of maps) {
      if (perms[2] !== "x" || inode === 0n || path.startsWith("/memfd:trapline")) continue;
      // Chunks overlap by a jump.
      for (let at = start; at < end; at += BigInt(CHUNK_BYTES - JUMP_BYTES)) {
        const lenBytes = Number(end - at < BigInt(CHUNK_BYTES) ? end - at : BigInt(CHUNK_BYTES));
        const bytes = new Uint8Array(lenBytes);
        const original = files.read(at, lenBytes);
        if (original === undefined || memory.readInto(at, bytes) < lenBytes) break;
        if (Buffer.from(bytes.buffer).equals(original)) continue;
        for (const offset of jumpsInto(bytes, original, at, code)) {
          const place = at + BigInt(offset);
          const isKnown = known.some(
            (each) => place < each.at + BigInt(each.lenBytes) && place + BigInt(JUMP_BYTES) > each.at,
          );
          if (isKnown || pokes.some((poke) => poke.at === place)) continue;
          pokes.push({
            at: place,
            expect: bytes.slice(offset, offset + JUMP_BYTES),
            write: original.slice(offset, offset + JUMP_BYTES),
            fallback: original.slice(offset, offset + JUMP_BYTES),
            moves: [],
          });
        }
      }
    }
  } finally {
    memory.close();
  }
  return pokes;
}

/** Offsets of jumps and calls into `code` that are not in the file; the first byte can be the same by chance. */
function jumpsInto(
  bytes: Uint8Array,
  original: Uint8Array,
  start: bigint,
  code: readonly AddrRange[],
): number[] {
  const view = new DataView(bytes.buffer);
  const found: number[] = [];
  for (const [from, to] of differingRuns(original, bytes))
    for (let at = Math.max(0, from - JUMP_BYTES + 1); at < to && at + JUMP_BYTES <= bytes.length; at++) {
      if (bytes[at] !== JMP && bytes[at] !== CALL) continue;
      const target = start + BigInt(at + JUMP_BYTES + view.getInt32(at + 1, true));
      if (!code.some((range) => target >= range.start && target < range.end)) continue;
      found.push(at);
      at += JUMP_BYTES - 1;
    }
  return found;
}
