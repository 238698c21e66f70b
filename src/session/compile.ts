/** From the script's text to programs with proofs; everything that is wrong with it is written out. */
import type { Proof } from "../bpf/index.ts";
import { printProgram } from "../bpf/text.ts";
import { type Verdict, verifyProgram } from "../bpf/verifier/index.ts";
import { compileScript, printDiagnostics, type Script } from "../lang/index.ts";
import type { SessionIo, TraceOptions } from "./options.ts";

export interface CompiledScript {
  readonly script: Script;
  /** By program index. */
  readonly proofs: readonly Proof[];
}

type Source = Pick<TraceOptions, "program" | "params" | "debug">;

/** Compiles and proves a script; undefined when it cannot run, which has then been explained. */
export function compileProgram(options: Source, io: SessionIo): CompiledScript | undefined {
  const { text, fileName } = options.program;
  const result = compileScript(text, {
    fileName,
    params: options.params,
    startNs: process.hrtime.bigint(),
    accounts: true,
  });
  if (result.kind === "errors") {
    io.err.write(printDiagnostics(result.diagnostics));
    return undefined;
  }
  if (result.warnings.length > 0) io.err.write(printDiagnostics(result.warnings));
  const { script } = result;
  const { maps, programs } = script.bundle;
  const proofs: Proof[] = [];
  let isRejected = false;
  for (const program of programs) {
    const verdict = verifyProgram(program, maps);
    if (options.debug) io.err.write(printDebug(program.name, printProgram(program.insns), verdict));
    if (verdict.kind === "accepted") {
      proofs.push(verdict.proof);
      continue;
    }
    isRejected = true;
    const place = program.places?.get(verdict.at);
    const where = place === undefined ? "" : `${fileName}:${place.line}:${place.column}: `;
    io.err.write(
      `${where}ERROR: program ${program.name}: the verifier rejects instruction ${verdict.at}: ${verdict.message}\n`,
    );
    io.err.write(hintFor(verdict.message));
    if (options.debug) io.err.write(verdict.log);
  }
  return isRejected ? undefined : { script, proofs };
}

function hintFor(message: string): string {
  return /loop|too (large|complex|many)|back-edge|budget/.test(message)
    ? "HINT: every loop must have an end that can be proved; count up to a constant\n"
    : "HINT: run with -d to see the path that leads there\n";
}

function printDebug(name: string, text: string, verdict: Verdict): string {
  const proof =
    verdict.kind === "accepted"
      ? `; ${verdict.proof.visited} instructions looked at, ${verdict.proof.stackBytes} bytes of stack\n`
      : "";
  return `\n; program ${name}\n${text}\n${proof}`;
}
