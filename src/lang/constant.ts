/** Values that are known when a script is compiled. */
import type { Expr } from "./ast.ts";
import { parseInteger } from "./lexer.ts";
import { findNamedType, type Type } from "./types.ts";

/** The number that a positional parameter stands for: 0 if it is not given, undefined if it is not a number. */
export function findParameterValue(params: readonly string[], index: number): bigint | undefined {
  const text = params[index - 1];
  if (text === undefined) return 0n;
  const digits = text.startsWith("-") || text.startsWith("+") ? text.slice(1) : text;
  const value = parseInteger(digits);
  if (value === undefined || value > 0xffff_ffff_ffff_ffffn) return undefined;
  return text.startsWith("-") ? -value : value;
}

/** The value of an expression of literals and positional parameters, if it is one; wraps to 64 bits, signed. */
export function findConstant(expr: Expr, params: readonly string[]): bigint | undefined {
  const value = evaluate(expr, params);
  return value === undefined ? undefined : BigInt.asIntN(64, value);
}

function evaluate(expr: Expr, params: readonly string[]): bigint | undefined {
  switch (expr.kind) {
    case "integer":
      return expr.value;
    case "parameter":
      return findParameterValue(params, expr.index);
    case "parameter-count":
      return BigInt(params.length);
    case "sizeof":
      return expr.type ? findSizeBytes(expr.type.base, expr.type.stars) : undefined;
    case "unary": {
      const operand = findConstant(expr.operand, params);
      if (operand === undefined) return undefined;
      if (expr.op === "-") return -operand;
      return expr.op === "~" ? ~operand : undefined;
    }
    case "binary": {
      const left = findConstant(expr.left, params);
      const right = findConstant(expr.right, params);
      if (left === undefined || right === undefined) return undefined;
      switch (expr.op) {
        case "+":
          return left + right;
        case "-":
          return left - right;
        case "*":
          return left * right;
        case "<<":
          return left << (right & 63n);
        case "|":
          return left | right;
        case "&":
          return left & right;
        case "^":
          return left ^ right;
        default:
          return undefined;
      }
    }
    default:
      return undefined;
  }
}

/** Size of a type as written. */
export function findSizeBytes(base: string, stars: number): bigint | undefined {
  if (stars > 0) return 8n;
  const type = findNamedType(base);
  return type === undefined ? undefined : BigInt(typeBytes(type));
}

/** Size of a type as C counts it. */
export function typeBytes(type: Type): number {
  switch (type.kind) {
    case "integer":
      return type.bits / 8;
    case "string":
    case "buffer":
      return type.sizeBytes;
    case "tuple":
      return type.elements.reduce((sum, element) => sum + typeBytes(element), 0);
    default:
      return 8;
  }
}
