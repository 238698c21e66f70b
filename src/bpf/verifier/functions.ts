/**
 * Calls of functions of the program, by instructions and by helpers, their returns, and tail calls.
 *
 * A function gets r1 to r5 and a stack frame of its own; it may use its callers' frames through pointers that it is
 * given, and leaves none to its own frame behind.
 *
 * A helper that calls back any number of times is walked as a loop at its call: from there the helper either returns,
 * or the function runs once and the walk comes back to the call. `Explorer` ends that when nothing new can happen.
 */
import { HELPER_FOR_EACH_MAP_ELEM, HELPER_LOOP, type HelperSpec } from "../helpers.ts";
import type { Insn } from "../insn.ts";
import type { Step } from "./access.ts";
import { getReg } from "./access.ts";
import { MAX_FRAMES } from "./limits.ts";
import { reject } from "./rejection.ts";
import { S64_MAX, S64_MIN, type Scalar, unknownScalar, unsignedRange } from "./scalar.ts";
import { newRegs, type State } from "./state.ts";
import { newNote } from "./step-note.ts";
import type { StepResult, Way } from "./step-result.ts";
import { pointerTo, uninit, type Value } from "./value.ts";

/** bpf_loop refuses to run more often. */
const MAX_LOOP = 1 << 23;
/** Helpers that may call back more often than this are walked as if there was no limit. */
const MAX_COUNTED = 1 << 16;

const loopIndex = unsignedRange(0n, BigInt(MAX_LOOP - 1));

/** How often a helper that is about to be called can call back. */
export function mostIterations(helper: HelperSpec, regs: readonly Value[]): number {
  const times = regs[1]!;
  if (helper.number !== HELPER_LOOP || times.kind !== "scalar") return Number.POSITIVE_INFINITY;
  return times.umax32 > BigInt(MAX_COUNTED) ? Number.POSITIVE_INFINITY : Number(times.umax32);
}

/** `call pc+imm` */
export function callLocal(step: Step, insn: Insn): StepResult {
  const { state, at, note } = step;
  const start = at + 1 + insn.imm;
  checkDepth(state);
  const regs = newRegs(state.depth + 1);
  for (let reg = 1; reg <= 5; reg++) regs[reg] = state.regs[reg]!;
  for (let reg = 0; reg <= 5; reg++) state.regs[reg] = uninit;
  enter(step, state, regs, start, false);
  note.flow = "call";
  return { kind: "next", next: start };
}

function checkDepth(state: State): void {
  const frames = state.depth + 2;
  if (frames > MAX_FRAMES) reject(`the call stack of ${frames} frames is too deep`);
}

function enter(step: Step, state: State, regs: Value[], start: number, byHelper: boolean): void {
  const { machine, at } = step;
  const how = {
    fn: machine.functionAt(start),
    chain: machine.chain(state.chain, at, byHelper ? -1 - start : start),
    entry: machine.newId(),
  };
  state.enter(regs, how, at, byHelper);
}

/** A helper that calls the function at `start`; `goesOn` makes the step's state that after the helper. */
export function callBack(
  step: Step,
  helper: HelperSpec,
  start: number,
  map: number,
  goesOn: () => void,
): StepResult {
  const { state, note, at } = step;
  if (Number.isFinite(state.left)) note.needs |= 1 << 1;
  const once = state.left > 0 ? callOnce(step, helper, start, map) : undefined;
  state.activation = 0;
  state.left = 0;
  goesOn();
  if (!once) return { kind: "next", next: at + 1 };
  return { kind: "branch", ways: [{ next: at + 1, state, note }, once] };
}

function callOnce(step: Step, helper: HelperSpec, start: number, map: number): Way {
  const { machine, note } = step;
  const state = step.state.clone();
  checkDepth(state);
  const regs = newRegs(state.depth + 1);
  const handedOn = state.regs[3]!;
  let context = 2;
  if (helper.number === HELPER_FOR_EACH_MAP_ELEM) {
    const { keyBytes, valueBytes } = machine.getMap(map);
    regs[1] = pointerTo("map", 0, map);
    regs[2] = pointerTo("map-key", keyBytes, map);
    regs[3] = pointerTo("map-value", valueBytes, map);
    context = 4;
  } else {
    regs[1] = loopIndex;
  }
  regs[context] = handedOn;
  enter(step, state, regs, start, true);
  return { next: start, state, note: { ...newNote(), needs: note.needs, flow: { context } } };
}

/** `bpf_tail_call`: either there is nothing to go to, or the other program runs in this function's place. */
export function tailCall(step: Step, goesOn: () => void): StepResult {
  const { state, note, at } = step;
  if (state.callers.some(({ byHelper }) => byHelper)) reject("tail_call is not allowed in a callback");
  const [held] = state.refs;
  if (held) {
    reject(
      `Unreleased reference id=${held.id} alloc_insn=${held.at}: tail_call would lead to reference leak`,
    );
  }
  const gone = state.depth === 0 ? undefined : state.clone();
  goesOn();
  if (!gone) return { kind: "next", next: at + 1 };
  // The other program's exit returns to where this function was called.
  const { callAt } = gone.leave();
  gone.regs[0] = unknownScalar;
  const left: Way = { next: callAt + 1, state: gone, note: { ...newNote(), flow: "tail-return" } };
  return { kind: "branch", ways: [{ next: at + 1, state, note }, left] };
}

/** `exit` */
export function leaveFunction(step: Step): StepResult {
  const { state, note } = step;
  if (state.depth === 0) {
    const [leaked] = state.refs;
    if (leaked) reject(`Unreleased reference id=${leaked.id} alloc_insn=${leaked.at}`);
    getReg(step, 0);
    return { kind: "end" };
  }
  const result = state.regs[0]!;
  if (result.kind === "pointer" && result.to === "stack") reject("cannot return stack pointer to the caller");
  const isCallback = state.callers.at(-1)!.byHelper;
  if (isCallback) checkCallbackResult(result);
  const { callAt } = state.leave();
  if (isCallback) {
    // The helper's call again, with the registers that it had.
    state.left--;
    note.flow = "callback-return";
    return { kind: "next", next: callAt };
  }
  state.regs[0] = result;
  note.flow = "return";
  return { kind: "next", next: callAt + 1 };
}

function checkCallbackResult(result: Value): void {
  if (result.kind !== "scalar") reject("R0 not a scalar value");
  if (result.smin >= 0n && result.smax <= 1n) return;
  reject(`At callback return the register R0 has${printBounds(result)} should have been in [0, 1]`);
}

function printBounds({ smin, smax }: Scalar): string {
  if (smin === S64_MIN && smax === S64_MAX) return " unknown scalar value";
  return `${smin === S64_MIN ? "" : ` smin=${smin}`}${smax === S64_MAX ? "" : ` smax=${smax}`}`;
}
