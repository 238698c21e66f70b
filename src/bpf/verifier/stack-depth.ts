/** How many functions can run at once, and how much stack they take together, as the kernel counts it. */
import { HELPER_TAIL_CALL } from "../helpers.ts";
import { CALL_HELPER, OP_CALL } from "../opcodes.ts";
import { MAX_FRAMES } from "./limits.ts";
import type { Machine } from "./machine.ts";
import type { BadStructure, GoodStructure } from "./structure.ts";

/** A frame takes a multiple of this, and at least that much. */
const FRAME_UNIT = 32;
/** What may be on the stack below a function that makes tail calls: each program that follows adds its own. */
const MAX_BELOW_TAIL_CALL = 256;

/** Undefined: every chain of calls that can be made fits. */
export function checkStackDepth(
  machine: Machine,
  { callees, starts, order }: GoodStructure,
  reached: Uint8Array,
): BadStructure | undefined {
  const { stackBytes, limits } = machine;
  /** Stack and frames of the deepest chain that leads to each function, without its own frame. */
  const below = starts.map(() => 0);
  const frames = starts.map(() => 0);
  const refuse = (fn: number, message: string): BadStructure => ({ kind: "bad", at: starts[fn]!, message });
  // Callers come before those that they call.
  for (const fn of order) {
    if (!reached[starts[fn]!]) continue;
    const bytes = below[fn]! + Math.ceil(Math.max(stackBytes[fn]!, 1) / FRAME_UNIT) * FRAME_UNIT;
    const count = frames[fn]! + 1;
    if (count > MAX_FRAMES) return refuse(fn, `the call stack of ${count} frames is too deep !`);
    if (bytes > limits.stackBytes)
      return refuse(fn, `combined stack size of ${count} calls is ${bytes}. Too large`);
    if (below[fn]! >= MAX_BELOW_TAIL_CALL && hasTailCall(machine, fn, reached)) {
      const what = "tail_calls are not allowed when call stack of previous frames is";
      return refuse(fn, `${what} ${below[fn]} bytes. Too large`);
    }
    for (const { at, fn: callee } of callees[fn]!) {
      if (!reached[at]) continue;
      below[callee] = Math.max(below[callee]!, bytes);
      frames[callee] = Math.max(frames[callee]!, count);
    }
  }
  return undefined;
}

function hasTailCall({ starts, insns }: Machine, fn: number, reached: Uint8Array): boolean {
  const end = starts[fn + 1] ?? insns.length;
  for (let at = starts[fn]!; at < end; at++) {
    const { opcode, src, imm } = insns[at]!;
    if (reached[at] && opcode === OP_CALL && src === CALL_HELPER && imm === HELPER_TAIL_CALL) return true;
  }
  return false;
}
