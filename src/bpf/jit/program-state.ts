/**
 * What all functions of one program share while it runs: its slot in per-CPU maps, how often it made a tail call, and
 * whether it has lost an event.
 *
 * The words lie at the bottom of the main function's frame. It reaches them through rsp; local functions, and the
 * programs that tail calls lead to, through rbp, which then nothing else uses in the whole program.
 *
 *     [state + 0]    slot: which copy of a per-CPU value is this program's
 *     [state + 8]    address of the word to clear when the program ends: the slot's owner word, or this very state
 *                    where the slot is not owned
 *     [state + 16]   tail calls made
 *     [state + 24]   not 0: an event has found no room
 *
 * A program can be interrupted by a signal whose handler runs programs on the same processor, and threads move
 * between processors: a processor number is no slot that is held alone. So a slot has an owner word, one per line
 * of the cache at the beginning of the per-CPU map, that is taken by compare-and-exchange and cleared at the exit.
 * A thread that dies in a program keeps its slot; there are more slots than processors.
 */
import type { Label } from "../../x86/assembler.ts";
import { R11, RAX, RBP, RCX, RDX, type Reg, RSP, regSet } from "../../x86/registers.ts";
import { MAX_CPU } from "../helpers.ts";
import { emitCpuWord } from "./cpu-number.ts";
import type { LinkEnv } from "./link-env.ts";
import { emitAddress } from "./memory-moves.ts";
import type { Routine, RoutineSet } from "./routines/routine.ts";

export const STATE_REG: Reg = RBP;
export const STATE_SLOT = 0;
export const STATE_OWNER = 8;
export const STATE_TAIL_CALLS = 16;
export const STATE_DROPPED = 24;

export interface ProgramState {
  readonly hasSlot: boolean;
  readonly hasTailCalls: boolean;
  /** Whether lost events are noted, to be counted at the exit. */
  readonly hasDrops: boolean;
  /** Whether `STATE_REG` is set, because more than the main function needs it. */
  readonly isInRegister: boolean;
}

/** Bytes that the state takes in the main function's frame. */
export function stateBytes(state: ProgramState): number {
  if (state.hasDrops) return STATE_DROPPED + 8;
  if (state.hasTailCalls) return STATE_TAIL_CALLS + 8;
  return state.hasSlot ? STATE_TAIL_CALLS : 0;
}

/** Owner words are 64 bytes apart. */
const OWNER_SHIFT = 6;

/** Fills the first two words of the state, which rsp must point to at the call. */
export function takeSlot(routines: RoutineSet, env: LinkEnv, owners: bigint, slots: number): Routine {
  return routines.get("take slot", () => ({
    args: [],
    clobbers: regSet(RAX, RCX, RDX, R11),
    stackBytes: 0,
    emit: (a) => {
      const [inRange, next, retry, taken] = ["in range", "next", "retry", "taken"].map((name) =>
        a.label(name),
      ) as [Label, Label, Label, Label];
      emitCpuWord(a, RAX, env.cpu);
      a.andImm(RAX, MAX_CPU, 32);
      a.movImm(RCX, slots);
      a.cmp(RAX, RCX, 32);
      a.jcc("b", inRange);
      a.zero(RDX);
      a.div(RCX, 32);
      a.mov(RAX, RDX, 32);
      a.bind(inRange);
      // The state above the return address: the slot where the search begins, for the case that all are taken.
      a.mov({ base: RSP, disp: 8 + STATE_SLOT }, RAX);
      a.mov(R11, RAX, 32);
      a.bind(retry);
      a.mov(RCX, R11, 32);
      a.shl(RCX, OWNER_SHIFT);
      emitAddress(a, RDX, owners);
      a.add(RDX, RCX);
      a.zero(RAX);
      a.cmp({ base: RDX }, RAX);
      a.jcc("ne", next);
      a.lock().cmpxchg({ base: RDX }, RSP);
      a.jcc("e", taken);
      a.bind(next);
      a.inc(R11, 32);
      a.cmpImm(R11, slots, 32);
      const wrapped = a.label("wrapped");
      a.jcc("b", wrapped);
      a.zero(R11);
      a.bind(wrapped);
      a.cmp(R11, { base: RSP, disp: 8 + STATE_SLOT }, 32);
      a.jcc("ne", retry);
      a.lea(RDX, { base: RSP, disp: 8 + STATE_SLOT });
      a.bind(taken);
      a.mov({ base: RSP, disp: 8 + STATE_SLOT }, R11);
      a.mov({ base: RSP, disp: 8 + STATE_OWNER }, RDX);
      a.ret();
    },
  }));
}
