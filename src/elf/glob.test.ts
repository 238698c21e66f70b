import { describe, expect, it } from "vitest";
import { Glob, isGlob } from "./glob.ts";

interface GlobCase {
  readonly name: string;
  readonly pattern: string;
  readonly yes?: readonly string[];
  readonly no?: readonly string[];
}

const cases: readonly GlobCase[] = [
  { name: "literal", pattern: "malloc", yes: ["malloc"], no: ["mallo", "mallocx", "xmalloc", ""] },
  { name: "star alone", pattern: "*", yes: ["", "a", "malloc"] },
  { name: "empty pattern", pattern: "", yes: [""], no: ["a"] },
  { name: "star at the end", pattern: "uv_*", yes: ["uv_", "uv_read"], no: ["uv", "xuv_"] },
  { name: "star at the start", pattern: "*_read", yes: ["_read", "uv_read"], no: ["uv_read2"] },
  { name: "two stars", pattern: "*fs*read*", yes: ["uv_fs_read", "fsread"], no: ["read_fs"] },
  { name: "star that has to go back", pattern: "*aab", yes: ["aaab", "aabaab"], no: ["aabaa"] },
  { name: "question mark", pattern: "f?", yes: ["fo", "f?"], no: ["f", "foo"] },
  { name: "set", pattern: "f[abc]", yes: ["fa", "fc"], no: ["fd", "f", "fab"] },
  { name: "set with range", pattern: "f[a-c0-9]x", yes: ["fbx", "f5x"], no: ["fdx"] },
  { name: "negated set", pattern: "f[!a-c]", yes: ["fd"], no: ["fa", "f"] },
  { name: "set negated with caret", pattern: "f[^a]", yes: ["fb"], no: ["fa"] },
  { name: "set with closing bracket", pattern: "[]x]", yes: ["]", "x"], no: ["[]x]"] },
  { name: "set with dash at its end", pattern: "[a-]", yes: ["a", "-"], no: ["b"] },
  { name: "unclosed set", pattern: "a[b", yes: ["a[b"], no: ["ab"] },
  { name: "escaped star", pattern: "a\\*", yes: ["a*"], no: ["ab", "a\\b"] },
  { name: "case matters", pattern: "F*", yes: ["Foo"], no: ["foo"] },
  { name: "name outside ASCII", pattern: "h*é", yes: ["hé", "hallé"], no: ["he"] },
];

describe("glob", () => {
  for (const { name, pattern, yes = [], no = [] } of cases) {
    it(name, () => {
      const glob = new Glob(pattern);
      expect(yes.filter((text) => !glob.matches(text))).toEqual([]);
      expect(no.filter((text) => glob.matches(text))).toEqual([]);
    });
  }

  it("stays quick on a pattern with many stars", () => {
    const started = performance.now();
    expect(new Glob("*a*a*a*a*a*a*a*b").matches("a".repeat(2000))).toBe(false);
    expect(performance.now() - started).toBeLessThan(1000);
  });

  it.each([
    ["malloc", false],
    ["m*", true],
    ["m\\*", false],
    ["a[b", false],
    ["a[b]", true],
    ["a?", true],
  ])("tells patterns from names: %s", (pattern, expected) => {
    expect(isGlob(pattern)).toBe(expected);
  });
});
