import { expect, it } from "vitest";
import { ProcessImages } from "./images.ts";
import { readMaps } from "./proc-fs.ts";

it("a part of an image's text that is mapped once more, far away, is an image of its own", () => {
  const maps = readMaps(process.pid);
  using images = ProcessImages.open(process.pid);
  const program = images.program!;
  const [text] = maps.filter(
    ({ start, path, perms }) => path === program.path && perms[2] === "x" && program.contains(start),
  );
  const start = 0x7abc_0000_0000n;
  const copy = { ...text!, start, end: start + 0x1000n };
  const [beforeCopy, behindCopy] = [
    maps.filter((map) => map.start < start),
    maps.filter((map) => map.start > start),
  ];
  const { added, removed } = images.refresh([...beforeCopy, copy, ...behindCopy]);
  expect(removed).toEqual([]);
  expect(added.map((image) => [image.path, image.start, image.end])).toEqual([
    [program.path, copy.start, copy.end],
  ]);
  expect(added[0]!.bias - program.bias).toBe(copy.start - text!.start);
});
