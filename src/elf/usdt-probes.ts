/**
 * Static probes (USDT) of an image: notes that <sys/sdt.h> leaves for each place where a probe is.
 *
 *     owner "stapsdt", type 3
 *     payload   u64 address of the place   u64 address of .stapsdt.base as linked   u64 address of the semaphore, or 0
 *               provider NUL name NUL arguments NUL
 *
 * Addresses are moved when the file is prelinked, which the difference of .stapsdt.base undoes. Arguments are words
 * `N@OPERAND` in the form of the assembler's, N the size in bytes, negative if signed.
 * Source: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
 */
import type { ElfFile } from "./elf-file.ts";

export interface UsdtProbe {
  readonly provider: string;
  readonly name: string;
  /** File address of the instruction. */
  readonly addr: bigint;
  /** File address of a 16-bit counter that has to be above 0 for the program to reach the place; 0: there is none. */
  readonly semaphore: bigint;
  /** As the note has them. */
  readonly args: string;
}

const NOTE_SECTION = ".note.stapsdt";
const BASE_SECTION = ".stapsdt.base";
const STAPSDT_TYPE = 3;

/** All static probes of an image, in the order of their notes; none where section headers are stripped. */
export function findUsdtProbes(elf: ElfFile): UsdtProbe[] {
  const section = elf.findSection(NOTE_SECTION);
  if (section === undefined) return [];
  const base = elf.findSection(BASE_SECTION)?.addr;
  return elf.readNotes(section).flatMap(({ owner, type, payload }) => {
    if (owner !== "stapsdt" || type !== STAPSDT_TYPE || payload.length < 24) return [];
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const moved = base === undefined ? 0n : base - view.getBigUint64(8, true);
    const semaphore = view.getBigUint64(16, true);
    const [provider, name, args] = new TextDecoder("latin1").decode(payload.subarray(24)).split("\0");
    if (!provider || !name || args === undefined) return [];
    return [
      {
        provider,
        name,
        addr: view.getBigUint64(0, true) + moved,
        semaphore: semaphore === 0n ? 0n : semaphore + moved,
        args,
      },
    ];
  });
}
