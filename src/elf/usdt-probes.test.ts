import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { buildFixture } from "../../test/support/fixtures.ts";
import { byteSourceOf } from "./byte-source.ts";
import { parseElf } from "./elf-file.ts";
import { findUsdtProbes } from "./usdt-probes.ts";

const probesOf = (path: string) => {
  const elf = parseElf(byteSourceOf(readFileSync(path)));
  return { elf, probes: findUsdtProbes(elf) };
};

describe("static probes", () => {
  it("are found with their arguments, in their functions", () => {
    const { elf, probes } = probesOf(buildFixture("static-probes"));
    expect(
      probes.map(({ provider, name, addr, args, semaphore }) => ({
        probe: `${provider}:${name}`,
        in: elf.symbols.enclosing(addr)?.symbol.name,
        args,
        isGuarded: semaphore !== 0n,
      })),
    ).toEqual([
      { probe: "fixture:step", in: "step", args: "-4@%edi 8@%rsi -8@$-7 1@%cl 8@8(%rdx)", isGuarded: false },
      { probe: "fixture:step", in: "other_place", args: "-4@$-1 8@%rax", isGuarded: false },
      { probe: "fixture:guarded", in: "guarded", args: "", isGuarded: true },
    ]);
    expect(probes[2]!.semaphore).toBe(elf.findSection(".probes")!.addr);
  });

  it("are none in an image without their notes", () => {
    expect(probesOf(buildFixture("counter")).probes).toEqual([]);
  });
});
