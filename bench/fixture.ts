/** The C programs of `bench/fixtures`, compiled with gcc when they are older than their source. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The repository: this file runs from its folder `dist-bench`. */
export const repository = join(dirname(fileURLToPath(import.meta.url)), "..");

const output = join(repository, "dist-bench/fixtures");

/** Not position independent: gdbserver puts its jump pads below 4 GiB, and cannot reach a PIE from there. */
export type Placement = "pie" | "no-pie";

export function buildFixture(name: "hot" | "many", placement: Placement, define?: string): string {
  const source = join(repository, `bench/fixtures/${name}.c`);
  const variant = [
    name,
    ...(placement === "pie" ? [] : [placement]),
    ...(define === undefined ? [] : [define]),
  ];
  const binary = join(output, variant.join("-"));
  if (existsSync(binary) && statSync(binary).mtimeMs > statSync(source).mtimeMs) return binary;
  mkdirSync(output, { recursive: true });
  const flags = placement === "pie" ? ["-fpie", "-pie"] : ["-fno-pie", "-no-pie"];
  const defines = define === undefined ? [] : [`-D${define}`];
  const gcc = spawnSync("gcc", ["-O2", "-pthread", ...flags, ...defines, "-o", binary, source], {
    encoding: "utf8",
  });
  if (gcc.error)
    throw new Error("the benchmark needs gcc: apt-get install gcc libc6-dev", { cause: gcc.error });
  if (gcc.status !== 0) throw new Error(`gcc failed on ${name}.c:\n${gcc.stderr}`);
  return binary;
}
