/**
 * A program before registers: BPF instructions on virtual registers, with labels.
 *
 * A virtual register may be written more than once. Arithmetic has two operands, as BPF has it: `dst = dst op src`.
 * Calls name their arguments; which of them are moved to r1 to r5, and in what order, is decided when registers
 * are known.
 */
import type { AluName, JumpName, SourcePlace } from "../../bpf/index.ts";

/** A virtual register. */
export interface VReg {
  readonly kind: "vreg";
  readonly id: number;
}

/** What scalar code yields: a register or a number, as signed 64 bits. */
export type Operand = VReg | bigint;

/** Base of a memory access. */
export type Base = VReg | "frame";

export interface IrLabel {
  readonly name: string;
}

export type CallArgument =
  | VReg
  | bigint
  /** A map itself. */
  | { readonly kind: "map"; readonly map: number }
  /** An address in element 0 of a map. */
  | { readonly kind: "map-value"; readonly map: number; readonly offset: number }
  /** An address relative to the frame pointer. */
  | { readonly kind: "frame"; readonly offset: number }
  /** A register plus a constant. */
  | { readonly kind: "offset"; readonly base: VReg; readonly offset: number };

export type AtomicOp = "add" | "or" | "and" | "xor";

export type IrInsn = { readonly place?: SourcePlace | undefined } & (
  | { readonly op: "context"; readonly dst: VReg }
  | { readonly op: "move"; readonly dst: VReg; readonly src: Operand }
  | { readonly op: "map-value"; readonly dst: VReg; readonly map: number; readonly offset: number }
  | { readonly op: "frame-address"; readonly dst: VReg; readonly offset: number }
  /** `src` fits a signed 32-bit immediate if it is a number. */
  | { readonly op: "alu"; readonly name: AluName; readonly dst: VReg; readonly src: VReg | number }
  | { readonly op: "negate"; readonly dst: VReg }
  | { readonly op: "swap"; readonly dst: VReg; readonly bits: 16 | 32 | 64 }
  | {
      readonly op: "extend";
      readonly dst: VReg;
      readonly src: VReg;
      readonly bits: 8 | 16 | 32;
      readonly signed: boolean;
    }
  | {
      readonly op: "load";
      readonly dst: VReg;
      readonly base: Base;
      readonly offset: number;
      readonly bytes: 1 | 2 | 4 | 8;
      readonly signed: boolean;
    }
  | {
      readonly op: "store";
      readonly base: Base;
      readonly offset: number;
      readonly bytes: 1 | 2 | 4 | 8;
      readonly src: VReg | number;
    }
  | {
      readonly op: "atomic";
      readonly name: AtomicOp;
      readonly base: VReg;
      readonly offset: number;
      readonly src: VReg;
    }
  /** `reg` holds the operand before and the old value after. */
  | {
      readonly op: "fetch";
      readonly name: AtomicOp;
      readonly base: VReg;
      readonly offset: number;
      readonly reg: VReg;
    }
  | {
      readonly op: "compare-exchange";
      readonly base: VReg;
      readonly offset: number;
      readonly expected: VReg;
      readonly src: VReg;
      readonly dst: VReg;
    }
  | {
      readonly op: "call";
      readonly helper: number;
      readonly args: readonly CallArgument[];
      readonly dst: VReg | undefined;
    }
  | {
      readonly op: "jump";
      readonly cond: JumpName;
      readonly left: VReg;
      readonly right: VReg | number;
      readonly target: IrLabel;
    }
  | { readonly op: "goto"; readonly target: IrLabel }
  | { readonly op: "label"; readonly label: IrLabel }
  /** Ends the program with 0. */
  | { readonly op: "exit" }
);

export function isVReg(value: unknown): value is VReg {
  return typeof value === "object" && value !== null && (value as VReg).kind === "vreg";
}

/** The registers that an instruction reads. */
export function usesOf(insn: IrInsn): VReg[] {
  switch (insn.op) {
    case "context":
    case "map-value":
    case "frame-address":
    case "goto":
    case "label":
    case "exit":
      return [];
    case "move":
      return isVReg(insn.src) ? [insn.src] : [];
    case "alu":
      return isVReg(insn.src) ? [insn.dst, insn.src] : [insn.dst];
    case "negate":
    case "swap":
      return [insn.dst];
    case "extend":
      return [insn.src];
    case "load":
      return isVReg(insn.base) ? [insn.base] : [];
    case "store": {
      const uses = isVReg(insn.base) ? [insn.base] : [];
      return isVReg(insn.src) ? [...uses, insn.src] : uses;
    }
    case "atomic":
      return [insn.base, insn.src];
    case "fetch":
      return [insn.base, insn.reg];
    case "compare-exchange":
      return [insn.base, insn.expected, insn.src];
    case "call":
      return insn.args.flatMap((arg) => {
        if (isVReg(arg)) return [arg];
        return typeof arg === "object" && arg.kind === "offset" ? [arg.base] : [];
      });
    case "jump":
      return isVReg(insn.right) ? [insn.left, insn.right] : [insn.left];
  }
}

/** The register that an instruction writes. */
export function definitionOf(insn: IrInsn): VReg | undefined {
  switch (insn.op) {
    case "context":
    case "move":
    case "map-value":
    case "frame-address":
    case "alu":
    case "negate":
    case "swap":
    case "extend":
    case "load":
    case "compare-exchange":
    case "call":
      return insn.dst;
    case "fetch":
      return insn.reg;
    case "store":
    case "atomic":
    case "jump":
    case "goto":
    case "label":
    case "exit":
      return undefined;
  }
}

/** Whether an instruction does nothing but write its register. */
export function isPure(insn: IrInsn): boolean {
  switch (insn.op) {
    case "context":
    case "move":
    case "map-value":
    case "frame-address":
    case "alu":
    case "negate":
    case "swap":
    case "extend":
    case "load":
      return true;
    default:
      return false;
  }
}
