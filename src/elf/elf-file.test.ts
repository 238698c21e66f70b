import { readFileSync } from "node:fs";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { outputOf } from "../../test/support/build-program.ts";
import { libcPath, nodePath, openElf, smallPrograms } from "../../test/support/elf-images.ts";
import { byteSourceOf } from "./byte-source.ts";
import { ElfError } from "./elf-error.ts";
import { parseElf } from "./elf-file.ts";

const images: Record<string, () => string> = { libc: () => libcPath, node: () => nodePath, ...smallPrograms };

describe("what the headers say, against readelf", () => {
  it.each(Object.entries(images))("%s", (_, path) => {
    const file = path();
    const elf = openElf(file);
    const header = outputOf("readelf", ["-hW", file]);
    expect(elf.entry).toBe(BigInt(/Entry point address:\s+(0x[0-9a-f]+)/.exec(header)![1]!));
    expect(elf.kind).toBe(/Type:\s+EXEC/.test(header) ? "exec" : "dyn");

    const loads = [
      ...outputOf("readelf", ["-lW", file]).matchAll(/^\s+LOAD\s+(\S+)\s+(\S+)\s+\S+\s+(\S+)\s+(\S+)\s/gm),
    ];
    expect(
      elf.segments.filter((s) => s.type === 1).map((s) => [s.offset, s.addr, s.fileBytes, s.memBytes]),
    ).toEqual(loads.map((m) => [Number(m[1]), BigInt(m[2]!), Number(m[3]), Number(m[4])]));

    const sections = [
      ...outputOf("readelf", ["-SW", file]).matchAll(
        /^\s+\[\s*\d+\] (\S*) +[A-Z_]+\s+([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+)/gm,
      ),
    ];
    expect(elf.sections.slice(1).map((s) => [s.name, s.addr, s.offset, s.sizeBytes])).toEqual(
      sections
        .slice(1)
        .map((m) => [m[1], BigInt(`0x${m[2]}`), Number.parseInt(m[3]!, 16), Number.parseInt(m[4]!, 16)]),
    );

    const dynamic = outputOf("readelf", ["-dW", file]);
    expect(elf.needed).toEqual([...dynamic.matchAll(/NEEDED.*\[(.*)\]/g)].map((m) => m[1]));
    expect(elf.soname).toBe(/SONAME.*\[(.*)\]/.exec(dynamic)?.[1]);
    expect(elf.interpreter).toBe(/program interpreter: (.*)\]/.exec(outputOf("readelf", ["-lW", file]))?.[1]);
    expect(elf.buildId).toBe(/Build ID: ([0-9a-f]+)/.exec(outputOf("readelf", ["-nW", file]))?.[1]);
  });
});

describe("without section headers", () => {
  it.each(["PIE", "shared library", "musl"])("%s still has its dynamic symbols, soname and notes", (kind) => {
    const bytes = new Uint8Array(readFileSync(smallPrograms[kind]!()));
    const whole = parseElf(byteSourceOf(bytes));
    const cut = bytes.slice();
    // e_shoff, e_shnum and e_shstrndx to 0: what sstrip does.
    cut.fill(0, 40, 48);
    cut.fill(0, 60, 64);
    const bare = parseElf(byteSourceOf(cut));
    expect(bare.sections).toEqual([]);
    expect(bare.soname).toBe(whole.soname);
    expect(bare.needed).toEqual(whole.needed);
    expect(bare.buildId).toBe(whole.buildId);
    expect(bare.rawDynamicSymbols?.words).toEqual(whole.rawDynamicSymbols?.words);
    // musl's linker flags leave out .eh_frame_hdr: nothing but the section header says where .eh_frame is.
    if (kind !== "musl") expect(bare.unwind.ranges).toEqual(whole.unwind.ranges);
  });
});

describe("refused images", () => {
  const good = new Uint8Array(readFileSync(smallPrograms.PIE!()));
  const changed = (offset: number, ...bytes: number[]) => {
    const copy = good.slice();
    copy.set(bytes, offset);
    return copy;
  };
  it.each([
    { name: "empty", bytes: new Uint8Array(0), reason: "not-elf" },
    { name: "a script", bytes: new TextEncoder().encode(`#!/bin/sh\n${"x".repeat(100)}`), reason: "not-elf" },
    { name: "only the magic", bytes: good.slice(0, 20), reason: "truncated" },
    { name: "32-bit", bytes: changed(4, 1), reason: "32-bit" },
    { name: "big-endian", bytes: changed(5, 2), reason: "big-endian" },
    { name: "aarch64", bytes: changed(18, 183), reason: "other-machine" },
    { name: "relocatable object", bytes: changed(16, 1), reason: "not-loadable" },
    { name: "core file", bytes: changed(16, 4), reason: "not-loadable" },
    { name: "no program headers", bytes: changed(56, 0, 0), reason: "not-loadable" },
    { name: "program headers outside the file", bytes: good.slice(0, 100), reason: "truncated" },
  ])("$name", ({ bytes, reason }) => {
    const error = (() => {
      try {
        parseElf(byteSourceOf(bytes), { name: "/some/file" });
        return undefined;
      } catch (thrown) {
        return thrown;
      }
    })();
    expect(error).toBeInstanceOf(ElfError);
    expect(error).toMatchObject({ code: "ELF_UNUSABLE", reason, file: "/some/file" });
    expect((error as ElfError).message).toContain("/some/file");
  });
});

/** Everything an image can be asked for; must end, and may throw nothing but ElfError. */
function askEverything(bytes: Uint8Array): void {
  try {
    const elf = parseElf(byteSourceOf(bytes));
    void [elf.sections, elf.soname, elf.needed, elf.interpreter, elf.buildId];
    void [elf.symbols.find("main"), elf.symbols.enclosing(elf.entry), elf.symbols.nearest("mian")];
    void [elf.unwind.ranges, elf.unwind.landingPads, elf.unwind.findRange(0), elf.textPointers];
  } catch (error) {
    if (!(error instanceof ElfError)) throw error;
  }
}

describe("damaged images", () => {
  const good = new Uint8Array(readFileSync(smallPrograms.PIE!()));

  it("cut off anywhere", () => {
    for (let length = 0; length < good.length; length += 97) askEverything(good.slice(0, length));
  });

  it("with bytes changed anywhere", () => {
    const change = fc.record({ at: fc.nat(good.length - 1), byte: fc.nat(255) });
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 8 }), (changes) => {
        const bytes = good.slice();
        for (const { at, byte } of changes) bytes[at] = byte;
        askEverything(bytes);
      }),
      { numRuns: 150 },
    );
  });

  it("with bytes changed in the headers", () => {
    const change = fc.record({ at: fc.nat(64 + 13 * 56), byte: fc.constantFrom(0, 1, 0x7f, 0x80, 0xff) });
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        const bytes = good.slice();
        for (const { at, byte } of changes) bytes[at] = byte;
        askEverything(bytes);
      }),
      { numRuns: 200 },
    );
  });
});

describe("a memory image", () => {
  it("parsed from the bytes of a mapped library finds the same symbols as the file", () => {
    const file = smallPrograms["shared library"]!();
    const elf = openElf(file);
    const loads = elf.segments.filter((s) => s.type === 1);
    const sizeBytes = Math.max(...loads.map((s) => Number(s.addr) + s.memBytes));
    const memory = new Uint8Array(sizeBytes);
    for (const load of loads) memory.set(elf.readAddr(load.addr, load.fileBytes)!, Number(load.addr));
    const mapped = parseElf(byteSourceOf(memory), {
      layout: { kind: "memory", loadAddr: 0x7f00_0000_0000n },
    });
    expect(mapped.soname).toBe("libsmall.so.7");
    expect(mapped.symbols.find("visible")[0]?.addr).toBe(elf.symbols.find("visible")[0]?.addr);
    expect(mapped.unwind.ranges).toEqual(elf.unwind.ranges);
  });
});
