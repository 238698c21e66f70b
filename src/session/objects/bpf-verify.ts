/** `trapline bpf verify`: proves the programs of an object file, or says why one is not safe. */
import { basename } from "node:path";
import { type MapSpec, verifyProgram } from "../../bpf/index.ts";
import type { ObjectProgram } from "../../bpf/object/index.ts";
import type { BpfVerifyOptions, SessionIo } from "../options.ts";
import { bundleMaps } from "./object-bundle.ts";
import { annotateLog, lineAt, loadObject, refusalOf, selectPrograms } from "./object-file.ts";

const OPERATION = "bpf verify";

/** Says for each program whether it is accepted. Returns 1 if one is not; its log is then on `io.err`. */
export async function verifyObject(options: BpfVerifyOptions, io: SessionIo): Promise<number> {
  const { path, section } = options;
  const object = loadObject(path, OPERATION);
  const selected = selectPrograms(object, section, { operation: OPERATION, path });
  const linked = selected.flatMap(({ code }) => (code.kind === "linked" ? [code] : []));
  const { specs } = bundleMaps(object, linked);
  const verdicts = selected.map((program) => {
    const refusal = refusalOf(program);
    if (refusal === undefined || program.isAutoloaded || section !== undefined)
      return verifyOne(program, specs, io);
    // Nobody would have it loaded, either.
    io.err.write(`note: program ${program.name} (${program.section}) is left out: ${refusal}\n`);
    return true;
  });
  return verdicts.every(Boolean) ? 0 : 1;
}

function verifyOne(program: ObjectProgram, maps: readonly MapSpec[], io: SessionIo): boolean {
  const { name, section, code } = program;
  const refusal = refusalOf(program);
  if (refusal !== undefined || code.kind === "refused") {
    io.err.write(`trapline: ${OPERATION}: program ${name} (${section}): ${refusal}\n`);
    return false;
  }
  if (program.attach.kind === "unknown")
    io.err.write(
      `note: program ${name}: section ${section} is of no type that libbpf knows; it is verified as a probe in a process\n`,
    );
  const verdict = verifyProgram(code, maps);
  if (verdict.kind === "accepted") {
    const { visited, stackBytes } = verdict.proof;
    io.out.write(
      `program ${name} (${section}): accepted: ${code.insns.length} instructions, ` +
        `${visited} looked at, ${stackBytes} bytes of stack\n`,
    );
    return true;
  }
  const { at, message, log } = verdict;
  const line = lineAt(code, at);
  const place = line === undefined ? "" : `${basename(line.file)}:${line.line}:${line.column}: `;
  io.err.write(annotateLog(log, code));
  io.err.write(
    `trapline: ${OPERATION}: program ${name} (${section}): ${place}the verifier rejects instruction ${at}: ${message}\n`,
  );
  return false;
}
