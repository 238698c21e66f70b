/** How text becomes a tree: the tree is printed with every parenthesis. */
import { describe, expect, it } from "vitest";
import type { Block, Expr, Statement } from "./ast.ts";
import { DiagnosticList, printDiagnostics } from "./diagnostics.ts";
import { parseScript } from "./parser.ts";
import { SourceText } from "./source.ts";

function parse(text: string): string[] {
  const source = new SourceText("stdin", text);
  const diagnostics = new DiagnosticList(source);
  const script = parseScript(source, [], diagnostics);
  if (diagnostics.hasErrors) throw new Error(printDiagnostics(diagnostics.sorted()));
  return script.probes.map((probe) => {
    const head = probe.attachPoints.map((point) => point.name).join(",");
    const predicate = probe.predicate ? ` /${printExpr(probe.predicate)}/` : "";
    return `${head}${predicate} ${printBlock(probe.body)}`;
  });
}

function printBlock(block: Block): string {
  return `{${block.statements.map(printStatement).join("; ")}}`;
}

function printStatement(statement: Statement): string {
  switch (statement.kind) {
    case "expression":
      return printExpr(statement.expr);
    case "assign":
      return `${printExpr(statement.target)} ${statement.op ?? ""}= ${printExpr(statement.value)}`;
    case "if": {
      const alternate = statement.alternate ? ` else ${printBlock(statement.alternate)}` : "";
      return `if ${printExpr(statement.condition)} ${printBlock(statement.consequent)}${alternate}`;
    }
    case "while":
      return `while ${printExpr(statement.condition)} ${printBlock(statement.body)}`;
    case "unroll":
      return `unroll ${printExpr(statement.times)} ${printBlock(statement.body)}`;
    case "block":
      return printBlock(statement);
    default:
      return statement.kind;
  }
}

function printExpr(expr: Expr): string {
  const list = (items: readonly Expr[]): string => items.map(printExpr).join(", ");
  switch (expr.kind) {
    case "integer":
      return `${expr.value}`;
    case "string":
      return JSON.stringify(String.fromCharCode(...expr.bytes));
    case "builtin":
    case "variable":
      return expr.name;
    case "map":
      return expr.keys.length > 0 ? `${expr.name}[${list(expr.keys)}]` : expr.name;
    case "parameter":
      return `$${expr.index}`;
    case "parameter-count":
      return "$#";
    case "call":
      return `${expr.name}(${list(expr.args)})`;
    case "unary":
      return `(${expr.op}${printExpr(expr.operand)})`;
    case "step":
      return expr.prefix ? `(${expr.op}${printExpr(expr.target)})` : `(${printExpr(expr.target)}${expr.op})`;
    case "binary":
      return `(${printExpr(expr.left)} ${expr.op} ${printExpr(expr.right)})`;
    case "ternary":
      return `(${printExpr(expr.condition)} ? ${printExpr(expr.consequent)} : ${printExpr(expr.alternate)})`;
    case "cast":
      return `((${expr.type.base}${"*".repeat(expr.type.stars)})${printExpr(expr.operand)})`;
    case "sizeof":
      return `sizeof(${expr.type?.base ?? printExpr(expr.operand!)})`;
    case "index":
      return `${printExpr(expr.base)}[${printExpr(expr.index)}]`;
    case "element":
      return `${printExpr(expr.base)}.${expr.index}`;
    case "field":
      return `${printExpr(expr.base)}${expr.arrow ? "->" : "."}${expr.name}`;
    case "tuple":
      return `(${list(expr.elements)})`;
  }
}

describe("expressions", () => {
  const cases: readonly (readonly [text: string, tree: string])[] = [
    ["1 + 2 * 3", "(1 + (2 * 3))"],
    ["(1 + 2) * 3", "((1 + 2) * 3)"],
    ["1 - 2 - 3", "((1 - 2) - 3)"],
    ["1 | 2 ^ 3 & 4", "(1 | (2 ^ (3 & 4)))"],
    ["1 == 2 & 3", "((1 == 2) & 3)"],
    ["1 << 2 + 3", "(1 << (2 + 3))"],
    ["1 < 2 == 3 > 4", "((1 < 2) == (3 > 4))"],
    ["1 || 2 && 3", "(1 || (2 && 3))"],
    ["1 ? 2 : 3 ? 4 : 5", "(1 ? 2 : (3 ? 4 : 5))"],
    ["1 ? 2 ? 3 : 4 : 5", "(1 ? (2 ? 3 : 4) : 5)"],
    ["- - 1", "(-(-1))"],
    ["!$x == 1", "((!$x) == 1)"],
    ["-$x++", "(-($x++))"],
    ["++$x + $x--", "((++$x) + ($x--))"],
    ["*(uint32 *)arg0", "(*((uint32*)arg0))"],
    ["*(uint32*)(arg0 + 8)", "(*((uint32*)(arg0 + 8)))"],
    ["(int8)$x + 1", "(((int8)$x) + 1)"],
    ["(unsigned long)-1", "((unsigned long)(-1))"],
    ["(uint64 **)$x", "((uint64**)$x)"],
    ["(pid) + 1", "(pid + 1)"],
    ["(pid * 2)", "(pid * 2)"],
    ["sizeof(uint32) + sizeof($x)", "(sizeof(uint32) + sizeof($x))"],
    ['@x[1, "a"][2]', '@x[1, "a"][2]'],
    ["$t.1.0", "$t.1.0"],
    ["$p->next.x", "$p->next.x"],
    ["(1, 2, (3, 4))", "(1, 2, (3, 4))"],
    ["f(1, g(), @)", "f(1, g(), @)"],
    ["$1 + $#", "($1 + $#)"],
    ["1_000 + 0x_ff + 1e3 + 017 + 3UL", "((((1000 + 255) + 1000) + 15) + 3)"],
    ["'a' + '\\n'", "(97 + 10)"],
  ];
  for (const [text, tree] of cases) {
    it(text, () => expect(parse(`BEGIN { $y = ${text} }`)).toEqual([`BEGIN {$y = ${tree}}`]));
  }
});

describe("statements and probes", () => {
  const cases: readonly {
    readonly name: string;
    readonly text: string;
    readonly trees: readonly string[];
  }[] = [
    { name: "empty block", text: "BEGIN { }", trees: ["BEGIN {}"] },
    { name: "spare semicolons", text: "BEGIN { ;; $x = 1;; }", trees: ["BEGIN {$x = 1}"] },
    { name: "no semicolon at the end", text: "BEGIN { $x = 1; $y = 2 }", trees: ["BEGIN {$x = 1; $y = 2}"] },
    {
      name: "no semicolon after a block",
      text: "BEGIN { if (1) { $x = 1 } $y = 2 }",
      trees: ["BEGIN {if 1 {$x = 1}; $y = 2}"],
    },
    {
      name: "else if",
      text: "BEGIN { if (1) { } else if (2) { } else { $x = 1 } }",
      trees: ["BEGIN {if 1 {} else {if 2 {} else {$x = 1}}}"],
    },
    {
      name: "loops",
      text: "BEGIN { while ($x < 3) { break; continue } unroll(3) { return } }",
      trees: ["BEGIN {while ($x < 3) {break; continue}; unroll 3 {return}}"],
    },
    {
      name: "compound assignments",
      text: "BEGIN { @ += 1; $x <<= 2; @x[1] ^= 3 }",
      trees: ["BEGIN {@ += 1; $x <<= 2; @x[1] ^= 3}"],
    },
    { name: "several probes", text: "BEGIN { } END { }", trees: ["BEGIN {}", "END {}"] },
    {
      name: "several attach points",
      text: "u:a:b , ur:a:b,\n i:s:1\n{ }",
      trees: ["uprobe:a:b,uretprobe:a:b,interval:s:1 {}"],
    },
    { name: "predicate", text: "u:a:b /pid == 3/ { }", trees: ["uprobe:a:b /(pid == 3)/ {}"] },
    {
      name: "division in a predicate",
      text: "u:a:b /arg0 / 2 > (1 / 2)/\n{ }",
      trees: ["uprobe:a:b /((arg0 / 2) > (1 / 2))/ {}"],
    },
    { name: "predicate right after BEGIN", text: "BEGIN/1/{ }", trees: ["BEGIN /1/ {}"] },
    {
      name: "comment between predicate and block",
      text: "u:a:b /1/ // why\n{ }",
      trees: ["uprobe:a:b /1/ {}"],
    },
    { name: "path with slashes", text: "u:/bin/a-b.so.1:f { }", trees: ["uprobe:/bin/a-b.so.1:f {}"] },
    { name: "block right after the attach point", text: "u:a:f{ }", trees: ["uprobe:a:f {}"] },
    {
      name: "interpreter line and comments",
      text: "#!/usr/bin/trapline\n/* a\n b */ BEGIN /* c */ { // d\n $x = 1 /* e */ }",
      trees: ["BEGIN {$x = 1}"],
    },
    {
      name: "slashes in a quoted name",
      text: 'u:a:"f(int) // {x}" { }',
      trees: ["uprobe:a:f(int) // {x} {}"],
    },
    { name: "line breaks of Windows", text: "BEGIN {\r\n  $x = 1;\r\n}\r\n", trees: ["BEGIN {$x = 1}"] },
  ];
  for (const { name, text, trees } of cases) it(name, () => expect(parse(text)).toEqual(trees));

  it("refuses expressions that are nested too deeply", () => {
    const text = `BEGIN { $x = ${"(".repeat(5000)}1${")".repeat(5000)} }`;
    expect(() => parse(text)).toThrow("nested too deeply");
  });

  it("survives any cut of a script", () => {
    const text =
      'u:/a:b, i:ms:5 /str(arg0) == "x" && @a[1] / 2/ { if (@x[1, "a"]++ > 0x1f) { printf("%d\\n", *(int8 *)arg1); } else { @ = lhist(1, 2, 3, 4) } }';
    for (let end = 0; end <= text.length; end++) {
      const source = new SourceText("stdin", text.slice(0, end));
      expect(() => parseScript(source, [], new DiagnosticList(source))).not.toThrow();
    }
  });
});
