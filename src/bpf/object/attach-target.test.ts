import { describe, expect, it } from "vitest";
import { parseSectionName, parseUserPlace, printUserPlace } from "./attach-target.ts";

const symbol = (image: string, name: string, offset = 0n) => ({
  image,
  location: { kind: "symbol", symbol: name, offset },
});

const elsewhere = (type: string) => ({
  kind: "elsewhere",
  type,
  reason: `${type} programs belong to the kernel; in a process there are uprobe, uretprobe and usdt`,
});

describe("names of sections", () => {
  it.each([
    ["uprobe", { kind: "uprobe", place: undefined }],
    ["uprobe/libc:malloc", { kind: "uprobe", place: symbol("libc", "malloc") }],
    ["uprobe//usr/bin/a:main+0x10", { kind: "uprobe", place: symbol("/usr/bin/a", "main", 16n) }],
    ["uprobe.s/a.so:f+4", { kind: "uprobe", place: symbol("a.so", "f", 4n) }],
    ["uretprobe.multi/libc:*alloc", { kind: "uretprobe", place: symbol("libc", "*alloc") }],
    ["?uprobe/libc:free", { kind: "uprobe", place: symbol("libc", "free") }],
    ["uretprobe.multi.s/libc:*", { kind: "uretprobe", place: symbol("libc", "*") }],
    ["usdt", { kind: "usdt", place: undefined }],
    ["usdt/libc:libc:setjmp", { kind: "usdt", place: { image: "libc", provider: "libc", name: "setjmp" } }],
    ["usdt.s//a:b:p:n", { kind: "usdt", place: { image: "/a:b", provider: "p", name: "n" } }],
    [
      "usdt/libc:setjmp",
      { kind: "usdt", place: undefined, problem: "its section is not usdt/IMAGE:PROVIDER:NAME" },
    ],
    [
      "uretprobe/malloc",
      {
        kind: "uretprobe",
        place: undefined,
        problem: "its section is not uretprobe/IMAGE:SYMBOL or uretprobe/IMAGE:SYMBOL+OFFSET",
      },
    ],
    [
      "ksyscall/openat",
      { kind: "elsewhere", type: "ksyscall", reason: expect.stringContaining("libc.so.6:openat") },
    ],
    [
      "uprobe.session/a:b",
      { kind: "elsewhere", type: "uprobe.session", reason: expect.stringContaining("uretprobe") },
    ],
    ["tracepoint/sched/sched_switch", elsewhere("tracepoint")],
    ["kprobe.multi/vfs_*", elsewhere("kprobe.multi")],
    ["fentry.s/f", elsewhere("fentry.s")],
    ["xdp", elsewhere("xdp")],
    ["uprobes/libc:f", { kind: "unknown" }],
  ])("%s", (section, target) => {
    expect(parseSectionName(section)).toEqual(target);
  });
});

describe("places in user code", () => {
  it.each(["libc:malloc", "/a/b c:main+0x8", "a:0x401000"])("%s is read and printed", (text) => {
    expect(printUserPlace(parseUserPlace(text)!)).toBe(text);
  });

  it.each(["", "libc", ":malloc", "libc:", "libc:malloc+", "libc:+4"])("%s is none", (text) => {
    expect(parseUserPlace(text)).toBeUndefined();
  });
});
