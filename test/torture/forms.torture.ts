/**
 * Every form of instruction that occurs in large programs and libraries of this machine, and every encoding that there is,
 * relocated and run beside the original. TRAPLINE_SEED repeats a run, TRAPLINE_ROUNDS sets how often each is run.
 */
import { execFileSync } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { expect, test } from "vitest";
import { codeImageOf } from "../../src/elf/index.ts";
import { bashPath, libcPath, nodePath, openElf } from "../support/elf-images.ts";
import {
  collectEncodings,
  collectForms,
  compareForm,
  FormTally,
  type InstructionForm,
} from "../support/instruction-forms.ts";
import { SteppedMachine } from "../support/stepped-machine.ts";

const seed = Number(process.env.TRAPLINE_SEED ?? Date.now() % 1_000_000);
const rounds = Number(process.env.TRAPLINE_ROUNDS ?? 4);

const outputOf = (command: string, ...args: string[]) =>
  execFileSync(command, args, { encoding: "utf8" }).trim();

const images = [
  libcPath,
  bashPath,
  "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
  "/usr/bin/sqlite3",
  "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0",
  "/usr/bin/python3.11",
  outputOf("python3", "-c", "import sys, os; print(os.path.realpath(sys.executable))"),
  "/usr/bin/redis-server",
  "/usr/sbin/nginx",
  "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
  "/usr/lib/x86_64-linux-gnu/libm.so.6",
  outputOf("gcc", "-print-prog-name=cc1"),
  nodePath,
].filter((path): path is string => path !== undefined && existsSync(path));

test(`forms of images and of the opcode maps (seed ${seed})`, () => {
  using machine = new SteppedMachine();
  const lines: string[] = [];
  const differences: string[] = [];
  const known = new Map<string, InstructionForm>();
  const compareNew = (name: string, instructions: number, before: number) => {
    const tally = new FormTally();
    for (const form of [...known.values()].slice(before))
      tally.add(compareForm(machine, form, { seed, rounds }));
    differences.push(...tally.differences);
    const { ran, faulted, decoded, refused } = tally.counts;
    const figures = [instructions, known.size - before, ran, faulted, decoded, refused];
    lines.push(`${name.padEnd(44)}${figures.map((figure) => `${figure}`.padStart(12)).join("")}`);
    for (const [reason, count] of tally.refusals) lines.push(`${"".padEnd(4)}${count} refused: ${reason}`);
  };
  for (const path of new Set(images.map((image) => realpathSync(image)))) {
    const before = known.size;
    const instructions = collectForms(codeImageOf(openElf(path), 0n), known);
    compareNew(path.slice(-42), instructions, before);
  }
  const before = known.size;
  collectEncodings(known);
  compareNew("all encodings", 0, before);
  const titles = ["instructions", "new forms", "ran alike", "faulted", "decoded", "refused"];
  console.log(
    [`${"image".padEnd(44)}${titles.map((title) => title.padStart(12)).join("")}`, ...lines].join("\n"),
  );
  expect(differences).toEqual([]);
});
