/**
 * Looking through live stacks for words that look like addresses of ours: whatever lies above a thread's stack pointer,
 * and above those that its signal handlers will return to.
 *
 * This is more than what decides whether code can be freed (commit.ts asks what a thread really returns to): a word may be
 * left over from a call that is done, in a part of a frame that nothing has been written to since. So what is found here is
 * counted and shown, and decides nothing.
 */
import type { AddrRange } from "../target.ts";
import type { MemoryFile } from "./memory-file.ts";

/** As in signal-frames.ts: of a large mapping, only a part above the stack pointer can be one stack. */
const LARGEST_STACK_MAPPING = 64n << 20n;
const STACK_SCAN_BYTES = 8 << 20;
const HEAP_STACK_SCAN_BYTES = 256 << 10;
const CHUNK_BYTES = 256 << 10;

export interface StackWord {
  /** Where on the stack it lies. */
  readonly at: bigint;
  readonly value: bigint;
}

export interface StackScan {
  /** Words that were looked at. */
  readonly words: number;
  readonly found: readonly StackWord[];
}

/** `starts` are stack pointers of one thread; `ranges` what is looked for. */
export function findStackWords(
  memory: Pick<MemoryFile, "readInto">,
  mappings: readonly AddrRange[],
  starts: readonly bigint[],
  ranges: readonly AddrRange[],
): StackScan {
  const matcher = new RangeMatcher(ranges);
  const found: StackWord[] = [];
  let looked = 0;
  const scanned = new Set<AddrRange>();
  // Of several stack pointers into one mapping the lowest sees most.
  for (const start of [...starts].sort((a, b) => (a < b ? -1 : 1))) {
    const mapping = mappings.find((entry) => start >= entry.start && start < entry.end);
    if (mapping === undefined || scanned.has(mapping)) continue;
    scanned.add(mapping);
    const limit =
      mapping.end - mapping.start > LARGEST_STACK_MAPPING ? HEAP_STACK_SCAN_BYTES : STACK_SCAN_BYTES;
    const from = (start + 7n) & ~7n;
    const lenBytes = Math.min(Number(mapping.end - from), limit);
    for (let at = 0; at < lenBytes; at += CHUNK_BYTES) {
      const bytes = new Uint8Array(Math.min(CHUNK_BYTES, lenBytes - at));
      const got = memory.readInto(from + BigInt(at), bytes) & ~7;
      looked += got >>> 3;
      for (const { offset, value } of matcher.find(new Uint32Array(bytes.buffer, 0, got >>> 2)))
        found.push({ at: from + BigInt(at + offset), value });
      if (got < bytes.length) break;
    }
  }
  return { words: looked, found };
}

/** Compares halves of words as numbers: nearly every word is told by its upper half alone. */
class RangeMatcher {
  readonly #ranges: readonly AddrRange[];
  readonly #upperHalves: ReadonlySet<number>;

  constructor(ranges: readonly AddrRange[]) {
    this.#ranges = ranges;
    const halves = new Set<number>();
    for (const { start, end } of ranges)
      for (let half = start >> 32n; half <= (end - 1n) >> 32n; half++) halves.add(Number(half));
    this.#upperHalves = halves;
  }

  *find(halves: Uint32Array): Generator<{ readonly offset: number; readonly value: bigint }> {
    for (let index = 1; index < halves.length; index += 2) {
      if (!this.#upperHalves.has(halves[index]!)) continue;
      const value = (BigInt(halves[index]!) << 32n) | BigInt(halves[index - 1]!);
      if (this.#ranges.some(({ start, end }) => value >= start && value < end))
        yield { offset: (index - 1) * 4, value };
    }
  }
}
