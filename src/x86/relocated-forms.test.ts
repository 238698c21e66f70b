/**
 * Relocated instructions beside their originals: a part of the forms that occur in the C library, and of all encodings that
 * there are, run on random registers and memory. `npm run torture` takes all of them, and those of many images.
 */
import { afterAll, beforeAll, expect, test } from "vitest";
import { libcPath, openElf } from "../../test/support/elf-images.ts";
import {
  collectEncodings,
  collectForms,
  compareForm,
  FormTally,
  type InstructionForm,
} from "../../test/support/instruction-forms.ts";
import { SteppedMachine } from "../../test/support/stepped-machine.ts";
import { codeImageOf } from "../elf/index.ts";
import { relocate } from "./relocate.ts";

const SEED = 1;

let machine: SteppedMachine;
beforeAll(() => {
  machine = new SteppedMachine();
});
afterAll(() => machine[Symbol.dispose]());

test("forms of the C library", () => {
  const forms = new Map<string, InstructionForm>();
  collectForms(codeImageOf(openElf(libcPath), 0n), forms);
  const tally = new FormTally();
  let index = 0;
  for (const form of forms.values())
    if (index++ % 3 === 0) tally.add(compareForm(machine, form, { seed: SEED }));
  expect(tally.differences).toEqual([]);
  expect(tally.counts.ran).toBeGreaterThan(300);
  expect(tally.counts.refused).toBe(0);
});

test("encodings of the opcode maps", () => {
  const forms = new Map<string, InstructionForm>();
  collectEncodings(forms);
  const tally = new FormTally();
  let index = 0;
  for (const form of forms.values())
    if (index++ % 29 === 0) tally.add(compareForm(machine, form, { seed: SEED, rounds: 2 }));
  expect(tally.differences).toEqual([]);
  expect(tally.counts.ran).toBeGreaterThan(400);
});

const form = (hex: string): InstructionForm => ({
  key: hex,
  bytes: Uint8Array.from(Buffer.from(hex, "hex")),
  from: "this test",
});

test.each([
  { name: "call with a prefix that has no meaning: addr32", code: "67e811000000" },
  { name: "call through fs", code: "64ff142528000000" },
  { name: "call through a register of 64 bits, notrack", code: "3effd0" },
  { name: "call through memory, notrack", code: "3eff5308" },
  { name: "call through memory with an index and a far displacement", code: "ff94cb00010000" },
  { name: "jump through memory with an index, notrack", code: "3eff24c500000000" },
  { name: "call with bnd", code: "f2e811000000" },
  { name: "return with bnd", code: "f2c3" },
  { name: "enter", code: "c8100000" },
  { name: "enter with a level", code: "c8100001" },
  { name: "push from below the stack pointer", code: "ff7424f0" },
  { name: "pop to above the stack pointer", code: "8f442408" },
  { name: "pop of the stack pointer", code: "5c" },
  { name: "xchg with the stack pointer", code: "4894" },
  { name: "return that drops most of the stack", code: "c20008" },
  { name: "jump to itself", code: "ebfe" },
  { name: "loop to itself", code: "e2fe" },
  { name: "call to itself", code: "e8fbffffff" },
])("$name", ({ code }) => {
  const verdict = compareForm(machine, form(code), { seed: SEED, rounds: 12 });
  expect(verdict).toEqual({ key: code, how: "ran" });
});

test.each([
  { name: "a displacement that is off by one", code: "488b0500000000", at: 3 },
  { name: "another register", code: "4801c8", at: 2 },
  { name: "another constant", code: "4883c010", at: 3 },
  { name: "another vector register", code: "660fefc1", at: 3 },
])("the comparison notices $name", ({ code, at }) => {
  const verdict = compareForm(machine, form(code), {
    seed: SEED,
    move: (region, to) => {
      const moved = relocate(region, to);
      if (moved.kind === "relocated") moved.bytes[at]! ^= 1;
      return moved;
    },
  });
  expect(verdict.difference).toBeDefined();
});
