/**
 * Whether an earlier state covers a new one at the same instruction: then everything that can happen after the new one
 * was looked at already, or is being looked at.
 *
 * It must fit in all places that the earlier exploration read (`Demand`). Copies that the earlier one knew to be equal
 * must be equal in the new one too, unchecked pointers that were one must be one, and references must correspond. The
 * same functions must have been called from the same places.
 */
import { type Demand, type FrameDemand, wholeFrame } from "./demand.ts";
import { isConstant, isWithin, type Scalar } from "./scalar.ts";
import { BYTE_UNINIT, BYTE_ZERO, knownByte, loadFromSlot, type Slot, STACK_SLOTS } from "./stack.ts";
import { REG_COUNT, type State } from "./state.ts";
import type { Pointer, Value } from "./value.ts";

/** Whether `old`, of which `demand` was needed, covers `fresh`; without a demand, all of it was. */
export function covers(old: State, demand: Demand | undefined, fresh: State): boolean {
  if (old.chain !== fresh.chain || old.refs.length !== fresh.refs.length) return false;
  const ids = new Correspondence();
  for (let frame = old.depth; frame >= 0; frame--) {
    // What was walked for fewer calls of a callback says nothing of more.
    if (old.activityOf(frame).left < fresh.activityOf(frame).left) return false;
    const needed = demand ? demand.frames[frame] : wholeFrame;
    if (needed && !coversFrame(old, needed, fresh, frame, ids)) return false;
  }
  return true;
}

/** Whether two states say the same. */
export function isSame(a: State, b: State): boolean {
  return covers(a, undefined, b) && covers(b, undefined, a);
}

function coversFrame(
  old: State,
  needed: FrameDemand,
  fresh: State,
  frame: number,
  ids: Correspondence,
): boolean {
  const oldRegs = old.regsOf(frame);
  const freshRegs = fresh.regsOf(frame);
  for (let reg = 0; reg < REG_COUNT; reg++) {
    if (((needed.liveRegs >>> reg) & 1) === 0) continue;
    const precise = ((needed.preciseRegs >>> reg) & 1) === 1;
    if (!coversValue(oldRegs[reg]!, freshRegs[reg]!, precise, ids)) return false;
  }
  if ((needed.liveLow | needed.liveHigh) === 0) return true;
  const oldSlots = old.slotsOf(frame);
  const freshSlots = fresh.slotsOf(frame);
  // Beyond the end of the old one there is nothing to cover.
  for (let i = 0; i < oldSlots.length; i++) {
    const slot = STACK_SLOTS - 1 - i;
    if (!needed.isLiveSlot(slot)) continue;
    if (!coversSlot(oldSlots[i], freshSlots[i], needed.isPreciseSlot(slot), ids)) return false;
  }
  return true;
}

/** Which id of the new state stands for which of the old one. */
class Correspondence {
  #numbers: Map<number, Scalar> | undefined;
  #nulls: Map<number, number> | undefined;
  #refs: Map<number, number> | undefined;
  #refsBack: Map<number, number> | undefined;

  /** Numbers that were one in the old state must be one in the new state. */
  number(old: Scalar, fresh: Scalar): boolean {
    if (old.id === 0) return true;
    this.#numbers ??= new Map();
    const first = this.#numbers.get(old.id);
    if (!first) {
      this.#numbers.set(old.id, fresh);
      return true;
    }
    if (first.id !== 0 && first.id === fresh.id) return true;
    return isConstant(first) && isConstant(fresh) && first.value === fresh.value;
  }

  pointer(old: Pointer, fresh: Pointer): boolean {
    if ((old.nullId === 0) !== (fresh.nullId === 0) || (old.ref === 0) !== (fresh.ref === 0)) return false;
    if (old.nullId !== 0) {
      this.#nulls ??= new Map();
      if (!agrees(this.#nulls, old.nullId, fresh.nullId)) return false;
    }
    if (old.ref === 0) return true;
    this.#refs ??= new Map();
    this.#refsBack ??= new Map();
    return agrees(this.#refs, old.ref, fresh.ref) && agrees(this.#refsBack, fresh.ref, old.ref);
  }
}

function agrees(map: Map<number, number>, from: number, to: number): boolean {
  const known = map.get(from);
  if (known === undefined) map.set(from, to);
  return known === undefined || known === to;
}

function coversValue(old: Value, fresh: Value, precise: boolean, ids: Correspondence): boolean {
  switch (old.kind) {
    case "uninit":
      return true;
    case "scalar":
      if (fresh.kind !== "scalar") return false;
      return !precise || ((old === fresh || isWithin(fresh, old)) && ids.number(old, fresh));
    case "pointer":
      return (
        fresh.kind === "pointer" &&
        fresh.to === old.to &&
        fresh.target === old.target &&
        fresh.lenBytes === old.lenBytes &&
        fresh.off === old.off &&
        (fresh.variable === old.variable || isWithin(fresh.variable, old.variable)) &&
        ids.pointer(old, fresh)
      );
  }
}

function coversSlot(
  old: Slot | undefined,
  fresh: Slot | undefined,
  precise: boolean,
  ids: Correspondence,
): boolean {
  if (!old) return true;
  if (!fresh) return false;
  if (old.whole?.kind === "pointer") {
    return fresh.whole !== undefined && coversValue(old.whole, fresh.whole, precise, ids);
  }
  for (let i = 0; i < 8; i++) {
    if (old.bytes[i] === BYTE_UNINIT) continue;
    if (fresh.bytes[i] === BYTE_UNINIT) return false;
    if (precise && old.bytes[i] === BYTE_ZERO && knownByte(fresh, i) !== 0) return false;
  }
  if (!precise) return true;
  return (
    coversPart(old.whole, fresh, 0, 8, ids) &&
    coversPart(old.low, fresh, 0, 4, ids) &&
    coversPart(old.high, fresh, 4, 4, ids)
  );
}

function coversPart(
  old: Scalar | undefined,
  fresh: Slot,
  at: number,
  lenBytes: number,
  ids: Correspondence,
): boolean {
  if (!old) return true;
  const value = loadFromSlot(fresh, at, lenBytes);
  return value !== "part-of-pointer" && coversValue(old, value, true, ids);
}
