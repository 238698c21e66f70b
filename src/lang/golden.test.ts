/**
 * Golden files: test/cases/lang/*.txt. Each holds cases of three parts:
 *
 *     === what the case shows
 *     the script
 *     --- diagnostics            or: code, or: warnings
 *     what the compiler says, or the programs that it makes
 *
 * A line `params: a b` before the script gives positional parameters. To accept what the compiler does now:
 *
 *     TRAPLINE_ACCEPT=1 npx vitest run src/lang/golden.test.ts
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { printProgram, verifyProgram } from "../bpf/index.ts";
import { compileScript } from "./compile.ts";
import { printDiagnostics } from "./diagnostics.ts";

const folder = new URL("../../test/cases/lang/", import.meta.url);
const isAccepting = process.env.TRAPLINE_ACCEPT === "1";

interface GoldenCase {
  readonly name: string;
  readonly params: readonly string[];
  readonly script: string;
  readonly kind: string;
  readonly expected: string;
}

for (const file of readdirSync(folder).sort()) {
  describe(file, () => {
    const url = new URL(file, folder);
    const cases = parseCases(readFileSync(url, "utf8"));
    for (const golden of cases) {
      it(golden.name, () => {
        const actual = compileCase(golden);
        if (!isAccepting) expect(actual).toBe(golden.expected);
      });
    }
    if (isAccepting) writeFileSync(url, cases.map(printCase).join("\n"));
  });
}

function compileCase(golden: GoldenCase): string {
  const result = compileScript(golden.script, { params: golden.params });
  switch (golden.kind) {
    case "diagnostics":
      return result.kind === "errors" ? printDiagnostics(result.diagnostics) : "no errors\n";
    case "warnings":
      return result.kind === "errors"
        ? printDiagnostics(result.diagnostics)
        : printDiagnostics(result.warnings);
    case "code": {
      if (result.kind === "errors") return printDiagnostics(result.diagnostics);
      const { bundle } = result.script;
      return bundle.programs
        .map((program) => {
          const verdict = verifyProgram(program, bundle.maps);
          const proof = verdict.kind === "accepted" ? "" : `rejected: ${verdict.message}\n`;
          return `${program.name}:\n${printProgram(program.insns).trimEnd()}\n${proof}`;
        })
        .join("");
    }
    default:
      throw new Error(`golden case ${golden.name}: unknown kind ${golden.kind}`);
  }
}

function parseCases(text: string): GoldenCase[] {
  return text
    .split(/^=== /m)
    .slice(1)
    .map((part) => {
      const found = /^(.*)\n(?:params: (.*)\n)?([\s\S]*?)\n--- (\w+)\n([\s\S]*)$/.exec(part);
      if (!found) throw new Error(`golden file: a case has not its three parts:\n${part}`);
      const [, name, params, script, kind, expected] = found;
      return {
        name: name!,
        params: params === undefined ? [] : params.split(" "),
        script: script!,
        kind: kind!,
        expected: expected!.replace(/\n*$/, "\n"),
      };
    });
}

function printCase(golden: GoldenCase): string {
  const params = golden.params.length > 0 ? `params: ${golden.params.join(" ")}\n` : "";
  const body = compileCase(golden);
  return `=== ${golden.name}\n${params}${golden.script}\n--- ${golden.kind}\n${body}`;
}
