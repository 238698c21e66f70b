/** A run of `trapline run` with JSON output, while the test uses the process that it has attached to. */
import { spawn } from "node:child_process";
import { commandPath } from "./built-command.ts";

export interface ObjectRunResult {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
  /** The lines of the output; empty without `-f json`. */
  readonly lines: readonly { readonly type: string; readonly data: Record<string, unknown> }[];
  /** What a map held at the end, or the globals of the object by their names. */
  map(name: string): unknown;
}

/** Runs the command until `use`, which begins when it is attached, has ended; then Ctrl-C. */
export async function runObject(args: readonly string[], use: () => Promise<void>): Promise<ObjectRunResult> {
  const run = spawn(process.execPath, [commandPath, "run", ...args]);
  let [out, err] = ["", ""];
  run.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  const ended = new Promise<number | null>((resolve) => run.once("close", resolve));
  await new Promise<void>((resolve, reject) => {
    run.stderr.setEncoding("utf8").on("data", (text: string) => {
      err += text;
      if (/^attached \d+ probes/m.test(err)) resolve();
    });
    run.once("close", () => reject(new Error(`the command ended: ${err}`)));
  });
  try {
    await use();
  } finally {
    run.kill("SIGINT");
  }
  const code = await ended;
  const lines = out
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as ObjectRunResult["lines"][number]);
  const map = (name: string) =>
    lines.find(({ type, data }) => (type === "map" || type === "globals") && name in data)?.data[name];
  return { code, out, err, lines, map };
}
