/**
 * Forgets numbers that change each time a helper calls back, so that the walk over its calls comes to an end.
 *
 * Only numbers that decided nothing so far are forgotten: whatever is forgotten, the states that follow describe all
 * that can be, so this can make the verifier refuse more, never less.
 */
import type { Demand } from "./demand.ts";
import { isWithin, unknownScalar } from "./scalar.ts";
import { BYTE_MISC, BYTE_UNINIT, type Slot, STACK_SLOTS, wholeSlot } from "./stack.ts";
import type { Slots, State } from "./state.ts";
import type { Value } from "./value.ts";

/** `before` is the state when the helper was at the same point the last time, `needed` what was needed of it since. */
export function widen(state: State, before: State, needed: Demand): void {
  for (let frame = 0; frame <= state.depth; frame++) {
    const demand = needed.frame(frame);
    const oldRegs = before.regsOf(frame);
    const oldSlots = before.slotsOf(frame);
    const regs = state.regsOf(frame).map((value, reg): Value => {
      return demand.isPrecise(1 << reg) ? value : widenValue(value, oldRegs[reg]!);
    });
    const slots: Slots = state.slotsOf(frame).map((slot, i) => {
      const old = oldSlots[i];
      if (!slot || !old || slot === old || demand.isPreciseSlot(STACK_SLOTS - 1 - i)) return slot;
      return widenSlot(slot, old);
    });
    state.replace(frame, regs, slots);
  }
}

function widenValue(value: Value, old: Value): Value {
  if (value === old || value.kind !== "scalar" || old.kind !== "scalar") return value;
  return isWithin(value, old) ? value : unknownScalar;
}

function widenSlot(slot: Slot, old: Slot): Slot {
  if (slot.whole?.kind === "pointer" || old.whole?.kind === "pointer") return slot;
  if (slot.whole && old.whole) {
    return isWithin(slot.whole, old.whole) ? slot : wholeSlot(unknownScalar);
  }
  const bytes = slot.bytes.map((kind) => (kind === BYTE_UNINIT ? BYTE_UNINIT : BYTE_MISC));
  return { bytes, whole: undefined, low: undefined, high: undefined };
}

/** Ids that only one number has say nothing; without them such numbers are seen to be unknown. */
export function forgetLoneIds(state: State): void {
  const seen = new Set<number>();
  const shared = new Set<number>();
  state.rewrite((value) => {
    if (value.kind !== "scalar" || value.id === 0) return undefined;
    (seen.has(value.id) ? shared : seen).add(value.id);
    return undefined;
  });
  if (seen.size === shared.size) return;
  state.rewrite((value) =>
    value.kind === "scalar" && value.id !== 0 && !shared.has(value.id) ? { ...value, id: 0 } : undefined,
  );
}
