/** No text makes the compiler throw: it compiles, and then the verifier accepts, or it is refused with diagnostics. */
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { verifyProgram } from "../bpf/index.ts";
import { compileScript } from "./compile.ts";

const words = [
  ..."{ } ( ) [ ] ; , . -> ? : + - * / % & | ^ ~ ! = == != < <= > >= << >> && || ++ -- += -= ' \" # \n".split(
    " ",
  ),
  ..."if else while unroll break continue return for let pid tid comm nsecs arg0 retval func probe kstack".split(
    " ",
  ),
  ..."count sum avg min max hist lhist stats printf print clear zero delete str buf strlen join exit".split(
    " ",
  ),
  ..."1 0 5 0x10 010 1e3 99999999999999999999 12abc $x $y $1 $# @ @x @y uint8 int64 struct sizeof".split(" "),
  '"%d\\n"',
  '"a"',
  "'a'",
  "(uint8 *)",
  "$x = 1;",
  "@x = count();",
  "{ @[pid] = 1 }",
  "/",
  "BEGIN",
  "uprobe:a:b",
];

function check(text: string): void {
  const result = compileScript(text, { params: ["3", "abc"] });
  if (result.kind === "errors") {
    expect(result.diagnostics.some((diagnostic) => diagnostic.severity === "error")).toBe(true);
    return;
  }
  const { maps, programs } = result.script.bundle;
  for (const program of programs) {
    const verdict = verifyProgram(program, maps, { maxVisits: 20_000 });
    // Only a loop without an end may be refused.
    if (verdict.kind === "rejected") expect(text).toContain("while");
  }
}

describe("compileScript", () => {
  it("survives any order of the language's words", () => {
    const soup = fc.array(fc.constantFrom(...words), { maxLength: 25 });
    fc.assert(
      fc.property(soup, (list) => check(`BEGIN { $x = 1; @x = count(); ${list.join(" ")}`)),
      { numRuns: 1500 },
    );
  });

  it("survives any order of short statements", () => {
    const statements = fc.array(
      fc.constantFrom(
        "$x = 1;",
        '$s = "abc";',
        "$s = comm;",
        "$x += nsecs;",
        "$x++;",
        "@x = count();",
        "@h[$s] = hist($x);",
        "@n[$x, comm] += 2;",
        "@n[$x, $s]++;",
        "@t = ($x, $s);",
        "@s[$s] = $s;",
        "if ($x > 3) {",
        "} else {",
        "}",
        "unroll(3) {",
        'printf("%d %s\\n", $x, $s);',
        'if ($s == "abc") {',
        "print(@t);",
        "print((1, $s));",
        "delete(@s[$s]);",
        "$x = @n[1, comm];",
        "return;",
      ),
      { maxLength: 15 },
    );
    fc.assert(
      fc.property(statements, (list) => check(`BEGIN { $x = 0; $s = "a"; ${list.join(" ")} }`)),
      { numRuns: 400 },
    );
  });

  it("survives any characters", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 60, unit: "binary" }), (text) => {
        check(text);
        check(`BEGIN { ${text} }`);
      }),
      { numRuns: 1000 },
    );
  });

  const deep: readonly { readonly name: string; readonly text: string }[] = [
    { name: "parentheses", text: `$x = ${"(".repeat(3000)}1` },
    { name: "minus signs", text: `$x = ${"-".repeat(3001)}1` },
    { name: "a long sum", text: `$x = ${"1 + ".repeat(5000)}1` },
    { name: "a long ternary", text: `$x = ${"1 ? 2 : ".repeat(3000)}1` },
    { name: "blocks", text: "{".repeat(3000) },
    { name: "else if", text: `if (1) { } ${"else if (1) { } ".repeat(3000)}` },
    { name: "casts", text: `$x = ${"(uint8)".repeat(3000)}1` },
    { name: "indexes", text: `$x = @x${"[1]".repeat(3000)}` },
    { name: "maps in maps", text: `$x = ${"@x[".repeat(3000)}1` },
    { name: "fields", text: `$x = pid${".a".repeat(3000)}` },
  ];
  for (const { name, text } of deep) {
    it(`survives nesting of ${name}`, () => {
      const result = compileScript(`BEGIN { ${text} }`);
      expect(result.kind).toBe("errors");
    });
  }
});
