/**
 * Which registers are still needed after each operation, and removal of what nobody needs.
 *
 * An operation that only computes and whose result is not needed keeps nothing alive itself, so that whole chains
 * of dead moves go at once.
 */
import { type BpfRegSet, definesOf, isPure, type Op, usesOf } from "./operations.ts";

export interface OpList {
  /** By instruction slot; undefined where there is nothing to emit. */
  readonly ops: (Op | undefined)[];
  /** Whether r0 is wanted at exit. */
  readonly keepsResult: boolean;
}

export interface Liveness {
  /** Registers needed after the operation at a slot. */
  readonly after: readonly BpfRegSet[];
  /** Registers needed at the entry. */
  readonly atEntry: BpfRegSet;
}

/** Computes liveness and clears the operations in `list` that have no effect. */
export function removeDead(list: OpList): Liveness {
  const live = liveness(list);
  for (const [slot, op] of list.ops.entries()) {
    if (op !== undefined && isPure(op) && (definesOf(op) & live.after[slot]!) === 0)
      list.ops[slot] = undefined;
  }
  return live;
}

function liveness({ ops, keepsResult }: OpList): Liveness {
  const before: BpfRegSet[] = ops.map(() => 0);
  const after: BpfRegSet[] = ops.map(() => 0);
  for (let hasChanged = true; hasChanged; ) {
    hasChanged = false;
    for (let slot = ops.length - 1; slot >= 0; slot--) {
      const op = ops[slot];
      let out = op?.kind === "exit" || op?.kind === "goto" ? 0 : (before[slot + 1] ?? 0);
      if (op?.kind === "goto" || op?.kind === "branch") out |= before[op.target]!;
      let needed = out;
      if (op !== undefined && !(isPure(op) && (definesOf(op) & out) === 0)) {
        needed = (out & ~definesOf(op)) | usesOf(op, keepsResult);
      }
      hasChanged ||= needed !== before[slot] || out !== after[slot];
      before[slot] = needed;
      after[slot] = out;
    }
  }
  return { after, atEntry: before[0] ?? 0 };
}
