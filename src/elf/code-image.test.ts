import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { outputOf } from "../../test/support/build-program.ts";
import { libcPath, nodePath, openElf, smallPrograms } from "../../test/support/elf-images.ts";
import { byteSourceOf } from "./byte-source.ts";
import { codeImageOf } from "./code-image.ts";
import { parseElf } from "./elf-file.ts";

const BIAS = 0x7f12_3456_7000n;

describe("functions", () => {
  it.each(Object.entries(smallPrograms))(
    "%s: bounds of visible as its symbol says, shifted by the bias",
    (kind, path) => {
      const image = codeImageOf(openElf(path()), BIAS);
      const listing = outputOf("readelf", ["-sW", path()]);
      const symbol = /: ([0-9a-f]+)\s+(\d+) FUNC\s+\S+\s+\S+\s+\S+ visible\n/.exec(listing);
      if (!symbol) {
        expect(kind).toBe("stripped PIE");
        return;
      }
      const start = BigInt(`0x${symbol[1]}`) + BIAS;
      const end = start + BigInt(symbol[2]!);
      expect(image.findFunction(start)).toMatchObject({ start, end });
      expect(image.findFunction(end - 1n)).toMatchObject({ start, end });
      expect(["visible", "also_visible"]).toContain(image.findFunction(start)!.name);
    },
  );

  it("a stripped program has the same bounds from its unwind table, without names", () => {
    const whole = openElf(smallPrograms.PIE!());
    const visible = whole.symbols.find("visible")[0]!;
    // Same source and flags but for -s, so the code is at the same place.
    const image = codeImageOf(openElf(smallPrograms["stripped PIE"]!()), 0n);
    expect(image.findFunction(visible.addr + 1n)).toEqual({
      start: visible.addr,
      end: visible.addr + BigInt(visible.sizeBytes),
      name: undefined,
    });
  });

  it("there is none in data, in padding and outside", () => {
    const elf = openElf(smallPrograms.PIE!());
    const image = codeImageOf(elf, BIAS);
    expect(image.findFunction(BIAS)).toBeUndefined();
    expect(image.findFunction(elf.findSection(".data")!.addr + BIAS)).toBeUndefined();
    expect(image.findFunction(0n)).toBeUndefined();
  });

  it("every function of libc is found again from its first and last byte", () => {
    const elf = openElf(libcPath);
    const image = codeImageOf(elf, BIAS);
    for (const { start, end } of elf.unwind.ranges) {
      for (const addr of [elf.addrOf(start) + BIAS, elf.addrOf(end) + BIAS - 1n]) {
        const found = image.findFunction(addr)!;
        expect(found.start <= addr && addr < found.end).toBe(true);
      }
    }
  });
});

describe("text", () => {
  it("is what the file holds, at the run-time address", () => {
    const file = smallPrograms.PIE!();
    const elf = openElf(file);
    const [text] = codeImageOf(elf, BIAS).text;
    const segment = elf.segments.find((s) => s.type === 1 && (s.flags & 1) === 1)!;
    expect(text!.start).toBe(segment.addr + BIAS);
    expect(Buffer.from(text!.bytes)).toEqual(
      readFileSync(file).subarray(segment.offset, segment.offset + segment.fileBytes),
    );
  });
});

describe("pointers into text", () => {
  it.each([
    "PIE",
    "fixed address",
    "static",
    "static PIE",
    "shared library",
    "packed relocations",
    "code and constants in one segment",
    "static musl",
  ])("%s: labels taken as values and function tables are among them", (kind) => {
    const elf = openElf(smallPrograms[kind]!());
    const run = elf.symbols.find("run")[0]!;
    const bias = elf.kind === "exec" ? 0n : BIAS;
    const image = codeImageOf(elf, bias);
    const start = run.addr + bias;
    const inside = image.pointersInto(start + 1n, start + BigInt(run.sizeBytes));
    // Three labels: add, mul, stop.
    expect(inside.length).toBeGreaterThanOrEqual(3);
    for (const name of ["hidden", "visible", "main"]) {
      const addr = elf.symbols.find(name)[0]!.addr + bias;
      expect(image.pointersInto(addr, addr + 1n)).toEqual([addr]);
    }
    const entry = elf.entry + bias;
    if (elf.entry !== 0n) expect(image.pointersInto(entry, entry + 1n)).toEqual([entry]);
  });

  it("without symbols and section headers the labels are still found", () => {
    const bytes = new Uint8Array(readFileSync(smallPrograms["fixed address"]!()));
    const whole = parseElf(byteSourceOf(bytes));
    const run = whole.symbols.find("run")[0]!;
    const cut = bytes.slice();
    cut.fill(0, 40, 48);
    cut.fill(0, 60, 64);
    const range = [run.addr + 1n, run.addr + BigInt(run.sizeBytes)] as const;
    expect(codeImageOf(parseElf(byteSourceOf(cut)), 0n).pointersInto(...range)).toEqual(
      codeImageOf(whole, 0n).pointersInto(...range),
    );
  });

  it("relative relocations of libc are all among them, against readelf", () => {
    const elf = openElf(libcPath);
    const image = codeImageOf(elf, 0n);
    const text = elf.findSection(".text")!;
    const addends = [
      ...outputOf("readelf", ["-rW", libcPath]).matchAll(/R_X86_64_(?:I?RELATIVE)\s+([0-9a-f]+)/g),
    ]
      .map((m) => BigInt(`0x${m[1]}`))
      .filter((addr) => addr >= text.addr && addr < text.addr + BigInt(text.sizeBytes));
    const found = new Set(image.pointersInto(text.addr, text.addr + BigInt(text.sizeBytes)));
    expect(addends.filter((addr) => !found.has(addr))).toEqual([]);
    expect(addends.length).toBeGreaterThan(10);
  });

  it("node: found in well under a second", () => {
    const elf = openElf(nodePath);
    const started = performance.now();
    expect(elf.textPointers.length).toBeGreaterThan(10_000);
    expect(performance.now() - started).toBeLessThan(3000);
  });
});

describe("data", () => {
  it.each(["PIE", "packed relocations", "shared library"])(
    "%s: pointers are as the loader makes them",
    (kind) => {
      const elf = openElf(smallPrograms[kind]!());
      const listing = outputOf("readelf", ["-sW", smallPrograms[kind]!()]);
      const table = BigInt(`0x${/: ([0-9a-f]+)\s+16 OBJECT .* table\n/.exec(listing)![1]}`);
      const image = codeImageOf(elf, BIAS);
      const words = image.readData(table + BIAS, 16)!;
      const view = new DataView(words.buffer, words.byteOffset, 16);
      const runtime = (name: string) => elf.symbols.find(name)[0]!.addr + BIAS;
      expect([view.getBigUint64(0, true), view.getBigUint64(8, true)]).toEqual([
        runtime("hidden"),
        runtime("visible"),
      ]);
      expect(image.readData(table + BIAS + 1n, 8)).toEqual(words.slice(1, 9));
      expect(image.readData(0n, 1)).toBeUndefined();
    },
  );
});
