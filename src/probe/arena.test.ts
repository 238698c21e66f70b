import { expect, test } from "vitest";
import { findArenaPlace, reaches } from "./arena.ts";

const GiB = 1n << 30n;
const range = (start: bigint, end: bigint) => ({ start, end });

test.each([
  ["the image is alone in the middle of the address space", [range(0x5555_5555_4000n, 0x5555_5560_0000n)], 0],
  [
    "a heap that grows follows the image",
    [range(0x5555_5555_4000n, 0x5555_5560_0000n), range(0x5555_5560_1000n, 0x5555_6560_0000n)],
    0,
  ],
  [
    "libraries stand close together",
    [range(0x7f00_0000_0000n, 0x7f00_0010_0000n), range(0x7f00_0010_0000n, 0x7f00_0020_0000n)],
    1,
  ],
  ["a program at a low fixed address", [range(0x40_0000n, 0x80_0000n), range(0x80_1000n, 0x90_0000n)], 0],
])("a place is found that reaches the image: %s", (_, mappings, imageIndex) => {
  const image = mappings[imageIndex]!;
  const place = findArenaPlace(mappings, image, 256 << 10)!;
  expect(reaches(place, image)).toBe(true);
  expect(place.start % 4096n).toBe(0n);
  for (const mapping of mappings)
    expect(place.end + (1n << 20n) <= mapping.start || place.start >= mapping.end + (1n << 20n)).toBe(true);
});

test("no place reaches the image when everything within 2 GiB is taken", () => {
  const image = range(0x10_0000_0000n, 0x10_0010_0000n);
  const mappings = [
    range(image.start - 3n * GiB, image.start),
    image,
    range(image.end, image.end + 3n * GiB),
  ];
  expect(findArenaPlace(mappings, image, 4096)).toBeUndefined();
});

test("the reach counts from the far end of the image to the far end of the arena", () => {
  const image = range(0n, GiB);
  expect(reaches(range(2n * GiB - (1n << 20n), 2n * GiB - 0x1_0000n), image)).toBe(true);
  expect(reaches(range(2n * GiB - (1n << 20n), 2n * GiB), image)).toBe(false);
});
