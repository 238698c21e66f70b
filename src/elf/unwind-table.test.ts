import { describe, expect, it } from "vitest";
import { buildProgram, outputOf } from "../../test/support/build-program.ts";
import { bashPath, libcPath, openElf, smallPrograms, throwingSource } from "../../test/support/elf-images.ts";

/** Ranges of all entries in .eh_frame as readelf decodes them (it prints .debug_frame as well). */
function readelfRanges(path: string): Array<[bigint, bigint]> {
  const ranges: Array<[bigint, bigint]> = [];
  const listing = outputOf("readelf", ["-wFN", path]);
  const ehFrame = listing.slice(listing.indexOf(" .eh_frame section")).split(" .debug_frame section")[0]!;
  for (const match of ehFrame.matchAll(/ FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)/g)) {
    ranges.push([BigInt(`0x${match[1]}`), BigInt(`0x${match[2]}`)]);
  }
  return ranges.sort(([a], [b]) => (a < b ? -1 : 1));
}

const throwing = () =>
  buildProgram({ name: "throwing", source: throwingSource, flags: ["-O2"], compiler: "g++" });
const images: Record<string, () => string> = { libc: () => libcPath, ...smallPrograms, "C++": throwing };
if (bashPath) images.bash = () => bashPath!;

describe("function ranges, against readelf", () => {
  it.each(Object.entries(images))("%s", (_, path) => {
    const file = path();
    const elf = openElf(file);
    const expected = readelfRanges(file);
    expect(elf.unwind.ranges.map((r) => [elf.addrOf(r.start), elf.addrOf(r.end)])).toEqual(expected);
    const step = Math.ceil(expected.length / 200);
    for (let i = 0; i < expected.length; i += step) {
      const [start, end] = expected[i]!;
      for (const addr of [start, end - 1n]) {
        const range = elf.unwind.findRange(elf.rel(addr))!;
        expect([elf.addrOf(range.start), elf.addrOf(range.end)]).toEqual([start, end]);
      }
    }
    const last = expected.at(-1)![1];
    expect(elf.unwind.findRange(elf.rel(last))).toBeUndefined();
    expect(elf.unwind.findRange(-1_000_000)).toBeUndefined();
  });
});

describe("landing pads", () => {
  it("are where the compiler's own listing puts them", () => {
    const elf = openElf(throwing());
    const pads = [...elf.unwind.landingPads].map((rel) => elf.addrOf(rel));
    // A pad is where the unwinder enters the function: nothing in the text jumps to it. `guarded` has one
    // at least (the handler), in its hot or its cold part.
    const inGuarded = pads.filter((pad) => elf.symbols.enclosing(pad)?.symbol.name.startsWith("_Z7guardedi"));
    expect(inGuarded.length).toBeGreaterThanOrEqual(1);
    const code = outputOf("objdump", ["-d", "--no-show-raw-insn", throwing()]);
    for (const pad of pads) expect(code).toContain(` ${pad.toString(16)}:\t`);
    for (const pad of pads) expect(elf.unwind.findRange(elf.rel(pad))).toBeDefined();
  });

  it("there are none in C without cleanup", () => {
    expect([...openElf(smallPrograms.PIE!()).unwind.landingPads]).toEqual([]);
  });
});
