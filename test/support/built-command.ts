/** The built command, run as anybody would run it. `npm test` builds before it tests. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { patient } from "./patience.ts";

/** TRAPLINE_COMMAND names another build to be tested, such as an installed package's. */
export const commandPath =
  process.env.TRAPLINE_COMMAND ?? fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

export interface CommandResult {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs it to its end; `input` goes to its standard input. */
export function runCommand(args: readonly string[], input = ""): CommandResult {
  if (!existsSync(commandPath)) throw new Error("dist/cli/main.js is not there: npm run build");
  const run = spawnSync(process.execPath, [commandPath, ...args], {
    encoding: "utf8",
    input,
    timeout: patient(30_000),
    killSignal: "SIGKILL",
  });
  return { code: run.status, out: run.stdout, err: run.stderr };
}
