/**
 * What holds at one point of one path: the registers and the stack of every function that is running, and records that
 * still have to be released.
 *
 * Values, slots and the frames of functions that wait for another one are immutable, so a copy of a state is a copy of
 * the registers; the list of slots is copied when one of two states that share it changes.
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

/** Where copies of one number or pointer are in one frame. */
export interface FramePlaces extends SlotSet {
  readonly frame: number;
  /** Bit n: register n. */
  readonly regs: number;
}

/** Slots from the highest address down; those beyond the end were never written. */
export type Slots = readonly (Slot | undefined)[];

/** What tells the runs of a function apart. */
export interface Activity {
  /** Index of the function, see `Machine.starts`. */
  readonly fn: number;
  /** The calls that led here; equal for equal ones. */
  readonly chain: number;
  /** Different for each time that a path enters a function. */
  readonly entry: number;
  /** Not 0: a helper that was called here has called back, and may do so again; different for each such call. */
  readonly activation: number;
  /** How often it can do so yet; Infinity: without limit. */
  readonly left: number;
}

/** A function that waits for one that it called. */
export interface Frame extends Activity {
  readonly regs: readonly Value[];
  readonly slots: Slots;
  /** The call for which it waits. */
  readonly callAt: number;
  /** Whether a helper called the other function. */
  readonly byHelper: boolean;
}

type Change = (value: Scalar | Pointer) => Scalar | Pointer | undefined;

const noSlots: Slots = [];
const noCallers: readonly Frame[] = [];
const noRefs: readonly Reference[] = [];

export class State implements Activity {
  regs: Value[];
  fn = 0;
  chain = 0;
  entry = 0;
  activation = 0;
  left = 0;
  /** The main function first. */
  callers: readonly Frame[] = noCallers;
  refs: readonly Reference[] = noRefs;
  #slots: Slots = noSlots;
  #ownsSlots = false;

  constructor(regs: Value[]) {
    this.regs = regs;
  }

  /** How many functions wait; the number of the running function's frame. */
  get depth(): number {
    return this.callers.length;
  }

  clone(): State {
    const copy = new State(this.regs.slice());
    copy.fn = this.fn;
    copy.chain = this.chain;
    copy.entry = this.entry;
    copy.activation = this.activation;
    copy.left = this.left;
    copy.callers = this.callers;
    copy.refs = this.refs;
    copy.#slots = this.#slots;
    this.#ownsSlots = false;
    return copy;
  }

  /** What tells this run of the function in frame `frame` apart. */
  activityOf(frame: number): Activity {
    return frame === this.callers.length ? this : this.callers[frame]!;
  }

  regsOf(frame: number): readonly Value[] {
    return frame === this.callers.length ? this.regs : this.callers[frame]!.regs;
  }

  slotsOf(frame: number): Slots {
    return frame === this.callers.length ? this.#slots : this.callers[frame]!.slots;
  }

  /** Slot 0 is the lowest. */
  getSlot(frame: number, slot: number): Slot | undefined {
    return this.slotsOf(frame)[STACK_SLOTS - 1 - slot];
  }

  setSlot(frame: number, slot: number, content: Slot): void {
    const index = STACK_SLOTS - 1 - slot;
    if (frame === this.callers.length) {
      if (!this.#ownsSlots) this.#slots = this.#slots.slice();
      this.#ownsSlots = true;
      fill(this.#slots, index, content);
      return;
    }
    const slots = this.callers[frame]!.slots.slice();
    fill(slots, index, content);
    this.#setCaller(frame, { ...this.callers[frame]!, slots });
  }

  /** Begins a function with `regs`, which this state owns from now on; `how` tells the run apart. */
  enter(
    regs: Value[],
    how: { readonly fn: number; readonly chain: number; readonly entry: number },
    callAt: number,
    byHelper: boolean,
  ): void {
    const { fn, chain, entry, activation, left } = this;
    const caller = { fn, chain, entry, activation, left, regs: this.regs, slots: this.#slots };
    this.callers = [...this.callers, { ...caller, callAt, byHelper }];
    this.regs = regs;
    this.#slots = noSlots;
    this.#ownsSlots = false;
    this.fn = how.fn;
    this.chain = how.chain;
    this.entry = how.entry;
    this.activation = 0;
    this.left = 0;
  }

  /** Ends the running function: its caller runs again, with the registers that it had. */
  leave(): Frame {
    const caller = this.callers.at(-1)!;
    this.callers = this.callers.slice(0, -1);
    this.regs = caller.regs.slice();
    this.#slots = caller.slots;
    this.#ownsSlots = false;
    this.fn = caller.fn;
    this.chain = caller.chain;
    this.entry = caller.entry;
    this.activation = caller.activation;
    this.left = caller.left;
    return caller;
  }

  /** Replaces every value for which `change` gives another one, in registers and whole slots of all frames. */
  rewrite(change: Change): FramePlaces[] {
    const places: FramePlaces[] = [];
    this.callers.forEach((caller, frame) => {
      const regs = rewriteRegs(caller.regs, change);
      const slots = rewriteSlots(caller.slots, change);
      if (!regs && !slots) return;
      const changed = { ...caller, regs: regs?.list ?? caller.regs, slots: slots?.list ?? caller.slots };
      this.#setCaller(frame, changed);
      places.push(placesOf(frame, regs, slots));
    });
    const regs = rewriteRegs(this.regs, change);
    const slots = rewriteSlots(this.#slots, change);
    if (!regs && !slots) return places;
    if (regs) this.regs = regs.list;
    if (slots) {
      this.#slots = slots.list;
      this.#ownsSlots = true;
    }
    places.push(placesOf(this.callers.length, regs, slots));
    return places;
  }

  /** Every copy of the number `id` is now known as well as `known`. */
  setNumber(id: number, known: Scalar): FramePlaces[] {
    const named = withId(known, id);
    return this.rewrite((value) => (value.kind === "scalar" && value.id === id ? named : undefined));
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

  /** Replaces all registers and slots of a frame. */
  replace(frame: number, regs: Value[], slots: Slots): void {
    if (frame === this.callers.length) {
      this.regs = regs;
      this.#slots = slots;
      this.#ownsSlots = false;
    } else {
      this.#setCaller(frame, { ...this.callers[frame]!, regs, slots });
    }
  }

  #setCaller(frame: number, caller: Frame): void {
    const callers = this.callers.slice();
    callers[frame] = caller;
    this.callers = callers;
  }
}

function fill(slots: Slots, index: number, content: Slot): void {
  const list = slots as (Slot | undefined)[];
  while (list.length < index) list.push(undefined);
  list[index] = content;
}

interface Rewritten<T> extends SlotSet {
  readonly list: T[];
}

function rewriteRegs(regs: readonly Value[], change: Change): Rewritten<Value> | undefined {
  let list: Value[] | undefined;
  let low = 0;
  for (let i = 0; i < regs.length; i++) {
    const value = regs[i]!;
    const changed = value.kind === "uninit" ? undefined : change(value);
    if (!changed) continue;
    list ??= regs.slice();
    list[i] = changed;
    low |= 1 << i;
  }
  return list && { list, low, high: 0 };
}

function rewriteSlots(slots: Slots, change: Change): Rewritten<Slot | undefined> | undefined {
  let list: (Slot | undefined)[] | undefined;
  let low = 0;
  let high = 0;
  for (let i = 0; i < slots.length; i++) {
    const slot = slots[i];
    const changed = slot?.whole && change(slot.whole);
    if (!slot || !changed) continue;
    list ??= slots.slice();
    list[i] = { ...slot, whole: changed };
    if (i < 32) high |= 1 << (31 - i);
    else low |= 1 << (63 - i);
  }
  return list && { list, low, high };
}

function placesOf(
  frame: number,
  regs: Rewritten<Value> | undefined,
  slots: Rewritten<Slot | undefined> | undefined,
): FramePlaces {
  return { frame, regs: regs?.low ?? 0, low: slots?.low ?? 0, high: slots?.high ?? 0 };
}

/** The state in which a program begins. */
export type Entry =
  /** r1 points to the context. */
  | { readonly kind: "context" }
  /** r1 points to writable memory, r2 is its length. */
  | { readonly kind: "memory"; readonly lenBytes: number };

export function entryState(entry: Entry): State {
  const regs = newRegs(0);
  if (entry.kind === "context") {
    regs[1] = pointerTo("ctx");
  } else {
    regs[1] = pointerTo("memory", entry.lenBytes);
    regs[2] = constant(BigInt(entry.lenBytes));
  }
  return new State(regs);
}

/** The registers with which the function in frame `frame` begins, without its arguments. */
export function newRegs(frame: number): Value[] {
  const regs: Value[] = Array.from({ length: REG_COUNT }, () => uninit);
  regs[FRAME_POINTER] = pointerTo("stack", 0, frame);
  return regs;
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
