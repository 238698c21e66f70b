/**
 * Programs compiled for a test: C source in, path of a binary in a temporary directory out.
 *
 * A binary is named after its source and flags and kept in the temporary directory, so that several test files and
 * runs share it. A missing compiler fails the test with what to install.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface ProgramSource {
  /** Base name of the binary. */
  readonly name: string;
  readonly source: string;
  readonly flags?: readonly string[];
  readonly compiler?: "gcc" | "g++" | "musl-gcc";
}

/** Compiles and links (once) and returns the binary's path. */
export function buildProgram({ name, source, flags = [], compiler = "gcc" }: ProgramSource): string {
  const digest = createHash("sha256")
    .update(JSON.stringify([source, flags, compiler]))
    .digest("hex")
    .slice(0, 12);
  const folder = join(tmpdir(), `trapline-programs-${process.getuid?.() ?? 0}`, digest);
  const binary = join(folder, name);
  if (existsSync(binary)) return binary;
  mkdirSync(folder, { recursive: true });
  const sourceFile = join(folder, `${name}.${compiler === "g++" ? "cc" : "c"}`);
  writeFileSync(sourceFile, source);
  const partial = `${binary}.${process.pid}`;
  const run = spawnSync(compiler, ["-o", partial, sourceFile, ...flags], { encoding: "utf8" });
  if (run.error)
    throw new Error(`${compiler} cannot be run: install gcc, g++ and musl-tools`, { cause: run.error });
  if (run.status !== 0) throw new Error(`${compiler} failed on ${name}:\n${run.stderr}`);
  renameSync(partial, binary);
  return binary;
}

/** Standard output of a tool that must succeed (readelf, nm, objdump). */
export function outputOf(command: string, args: readonly string[]): string {
  const run = spawnSync(command, args, { encoding: "utf8", maxBuffer: 1 << 30 });
  if (run.error) throw new Error(`${command} cannot be run: install binutils`, { cause: run.error });
  if (run.status !== 0) throw new Error(`${command} ${args.join(" ")} failed:\n${run.stderr}`);
  return run.stdout;
}
