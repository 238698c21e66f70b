/**
 * Which registers and flags matter at a site: what a probe must not destroy there.
 *
 * A forward walk over the function from the site. A register is live if some path reads it before it is overwritten,
 * or leaves the function (return, tail call, call, indirect jump) with it untouched. Calls count as reading
 * everything: compilers know which registers a local function leaves alone and keep values in them (gcc -fipa-ra), so
 * the psABI alone promises too little.
 *
 * Flags are different: no calling convention passes them, so they are dead at calls and returns, and at a function's
 * entry unless a loop leads back there. They stay live where a conditional jump leaves the function, because
 * that may lead to a split-off cold part of the same function.
 *
 * Partial writes (8 and 16 bits) neither read nor end a register's life. Vector registers are not looked at: generated
 * code does not touch them.
 */
import { type CodeBlock, effectsOf, STATUS_FLAGS } from "./decode.ts";
import type { RegSet } from "./registers.ts";

/** Every register except rsp, which no detour may lose anyway. */
export const ALL_REGS: RegSet = 0xffff & ~(1 << 4);

export interface Liveness {
  /** Registers whose value matters, without rsp. */
  readonly regs: RegSet;
  /** Does any of the six status flags matter? */
  readonly flagsLive: boolean;
}

export const everythingLive: Liveness = { regs: ALL_REGS, flagsLive: true };

/** State in one number: 16 registers, then the status flags above them. */
const FLAG_SHIFT = 16;
const ALL_STATE = ALL_REGS | (STATUS_FLAGS << FLAG_SHIFT);

/** What is live before the instruction at `index`. `isEntry`: a call reached it, so no flags came with it. */
export function liveAt(code: CodeBlock, index: number, isEntry: boolean): Liveness {
  const start = isEntry ? ALL_REGS : ALL_STATE;
  let live = 0;
  /** For each instruction, what was undecided when it was visited. */
  const visited = new Map<number, number>();
  const pending: [index: number, undecided: number][] = [[index, start]];
  while (pending.length > 0) {
    let [at, undecided] = pending.pop()!;
    for (;;) {
      undecided &= ~live;
      const before = visited.get(at) ?? 0;
      if ((undecided & ~before) === 0) break;
      visited.set(at, before | undecided);
      if (at >= code.count) {
        // Behind the last decoded instruction nothing is known.
        live |= undecided;
        break;
      }
      const effects = effectsOf(code.bytesAt(at));
      live |= (effects.reads | (effects.flagsRead << FLAG_SHIFT)) & undecided;
      undecided &= ~(effects.kills | (effects.flagsKilled << FLAG_SHIFT)) & ~live;
      const next = successors(code, at);
      live |= next.leaves & undecided;
      if (next.branch !== undefined) pending.push([next.branch, undecided]);
      if (next.following === undefined) break;
      at = next.following;
    }
  }
  return { regs: live & ALL_REGS, flagsLive: live >>> FLAG_SHIFT !== 0 };
}

interface Successors {
  readonly following: number | undefined;
  readonly branch: number | undefined;
  /** State that must be right because control leaves what is known here. */
  readonly leaves: number;
}

function successors(code: CodeBlock, at: number): Successors {
  switch (code.flowAt(at)) {
    case "next":
      return { following: at + 1, branch: undefined, leaves: 0 };
    case "jump": {
      const branch = code.indexAt(code.targets[at]!);
      // Out of the function: a tail call, or the way between the hot and the cold part of a function.
      if (branch < 0) return { following: undefined, branch: undefined, leaves: ALL_STATE };
      return { following: branch, branch: undefined, leaves: 0 };
    }
    case "branch": {
      const branch = code.indexAt(code.targets[at]!);
      if (branch < 0) return { following: at + 1, branch: undefined, leaves: ALL_STATE };
      return { following: at + 1, branch, leaves: 0 };
    }
    case "call":
    case "call-indirect":
    case "return":
      return { following: undefined, branch: undefined, leaves: ALL_REGS };
    // A switch goes on in this function, and case labels may read flags; a system call saves them in r11.
    case "jump-indirect":
    case "syscall":
    case "trap":
    case "stop":
      return { following: undefined, branch: undefined, leaves: ALL_STATE };
    default:
      return code.flowAt(at) as never;
  }
}
