/**
 * Real ELF images for tests: what this machine has, and small programs linked in every way that matters.
 */
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { byteSourceOf, type ElfFile, parseElf } from "../../src/elf/index.ts";
import { buildProgram } from "./build-program.ts";

export function openElf(path: string): ElfFile {
  return parseElf(byteSourceOf(readFileSync(path)), { name: path });
}

/** The image's path where it exists on this machine; libc and node must exist. */
export const libcPath = realpathSync("/lib/x86_64-linux-gnu/libc.so.6");
export const nodePath = realpathSync(process.execPath);
export const bashPath = existsSync("/bin/bash") ? realpathSync("/bin/bash") : undefined;

/** Functions, a static pointer table, labels as values, aliases and a local function. */
export const smallSource = `
#include <stdio.h>
#include <stdlib.h>
static __attribute__((noinline)) int hidden(int x) { return x * 3 + 1; }
__attribute__((noinline)) int visible(int x) { return hidden(x) ^ 5; }
int also_visible(int x) __attribute__((alias("visible")));
int (*volatile table[])(int) = { hidden, visible };
__attribute__((noinline)) int run(const unsigned char *code) {
  static const void *const ops[] = { &&add, &&mul, &&stop };
  int value = 1;
  goto *ops[*code++];
add: value += 7; goto *ops[*code++];
mul: value *= 3; goto *ops[*code++];
stop: return value;
}
int main(int argc, char **argv) {
  static const unsigned char code[] = { 0, 1, 0, 2 };
  printf("%d %d %d\\n", table[argc & 1](argc), also_visible(argc), run(code));
  return 0;
}
`;

/** The same with exceptions, for landing pads. */
export const throwingSource = `
#include <cstdio>
#include <stdexcept>
#include <string>
__attribute__((noinline)) int risky(int x) { if (x > 1) throw std::runtime_error("x"); return x; }
__attribute__((noinline)) int guarded(int x) {
  std::string text(40, 'a');
  try { return risky(x) + (int)text.size(); } catch (const std::exception &e) { return -1; }
}
int main(int argc, char **) { std::printf("%d\\n", guarded(argc)); return 0; }
`;

/** One small program in every kind of linking. */
export const smallPrograms: Readonly<Record<string, () => string>> = {
  PIE: () => buildProgram({ name: "small-pie", source: smallSource, flags: ["-O2", "-pie", "-fPIE"] }),
  "fixed address": () =>
    buildProgram({ name: "small-fixed", source: smallSource, flags: ["-O2", "-no-pie"] }),
  "stripped PIE": () =>
    buildProgram({ name: "small-strip", source: smallSource, flags: ["-O2", "-pie", "-s"] }),
  static: () => buildProgram({ name: "small-static", source: smallSource, flags: ["-O2", "-static"] }),
  "static PIE": () =>
    buildProgram({ name: "small-spie", source: smallSource, flags: ["-O2", "-static-pie"] }),
  "shared library": () =>
    buildProgram({
      name: "libsmall.so",
      source: smallSource,
      flags: ["-O2", "-shared", "-fPIC", "-Wl,-soname,libsmall.so.7"],
    }),
  "packed relocations": () =>
    buildProgram({
      name: "small-relr",
      source: smallSource,
      flags: ["-O2", "-pie", "-fPIE", "-Wl,-z,pack-relative-relocs"],
    }),
  "code and constants in one segment": () =>
    buildProgram({
      name: "small-noseparate",
      source: smallSource,
      flags: ["-O2", "-no-pie", "-Wl,-z,noseparate-code"],
    }),
  musl: () => buildProgram({ name: "small-musl", source: smallSource, flags: ["-O2"], compiler: "musl-gcc" }),
  "static musl": () =>
    buildProgram({
      name: "small-musl-static",
      source: smallSource,
      flags: ["-O2", "-static"],
      compiler: "musl-gcc",
    }),
};
