/** Object files: reading them, and showing their programs with the lines of their source. */
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { type BpfObject, type ObjectProgram, readObject, type SourceLine } from "../../bpf/object/index.ts";
import { SessionError } from "../session-error.ts";

export type LinkedCode = Extract<ObjectProgram["code"], { readonly kind: "linked" }>;

/** Throws SessionError. `operation` is how messages call what is being done. */
export function loadObject(path: string, operation: string): BpfObject {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const reason =
      code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "it is a directory" : `${code}`;
    throw new SessionError("no-object", { operation, object: path, reason });
  }
  const result = readObject(bytes);
  if (result.kind === "bad")
    throw new SessionError("bad-object", { operation, object: path, reason: result.message });
  return result.object;
}

/** The programs of a section, or of that name; all without one. Throws SessionError if there is none. */
export function selectPrograms(
  object: BpfObject,
  wanted: string | undefined,
  where: { readonly operation: string; readonly path: string },
): readonly ObjectProgram[] {
  const { programs } = object;
  const selected =
    wanted === undefined
      ? programs
      : programs.filter(({ section, name }) => section === wanted || name === wanted);
  if (selected.length > 0) return selected;
  const names = [...new Set(programs.map(({ section }) => section))];
  throw new SessionError(
    "no-program",
    {
      operation: where.operation,
      object: where.path,
      reason:
        wanted === undefined
          ? "it has no programs"
          : `it has no program in section ${wanted} nor of that name`,
    },
    names.length > 0 ? `its sections are: ${names.join(", ")}` : undefined,
  );
}

/** Why a program cannot be used at all; undefined: it can. */
export function refusalOf({ attach, code }: ObjectProgram): string | undefined {
  if (code.kind === "refused") return code.reason;
  if (attach.kind === "elsewhere") return attach.reason;
  return undefined;
}

/** The line of source that an instruction belongs to: the last that began before it in its function. */
export function lineAt(code: LinkedCode, slot: number): SourceLine | undefined {
  for (let at = slot; at >= 0; at--) {
    const line = code.lines.get(at);
    if (line !== undefined) return line;
    if (code.functions.has(at)) return undefined;
  }
  return undefined;
}

/** As the kernel's log has it. */
export function printLine({ text, file, line }: SourceLine): string {
  return `; ${text.trim()} @ ${basename(file)}:${line}\n`;
}

/** Whether two instructions come from one line. */
export function isSameLine(a: SourceLine, b: SourceLine | undefined): boolean {
  return a.line === b?.line && a.file === b.file;
}

/** Puts each line of the source before the instructions of a log that come from it. */
export function annotateLog(log: string, code: LinkedCode): string {
  let last: SourceLine | undefined;
  return log.replace(/^(\d+): \(.*\n/gm, (line, slot: string) => {
    const source = lineAt(code, Number(slot));
    if (source === undefined || isSameLine(source, last)) return line;
    last = source;
    return printLine(source) + line;
  });
}
