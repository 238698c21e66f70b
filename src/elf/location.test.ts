import { describe, expect, it } from "vitest";
import { buildProgram } from "../../test/support/build-program.ts";
import { libcPath, openElf, smallPrograms } from "../../test/support/elf-images.ts";
import { describePlaceRefusal, findPlace } from "./location.ts";

const source = `
#include <stdio.h>
namespace outer { namespace inner {
  struct Thing { __attribute__((noinline)) int work(int x) const; };
  int Thing::work(int x) const { return x * 3; }
} }
static __attribute__((noinline)) int same(int x) { return x + 1; }
__attribute__((noinline)) int same_two(int x) { return same(x) * 2; }
int main(int argc, char **) { std::printf("%d\\n", outer::inner::Thing().work(argc) + same_two(argc)); }
`.replace("<stdio.h>", "<cstdio>");

describe("places in an image", () => {
  const elf = openElf(smallPrograms.PIE!());
  const visible = elf.symbols.find("visible")[0]!;
  const nameAt = (addr: bigint) => findPlace(elf, { kind: "address", address: addr }).locations[0];

  it.each([
    { name: "exact", symbol: "visible", offsetBytes: 0, addrs: [visible.addr] },
    { name: "alias", symbol: "also_visible", offsetBytes: 0, addrs: [visible.addr] },
    { name: "with offset", symbol: "visible", offsetBytes: 3, addrs: [visible.addr + 3n] },
    { name: "pattern over aliases: one address", symbol: "*visible", offsetBytes: 0, addrs: [visible.addr] },
    {
      name: "last byte",
      symbol: "visible",
      offsetBytes: visible.sizeBytes - 1,
      addrs: [visible.addr + BigInt(visible.sizeBytes - 1)],
    },
  ])("$name", ({ symbol, offsetBytes, addrs }) => {
    const { locations, refusal } = findPlace(elf, { kind: "symbol", symbol, offsetBytes });
    expect(refusal).toBeUndefined();
    expect(locations.map((l) => [l.addr, l.offsetBytes])).toEqual(addrs.map((addr) => [addr, offsetBytes]));
  });

  it("an address knows its function", () => {
    expect(nameAt(visible.addr + 2n)).toMatchObject({ symbol: { name: "visible" }, offsetBytes: 2 });
  });

  it.each([
    {
      name: "offset of the size",
      place: { kind: "symbol", symbol: "visible", offsetBytes: visible.sizeBytes },
      reason: "offset-outside-symbol",
    },
    {
      name: "negative offset",
      place: { kind: "symbol", symbol: "visible", offsetBytes: -1 },
      reason: "offset-outside-symbol",
    },
    { name: "imported function", place: { kind: "symbol", symbol: "printf" }, reason: "unknown-symbol" },
    {
      name: "data address",
      place: { kind: "address", address: elf.findSection(".data")!.addr },
      reason: "not-code",
    },
    {
      name: "constant next to code",
      place: { kind: "address", address: elf.findSection(".rodata")!.addr },
      reason: "not-code",
    },
    { name: "address outside", place: { kind: "address", address: 1n << 60n }, reason: "not-code" },
    { name: "pattern that matches nothing", place: { kind: "symbol", symbol: "qq*" }, reason: "no-match" },
  ] as const)("refused: $name", ({ place, reason }) => {
    const { locations, refusal } = findPlace(elf, place);
    expect(locations).toEqual([]);
    expect(refusal?.reason).toBe(reason);
    expect(describePlaceRefusal(refusal!).message).not.toBe("");
  });

  it("constants in the same segment as code are not code", () => {
    const mixed = openElf(smallPrograms["code and constants in one segment"]!());
    const address = mixed.findSection(".rodata")!.addr;
    expect(findPlace(mixed, { kind: "address", address }).refusal).toMatchObject({
      reason: "not-code",
      where: ".rodata",
    });
  });

  it("an imported function's advice", () => {
    const { refusal } = findPlace(elf, { kind: "symbol", symbol: "printf" });
    expect(describePlaceRefusal(refusal!).hint).toMatch(/only calls printf/);
  });

  it("no names at all", () => {
    const bare = openElf(smallPrograms["stripped PIE"]!());
    const { refusal } = findPlace(bare, { kind: "symbol", symbol: "visible" });
    expect(describePlaceRefusal(refusal!).message).toMatch(/stripped/);
  });

  it("resolvers: refused by exact name, with implementations where the image names them; left out by patterns", () => {
    const full = openElf(smallPrograms.static!());
    const { refusal } = findPlace(full, { kind: "symbol", symbol: "memcpy" });
    expect(refusal).toMatchObject({ reason: "resolver", symbol: "memcpy" });
    expect(describePlaceRefusal(refusal!).hint).toMatch(/__memcpy_|__memmove_|address/);
    const libc = openElf(libcPath);
    const matched = findPlace(libc, { kind: "symbol", symbol: "mem*" }).locations.map((l) => l.symbol!);
    expect(matched.filter((symbol) => symbol.kind !== "func" || symbol.name === "memcpy")).toEqual([]);
  });

  it("qualified C++ names get a pattern that works", () => {
    const cxx = openElf(buildProgram({ name: "qualified", source, flags: ["-O1"], compiler: "g++" }));
    const { refusal } = findPlace(cxx, { kind: "symbol", symbol: "outer::inner::Thing::work(int)" });
    const pattern = refusal?.reason === "unknown-symbol" ? refusal.mangledPattern! : "";
    expect(describePlaceRefusal(refusal!).hint).toContain(pattern);
    const found = findPlace(cxx, { kind: "symbol", symbol: pattern }).locations;
    expect(found.map((l) => l.symbol?.name)).toEqual(["_ZNK5outer5inner5Thing4workEi"]);
  });
});
