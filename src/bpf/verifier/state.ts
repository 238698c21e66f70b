/**
 * What holds at one point of one path: registers, stack, and records that still have to be released.
 *
 * Values and slots are immutable, so a copy of a state is a copy of two short arrays.
 */
import { constant, type Scalar, withId, zero } from "./scalar.ts";
import { type Slot, STACK_SLOTS } from "./stack.ts";
import { type Pointer, pointerTo, uninit, type Value } from "./value.ts";

export const REG_COUNT = 11;
export const FRAME_POINTER = 10;

/** A reserved record: `at` is the call that made it. */
export interface Reference {
  readonly id: number;
  readonly at: number;
}

/** A set of stack slots: slots 0 to 31 in `low`, 32 to 63 in `high`. */
export interface SlotSet {
  readonly low: number;
  readonly high: number;
}

/** Where copies of one number or pointer are. */
export interface Places extends SlotSet {
  /** Bit n: register n. */
  readonly regs: number;
}

export class State {
  readonly regs: Value[];
  /** Undefined: never written. */
  readonly slots: (Slot | undefined)[];
  refs: readonly Reference[];

  constructor(regs: Value[], slots: (Slot | undefined)[], refs: readonly Reference[]) {
    this.regs = regs;
    this.slots = slots;
    this.refs = refs;
  }

  clone(): State {
    return new State(this.regs.slice(), this.slots.slice(), this.refs);
  }

  /** Replaces every value for which `change` gives another one, in registers and whole slots. */
  rewrite(change: (value: Scalar | Pointer) => Scalar | Pointer | undefined): Places {
    let regs = 0;
    let low = 0;
    let high = 0;
    this.regs.forEach((value, i) => {
      const changed = value.kind === "uninit" ? undefined : change(value);
      if (!changed) return;
      this.regs[i] = changed;
      regs |= 1 << i;
    });
    this.slots.forEach((slot, i) => {
      const changed = slot?.whole && change(slot.whole);
      if (!slot || !changed) return;
      this.slots[i] = { ...slot, whole: changed };
      if (i < 32) low |= 1 << i;
      else high |= 1 << (i - 32);
    });
    return { regs, low, high };
  }

  /** Every copy of the number `id` is now known as well as `known`. */
  setNumber(id: number, known: Scalar): Places {
    return this.rewrite((value) =>
      value.kind === "scalar" && value.id === id ? withId(known, id) : undefined,
    );
  }

  /** Every copy of the unchecked pointer is null, or is not. */
  resolveNull(nullId: number, isNull: boolean): void {
    this.rewrite((value) => {
      if (value.kind !== "pointer" || value.nullId !== nullId) return undefined;
      return isNull ? zero : { ...value, nullId: 0 };
    });
  }

  /** The reference ends: its pointers are numbers from now on. */
  release(ref: number, unknown: Scalar): void {
    this.refs = this.refs.filter(({ id }) => id !== ref);
    this.rewrite((value) => (value.kind === "pointer" && value.ref === ref ? unknown : undefined));
  }
}

/** The state in which a program begins. */
export type Entry =
  /** r1 points to the context. */
  | { readonly kind: "context" }
  /** r1 points to writable memory, r2 is its length. */
  | { readonly kind: "memory"; readonly lenBytes: number };

export function entryState(entry: Entry): State {
  const regs: Value[] = Array.from({ length: REG_COUNT }, () => uninit);
  regs[FRAME_POINTER] = pointerTo("stack");
  if (entry.kind === "context") {
    regs[1] = pointerTo("ctx");
  } else {
    regs[1] = pointerTo("memory", entry.lenBytes);
    regs[2] = constant(BigInt(entry.lenBytes));
  }
  return new State(
    regs,
    Array.from({ length: STACK_SLOTS }, () => undefined),
    [],
  );
}

/** The slots that hold stack bytes `from` to `to`, counted from the lowest stack byte. */
export function slotsBetween(from: number, to: number): SlotSet {
  let low = 0;
  let high = 0;
  for (let slot = from >> 3; slot << 3 < to; slot++) {
    if (slot < 32) low |= 1 << slot;
    else high |= 1 << (slot - 32);
  }
  return { low, high };
}
