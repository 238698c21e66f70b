import { describe, expect, it } from "vitest";
import { outputOf } from "../../test/support/build-program.ts";
import { libcPath, nodePath, openElf, smallPrograms } from "../../test/support/elf-images.ts";
import { Glob } from "./glob.ts";

interface ReadelfSymbol {
  readonly addr: bigint;
  readonly sizeBytes: number;
  readonly type: string;
  readonly name: string;
}

/** Defined function symbols as readelf lists them, without versions that have been replaced by a default one. */
function readelfFunctions(path: string): ReadelfSymbol[] {
  const symbols: (ReadelfSymbol & { readonly isOld: boolean })[] = [];
  for (const line of outputOf("readelf", ["-sW", path]).split("\n")) {
    const fields = line.trim().split(/\s+/);
    const [, value, size, type, , , section, name] = fields;
    if (name === undefined || (type !== "FUNC" && type !== "IFUNC")) continue;
    if (section === "UND" || section === "ABS") continue;
    symbols.push({
      addr: BigInt(`0x${value}`),
      sizeBytes: Number(size),
      type,
      name: name.replace(/(?<=.)@.*/, ""),
      isOld: /[^@]@[^@]/.test(name),
    });
  }
  const current = new Set(symbols.filter((s) => !s.isOld).map((s) => s.name));
  return symbols.filter((s) => !s.isOld || !current.has(s.name));
}

function distinctAddrs(list: readonly { readonly addr: bigint }[]): bigint[] {
  return [...new Set(list.map((s) => s.addr))].sort();
}

const images: Record<string, () => string> = { libc: () => libcPath, node: () => nodePath, ...smallPrograms };

describe("function symbols, against readelf", () => {
  it.each(Object.entries(images))("%s", (_, path) => {
    const file = path();
    const expected = readelfFunctions(file);
    const { symbols } = openElf(file);
    const all = symbols.match(new Glob("*"));
    expect(distinctAddrs(all)).toEqual(distinctAddrs(expected));

    const namesAt = new Map<bigint, Set<string>>();
    for (const { addr, name } of expected) {
      namesAt.set(addr, (namesAt.get(addr) ?? new Set()).add(name));
    }
    expect(all.filter(({ addr, name }) => !namesAt.get(addr)?.has(name))).toEqual([]);

    const step = Math.ceil(expected.length / 500);
    for (let i = 0; i < expected.length; i += step) {
      const { name, addr, type, sizeBytes } = expected[i]!;
      const found = symbols.find(name).find((s) => s.addr === addr);
      expect(found, name).toMatchObject({ name, addr });
      expect(found!.kind).toBe(type === "IFUNC" ? "ifunc" : "func");
      expect(symbols.at(addr).map((s) => s.name)).toContain(name);
      if (sizeBytes > 0) {
        const inside = symbols.enclosing(addr + BigInt(sizeBytes - 1))!;
        expect(inside.symbol.addr + BigInt(inside.offsetBytes)).toBe(addr + BigInt(sizeBytes - 1));
        expect(inside.symbol.addr).toBeGreaterThanOrEqual(addr);
      }
    }
  });
});

describe("function symbols", () => {
  const libc = openElf(libcPath);

  it("knows resolvers from functions", () => {
    expect(libc.symbols.find("strlen").map((s) => s.kind)).toEqual(["ifunc"]);
    expect(libc.symbols.find("malloc").map((s) => s.kind)).toEqual(["func"]);
  });

  it("a name asked for first by scan and later through the index gives the same", () => {
    const { symbols } = openElf(libcPath);
    const first = symbols.find("fopen");
    for (let i = 0; i < 20; i++) symbols.find(`no_such_function_${i}`);
    expect(symbols.find("fopen")).toEqual(first);
    expect(symbols.find("no_such_function_1")).toEqual([]);
    expect(symbols.find("")).toEqual([]);
    expect(symbols.find("fope")).toEqual([]);
  });

  it("of a name with versions finds the default one only", () => {
    // memcpy@GLIBC_2.2.5 is a plain function with the code of memmove; memcpy@@GLIBC_2.14 is what programs call.
    const current = /([0-9a-f]{16}) .* memcpy@@/.exec(outputOf("readelf", ["-sW", libcPath]))![1];
    expect(libc.symbols.find("memcpy").map((s) => [s.addr, s.kind])).toEqual([
      [BigInt(`0x${current}`), "ifunc"],
    ]);
    expect(libc.symbols.match(new Glob("memcp[y]")).map((s) => s.kind)).toEqual(["ifunc"]);
    const addrs = libc.symbols.match(new Glob("*")).map((s) => s.name);
    expect(addrs.filter((name) => name === "pthread_cond_wait").length).toBe(1);
  });

  it("shows the public name of aliases", () => {
    const open = libc.symbols.find("open64")[0]!;
    expect(libc.symbols.at(open.addr)[0]!.name).toBe("open");
    expect(libc.symbols.enclosing(open.addr + 3n)).toMatchObject({
      symbol: { name: "open" },
      offsetBytes: 3,
    });
  });

  it("gives one symbol for each address to a pattern, and one that matches it", () => {
    const found = libc.symbols.match(new Glob("__libc_mal*"));
    expect(found.map((s) => s.name)).toContain("__libc_malloc");
    expect(new Set(found.map((s) => s.addr)).size).toBe(found.length);
  });

  it("suggests close names", () => {
    expect(libc.symbols.nearest("mallocc")[0]).toBe("malloc");
    expect(libc.symbols.nearest("zzzzqqqqxxxx")).toEqual([]);
  });

  it("finds local functions, and an imported name only as import", () => {
    const { symbols } = openElf(smallPrograms.PIE!());
    expect(symbols.find("hidden").map((s) => s.binding)).toEqual(["local"]);
    expect(symbols.find("printf")).toEqual([]);
    expect(symbols.imports("printf")).toBe(true);
    expect(symbols.imports("visible")).toBe(false);
    expect(symbols.imports("print")).toBe(false);
  });
});

describe("speed", () => {
  it("opens a program of 100 MB and finds a name in well under a second", () => {
    const elf = openElf(nodePath);
    const started = performance.now();
    expect(elf.symbols.find("uv_fs_read").length).toBe(1);
    expect(elf.symbols.enclosing(elf.entry)).toBeDefined();
    expect(performance.now() - started).toBeLessThan(900);
  });
});
