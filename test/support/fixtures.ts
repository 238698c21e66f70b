/**
 * C programs for tests, built on first use with the machine's gcc (or musl-gcc) into test/fixtures/build.
 *
 * The machine with protection keys has no compiler: it holds what was built when the test files were collected. So tests
 * that run there build their programs at the top of the file or in the body of a `describe`.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, renameSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const folder = join(dirname(fileURLToPath(import.meta.url)), "../fixtures");
const output = join(folder, "build");
const hasNoCompiler = process.env.TRAPLINE_NO_COMPILER === "1";

export interface BuildOptions {
  readonly compiler?: "gcc" | "g++" | "musl-gcc";
  readonly flags?: readonly string[];
  /** Added to the name of the result, to tell builds of one source apart. */
  readonly variant?: string;
}

/** Path of the built program (or library) of `test/fixtures/NAME.c`. */
export function buildFixture(name: string, options: BuildOptions = {}): string {
  const { compiler = "gcc", flags = [], variant } = options;
  const source = [".c", ".cc"].map((ending) => join(folder, name + ending)).find(existsSync);
  if (source === undefined) throw new Error(`there is no fixture ${name}`);
  const target = join(output, variant === undefined ? name : `${name}-${variant}`);
  if (hasNoCompiler) {
    if (!existsSync(target)) throw new Error(`fixture ${name}: to be built before its test runs`);
    return target;
  }
  if (existsSync(target) && statSync(target).mtimeMs > statSync(source).mtimeMs) return target;
  mkdirSync(output, { recursive: true });
  // Tests run in several processes: the result appears whole or not at all.
  const temporary = `${target}.${process.pid}`;
  execFileSync(compiler, ["-O2", "-g", "-pthread", "-w", "-o", temporary, source, ...flags], {
    stdio: "pipe",
  });
  renameSync(temporary, target);
  return target;
}
