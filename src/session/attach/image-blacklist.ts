/** What the file of a mapped image says about where it must not be changed. */
import { Blacklist } from "../../patch/index.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";

/** The section in which programs and libraries collect their `struct rseq_cs`. */
const RSEQ_SECTION = "__rseq_cs";

export function blacklistOf(image: MappedImage): Blacklist {
  const section = image.elf.findSection(RSEQ_SECTION);
  const start = section === undefined ? 0n : section.addr + image.bias;
  return new Blacklist({
    image: image.code,
    rseqTable: section === undefined ? undefined : { start, end: start + BigInt(section.sizeBytes) },
  });
}
