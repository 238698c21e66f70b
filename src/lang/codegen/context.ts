/** What the parts of the code generator need of each other. */

import type { Analysis } from "../analysis.ts";
import type { Expr } from "../ast.ts";
import type { ValueType } from "../value-type.ts";
import type { IrLabel, Operand, VReg } from "./ir.ts";
import type { IrBuilder, Memory } from "./ir-builder.ts";
import type { ScriptPlan } from "./plan.ts";

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
  /** The register of a variable that fits one. */
  variableRegister(name: string): VReg;
  /** The frame memory of a variable that does not. */
  variableMemory(name: string): { readonly memory: Memory; readonly type: ValueType };
}

/** Whether evaluating the expression changes something: `++` and `--`. */
export function hasEffects(expr: Expr): boolean {
  switch (expr.kind) {
    case "step":
      return true;
    case "integer":
    case "string":
    case "builtin":
    case "parameter":
    case "parameter-count":
    case "variable":
    case "sizeof":
      return false;
    case "map":
      return expr.keys.some(hasEffects);
    case "call":
      return expr.args.some(hasEffects);
    case "unary":
    case "cast":
      return hasEffects(expr.operand);
    case "binary":
      return hasEffects(expr.left) || hasEffects(expr.right);
    case "ternary":
      return [expr.condition, expr.consequent, expr.alternate].some(hasEffects);
    case "index":
      return hasEffects(expr.base) || hasEffects(expr.index);
    case "element":
    case "field":
      return hasEffects(expr.base);
    case "tuple":
      return expr.elements.some(hasEffects);
  }
}
