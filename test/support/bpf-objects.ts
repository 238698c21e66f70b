/**
 * Object files for tests: C in the style of libbpf, compiled by the machine's clang with the flags that libbpf's own
 * examples use. Kept in the temporary directory by source. A missing compiler fails the test with what to install.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const fixtures = fileURLToPath(new URL("../fixtures/bpf/", import.meta.url));

/** What every source begins with. */
export const PRELUDE = `#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
typedef unsigned int u32;
typedef unsigned long long u64;
char LICENSE[] SEC("license") = "GPL";
`;

/** Path of the object compiled from `test/fixtures/bpf/NAME.bpf.c`. */
export function buildBpfFixture(name: string): string {
  return buildBpfObject(name, readFileSync(join(fixtures, `${name}.bpf.c`), "utf8"));
}

/** Path of the object compiled from a source. */
export function buildBpfObject(name: string, source: string, flags: readonly string[] = ["-g"]): string {
  const digest = createHash("sha256")
    .update(JSON.stringify([source, flags]))
    .digest("hex")
    .slice(0, 12);
  const folder = join(tmpdir(), `trapline-bpf-objects-${process.getuid?.() ?? 0}`, digest);
  const object = join(folder, `${name}.bpf.o`);
  if (existsSync(object)) return object;
  mkdirSync(folder, { recursive: true });
  const sourceFile = join(folder, `${name}.bpf.c`);
  writeFileSync(sourceFile, source);
  const partial = `${object}.${process.pid}`;
  const run = spawnSync(
    "clang",
    [
      "-target",
      "bpf",
      "-O2",
      "-D__TARGET_ARCH_x86",
      "-I/usr/include/x86_64-linux-gnu",
      ...flags,
      "-c",
      sourceFile,
      "-o",
      partial,
    ],
    { encoding: "utf8" },
  );
  if (run.error) throw new Error("clang cannot be run: install clang and libbpf-dev", { cause: run.error });
  if (run.status !== 0) throw new Error(`clang failed on ${name} (libbpf-dev?):\n${run.stderr}`);
  renameSync(partial, object);
  return object;
}
