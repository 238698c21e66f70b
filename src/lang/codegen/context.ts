/** What the parts of the code generator need of each other. */

import type { Analysis } from "../analysis.ts";
import { type Expr, someExpr } from "../ast.ts";
import type { ValueType } from "../value-type.ts";
import type { IrLabel, Operand, VReg } from "./ir.ts";
import type { IrBuilder, Memory } from "./ir-builder.ts";
import type { ScriptPlan } from "./plan.ts";

/** Values that do not change while a program runs. */
export type OnceName = "pid-tid" | "uid-gid" | "cookie" | "shard";

export interface CodeContext {
  readonly b: IrBuilder;
  readonly analysis: Analysis;
  readonly plan: ScriptPlan;
  /** The value of an expression that fits a register: numbers, pointers, symbols, probes, times. */
  value(expr: Expr): Operand;
  /**
   * Writes a value of any type as `type`, which is that of the place and may be larger than the value's own.
   * `padded`: what lies behind the end of a string or buffer becomes 0, as keys and comparisons need it.
   */
  into(expr: Expr, to: Memory, type: ValueType, padded: boolean): void;
  /** A padded value in memory: where it lies already, or in the frame. */
  memoryOf(expr: Expr): { readonly memory: Memory; readonly type: ValueType };
  /** Jumps to `target` if the truth of `expr` is `when`; otherwise goes on. */
  branch(expr: Expr, target: IrLabel, when: boolean): void;
  /**
   * A value that is the same all through one run of the program, such as the thread's id: computed where it is first
   * needed on the way here.
   */
  once(name: OnceName, compute: () => VReg): VReg;
  /** Generates code that is not always run: what is computed there is not known behind it. */
  sometimes(generate: () => void): void;
  /** Memory that holds the thread's name from here on, if the program has use for that. */
  commMemory(): Memory | undefined;
  /** The register of a variable that fits one. */
  variableRegister(name: string): VReg;
  /** The frame memory of a variable that does not. */
  variableMemory(name: string): { readonly memory: Memory; readonly type: ValueType };
}

/** Whether evaluating the expression changes something: `++` and `--`. */
export function hasEffects(expr: Expr): boolean {
  return someExpr(expr, ({ kind }) => kind === "step");
}
