/**
 * An assembler that keeps account of why each piece of code is there, and puts constants behind the code.
 *
 * The notes become the comments of `trapline explain`; they cost nothing when nobody asks.
 */
import { Assembler, type Label } from "../x86/assembler.ts";

/** From `offset` on (up to the next note) the code serves `text`. */
export interface CodeNote {
  readonly offset: number;
  readonly text: string;
  /** Data, not instructions. */
  readonly isData: boolean;
}

export interface WrittenCode {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly notes: readonly CodeNote[];
}

/** How far a call may lead to be safely encoded with rel32 from anywhere in the code of one detour. */
const REACH = 0x7fff_0000n;

export class CodeWriter {
  readonly asm: Assembler;
  readonly #notes: { label: Label; text: string; isData: boolean }[] = [];
  readonly #literals = new Map<bigint, Label>();

  constructor(at: bigint) {
    this.asm = new Assembler(at);
  }

  /** Says what the code that follows is for. */
  note(text: string, isData = false): void {
    this.#notes.push({ label: this.asm.here("note"), text, isData });
  }

  /** A 64-bit constant behind the code; equal ones share a place. */
  literal(value: bigint): Label {
    let label = this.#literals.get(value);
    if (label === undefined) {
      label = this.asm.label(`constant 0x${value.toString(16)}`);
      this.#literals.set(value, label);
    }
    return label;
  }

  /** Calls an address at any distance without changing a register. */
  call(to: bigint): void {
    const distance = to - this.asm.base;
    if (distance < REACH && distance > -REACH) this.asm.call(to);
    else this.asm.callTo({ ripTo: this.literal(to) });
  }

  /** Goes to an address at any distance without changing a register. */
  jump(to: bigint): void {
    const distance = to - this.asm.base;
    if (distance < REACH && distance > -REACH) this.asm.jmp32(to);
    else this.asm.jmpTo({ ripTo: this.literal(to) });
  }

  finish(): WrittenCode {
    const { asm } = this;
    if (this.#literals.size > 0) {
      asm.align(8, "int3");
      this.note("constants", true);
      for (const [value, label] of this.#literals) {
        asm.bind(label);
        asm.data64(value);
      }
    }
    const bytes = asm.finish();
    const notes = this.#notes.map(({ label, text, isData }) => ({
      offset: asm.offsetOf(label),
      text,
      isData,
    }));
    return { at: asm.base, bytes, notes };
  }
}
