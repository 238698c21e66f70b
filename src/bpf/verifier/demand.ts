/**
 * What the rest of a program needs to know about the state at a point, found backwards from what it did.
 *
 * A place (register or stack slot of a frame) is *live* if it is read before it is written. A live number is *precise*
 * if its value decided something: a branch, an address, a size. A finished state covers a new one if the new one fits
 * it in all live places, and there only precise numbers have to fit; that is what makes many paths prune, and loops
 * that count one thing and sum up another end.
 *
 * Whatever the forward walk decides from a number must be noted in a `StepNote`; this is the invariant to keep when
 * instructions are added.
 */
import { findHelper } from "../helpers.ts";
import type { Insn } from "../insn.ts";
import {
  ALU_END,
  ALU_MOV,
  ALU_NEG,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  CALL_HELPER,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_LD,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
  classOf,
  isSrcReg,
  MODE_ATOMIC,
  modeOf,
  OP_CALL,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  opOf,
} from "../opcodes.ts";
import { isUnknown } from "./scalar.ts";
import type { Slot } from "./stack.ts";
import type { FramePlaces, SlotSet, State } from "./state.ts";
import type { StackNote, StepNote } from "./step-note.ts";
import type { Value } from "./value.ts";

/** r1 to r5. */
const ARGUMENTS = 0b111110;
/** The argument of helpers with a callback that is handed on. */
const CONTEXT_ARGUMENT = 1 << 3;

/** Live and precise places of one frame; precise ones are live. */
export class FrameDemand {
  liveRegs = 0;
  preciseRegs = 0;
  liveLow = 0;
  liveHigh = 0;
  preciseLow = 0;
  preciseHigh = 0;

  add(other: FrameDemand): void {
    this.liveRegs |= other.liveRegs;
    this.preciseRegs |= other.preciseRegs;
    this.liveLow |= other.liveLow;
    this.liveHigh |= other.liveHigh;
    this.preciseLow |= other.preciseLow;
    this.preciseHigh |= other.preciseHigh;
  }

  isLiveSlot(slot: number): boolean {
    return (((slot < 32 ? this.liveLow : this.liveHigh) >>> (slot & 31)) & 1) === 1;
  }

  isPreciseSlot(slot: number): boolean {
    return (((slot < 32 ? this.preciseLow : this.preciseHigh) >>> (slot & 31)) & 1) === 1;
  }

  isPrecise(regs: number): boolean {
    return (this.preciseRegs & regs) !== 0;
  }

  killRegs(regs: number): void {
    this.liveRegs &= ~regs;
    this.preciseRegs &= ~regs;
  }

  live(regs: number): void {
    this.liveRegs |= regs;
  }

  precise(regs: number): void {
    this.liveRegs |= regs;
    this.preciseRegs |= regs;
  }

  killSlots(slots: SlotSet): void {
    this.liveLow &= ~slots.low;
    this.liveHigh &= ~slots.high;
    this.preciseLow &= ~slots.low;
    this.preciseHigh &= ~slots.high;
  }

  liveSlots(slots: SlotSet): void {
    this.liveLow |= slots.low;
    this.liveHigh |= slots.high;
  }

  preciseSlots(slots: SlotSet): void {
    this.liveSlots(slots);
    this.preciseLow |= slots.low;
    this.preciseHigh |= slots.high;
  }

  hasPreciseSlot(slots: SlotSet): boolean {
    return ((this.preciseLow & slots.low) | (this.preciseHigh & slots.high)) !== 0;
  }
}

/** Everything about a frame. */
export const wholeFrame: FrameDemand = Object.assign(new FrameDemand(), {
  liveRegs: -1,
  preciseRegs: -1,
  liveLow: -1,
  liveHigh: -1,
  preciseLow: -1,
  preciseHigh: -1,
});

/** What is needed of all frames, the main function's first; of those beyond the end, nothing. */
export class Demand {
  readonly frames: FrameDemand[] = [];

  frame(index: number): FrameDemand {
    while (this.frames.length <= index) this.frames.push(new FrameDemand());
    return this.frames[index]!;
  }

  clone(): Demand {
    const copy = new Demand();
    copy.add(this);
    return copy;
  }

  add(other: Demand): void {
    other.frames.forEach((frame, i) => {
      this.frame(i).add(frame);
    });
  }

  /** All places of `state` are live; numbers that it does not know at all are not precise. */
  addWhole(state: State): void {
    for (let i = 0; i <= state.depth; i++) this.frame(i).add(wholeFrame);
    this.forgetUnknown(state);
  }

  /** Any number fits where `state`, which covers others, knows none. */
  forgetUnknown(state: State): void {
    this.frames.forEach((frame, i) => {
      if (i > state.depth) return;
      const { preciseRegs } = frame;
      if (preciseRegs !== 0) {
        state.regsOf(i).forEach((value, reg) => {
          if (isAnyNumber(value)) frame.preciseRegs &= ~(1 << reg);
        });
      }
      if ((frame.preciseLow | frame.preciseHigh) === 0) return;
      state.slotsOf(i).forEach((slot, fromTop) => {
        if (!slot || !isAnyContent(slot)) return;
        if (fromTop < 32) frame.preciseHigh &= ~(1 << (31 - fromTop));
        else frame.preciseLow &= ~(1 << (63 - fromTop));
      });
    });
  }

  /**
   * From what is needed after the instruction, where frame `depth` runs, to what is needed before it. Returns the
   * frame that runs before it.
   */
  stepBack(insn: Insn, note: StepNote | undefined, depth: number): number {
    if (note && note.flow !== "stays") return this.#flow(note, depth);
    const frame = this.frame(depth);
    switch (classOf(insn.opcode)) {
      case CLASS_ALU:
      case CLASS_ALU64:
        alu(frame, insn);
        break;
      case CLASS_LD:
        frame.killRegs(1 << insn.dst);
        break;
      case CLASS_LDX: {
        const precise = frame.isPrecise(1 << insn.dst);
        frame.killRegs(1 << insn.dst);
        if (precise) for (const { frame: at, reads } of note?.stack ?? []) this.frame(at).preciseSlots(reads);
        frame.live(1 << insn.src);
        break;
      }
      case CLASS_ST:
        this.#killSlots(note?.stack);
        frame.live(1 << insn.dst);
        break;
      case CLASS_STX:
        if (modeOf(insn.opcode) === MODE_ATOMIC) atomic(frame, insn);
        else this.#store(frame, insn, note);
        break;
      default:
        this.#jump(frame, depth, insn, note);
    }
    if (!note) return depth;
    for (const { frame: at, reads } of note.stack ?? []) this.frame(at).liveSlots(reads);
    frame.precise(note.needs);
    return depth;
  }

  #store(frame: FrameDemand, insn: Insn, note: StepNote | undefined): void {
    const stored = note?.stack?.some(({ frame: at, writes }) => this.frame(at).hasPreciseSlot(writes));
    this.#killSlots(note?.stack);
    frame.live((1 << insn.dst) | (1 << insn.src));
    if (stored === true) frame.precise(1 << insn.src);
  }

  #killSlots(stack: readonly StackNote[] | undefined): void {
    for (const { frame, kills } of stack ?? []) this.frame(frame).killSlots(kills);
  }

  #jump(frame: FrameDemand, depth: number, insn: Insn, note: StepNote | undefined): void {
    switch (insn.opcode) {
      case OP_JA:
      case OP_JA32:
        return;
      case OP_EXIT:
        frame.live(1);
        return;
      case OP_CALL:
        frame.killRegs(0b111111);
        this.#killSlots(note?.stack);
        frame.live(argumentsOf(insn));
        return;
      default:
        this.#compare(frame, depth, insn, note?.links);
    }
  }

  /** What is precise about one operand after a comparison comes from both, and from all that learned with them. */
  #compare(frame: FrameDemand, depth: number, insn: Insn, links: readonly FramePlaces[] | undefined): void {
    const operands = (1 << insn.dst) | (isSrcReg(insn.opcode) ? 1 << insn.src : 0);
    frame.live(operands);
    const isNeeded =
      frame.isPrecise(operands) ||
      links?.some((places) => {
        const there = this.frame(places.frame);
        return there.isPrecise(places.regs) || there.hasPreciseSlot(places);
      });
    if (isNeeded !== true) return;
    this.frame(depth).precise(operands);
    for (const places of links ?? []) {
      const there = this.frame(places.frame);
      there.precise(places.regs);
      there.preciseSlots(places);
    }
  }

  #keep(frames: number): void {
    if (this.frames.length > frames) this.frames.length = frames;
  }

  /** Steps after which another function runs. */
  #flow(note: StepNote, depth: number): number {
    switch (note.flow) {
      case "stays":
        return depth;
      case "call": {
        const callee = this.frame(depth);
        const caller = this.frame(depth - 1);
        this.#keep(depth);
        caller.live(callee.liveRegs & ARGUMENTS);
        caller.precise(callee.preciseRegs & ARGUMENTS);
        return depth - 1;
      }
      case "return": {
        const caller = this.frame(depth);
        const result = { live: caller.liveRegs & 1, precise: caller.preciseRegs & 1 };
        caller.killRegs(0b111111);
        this.#keep(depth + 1);
        const callee = this.frame(depth + 1);
        callee.live(result.live);
        callee.precise(result.precise);
        return depth + 1;
      }
      case "tail-return":
        this.frame(depth).killRegs(0b111111);
        this.#keep(depth + 1);
        this.frame(depth + 1).live(0b1110);
        return depth + 1;
      case "callback-return":
        this.#keep(depth + 1);
        this.frame(depth + 1).precise(1);
        return depth + 1;
      default: {
        const callee = this.frame(depth);
        const caller = this.frame(depth - 1);
        this.#keep(depth);
        const context = 1 << note.flow.context;
        // The helper gets no more arguments than these, and all are checked when it is called.
        caller.live(ARGUMENTS & ~(1 << 5));
        if (callee.isPrecise(context)) caller.precise(CONTEXT_ARGUMENT);
        caller.precise(note.needs);
        return depth - 1;
      }
    }
  }
}

function isAnyNumber(value: Value): boolean {
  return value.kind === "scalar" && value.id === 0 && isUnknown(value);
}

/** All eight bytes were written, and nothing is known of them. */
function isAnyContent({ whole, bytes }: Slot): boolean {
  if (whole) return isAnyNumber(whole);
  return bytes.every((kind) => kind === 1);
}

function alu(frame: FrameDemand, insn: Insn): void {
  const op = opOf(insn.opcode);
  const dst = 1 << insn.dst;
  const src = isSrcReg(insn.opcode) && op !== ALU_END && op !== ALU_NEG ? 1 << insn.src : 0;
  const precise = frame.isPrecise(dst);
  if (op === ALU_MOV) frame.killRegs(dst);
  else frame.live(dst);
  frame.live(src);
  if (precise) frame.precise(src);
}

function atomic(frame: FrameDemand, insn: Insn): void {
  // What is fetched and what is left in memory are unknown numbers, whatever went in.
  if (insn.imm === ATOMIC_CMPXCHG) frame.killRegs(1);
  else if ((insn.imm & ATOMIC_FETCH) !== 0) frame.killRegs(1 << insn.src);
  frame.live((1 << insn.dst) | (1 << insn.src) | (insn.imm === ATOMIC_CMPXCHG ? 1 : 0));
}

function argumentsOf(insn: Insn): number {
  const args = insn.src === CALL_HELPER ? (findHelper(insn.imm)?.args.length ?? 5) : 5;
  return ((1 << args) - 1) << 1;
}
