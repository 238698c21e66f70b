import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { outputOf } from "../../test/support/build-program.ts";
import { encodeSymbolFile } from "./symbol-file.ts";

test("readelf finds each symbol in the section of its stretch of memory", () => {
  const folder = mkdtempSync(join(tmpdir(), "symbol-file-"));
  try {
    const path = join(folder, "symbols");
    const ranges = [
      { at: 0x7f00_0020_0000n, lenBytes: 0x20, name: "far" },
      { at: 0x7f00_0000_0000n, lenBytes: 0x10, name: "first name" },
      { at: 0x7f00_0000_0100n, lenBytes: 0x40, name: "second" },
    ];
    writeFileSync(path, encodeSymbolFile(ranges, new Uint8Array(4)));
    const sections = outputOf("readelf", ["-SW", path]);
    expect(sections).toMatch(/\.text +NOBITS +00007f0000000000 \w+ 000140/);
    expect(sections).toMatch(/\.text\.1 +NOBITS +00007f0000200000 \w+ 000020/);
    const symbols = outputOf("readelf", ["-sW", path]).split("\n");
    const found = (name: string) =>
      symbols
        .find((line) => line.endsWith(` ${name}`))!
        .trim()
        .split(/ +/);
    expect(found("first name").slice(1, 7)).toEqual([
      "00007f0000000000",
      "16",
      "FUNC",
      "GLOBAL",
      "DEFAULT",
      "1",
    ]);
    expect(found("second").slice(1, 7)).toEqual(["00007f0000000100", "64", "FUNC", "GLOBAL", "DEFAULT", "1"]);
    expect(found("far").slice(1, 7)).toEqual(["00007f0000200000", "32", "FUNC", "GLOBAL", "DEFAULT", "2"]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
