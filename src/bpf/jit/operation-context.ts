/** What the emission of one operation has to work with; the program emitter is it. */
import type { Assembler, Mem } from "../../x86/assembler.ts";
import type { Reg, RegSet } from "../../x86/registers.ts";
import type { OpMem } from "./operations.ts";

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
}

export interface ScratchPool {
  /** Another register each time. */
  take(): Reg;
}
