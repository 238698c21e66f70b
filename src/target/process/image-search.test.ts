import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { libcPath } from "../../../test/support/elf-images.ts";
import { ElfCache } from "./elf-cache.ts";
import { findImageFiles, resolveInFile } from "./image-search.ts";
import { TargetRoot } from "./target-root.ts";

const folder = mkdtempSync(join(tmpdir(), "trapline-search-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
for (const path of ["usr/bin", "opt/lib", "lib", "usr/lib", "etc/ld.so.conf.d", "own"]) {
  mkdirSync(join(folder, path), { recursive: true });
}
const files = [
  "usr/bin/tool",
  "opt/lib/libx.so.1.2",
  "usr/lib/libx.so.9",
  "usr/lib/liby.so.2",
  "own/liby.so.3",
];
for (const path of files) writeFileSync(join(folder, path), `\x7fELF${path}`);
writeFileSync(join(folder, "own/libx.so"), "GROUP ( libx.so.9 )");
writeFileSync(join(folder, "etc/ld.so.conf"), "include /etc/ld.so.conf.d/*.conf # comment\n");
writeFileSync(join(folder, "etc/ld.so.conf.d/a.conf"), "/opt/lib\ninclude /etc/ld.so.conf\n");
writeFileSync(join(folder, "etc/ld.so.conf.d/ignored"), "/own\n");
// Absolute links count from the root that is searched.
symlinkSync("/opt/lib/libx.so.1.2", join(folder, "lib/liblink.so"));
symlinkSync("/usr/lib", join(folder, "lib64"));
symlinkSync("loop", join(folder, "lib/loop"));

describe("files by image name", () => {
  const root = new TargetRoot(realpathSync(folder));
  const env = { PATH: "/usr/bin:relative", LD_LIBRARY_PATH: "/own" };
  it.each([
    { name: "program along PATH", wanted: "tool", expected: ["/usr/bin/tool"] },
    {
      name: "folder of ld.so.conf before the standard ones",
      wanted: "libx",
      expected: ["/opt/lib/libx.so.1.2"],
    },
    { name: "LD_LIBRARY_PATH first", wanted: "liby", expected: ["/own/liby.so.3"] },
    { name: "exact name further back", wanted: "libx.so.9", expected: ["/lib64/libx.so.9"] },
    { name: "path", wanted: "/usr/lib/liby.so.2", expected: ["/usr/lib/liby.so.2"] },
    { name: "path through an absolute link", wanted: "/lib/liblink.so", expected: ["/lib/liblink.so"] },
    { name: "unknown", wanted: "libz", expected: [] },
    { name: "unknown path", wanted: "/usr/lib/libz", expected: [] },
    { name: "link to itself", wanted: "/lib/loop", expected: [] },
    {
      name: "pattern, each file once",
      wanted: "libx*",
      expected: ["/opt/lib/libx.so.1.2", "/lib64/libx.so.9"],
    },
    { name: "pattern with a folder", wanted: "/own/*", expected: ["/own/liby.so.3"] },
  ])("$name", ({ wanted, expected }) => {
    expect(findImageFiles(wanted, { root, env })).toEqual(expected);
  });

  it("libc of this system", () => {
    expect(findImageFiles("libc").map((path) => realpathSync(path))).toEqual([libcPath]);
  });
});

describe("places in a file", () => {
  using cache = new ElfCache();

  it("found at file addresses, without a process", () => {
    const own = new ElfCache();
    const result = resolveInFile(own, libcPath, { kind: "symbol", symbol: "malloc" });
    expect(result).toMatchObject({
      kind: "found",
      locations: [{ symbol: { name: "malloc" }, offsetBytes: 0 }],
    });
    expect(resolveInFile(own, libcPath, { kind: "symbol", symbol: "nope" })).toMatchObject({
      kind: "refused",
    });
    own[Symbol.dispose]();
  });

  it("a damaged file", () => {
    expect(() =>
      resolveInFile(cache, join(folder, "usr/bin/tool"), { kind: "address", address: 0n }),
    ).toThrow(expect.objectContaining({ code: "ELF_UNUSABLE", reason: "truncated" }));
  });
});
