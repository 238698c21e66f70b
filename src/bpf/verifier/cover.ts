/**
 * Whether an earlier state that was explored to the end covers a new one at the same instruction: then everything
 * that can happen after the new one was looked at already.
 *
 * It must fit in all places that the earlier exploration read (`Demand`). Copies that the earlier one knew to be equal
 * must be equal in the new one too, unchecked pointers that were one must be one, and references must correspond.
 */
import { Demand } from "./demand.ts";
import { isConstant, isWithin, type Scalar } from "./scalar.ts";
import { BYTE_UNINIT, BYTE_ZERO, knownByte, loadFromSlot, type Slot, STACK_SLOTS } from "./stack.ts";
import { REG_COUNT, type State } from "./state.ts";
import type { Pointer, Value } from "./value.ts";

/** Everything matters: for finding states that are the same. */
const everything: Demand = Object.assign(new Demand(), {
  liveRegs: -1,
  preciseRegs: -1,
  liveLow: -1,
  liveHigh: -1,
  preciseLow: -1,
  preciseHigh: -1,
});

/** Whether `old`, of which `demand` was needed, covers `fresh`. */
export function covers(old: State, demand: Demand, fresh: State): boolean {
  if (old.refs.length !== fresh.refs.length) return false;
  const ids = new Correspondence();
  for (let reg = 0; reg < REG_COUNT; reg++) {
    if (((demand.liveRegs >>> reg) & 1) === 0) continue;
    const precise = ((demand.preciseRegs >>> reg) & 1) === 1;
    if (!coversValue(old.regs[reg]!, fresh.regs[reg]!, precise, ids)) return false;
  }
  if ((demand.liveLow | demand.liveHigh) === 0) return true;
  for (let i = 0; i < STACK_SLOTS; i++) {
    if (!demand.isLiveSlot(i)) continue;
    if (!coversSlot(old.slots[i], fresh.slots[i], demand.isPreciseSlot(i), ids)) return false;
  }
  return true;
}

/** Whether two states say the same. */
export function isSame(a: State, b: State): boolean {
  return covers(a, everything, b) && covers(b, everything, a);
}

/** Which id of the new state stands for which of the old one. */
class Correspondence {
  readonly #numbers = new Map<number, Scalar>();
  readonly #nulls = new Map<number, number>();
  readonly #refs = new Map<number, number>();
  readonly #refsBack = new Map<number, number>();

  /** Numbers that were one in the old state must be one in the new state. */
  number(old: Scalar, fresh: Scalar): boolean {
    if (old.id === 0) return true;
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
    if (old.nullId !== 0 && !agrees(this.#nulls, old.nullId, fresh.nullId)) return false;
    if (old.ref === 0) return true;
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
      return !precise || (isWithin(fresh, old) && ids.number(old, fresh));
    case "pointer":
      return (
        fresh.kind === "pointer" &&
        fresh.to === old.to &&
        fresh.map === old.map &&
        fresh.lenBytes === old.lenBytes &&
        fresh.off === old.off &&
        isWithin(fresh.variable, old.variable) &&
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
