import { describe, expect, it } from "vitest";
import { type AttachPoint, parseAttachPoint } from "./attach-point.ts";
import { DiagnosticList } from "./diagnostics.ts";
import { SourceText } from "./source.ts";

function parse(
  text: string,
  params: readonly string[] = [],
): { point: AttachPoint | undefined; codes: string[] } {
  const diagnostics = new DiagnosticList(new SourceText("stdin", text));
  const point = parseAttachPoint(text, { start: 0, end: text.length }, params, diagnostics);
  return { point, codes: diagnostics.sorted().map(({ code }) => code) };
}

describe("parseAttachPoint", () => {
  const user: readonly {
    readonly name: string;
    readonly text: string;
    readonly params?: readonly string[];
    readonly full: string;
    readonly image: string;
    readonly place: string;
  }[] = [
    {
      name: "function",
      text: "uprobe:libc:malloc",
      full: "uprobe:libc:malloc",
      image: "libc",
      place: "malloc+0",
    },
    { name: "alias", text: "u:libc:malloc", full: "uprobe:libc:malloc", image: "libc", place: "malloc+0" },
    {
      name: "return probe",
      text: "ur:/lib/x.so:f",
      full: "uretprobe:/lib/x.so:f",
      image: "/lib/x.so",
      place: "f+0",
    },
    { name: "offset", text: "uprobe:a:f+4", full: "uprobe:a:f+4", image: "a", place: "f+4" },
    {
      name: "hexadecimal offset",
      text: "uprobe:a:f+0x10",
      full: "uprobe:a:f+0x10",
      image: "a",
      place: "f+16",
    },
    {
      name: "offset 0 of a return probe",
      text: "ur:a:f+0",
      full: "uretprobe:a:f+0",
      image: "a",
      place: "f+0",
    },
    { name: "address", text: "uprobe:a:0x401000", full: "uprobe:a:0x401000", image: "a", place: "@4198400" },
    {
      name: "wildcards",
      text: "uprobe:libc*:*alloc",
      full: "uprobe:libc*:*alloc",
      image: "libc*",
      place: "*alloc+0",
    },
    {
      name: "quoted parts",
      text: 'uprobe:"/a b":"f(int, char)"',
      full: "uprobe:/a b:f(int, char)",
      image: "/a b",
      place: "f(int, char)+0",
    },
    {
      name: "C++ name with colons",
      text: "uprobe:a:std::vector<int>::at",
      full: "uprobe:a:std::vector<int>::at",
      image: "a",
      place: "std::vector<int>::at+0",
    },
    {
      name: "C++ operator",
      text: "uprobe:a:operator+",
      full: "uprobe:a:operator+",
      image: "a",
      place: "operator++0",
    },
    {
      name: "positional parameter",
      text: "uprobe:$1:f$2",
      params: ["libc", "open"],
      full: "uprobe:libc:fopen",
      image: "libc",
      place: "fopen+0",
    },
  ];
  for (const { name, text, params, full, image, place } of user) {
    it(name, () => {
      const { point, codes } = parse(text, params);
      expect(codes).toEqual([]);
      if (point?.kind !== "uprobe" && point?.kind !== "uretprobe") throw new Error("not a user probe");
      const { location } = point;
      const shown =
        location.kind === "symbol" ? `${location.symbol}+${location.offset}` : `@${location.address}`;
      expect([point.name, point.image, shown]).toEqual([full, image, place]);
    });
  }

  const intervals: readonly (readonly [text: string, name: string, periodNs: bigint])[] = [
    ["interval:s:1", "interval:s:1", 1_000_000_000n],
    ["i:ms:250", "interval:ms:250", 250_000_000n],
    ["i:us:5", "interval:us:5", 5_000n],
    ["i:hz:100", "interval:hz:100", 10_000_000n],
    ["i:hz:1e3", "interval:hz:1e3", 1_000_000n],
  ];
  for (const [text, name, periodNs] of intervals) {
    it(text, () => {
      expect(parse(text).point).toMatchObject({ kind: "interval", name, periodNs });
    });
  }

  const refused: readonly (readonly [text: string, code: string])[] = [
    ["", "no-attach-point"],
    ["uprobe", "attach-point-parts"],
    ["uprobe::f", "attach-point-parts"],
    ["uprobe:a:", "attach-point-parts"],
    ["uprobe:$1:f", "attach-point-parts"],
    ["BEGIN:x", "attach-point-parts"],
    ["uprobe:a:12zz", "attach-point-place"],
    ["uprobe:a:f+1z", "attach-point-place"],
    ["uprobe:a:f*+1", "attach-point-place"],
    ["uretprobe:a:f+1", "attach-point-place"],
    ["uretprobe:a:0x10", "attach-point-place"],
    ["interval:s:0", "interval-count"],
    ["interval:m:1", "interval-unit"],
    ["kprobe:f", "unsupported-provider"],
    ["uprob:a:f", "unknown-provider"],
    ["uprobe:a:cpp:f", "unsupported"],
  ];
  for (const [text, code] of refused) {
    it(`refuses '${text}'`, () => {
      expect(parse(text)).toEqual({ point: undefined, codes: [code] });
    });
  }
});
