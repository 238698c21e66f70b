/** Where no probe may be, on made-up images. */
import { describe, expect, it } from "vitest";
import type { CodeImage } from "../x86/code-image.ts";
import { Blacklist, blacklistText, findBlacklistedImage, findBlacklistedMapping } from "./blacklist.ts";

const TEXT = 0x1000n;
const TABLE = 0x9000n;

/** An image whose text is `bytes` at TEXT, with one sequence of 8 bytes at TEXT + 32 that is aborted to TEXT + 64. */
function blacklist(bytes: readonly number[], name?: string): Blacklist {
  const text = new Uint8Array(128).fill(0x90);
  text.set(bytes);
  const table = new Uint8Array(32);
  const view = new DataView(table.buffer);
  view.setBigUint64(8, TEXT + 32n, true);
  view.setBigUint64(16, 8n, true);
  view.setBigUint64(24, TEXT + 64n, true);
  const image: CodeImage = {
    name: "made",
    text: [{ start: TEXT, bytes: text }],
    findFunction: () => ({ start: TEXT, end: TEXT + 128n, name }),
    pointersInto: () => [],
    landingPads: () => [],
    readData: (at, lenBytes) =>
      at >= TABLE && at + BigInt(lenBytes) <= TABLE + 32n
        ? table.subarray(Number(at - TABLE), Number(at - TABLE) + lenBytes)
        : undefined,
  };
  return new Blacklist({ image, rseqTable: { start: TABLE, end: TABLE + 32n } });
}

const restorer = [0x90, 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
const shortRestorer = [0x90, 0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];

describe("bytes that may not be changed", () => {
  const cases: readonly {
    readonly name: string;
    readonly bytes?: readonly number[];
    readonly fn?: string;
    readonly at: number;
    readonly lenBytes: number;
    readonly reason: string | undefined;
  }[] = [
    { name: "ordinary code", at: 0, lenBytes: 5, reason: undefined },
    {
      name: "the first instruction of a signal return",
      bytes: restorer,
      at: 1,
      lenBytes: 7,
      reason: "signal-return",
    },
    { name: "its system call", bytes: restorer, at: 8, lenBytes: 2, reason: "signal-return" },
    { name: "a region that runs into it", bytes: restorer, at: 0, lenBytes: 5, reason: "signal-return" },
    { name: "the instruction before it", bytes: restorer, at: 0, lenBytes: 1, reason: undefined },
    { name: "the instruction behind it", bytes: restorer, at: 10, lenBytes: 1, reason: undefined },
    { name: "the shorter form", bytes: shortRestorer, at: 1, lenBytes: 5, reason: "signal-return" },
    { name: "the first byte of a sequence", at: 32, lenBytes: 1, reason: "restartable-sequence" },
    { name: "its last byte", at: 39, lenBytes: 1, reason: "restartable-sequence" },
    { name: "a jump that reaches into it", at: 28, lenBytes: 5, reason: "restartable-sequence" },
    { name: "a breakpoint in the same place", at: 28, lenBytes: 4, reason: undefined },
    { name: "behind its commit", at: 40, lenBytes: 5, reason: undefined },
    { name: "the signature of its abort handler", at: 57, lenBytes: 7, reason: "rseq-signature" },
    { name: "the abort handler", at: 64, lenBytes: 5, reason: undefined },
    { name: "lazy binding", fn: "_dl_runtime_resolve_xsavec", at: 0, lenBytes: 5, reason: "own-convention" },
    {
      name: "a name with a version",
      fn: "mcount@@GLIBC_2.2.5",
      at: 0,
      lenBytes: 5,
      reason: "own-convention",
    },
    { name: "a name that only begins alike", fn: "mcounter", at: 0, lenBytes: 5, reason: undefined },
    { name: "the loader's locks", fn: "_dl_open", at: 0, lenBytes: 5, reason: undefined },
  ];
  it.each(cases)("$name", ({ bytes = [], fn, at, lenBytes, reason }) => {
    expect(blacklist(bytes, fn).find(TEXT + BigInt(at), lenBytes)?.reason).toBe(reason);
  });
});

describe("places without a file", () => {
  const mappings = [
    { start: 0x1000n, end: 0x2000n, path: "/usr/lib/libc.so.6" },
    { start: 0x7000n, end: 0x8000n, path: "[vdso]" },
    { start: 0xf000n, end: 0xf800n, path: "[vsyscall]" },
  ];
  it.each([
    { name: "a library", at: 0x1800n, reason: undefined },
    { name: "the vDSO", at: 0x7010n, reason: "vdso" },
    { name: "the vsyscall page", at: 0xf000n, reason: "vsyscall" },
    { name: "a tracer's code", at: 0x5000n, reason: "own-code" },
    { name: "nothing", at: 0x6000n, reason: undefined },
  ])("$name", ({ at, reason }) => {
    const own = [{ start: 0x5000n, end: 0x6000n }];
    expect(findBlacklistedMapping(at, mappings, own)?.reason).toBe(reason);
  });

  it.each(["[vdso]", "linux-vdso.so.1", "[vsyscall]"])("by the name of an image: %s", (name) => {
    expect(blacklistText(findBlacklistedImage(name)!)).toContain(name);
  });
});
