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
  readonly after: ArrayLike<BpfRegSet>;
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
  // What an operation needs does not change from round to round: large programs take a few of them.
  const uses = Int32Array.from(ops, (op) => (op === undefined ? 0 : usesOf(op, keepsResult)));
  const defines = Int32Array.from(ops, (op) => (op === undefined ? 0 : definesOf(op)));
  const isRemovable = ops.map((op) => op !== undefined && isPure(op));
  const before = new Int32Array(ops.length);
  const after = new Int32Array(ops.length);
  for (let hasChanged = true; hasChanged; ) {
    hasChanged = false;
    for (let slot = ops.length - 1; slot >= 0; slot--) {
      const op = ops[slot];
      let out = op?.kind === "exit" || op?.kind === "goto" ? 0 : (before[slot + 1] ?? 0);
      if (op?.kind === "goto" || op?.kind === "branch") out |= before[op.target]!;
      const defined = defines[slot]!;
      const isDead = isRemovable[slot] === true && (defined & out) === 0;
      const needed = isDead ? out : (out & ~defined) | uses[slot]!;
      hasChanged ||= needed !== before[slot] || out !== after[slot];
      before[slot] = needed;
      after[slot] = out;
    }
  }
  return { after, atEntry: before[0] ?? 0 };
}
