/** What a handler does to a thread's slot between two instructions of the routine that looks for it. */
import { expect, test } from "vitest";
import { randomWords } from "../../test/support/native-code.ts";
import { SteppedMachine } from "../../test/support/stepped-machine.ts";
import { R10, R11, RDX, RSP } from "../x86/registers.ts";
import { emitStackRoutines, HEAD_OWNER, STACK_HEAD } from "./private-stacks.ts";

const FS_BASE = 0x5000_0000n;
/** Place of r10 in struct user_regs_struct. */
const R10_WORD = 7;

test("a handler that claims the thread's slot while the thread does claims it for the thread", () => {
  using machine = new SteppedMachine();
  const random = randomWords(3);
  // There is memory for the head of one slot; whoever looks at the next one faults.
  const slot = machine.dataAt - BigInt(STACK_HEAD);
  const routines = emitStackRoutines(machine.copyAt, slot);
  expect(routines.findWithKey).toBe(machine.copyAt);
  // `dataAt` is a quarter into the memory.
  const owner = machine.memoryWords / 4 + HEAD_OWNER / 8;
  const regs = Array.from({ length: 16 }, () => random());
  regs[RSP] = machine.stackAt;
  regs[R10] = slot;
  regs[R11] = FS_BASE;
  regs[RDX] = machine.targetAt;
  const find = (claimedAfter: number) => {
    const memory = new BigUint64Array(machine.memoryWords);
    const state = { regs, flags: 0x202n, fsBase: FS_BASE, gsBase: 0n, vectors: random, memory };
    let isClaimed = false;
    const outcome = machine.runCopy(routines.bytes, state, (steps, words) => {
      if (steps !== claimedAfter || words[owner] !== 0n) return;
      words[owner] = FS_BASE;
      isClaimed = true;
    });
    return { ...outcome, isClaimed };
  };
  const alone = find(0);
  expect(new BigUint64Array(alone.memory.buffer)[owner]).toBe(FS_BASE);
  let claimed = 0;
  for (let steps = 1; steps < alone.steps; steps++) {
    const { signal, ip, isClaimed, registers } = find(steps);
    expect({ steps, signal, ip, slot: registers[R10_WORD] }).toEqual({
      steps,
      signal: undefined,
      ip: machine.targetAt,
      slot,
    });
    if (isClaimed) claimed++;
  }
  expect(claimed).toBeGreaterThan(5);
});
