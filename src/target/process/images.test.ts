import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, describe, expect, it } from "vitest";
import { buildProgram } from "../../../test/support/build-program.ts";
import { libcPath, nodePath } from "../../../test/support/elf-images.ts";
import { ProcessImages } from "./images.ts";
import { describeLocationRefusal } from "./location-refusal.ts";
import { readMaps } from "./proc-fs.ts";

/** Prints the run-time addresses of some functions, then waits for ever. */
const tellingSource = `
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int (*volatile chosen)(const char *, const char *) = strcmp;
void *(*volatile copy)(void *, const void *, size_t) = memcpy;
__attribute__((noinline)) int probed(int x) { return x * 5 + 1; }
int main(void) {
  char buffer[8];
  copy(buffer, "abc", 4);
  printf("%p %p %p %p %d\\n", (void *)probed, (void *)main, (void *)chosen, (void *)copy, chosen("a", buffer));
  fflush(stdout);
  for (;;) sleep(1000);
}
`;

const programs: Record<string, () => string> = {
  PIE: () => buildProgram({ name: "telling-pie", source: tellingSource, flags: ["-O1", "-pie", "-fPIE"] }),
  "fixed address": () =>
    buildProgram({ name: "telling-fixed", source: tellingSource, flags: ["-O1", "-no-pie"] }),
  static: () => buildProgram({ name: "telling-static", source: tellingSource, flags: ["-O1", "-static"] }),
  "static PIE": () =>
    buildProgram({ name: "telling-spie", source: tellingSource, flags: ["-O1", "-static-pie"] }),
  "code and constants in one segment": () =>
    buildProgram({ name: "telling-one", source: tellingSource, flags: ["-O1", "-Wl,-z,noseparate-code"] }),
  musl: () =>
    buildProgram({ name: "telling-musl", source: tellingSource, flags: ["-O1"], compiler: "musl-gcc" }),
  "static musl": () =>
    buildProgram({
      name: "telling-musl-static",
      source: tellingSource,
      flags: ["-O1", "-static"],
      compiler: "musl-gcc",
    }),
};

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const clean of cleanups.splice(0).reverse()) clean();
});

interface Telling {
  readonly pid: number;
  readonly probed: bigint;
  readonly main: bigint;
  readonly strcmp: bigint;
  readonly memcpy: bigint;
}

/** Starts a telling program (or a command that becomes one) and reads what it tells. */
async function start(command: string, args: readonly string[] = []): Promise<Telling> {
  const child: ChildProcess = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
  cleanups.push(() => child.kill("SIGKILL"));
  const [line] = (await once(child.stdout!, "data")) as [Buffer];
  const [probed, main, strcmp, memcpy] = line.toString().split(" ").map(BigInt);
  return { pid: child.pid!, probed: probed!, main: main!, strcmp: strcmp!, memcpy: memcpy! };
}

function open(pid: number): ProcessImages {
  const images = ProcessImages.open(pid);
  cleanups.push(() => images[Symbol.dispose]());
  return images;
}

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "trapline-images-"));
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
  chmodSync(folder, 0o755);
  return folder;
}

const symbol = (name: string, offsetBytes = 0) => ({ kind: "symbol", symbol: name, offsetBytes }) as const;

describe("a function of the program", () => {
  it.each(Object.entries(programs))("%s: is where the program says", async (_, path) => {
    const told = await start(path());
    const images = open(told.pid);
    const name = path().split("/").at(-1)!;
    for (const imageName of [name, path(), `${name.slice(0, -1)}?`]) {
      const { locations, refusal } = images.resolve(imageName, symbol("probed"));
      expect(refusal).toBeUndefined();
      expect(locations.map((l) => [l.addr, l.symbol, l.offsetBytes])).toEqual([[told.probed, "probed", 0]]);
    }
    expect(images.program?.path).toBe(path());

    const [inside] = images.resolve(name, symbol("probed", 2)).locations;
    expect(inside!.addr).toBe(told.probed + 2n);
    const [byAddress] = images.resolve(name, { kind: "address", address: inside!.fileAddr }).locations;
    expect(byAddress).toMatchObject({ addr: told.probed + 2n, symbol: "probed", offsetBytes: 2 });

    expect(images.symbolize(told.probed).text).toBe(`probed (${name})`);
    expect(images.symbolize(told.main + 4n).text).toBe(`main+0x4 (${name})`);
    const [image] = images.find(name);
    expect(image!.code.findFunction(told.probed)?.start).toBe(told.probed);
  });
});

describe("names chosen at load time", () => {
  it.each([
    ["PIE", "libc"],
    ["fixed address", "libc"],
    ["static", "telling-static"],
    ["static PIE", "telling-spie"],
  ])("%s: resolved to the implementation that the program calls", async (kind, imageName) => {
    const told = await start(programs[kind]!());
    const images = open(told.pid);
    for (const [name, addr] of [
      ["strcmp", told.strcmp],
      ["memcpy", told.memcpy],
    ] as const) {
      const { locations } = images.resolve(imageName, symbol(name));
      const implementations = locations.filter((l) => l.isImplementation);
      // A fixed-address program calls through its own linkage table, whose address is what it prints.
      if (kind !== "fixed address" && kind !== "static")
        expect(implementations.map((l) => l.addr)).toEqual([addr]);
      else expect(implementations.length).toBe(1);
      expect(implementations[0]!.symbol).toBe(name);
    }
  });

  it("patterns leave them out", async () => {
    const told = await start(programs.PIE!());
    const { locations } = open(told.pid).resolve("libc", symbol("str*"));
    expect(locations.length).toBeGreaterThan(10);
    expect(locations.map((l) => l.symbol)).not.toContain("strcmp");
  });
});

describe("image names", () => {
  it.each([
    "libc",
    "libc.so.6",
    libcPath,
    "/lib/x86_64-linux-gnu/libc.so.6",
    "libc.so*",
    "/usr/lib/*/libc.so.6",
  ])("%s is libc of this process", (name) => {
    const images = open(process.pid);
    expect(images.find(name).map((i) => i.path)).toEqual([libcPath]);
  });

  it("of the running program: short, by path, through a link", () => {
    const images = open(process.pid);
    const link = join(temporaryFolder(), "linked-node");
    symlinkSync(nodePath, link);
    for (const name of [nodePath.split("/").at(-1)!, nodePath, link]) {
      // V8 may have mapped a part of the text once more.
      expect(new Set(images.find(name).map((i) => i.path))).toEqual(new Set([nodePath]));
    }
    expect(images.program?.path).toBe(nodePath);
  });

  it("musl's loader is libc", async () => {
    const told = await start(programs.musl!());
    const images = open(told.pid);
    const [libc] = images.find("libc");
    expect(libc!.elf.symbols.find("malloc").length).toBe(1);
    expect(images.resolve("libc", symbol("strcmp")).locations.map((l) => l.addr)).toEqual([told.strcmp]);
  });

  it("the vDSO is no image", () => {
    const images = open(process.pid);
    expect(images.find("[vdso]")).toEqual([]);
    expect(images.list.every((i) => i.path.startsWith("/"))).toBe(true);
  });
});

describe("refusals", () => {
  const images = ProcessImages.open(process.pid);
  const cases = [
    {
      name: "unknown image",
      image: "libcc",
      place: symbol("malloc"),
      says: /no image libcc.*/,
      hint: /libc/,
    },
    {
      name: "unknown path",
      image: "/no/such/file",
      place: symbol("malloc"),
      says: /no image \/no\/such/,
      hint: /mapped are /,
    },
    {
      name: "unknown function",
      image: "libc",
      place: symbol("mallocc"),
      says: /libc\.so\.6: no function mallocc/,
      hint: /did you mean malloc/,
    },
    {
      name: "function of another image",
      image: "node",
      place: symbol("malloc"),
      says: /no function malloc/,
      hint: /defined in libc\.so\.6/,
    },
    {
      name: "pattern that matches nothing",
      image: "libc",
      place: symbol("qqq*"),
      says: /no function matches qqq\*/,
      hint: undefined,
    },
    {
      name: "offset behind the function",
      image: "libc",
      place: symbol("malloc", 100_000),
      says: /offset 100000 is outside malloc, which has \d+ bytes/,
      hint: undefined,
    },
    {
      name: "address in data",
      image: "libc",
      place: { kind: "address", address: 0x10n } as const,
      says: /address 0x10 is in data, not in code/,
      hint: /objdump/,
    },
    {
      name: "address outside",
      image: "libc",
      place: { kind: "address", address: 1n << 40n } as const,
      says: /outside the image/,
      hint: /objdump/,
    },
    {
      name: "no image of a pattern has it",
      image: "lib*",
      place: symbol("mallocc"),
      says: /\d+ images: no function mallocc/,
      hint: /malloc/,
    },
  ];
  it.each(cases)("$name", ({ image, place, says, hint }) => {
    const { locations, refusal } = images.resolve(image, place);
    expect(locations).toEqual([]);
    const text = describeLocationRefusal(refusal!);
    expect(text.message).toMatch(says);
    if (hint) expect(text.hint).toMatch(hint);
    else expect(text.hint).toBeUndefined();
  });

  it("a run-time address gets its file address as advice", () => {
    const [libc] = images.find("libc");
    const [malloc] = images.resolve("libc", symbol("malloc")).locations;
    const { refusal } = images.resolve("libc", { kind: "address", address: malloc!.addr });
    const text = describeLocationRefusal(refusal!);
    expect(text.hint).toContain(`its file address is 0x${(malloc!.addr - libc!.bias).toString(16)}`);
  });

  it("a static program has no libc", async () => {
    const told = await start(programs.static!());
    const { refusal } = open(told.pid).resolve("libc", symbol("malloc"));
    expect(describeLocationRefusal(refusal!).hint).toMatch(/the only image is telling-static/);
  });

  it("a process that is gone", async () => {
    const child = spawn("true");
    await once(child, "exit");
    expect(() => ProcessImages.open(child.pid!)).toThrow(
      expect.objectContaining({ code: "no-such-process" }),
    );
  });
});

describe("files that are not where their path says", () => {
  it("a removed program", async () => {
    const path = join(temporaryFolder(), "removed");
    copyFileSync(programs.PIE!(), path);
    chmodSync(path, 0o755);
    const told = await start(path);
    unlinkSync(path);
    const images = open(told.pid);
    const [image] = images.find("removed");
    expect(image).toMatchObject({ path, deleted: true });
    expect(images.resolve(path, symbol("probed")).locations.map((l) => l.addr)).toEqual([told.probed]);
  });

  it("a program that was replaced by another file", async () => {
    const path = join(temporaryFolder(), "replaced");
    copyFileSync(programs.PIE!(), path);
    chmodSync(path, 0o755);
    const told = await start(path);
    unlinkSync(path);
    copyFileSync(programs.static!(), path);
    const images = open(told.pid);
    expect(images.resolve("replaced", symbol("probed")).locations.map((l) => l.addr)).toEqual([told.probed]);
  });

  it("a file whose name ends in (deleted)", async () => {
    const path = join(temporaryFolder(), "odd (deleted)");
    copyFileSync(programs.PIE!(), path);
    chmodSync(path, 0o755);
    const told = await start(path);
    const images = open(told.pid);
    expect(images.find("odd (deleted)")).toMatchObject([{ path, deleted: false }]);
    expect(images.resolve(path, symbol("probed")).locations.map((l) => l.addr)).toEqual([told.probed]);
  });

  it("from the memory of the process alone", async () => {
    const told = await start(programs.PIE!());
    const images = open(told.pid);
    const fromFile = images.resolve("libc", symbol("malloc")).locations[0]!;
    const [libc] = images.find("libc");
    // The same mappings under a name and inode that lead nowhere, and with an end that gives no handle on the file.
    const maps = readMaps(told.pid)
      .filter((map) => map.path === libc!.path)
      .map((map) => ({ ...map, path: "/gone/libc.so.6 (deleted)", inode: 1n, dev: "ff:ff" }))
      .map((map) => (map.perms[2] === "x" ? { ...map, end: map.end - 0x1000n } : map));
    images.refresh(maps);
    const [gone] = images.find("libc");
    expect(gone).toMatchObject({
      deleted: true,
      readFrom: `memory of process ${told.pid}`,
      bias: libc!.bias,
    });
    expect(gone!.elf.buildId).toBe(libc!.elf.buildId);
    expect(images.resolve("libc", symbol("malloc")).locations[0]!.addr).toBe(fromFile.addr);
    expect(gone!.code.findFunction(fromFile.addr)).toEqual(libc!.code.findFunction(fromFile.addr));
  });
});

describe("another root", () => {
  const isRoot = process.getuid?.() === 0;

  it.skipIf(!isRoot)("chroot: paths are those that the process sees (needs root)", async () => {
    const folder = realpathSync(temporaryFolder());
    mkdirSync(join(folder, "bin"));
    copyFileSync(programs.static!(), join(folder, "bin/inside"));
    symlinkSync("/bin/inside", join(folder, "bin/link"));
    const told = await start("chroot", [folder, "/bin/link"]);
    const images = open(told.pid);
    for (const name of ["/bin/inside", "/bin/link", "inside", join(folder, "bin/inside")]) {
      expect(images.resolve(name, symbol("probed")).locations.map((l) => l.addr)).toEqual([told.probed]);
    }
    expect(images.find("inside")[0]!.path).toBe("/bin/inside");
  });

  it.skipIf(!isRoot)(
    "mount namespace: the file under the same path outside is another (needs root)",
    async () => {
      const folder = realpathSync(temporaryFolder());
      const [outer, inner] = [join(folder, "outer"), join(folder, "inner")];
      mkdirSync(outer);
      mkdirSync(inner);
      copyFileSync(programs["static musl"]!(), join(outer, "program"));
      copyFileSync(programs.static!(), join(inner, "program"));
      const script = 'mount --bind "$1" "$2" && exec "$2/program"';
      const told = await start("unshare", [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        inner,
        outer,
      ]);
      const images = open(told.pid);
      const place = symbol("probed");
      expect(images.resolve(join(outer, "program"), place).locations.map((l) => l.addr)).toEqual([
        told.probed,
      ]);
      expect(images.find("program")[0]!.path).toBe(join(outer, "program"));
    },
  );
});

describe("loading and unloading", () => {
  it("refresh finds a new library and keeps the objects of the others", async () => {
    const library = buildProgram({
      name: "liblate.so",
      source: "int late(int x) { return x + 1; }",
      flags: ["-shared", "-fPIC"],
    });
    const code = `
import ctypes, sys
print("ready", flush=True)
sys.stdin.readline()
late = ctypes.CDLL(${JSON.stringify(library)})
print(hex(ctypes.cast(late.late, ctypes.c_void_p).value), flush=True)
sys.stdin.readline()
`;
    const child = spawn("python3", ["-c", code], { stdio: ["pipe", "pipe", "inherit"] });
    cleanups.push(() => child.kill("SIGKILL"));
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    await lines.next();
    const images = open(child.pid!);
    const before = images.list;
    expect(images.resolve("liblate", symbol("late")).refusal?.kind).toBe("unknown-image");
    child.stdin.write("\n");
    const { value: line } = await lines.next();
    const { added, removed } = images.refresh();
    expect(added.map((i) => i.path)).toContain(library);
    expect(removed).toEqual([]);
    expect(before.every((image) => images.list.includes(image))).toBe(true);
    expect(images.resolve("liblate", symbol("late")).locations.map((l) => l.addr)).toEqual([BigInt(line!)]);
  });
});

describe("one file loaded twice", () => {
  it("both copies are images, each with its own addresses", async () => {
    const library = buildProgram({
      name: "libtwice.so",
      source: "int twice(int x) { return x * 2; }",
      flags: ["-shared", "-fPIC"],
    });
    const loader = buildProgram({
      name: "loads-twice",
      source: `#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
  // Read as data too: that is no image.
  mmap(0, 4096, PROT_READ, MAP_PRIVATE, open("${library}", O_RDONLY), 0);
  void *one = dlopen("${library}", RTLD_NOW);
  void *two = dlmopen(LM_ID_NEWLM, "${library}", RTLD_NOW);
  printf("%p %p 0 0\\n", dlsym(one, "twice"), dlsym(two, "twice"));
  fflush(stdout);
  for (;;) sleep(1000);
}`,
      flags: ["-O1"],
    });
    const told = await start(loader);
    const images = open(told.pid);
    expect(images.find("libtwice").length).toBe(2);
    const found = images.resolve("libtwice", symbol("twice")).locations.map((l) => l.addr);
    expect(new Set(found)).toEqual(new Set([told.probed, told.main]));
    expect(images.symbolize(told.main).text).toBe("twice (libtwice.so)");
  });
});

describe("addresses in words", () => {
  const images = ProcessImages.open(process.pid);

  it("outside every image and in the vDSO", () => {
    expect(images.symbolize(0x10n).text).toBe("0x10");
    const vdso = images.findVdsoFunction("__vdso_clock_gettime")!;
    const map = readMaps(process.pid).find((m) => m.path === "[vdso]")!;
    expect(vdso >= map.start && vdso < map.end).toBe(true);
    expect(images.symbolize(vdso + 1n).text).toMatch(/clock_gettime\+0x1 \(\[vdso\]\)$/);
    expect(images.findVdsoFunction("no_such")).toBeUndefined();
  });

  it("in code without symbols: the file address", async () => {
    const bare = buildProgram({ name: "bare", source: tellingSource, flags: ["-O1", "-no-pie", "-s"] });
    const told = await start(bare);
    const own = open(told.pid);
    expect(own.symbolize(told.probed).text).toBe(`0x${told.probed.toString(16)} (bare)`);
    const { refusal } = own.resolve("bare", symbol("probed"));
    expect(describeLocationRefusal(refusal!).hint).toMatch(/give an address/);
    const [location] = own.resolve("bare", { kind: "address", address: told.probed }).locations;
    expect(location).toMatchObject({ addr: told.probed, symbol: undefined });
  });
});

describe("speed", () => {
  it("listing the images of node and finding a function of libc takes milliseconds", () => {
    const started = performance.now();
    using fresh = ProcessImages.open(process.pid);
    const { locations } = fresh.resolve("libc", symbol("malloc"));
    expect(locations.length).toBe(1);
    expect(performance.now() - started).toBeLessThan(300);
  });
});
