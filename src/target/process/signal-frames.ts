/**
 * Finding the positions that signal handlers will return to: saved instruction pointers in signal frames on a
 * thread's stack, or on its alternate stack and the stack beneath.
 *
 * A frame is known by the word that saves the segment selectors in `struct sigcontext`: cs 0x33 (64-bit user code), gs 0,
 * fs 0, ss 0x2b (arch/x86/include/uapi/asm/sigcontext.h; 64-bit kernels always save ss). It stands three words above
 * the saved rsp:
 *
 *     rsp | rip | eflags | cs gs fs ss
 *
 * A frame that is long dead can still be lying in memory that a later frame has not written to. So a hit means
 * "may be": what is decided from it must be safe, only slower, when it is wrong.
 */
import type { AddrRange } from "../target.ts";
import type { MemoryFile } from "./memory-file.ts";
import { findMapping } from "./proc-fs.ts";

/** As bytes, to be searched by compiled code: all threads stand while their stacks are looked through. */
const SELECTORS = Buffer.from([0x33, 0, 0, 0, 0, 0, 0x2b, 0]);

/** A stack this far from the end of its mapping is one of many in a heap (goroutines, coroutines). */
const LARGEST_STACK_MAPPING = 64n << 20n;
const STACK_SCAN_BYTES = 8 << 20;
const HEAP_STACK_SCAN_BYTES = 256 << 10;
const CHUNK_BYTES = 256 << 10;

type ReadableMemory = Pick<MemoryFile, "readInto">;

/** Name of the memory of private stacks. */
export const STACKS_MEMORY_NAME = "trapline-stacks";
const STACKS_PATH = `/memfd:${STACKS_MEMORY_NAME} (deleted)`;
/**
 * A guard page lies between any two private stacks, so each is a mapping of its own. So far from its end it says where its
 * thread has left its own stack, 0 if it has not (gate/private-stacks.ts).
 */
export const LEFT_SP_FROM_END = 56n;

/** A mapping with its name. */
export type StackMapping = AddrRange & { readonly path?: string };

export interface SavedPosition {
  readonly ip: bigint;
  readonly sp: bigint;
  /** Where the handler returns to (the frame's first word), which makes the kernel undo the frame; 0 if it has gone there. */
  readonly restorer: bigint;
}

/** From the frame's first word to its saved rip: the return address, then `ucontext` up to the 17th register. */
const RIP_IN_FRAME_WORDS = 22;

/**
 * The saved positions in signal frames reachable from a thread's stack pointer, nested ones included. From a private stack of
 * ours the search goes on on the thread's own.
 */
export function findSavedPositions(
  memory: ReadableMemory,
  mappings: readonly StackMapping[],
  sp: bigint,
): SavedPosition[] {
  const found: SavedPosition[] = [];
  const scanned = new Set<StackMapping>();
  const pending = [sp];
  for (let from = pending.pop(); from !== undefined; from = pending.pop()) {
    const mapping = findMapping(mappings, from);
    if (mapping === undefined || scanned.has(mapping)) continue;
    scanned.add(mapping);
    const own = findOwnStack(memory, mapping);
    if (own !== undefined) pending.push(own);
    for (const position of scan(memory, from, mapping)) {
      found.push(position);
      pending.push(position.sp);
    }
  }
  return found;
}

/** Where the thread of a private stack goes on on its own. */
function findOwnStack(memory: ReadableMemory, { path, end }: StackMapping): bigint | undefined {
  if (path !== STACKS_PATH) return undefined;
  const word = new Uint8Array(8);
  if (memory.readInto(end - LEFT_SP_FROM_END, word) < 8) return undefined;
  const own = new DataView(word.buffer).getBigUint64(0, true);
  return own === 0n ? undefined : own;
}

function* scan(memory: ReadableMemory, sp: bigint, mapping: AddrRange): Generator<SavedPosition> {
  const limit =
    mapping.end - mapping.start > LARGEST_STACK_MAPPING ? HEAP_STACK_SCAN_BYTES : STACK_SCAN_BYTES;
  const from = (sp + 7n) & ~7n;
  const lenBytes = Math.min(Number(mapping.end - from), limit);
  // Chunks overlap by the words of a frame below its selectors.
  const OVERLAP = (RIP_IN_FRAME_WORDS + 2) * 8;
  for (let at = 0; at < lenBytes; at += CHUNK_BYTES - OVERLAP) {
    const bytes = new Uint8Array(Math.min(CHUNK_BYTES, lenBytes - at));
    const got = memory.readInto(from + BigInt(at), bytes);
    const stack = Buffer.from(bytes.buffer, 0, got);
    const words = new Uint32Array(bytes.buffer, 0, got >>> 2);
    // The saved rsp and rip below the selectors must have been read too.
    let found = stack.indexOf(SELECTORS, at === 0 ? 24 : OVERLAP);
    for (; found >= 0; found = stack.indexOf(SELECTORS, found + 1)) {
      if (found % 8 !== 0) continue;
      const low = found / 4;
      const restorerAt = low - 4 - RIP_IN_FRAME_WORDS * 2;
      yield {
        ip: wordAt(words, low - 4),
        sp: wordAt(words, low - 6),
        restorer: restorerAt >= 0 ? wordAt(words, restorerAt) : 0n,
      };
    }
    if (got < bytes.length) return;
  }
}

function wordAt(words: Uint32Array, index: number): bigint {
  return (BigInt(words[index + 1]!) << 32n) | BigInt(words[index]!);
}
