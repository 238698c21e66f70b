import { describe, expect, it } from "vitest";
import { parseSectionName, parseUserPlace, printUserPlace } from "./attach-target.ts";

const symbol = (image: string, name: string, offset = 0n) => ({
  image,
  location: { kind: "symbol", symbol: name, offset },
});

describe("names of sections", () => {
  it.each([
    ["uprobe", { kind: "uprobe", place: undefined }],
    ["uretprobe/malloc", { kind: "uretprobe", place: undefined }],
    ["uprobe/libc:malloc", { kind: "uprobe", place: symbol("libc", "malloc") }],
    ["uprobe//usr/bin/a:main+0x10", { kind: "uprobe", place: symbol("/usr/bin/a", "main", 16n) }],
    ["uprobe.s/a.so:f+4", { kind: "uprobe", place: symbol("a.so", "f", 4n) }],
    ["uretprobe.multi/libc:*alloc", { kind: "uretprobe", place: symbol("libc", "*alloc") }],
    ["?uprobe/libc:free", { kind: "uprobe", place: symbol("libc", "free") }],
    ["usdt/libc:libc:setjmp", { kind: "usdt", image: "libc", provider: "libc", name: "setjmp" }],
    ["ksyscall/openat", { kind: "elsewhere", type: "ksyscall" }],
    ["tracepoint/sched/sched_switch", { kind: "elsewhere", type: "tracepoint" }],
    ["fentry.s/f", { kind: "elsewhere", type: "fentry.s" }],
    ["xdp", { kind: "elsewhere", type: "xdp" }],
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
