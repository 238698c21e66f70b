/** What the verifier allows beyond what keeps a program safe; the defaults are the kernel's. */
import { STACK_BYTES } from "./stack.ts";

/** Functions that can run at once, the main one included. */
export const MAX_FRAMES = 8;

export interface Limits {
  /** Whether a stack byte that was never written may be read; it is then some number. */
  readonly uninitStack: "refuse" | "allow";
  /** Most bytes of stack that nested functions may take together, each rounded up. */
  readonly stackBytes: number;
  /** Whether there may be instructions that nothing leads to. */
  readonly unreachable: "refuse" | "allow";
  /** Whether stack accesses other than atomic ones may be unaligned. */
  readonly unalignedStack: boolean;
}

export const defaultLimits: Limits = {
  uninitStack: "allow",
  stackBytes: STACK_BYTES,
  unreachable: "refuse",
  unalignedStack: false,
};
