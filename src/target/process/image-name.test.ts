import { describe, expect, it } from "vitest";
import { selectByName, shortName } from "./image-name.ts";

describe("short names", () => {
  it.each([
    ["libc.so.6", "libc"],
    ["libc-2.31.so", "libc"],
    ["libc.so", "libc"],
    ["ld-musl-x86_64.so.1", "libc"],
    ["libstdc++.so.6.0.30", "libstdc++"],
    ["libpython3.11.so.1.0", "libpython3.11"],
    ["libgcc_s.so.1", "libgcc_s"],
    ["libssl.so.1.1.1k-custom", "libssl"],
    ["libdb-5.3.so", "libdb"],
    ["libgtk-3.so.0", "libgtk-3"],
    ["ld-linux-x86-64.so.2", "ld-linux-x86-64"],
    ["node", "node"],
    ["python3.11", "python3.11"],
    ["_json.cpython-311-x86_64-linux-gnu.so", "_json.cpython-311-x86_64-linux-gnu"],
  ])("%s is %s", (file, short) => {
    expect(shortName(file)).toBe(short);
  });
});

const images = [
  { path: "/usr/bin/node", soname: () => undefined },
  { path: "/usr/lib/x86_64-linux-gnu/libc.so.6", soname: () => "libc.so.6" },
  { path: "/usr/lib/x86_64-linux-gnu/libcrypt.so.1.1.0", soname: () => "libcrypt.so.1" },
  { path: "/opt/my/libc", soname: () => undefined },
  { path: "/opt/my/odd-file-name", soname: () => "libodd.so.3" },
];
const musl = [{ path: "/tmp/prog" }, { path: "/lib/ld-musl-x86_64.so.1" }];

describe("selecting images", () => {
  it.each([
    { name: "path", wanted: "/usr/bin/node", expected: ["/usr/bin/node"] },
    { name: "unknown path", wanted: "/usr/bin/nodejs", expected: [] },
    { name: "base name", wanted: "libc.so.6", expected: ["/usr/lib/x86_64-linux-gnu/libc.so.6"] },
    { name: "base name before short name", wanted: "libc", expected: ["/opt/my/libc"] },
    { name: "short name", wanted: "libcrypt", expected: ["/usr/lib/x86_64-linux-gnu/libcrypt.so.1.1.0"] },
    { name: "soname", wanted: "libcrypt.so.1", expected: ["/usr/lib/x86_64-linux-gnu/libcrypt.so.1.1.0"] },
    { name: "short name of a soname", wanted: "libodd", expected: ["/opt/my/odd-file-name"] },
    { name: "program", wanted: "node", expected: ["/usr/bin/node"] },
    { name: "part of a name", wanted: "libcr", expected: [] },
    { name: "pattern over names", wanted: "lib*", expected: [1, 2, 3].map((i) => images[i]!.path) },
    { name: "pattern over paths", wanted: "/opt/*", expected: [3, 4].map((i) => images[i]!.path) },
    { name: "all", wanted: "*", expected: images.map((i) => i.path) },
  ])("$name", ({ wanted, expected }) => {
    expect(selectByName(wanted, images).map((i) => i.path)).toEqual(expected);
  });

  it("musl's libc", () => {
    expect(selectByName("libc", musl).map((i) => i.path)).toEqual(["/lib/ld-musl-x86_64.so.1"]);
  });
});
