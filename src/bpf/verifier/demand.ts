/**
 * What the rest of a program needs to know about the state at a point, found backwards from what it did.
 *
 * A place (register or stack slot) is *live* if it is read before it is written. A live number is *precise* if its
 * value decided something: a branch, an address, a size. A finished state covers a new one if the new one fits it in
 * all live places, and there only precise numbers have to fit; that is what makes many paths prune, and loops that
 * count one thing and sum up another end.
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
import type { Places, SlotSet } from "./state.ts";

/** What a step did beyond what its instruction says. */
export interface StepNote {
  /** Registers whose numbers decided something in this step. */
  needs: number;
  /** Stack slots that were read. */
  reads: SlotSet;
  /** Stack slots that were written, at least in part. */
  writes: SlotSet;
  /** Stack slots of which no old byte is left. */
  kills: SlotSet;
  /** After a comparison: places that learned from it, besides its operands. */
  links: Places | undefined;
}

const noSlots: SlotSet = { low: 0, high: 0 };

export function newNote(): StepNote {
  return { needs: 0, reads: noSlots, writes: noSlots, kills: noSlots, links: undefined };
}

/** Live and precise places; precise ones are live. */
export class Demand {
  liveRegs = 0;
  preciseRegs = 0;
  liveLow = 0;
  liveHigh = 0;
  preciseLow = 0;
  preciseHigh = 0;

  add(other: Demand): void {
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

  /** From what is needed after the instruction to what is needed before it. */
  stepBack(insn: Insn, note: StepNote | undefined): void {
    switch (classOf(insn.opcode)) {
      case CLASS_ALU:
      case CLASS_ALU64:
        this.#alu(insn);
        break;
      case CLASS_LD:
        this.#killRegs(1 << insn.dst);
        break;
      case CLASS_LDX: {
        const precise = this.#isPrecise(1 << insn.dst);
        this.#killRegs(1 << insn.dst);
        if (precise && note) this.#preciseSlots(note.reads);
        this.#live(1 << insn.src);
        break;
      }
      case CLASS_ST:
        if (note) this.#killSlots(note.kills);
        this.#live(1 << insn.dst);
        break;
      case CLASS_STX:
        if (modeOf(insn.opcode) === MODE_ATOMIC) this.#atomic(insn);
        else this.#store(insn, note);
        break;
      default:
        this.#jump(insn, note);
    }
    if (!note) return;
    this.liveLow |= note.reads.low;
    this.liveHigh |= note.reads.high;
    this.#precise(note.needs);
  }

  #alu(insn: Insn): void {
    const op = opOf(insn.opcode);
    const dst = 1 << insn.dst;
    const src = isSrcReg(insn.opcode) && op !== ALU_END && op !== ALU_NEG ? 1 << insn.src : 0;
    const precise = this.#isPrecise(dst);
    if (op === ALU_MOV) this.#killRegs(dst);
    else this.#live(dst);
    this.#live(src);
    if (precise) this.#precise(src);
  }

  #store(insn: Insn, note: StepNote | undefined): void {
    const stored = note && (this.preciseLow & note.writes.low) | (this.preciseHigh & note.writes.high);
    if (note) this.#killSlots(note.kills);
    this.#live((1 << insn.dst) | (1 << insn.src));
    if (stored) this.#precise(1 << insn.src);
  }

  #atomic(insn: Insn): void {
    // What is fetched and what is left in memory are unknown numbers, whatever went in.
    if (insn.imm === ATOMIC_CMPXCHG) this.#killRegs(1);
    else if ((insn.imm & ATOMIC_FETCH) !== 0) this.#killRegs(1 << insn.src);
    this.#live((1 << insn.dst) | (1 << insn.src) | (insn.imm === ATOMIC_CMPXCHG ? 1 : 0));
  }

  #jump(insn: Insn, note: StepNote | undefined): void {
    switch (insn.opcode) {
      case OP_JA:
      case OP_JA32:
        return;
      case OP_EXIT:
        this.#live(1);
        return;
      case OP_CALL: {
        this.#killRegs(0b111111);
        if (note) this.#killSlots(note.kills);
        const args = insn.src === CALL_HELPER ? (findHelper(insn.imm)?.args.length ?? 5) : 5;
        this.#live(((1 << args) - 1) << 1);
        return;
      }
      default:
        this.#compare(insn, note?.links);
    }
  }

  /** What is precise about one operand after a comparison comes from both, and from all that learned with them. */
  #compare(insn: Insn, links: Places | undefined): void {
    const operands = (1 << insn.dst) | (isSrcReg(insn.opcode) ? 1 << insn.src : 0);
    this.#live(operands);
    const regs = operands | (links?.regs ?? 0);
    const isNeeded =
      this.#isPrecise(regs) ||
      (links && ((this.preciseLow & links.low) | (this.preciseHigh & links.high)) !== 0);
    if (!isNeeded) return;
    this.#precise(regs);
    if (links) this.#preciseSlots(links);
  }

  #isPrecise(regs: number): boolean {
    return (this.preciseRegs & regs) !== 0;
  }

  #killRegs(regs: number): void {
    this.liveRegs &= ~regs;
    this.preciseRegs &= ~regs;
  }

  #live(regs: number): void {
    this.liveRegs |= regs;
  }

  #precise(regs: number): void {
    this.liveRegs |= regs;
    this.preciseRegs |= regs;
  }

  #killSlots(slots: SlotSet): void {
    this.liveLow &= ~slots.low;
    this.liveHigh &= ~slots.high;
    this.preciseLow &= ~slots.low;
    this.preciseHigh &= ~slots.high;
  }

  #preciseSlots(slots: SlotSet): void {
    this.liveLow |= slots.low;
    this.liveHigh |= slots.high;
    this.preciseLow |= slots.low;
    this.preciseHigh |= slots.high;
  }
}
