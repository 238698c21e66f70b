/** What the emission of one operation has to work with; the function emitter is it. */
import type { Assembler, Mem } from "../../x86/assembler.ts";
import type { Reg, RegSet } from "../../x86/registers.ts";
import type { OpMem } from "./operations.ts";
import type { Routine } from "./routines/routine.ts";

export interface OperationContext {
  readonly asm: Assembler;
  /** The machine register of a BPF register that is read. */
  reg(bpf: number): Reg;
  /** The machine register of a BPF register that is written. */
  dst(bpf: number): Reg;
  /** Notes that a machine register is changed; returns it. */
  clobber(machine: Reg): Reg;
  /** Registers that hold no BPF register and are not in `besides`, for the length of one operation. */
  scratchPool(besides: RegSet): ScratchPool;
  /** Whether a machine register holds a value that is needed after this operation, other than that of `dst`. */
  isNeededAfter(machine: Reg, dst: number): boolean;
  mem(mem: OpMem): Mem;
  /** Loads a constant; changes the flags. */
  constant(dst: Reg, value: bigint): void;
  /** Loads an address in the function's frame, by its distance from r10. */
  stackAddress(dst: Reg, off: number): void;
  /** A word of the function's frame, for the length of one operation; there are `LOCAL_WORDS`. */
  localWord(index: number): Mem;
  /** Calls other code, which may change what it declares. */
  call(routine: Routine): void;
  /** Loads the program's slot in per-CPU maps. */
  loadCpuSlot(dst: Reg): void;
  /** Lets `emit` write at the end of the function. */
  outOfLine(emit: () => void): void;
}

export interface ScratchPool {
  /** Another register each time. */
  take(): Reg;
  /** The same; undefined: none is left. */
  find(): Reg | undefined;
}

/** Words for what a callback's iteration keeps where no register is left, and for a key. */
export const LOCAL_WORDS = 5;

/** A machine word: a register, or a place in memory. */
export type Home = Reg | Mem;

/** `dst = src`, where only one of them may be in memory. */
