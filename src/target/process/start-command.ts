/**
 * Starting a command so that it stands before its first instruction.
 *
 * A shell stops itself before it turns into the command, so that there is time to seize it; the stop after its exec
 * is the one wanted: the program and its loader are mapped, nothing of them has run. Node must not know of the child: its
 * own child handling would take away the stops that are waited for here.
 */
import { accessSync, constants } from "node:fs";
import { join } from "node:path";
import { Freeze } from "./freeze.ts";
import { killRaw, spawnUnmanaged, usleep, waitpidRaw } from "./libc.ts";
import { MemoryFile } from "./memory-file.ts";
import * as ptrace from "./ptrace.ts";

const SIGCONT = 18;
const WUNTRACED = 2;

/** The command could not be started. */
export class StartError extends Error {
  readonly code = "cannot-start";
  constructor(command: string, why: string) {
    super(`start ${command}: ${why}`);
    this.name = "StartError";
  }
}

/** Starts a command and returns it standing at its program's entry. */
export function startStopped(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): { readonly pid: number; readonly freeze: Freeze } {
  const program = argv[0];
  if (program === undefined) throw new StartError("command", "the command is empty");
  const path = findProgram(program, env.PATH ?? "/usr/bin:/bin");
  const environment = Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  const script = 'kill -STOP $$; exec "$@"';
  const pid = spawnUnmanaged("/bin/sh", ["sh", "-c", script, "sh", path, ...argv.slice(1)], environment);
  const status = new Int32Array(1);
  waitpidRaw(pid, status, WUNTRACED);
  ptrace.seize(pid, ptrace.PTRACE_O_TRACEEXEC);
  killRaw(pid, SIGCONT);
  runToExec(pid, program);
  // From the exec stop to an event stop, where registers may be changed; still before the first instruction.
  ptrace.tryInterrupt(pid);
  ptrace.cont(pid, 0);
  while (ptrace.wait(pid, true)?.kind !== "trap-stop") ptrace.cont(pid, 0);
  const memory = MemoryFile.open(pid);
  const freeze = Freeze.adopt(pid, memory);
  return { pid, freeze };
}

function runToExec(pid: number, program: string): void {
  for (;;) {
    const event = ptrace.wait(pid, true)!;
    switch (event.kind) {
      case "event":
        if (event.event === ptrace.PTRACE_EVENT_EXEC) return;
        ptrace.cont(pid, 0);
        break;
      case "signal":
        ptrace.cont(pid, event.signal);
        break;
      case "trap-stop":
      case "syscall":
        usleep(100);
        ptrace.cont(pid, 0);
        break;
      case "ended":
        throw new StartError(program, "it could not be executed");
      default:
        event satisfies never;
    }
  }
}

function findProgram(program: string, searchPath: string): string {
  if (program.includes("/")) {
    if (isExecutable(program)) return program;
    throw new StartError(program, "there is no such program, or it may not be executed");
  }
  const found = searchPath
    .split(":")
    .map((folder) => join(folder === "" ? "." : folder, program))
    .find(isExecutable);
  if (found === undefined) throw new StartError(program, "no such program in PATH");
  return found;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
