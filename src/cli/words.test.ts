import { spawnSync } from "node:child_process";
import { array, assert, constantFrom, property } from "fast-check";
import { describe, expect, it } from "vitest";
import { splitWords } from "./words.ts";

describe("splitting a command into words", () => {
  const cases: readonly {
    readonly name: string;
    readonly line: string;
    readonly words: readonly string[];
  }[] = [
    { name: "blanks separate, however many", line: "  ls  -l\t/tmp\n", words: ["ls", "-l", "/tmp"] },
    { name: "nothing", line: " ", words: [] },
    { name: "single quotes keep blanks and backslashes", line: "echo 'a \\ b'", words: ["echo", "a \\ b"] },
    { name: "double quotes keep blanks", line: 'echo "a  b"', words: ["echo", "a  b"] },
    { name: "escapes inside double quotes", line: '"\\"\\\\\\$\\`\\n"', words: ['"\\$`\\n'] },
    { name: "backslash keeps a blank", line: "a\\ b", words: ["a b"] },
    { name: "backslash newline joins", line: "a\\\nb", words: ["ab"] },
    { name: "empty quotes are a word", line: "a '' \"\"", words: ["a", "", ""] },
    { name: "quotes inside a word", line: "a'b c'd\"e f\"", words: ["ab cde f"] },
    {
      name: "no expansion, no operators",
      line: "a $HOME | b > c",
      words: ["a", "$HOME", "|", "b", ">", "c"],
    },
  ];
  it.each(cases)("$name", ({ line, words }) => {
    expect(splitWords(line)).toEqual({ kind: "words", words });
  });

  it.each([
    { name: "open single quote", line: "a 'b", what: "single quote" },
    { name: "open double quote", line: 'a "b\\"', what: "double quote" },
    { name: "backslash at the end", line: "a\\", what: "backslash" },
  ])("$name is unfinished", ({ line, what }) => {
    expect(splitWords(line)).toEqual({ kind: "unfinished", what });
  });

  it("gives the words that sh gives", () => {
    const pieces = constantFrom(
      "a",
      "b-c",
      "=",
      " ",
      "  ",
      "\\ ",
      "\\a",
      "\\'",
      '\\"',
      "'x y'",
      '"x y"',
      '"a\\"b"',
      '"\\\\"',
      "''",
      "'\\'",
      "\\\n",
    );
    assert(
      property(array(pieces, { maxLength: 8 }), (parts) => {
        const line = parts.join("");
        const script = `printf '%s\\0' x ${line}`;
        const shell = spawnSync("/bin/sh", ["-c", script], { encoding: "utf8" });
        const expected = shell.stdout.split("\0").slice(1, -1);
        expect(splitWords(line)).toEqual({ kind: "words", words: expected });
      }),
      { numRuns: 60 },
    );
  });
});
