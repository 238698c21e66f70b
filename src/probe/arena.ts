/**
 * Where code memory goes: into a free part of the address space from which a rel32 jump reaches every byte of an image and
 * back (E9 and E8 reach ±2 GiB from the end of the instruction, Intel SDM 2A, JMP and CALL).
 */
import type { AddrRange } from "../target/target.ts";

const REACH = 0x7fff_0000n;
const PAGE = 4096n;
/** Free space left on both sides: the heap grows up, stacks grow down, and neither may run into code. */
const CLEARANCE = 1n << 20n;
/** The kernel gives nothing below vm.mmap_min_addr; its default, and a good margin for null dereferences. */
const LOWEST = 0x1_0000n;
const HIGHEST = 0x7fff_ffff_f000n;

/** Whether code in `arena` and in `image` can jump to each other. */
export function reaches(arena: AddrRange, image: AddrRange): boolean {
  const low = arena.start < image.start ? arena.start : image.start;
  const high = arena.end > image.end ? arena.end : image.end;
  return high - low <= REACH;
}

/**
 * The free range of `lenBytes` nearest to the image that reaches all of it; undefined if there is none.
 * `mappings` are all mappings of the target in address order.
 */
export function findArenaPlace(
  mappings: readonly AddrRange[],
  image: AddrRange,
  lenBytes: number,
): AddrRange | undefined {
  const size = (BigInt(lenBytes) + PAGE - 1n) & ~(PAGE - 1n);
  let best: AddrRange | undefined;
  let bestDistance = REACH;
  let previousEnd = LOWEST;
  for (const next of [...mappings, { start: HIGHEST, end: HIGHEST }]) {
    const gap = { start: previousEnd + CLEARANCE, end: next.start - CLEARANCE };
    previousEnd = next.end > previousEnd ? next.end : previousEnd;
    if (gap.end - gap.start < size) continue;
    // The upper end of a gap: away from a heap below that grows up, and nearest to an image above. A gap too high for
    // that is used half way to the end of the reach.
    const starts = [gap.end - size];
    if (gap.start >= image.end) starts.push(image.end + REACH / 2n);
    for (const unaligned of starts) {
      const start = unaligned & ~(PAGE - 1n);
      const candidate = { start, end: start + size };
      if (candidate.start < gap.start || candidate.end > gap.end || !reaches(candidate, image)) continue;
      const distance =
        candidate.start < image.start ? image.start - candidate.start : candidate.end - image.end;
      if (distance >= bestDistance) continue;
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}
