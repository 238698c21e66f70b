/** Does what the command line says: gathers what a session needs, and calls it. */
import { readFileSync } from "node:fs";
import type { SessionIo, TraceOptions } from "../session/index.ts";
import type { Action, ProgramSource } from "./arguments.ts";
import { TerminalIo } from "./terminal-io.ts";
import { UsageError } from "./usage-error.ts";

type SessionAction = Exclude<Action, { verb: "help" } | { verb: "version" }>;

/** Returns the exit code. */
export async function perform(action: SessionAction, outputFile: string | undefined): Promise<number> {
  // Read before anything is opened: a script that is not there changes nothing.
  const program = action.verb === "trace" ? readProgram(action.source) : undefined;
  using io = new TerminalIo(outputFile);
  const exitCode = await run(action, program, io);
  if (io.failure !== undefined) throw io.failure;
  return exitCode;
}

async function run(
  action: SessionAction,
  program: TraceOptions["program"] | undefined,
  io: SessionIo,
): Promise<number> {
  // Loaded here, so that help and bad usage cost nothing.
  const { sessionVerbs: session } = await import("../session/verbs.ts");
  switch (action.verb) {
    case "trace":
      return await session.trace({ program: program!, ...action.options }, io);
    case "list":
      return await session.listProbes(action.options, io);
    case "explain":
      return await session.explain(action.options, io);
    case "coverage":
      return await session.coverage(action.options, io);
    case "ps":
      return await session.listTracedProcesses(action.options, io);
    case "detach":
      return await session.detach(action.options, io);
    case "doctor":
      return await session.doctor(action.options, io);
    case "run":
      return await session.runObject(action.options, io);
    case "bpf verify":
      return await session.verifyObject(action.options, io);
    case "bpf disasm":
      return await session.disassembleObject(action.options, io);
    case "bpf exec":
      return await session.executeBpf({ ...action.options, bytecode: readFileSync(0, "latin1") }, io);
    default:
      return action satisfies never;
  }
}

function readProgram(source: ProgramSource): { readonly text: string; readonly fileName: string } {
  if (source.kind === "text") return { text: source.text, fileName: "stdin" };
  const isStdin = source.path === "-";
  try {
    return {
      text: readFileSync(isStdin ? 0 : source.path, "utf8"),
      fileName: isStdin ? "stdin" : source.path,
    };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const why = code === "ENOENT" ? "there is no such file" : code === "EISDIR" ? "it is a directory" : code;
    throw new UsageError(
      `read script ${source.path}: ${why ?? String(error)}`,
      code === "ENOENT" ? "a program on the command line is given with -e" : undefined,
    );
  }
}
