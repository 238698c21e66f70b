/** Places for landings: only in free memory, shared pages, a bounded number of them. */
import { describe, expect, test } from "vitest";
import { encodeLanding, LANDING_BYTES, LandingPlaces } from "./landing-places.ts";

const CLEARANCE = 0x1_0000n;
const image = { start: 0x7000_0000n, end: 0x7010_0000n };

describe("a window", () => {
  const cases: readonly { name: string; first: bigint; count: number; expected: bigint | undefined }[] = [
    {
      name: "in free memory: at a page's beginning",
      first: 0x6000_0123n,
      count: 65_536,
      expected: 0x6000_1000n,
    },
    { name: "of one address", first: 0x6000_0123n, count: 1, expected: 0x6000_0123n },
    { name: "inside of a mapping", first: 0x7000_1000n, count: 4096, expected: undefined },
    { name: "close below a mapping", first: image.start - CLEARANCE - 8n, count: 1, expected: undefined },
    {
      name: "that ends where there is just room",
      first: image.start - CLEARANCE - BigInt(LANDING_BYTES),
      count: 1,
      expected: image.start - CLEARANCE - BigInt(LANDING_BYTES),
    },
    {
      name: "that begins in a mapping and goes on behind it",
      first: image.end - 0x1000n,
      count: 2 ** 24,
      expected: image.end + CLEARANCE,
    },
    { name: "below what can be mapped", first: 0x100n, count: 4096, expected: undefined },
    { name: "of negative addresses", first: -0x1000_0000n, count: 2 ** 24, expected: undefined },
  ];
  for (const { name, first, count, expected } of cases) {
    test(name, () => expect(new LandingPlaces([image]).find(first, count)).toBe(expected));
  }

  test("of addresses far apart", () => {
    const found = new LandingPlaces([image]).find(0x7000_0044n, 256, 2 ** 24)!;
    expect(found & 0xff_ffffn).toBe(0x44n);
    expect(found).toBe(0x7100_0044n);
  });
});

test("landings share a page and do not overlap", () => {
  const places = new LandingPlaces([image]);
  const taken: bigint[] = [];
  for (let i = 0; i < 400; i++) {
    const at = places.find(0x6000_0000n + BigInt(i), 2 ** 16)!;
    places.take(at);
    taken.push(at);
  }
  taken.sort((a, b) => (a < b ? -1 : 1));
  for (let i = 1; i < taken.length; i++)
    expect(taken[i]! - taken[i - 1]!).toBeGreaterThanOrEqual(BigInt(LANDING_BYTES));
  expect(places.ranges.reduce((sum, { start, end }) => sum + Number(end - start), 0)).toBe(2 * 4096);
});

test("one address cannot be had twice", () => {
  const places = new LandingPlaces([image]);
  places.take(places.find(0x6000_0500n, 1)!);
  expect(places.find(0x6000_0500n, 1)).toBeUndefined();
  expect(places.find(0x6000_0500n - 13n, 1)).toBeUndefined();
  expect(places.find(0x6000_0500n - 14n, 1)).toBe(0x6000_0500n - 14n);
});

test("a landing over the end of a page takes both pages", () => {
  const places = new LandingPlaces([image]);
  places.take(places.find(0x6000_0ff8n, 1)!);
  expect(places.ranges).toEqual([{ start: 0x6000_0000n, end: 0x6000_2000n }]);
});

test("no more pages are taken than are allowed, and those in use go on serving", () => {
  const places = new LandingPlaces([image], 2);
  for (const first of [0x5000_0000n, 0x6000_0000n]) places.take(places.find(first, 1)!);
  expect(places.isFull).toBe(true);
  expect(places.find(0x5500_0000n, 1)).toBeUndefined();
  expect(places.find(0x5000_0800n, 1)).toBe(0x5000_0800n);
});

test("a landing is a jump through the eight bytes behind it", () => {
  const bytes = encodeLanding(0x1122_3344_5566_7788n);
  expect([...bytes]).toEqual([0xff, 0x25, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
});
