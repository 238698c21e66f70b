/** The word in which Linux keeps a processor's number: 12 bits of it, and the number of its memory node above them. */
import type { Assembler } from "../../x86/assembler.ts";
import type { Reg } from "../../x86/registers.ts";
import type { LinkEnv } from "./link-env.ts";

/** Bits of the processor number; those of the node begin here. */
export const CPU_BITS = 12;
/** The selector whose limit holds the word. */
const CPU_SELECTOR = 0x7b;

/** Loads the whole word. */
export function emitCpuWord(a: Assembler, dst: Reg, source: LinkEnv["cpu"]): void {
  if (source === "rdpid") {
    a.rdpid(dst);
    return;
  }
  a.movImm(dst, CPU_SELECTOR);
  a.lsl(dst, dst);
}
