import { expect, test } from "vitest";
import { hugeCandidates, provideHugeMaps } from "./arena-pages.ts";

const [MIB, GIB] = [1 << 20, 2 ** 30];

test.each([
  ["small maps", "auto", 4096, 64 * GIB, []],
  ["maps that the TLB reaches", "auto", 16 * MIB - 1, 64 * GIB, []],
  ["maps of some pages", "auto", 16 * MIB, 64 * GIB, ["2m", "thp"]],
  ["too much for what is free", "auto", 16 * MIB, 127 * MIB, ["2m"]],
  ["half a gigabyte", "auto", GIB / 2, 64 * GIB, ["2m", "thp"]],
  ["an eighth of a 1 GiB page left over", "auto", (GIB / 8) * 7, 64 * GIB, ["1g", "2m", "thp"]],
  ["a bit more than one 1 GiB page", "auto", GIB + 4096, 64 * GIB, ["2m", "thp"]],
  ["several", "auto", 8 * GIB, 64 * GIB, ["1g", "2m", "thp"]],
  ["4 KiB pages, forced", "4k", 8 * GIB, 64 * GIB, []],
  ["1 GiB pages, forced", "1g", 4096, 0, ["1g"]],
  ["transparent ones, forced", "thp", 4096, 0, ["thp"]],
] as const)("pages for maps: %s", (_, choice, lenBytes, availableBytes, candidates) => {
  expect(hugeCandidates(choice, lenBytes, availableBytes)).toEqual(candidates);
});

test("more 1 GiB pages than any machine has: forced, an error that says how to reserve them; else others, silently", () => {
  expect(() => provideHugeMaps("1g", 2 ** 45)).toThrow(/do(es)? not grant/);
  try {
    provideHugeMaps("1g", 2 ** 45);
  } catch (error) {
    expect(error).toMatchObject({
      code: "no-huge-pages",
      hint: expect.stringMatching(/reserve 32768 more.*hugepages-1048576kB\/nr_hugepages/),
    });
  }
  expect(provideHugeMaps("auto", 2 ** 45)).toBeUndefined();
});
