/** Expressions whose value fits a register. */
import {
  type AluName,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_PRANDOM_U32,
  HELPER_GET_SMP_PROCESSOR_ID,
  HELPER_KTIME_GET_NS,
  HELPER_PROBE_READ_USER,
} from "../../bpf/index.ts";
import type { BinaryOp, CallExpr, Expr } from "../ast.ts";
import { findConstant, typeBytes } from "../constant.ts";
import { builtins, registerOffsets, stackArgumentPattern } from "../names.ts";
import { isSigned, type Type } from "../types.ts";
import { type CodeContext, hasEffects } from "./context.ts";
import { isVReg, type Operand } from "./ir.ts";
import { addressArgument } from "./ir-builder.ts";
import { readMap, stepMap } from "./map-access.ts";
import { elementMemory } from "./memory-values.ts";
import { stringLength } from "./strings.ts";

/** Bytes of a word on the user's stack. */
const WORD_BYTES = 8n;

export function scalarValue(c: CodeContext, expr: Expr): Operand {
  const constant = findConstant(expr, c.analysis.options.params);
  if (constant !== undefined) return constant;
  switch (expr.kind) {
    case "builtin":
      return builtinValue(c, expr.name);
    case "variable":
      return c.variableRegister(expr.name);
    case "map":
      return readMap(c, expr);
    case "call":
      return callValue(c, expr);
    case "unary":
      return unaryValue(c, expr);
    case "step":
      return stepValue(c, expr);
    case "binary":
      return binaryValue(c, expr);
    case "ternary":
      return ternaryValue(c, expr);
    case "cast":
      return castValue(c, c.value(expr.operand), c.analysis.typeOf(expr));
    case "sizeof":
      return BigInt(expr.operand ? typeBytes(c.analysis.typeOf(expr.operand)) : 0);
    case "index": {
      const base = c.analysis.typeOf(expr.base);
      const address = offsetPointer(
        c,
        "add",
        stableValue(c, expr.base, expr.index),
        base,
        c.value(expr.index),
      );
      return readUser(c, address, c.analysis.typeOf(expr));
    }
    case "element":
      return elementValue(c, expr);
    case "integer":
    case "parameter":
    case "parameter-count":
    case "string":
    case "field":
    case "tuple":
      throw new Error(`generate bpf: ${expr.kind} has no value in a register`);
  }
}

/** The value of `expr`, safe from what `later` may change. */
function stableValue(c: CodeContext, expr: Expr, later: Expr): Operand {
  const value = c.value(expr);
  return isVReg(value) && hasEffects(later) ? c.b.copy(value) : value;
}

function builtinValue(c: CodeContext, name: string): Operand {
  const { b } = c;
  const ctxOffset = builtins.get(name)?.ctxOffset;
  if (ctxOffset !== undefined) return b.load({ base: b.context, offset: ctxOffset });
  const stackArgument = stackArgumentPattern.exec(name);
  if (stackArgument) {
    const sp = b.load({ base: b.context, offset: registerOffsets.sp! });
    // The return address lies at the stack pointer, the arguments above it.
    return readWord(c, b.alu("add", sp, (BigInt(stackArgument[1]!) + 1n) * WORD_BYTES), 8, false);
  }
  switch (name) {
    case "pid":
      return b.alu("rsh", pidTid(c), 32n);
    case "tid":
      return b.extend(pidTid(c), 32, false);
    case "uid":
      return b.extend(uidGid(c), 32, false);
    case "gid":
      return b.alu("rsh", uidGid(c), 32n);
    case "nsecs":
      return b.call(HELPER_KTIME_GET_NS);
    case "elapsed":
      return b.alu("sub", b.call(HELPER_KTIME_GET_NS), c.plan.options.startNs);
    case "cpu":
      return b.call(HELPER_GET_SMP_PROCESSOR_ID);
    case "rand":
      return b.call(HELPER_GET_PRANDOM_U32);
    case "probe":
    case "func":
      // Not the probed address: that lies elsewhere in each process, and is the caller's in a return probe.
      return c.once("cookie", () => b.call(HELPER_GET_ATTACH_COOKIE, b.context));
    default:
      throw new Error(`generate bpf: builtin ${name} has no code`);
  }
}

function pidTid(c: CodeContext): Operand {
  return c.once("pid-tid", () => c.b.call(HELPER_GET_CURRENT_PID_TGID));
}

function uidGid(c: CodeContext): Operand {
  return c.once("uid-gid", () => c.b.call(HELPER_GET_CURRENT_UID_GID));
}

function callValue(c: CodeContext, call: CallExpr): Operand {
  const first = call.args[0];
  switch (call.name) {
    case "sym":
    case "usym":
    case "uptr":
      return c.value(first!);
    case "strftime":
      return c.value(call.args[1]!);
    case "reg": {
      const name = first?.kind === "string" ? String.fromCharCode(...first.bytes) : "";
      return c.b.load({ base: c.b.context, offset: registerOffsets[name]! });
    }
    case "bswap": {
      const type = c.analysis.typeOf(call);
      const bits = type.kind === "integer" ? type.bits : 64;
      const value = c.value(first!);
      return bits === 8 ? c.b.extend(value, 8, false) : c.b.swap(value, bits);
    }
    case "strlen":
      return stringLength(c, first!);
    case "strncmp":
      return truthValue(c, call);
    default:
      throw new Error(`generate bpf: ${call.name}() has no value`);
  }
}

function unaryValue(c: CodeContext, expr: Expr & { readonly kind: "unary" }): Operand {
  switch (expr.op) {
    case "-":
      return c.b.negate(c.value(expr.operand));
    case "~":
      return c.b.alu("xor", c.value(expr.operand), -1n);
    case "!":
      return truthValue(c, expr);
    case "*":
      return readUser(c, c.value(expr.operand), c.analysis.typeOf(expr));
    case "&":
      throw new Error("generate bpf: & has no code");
  }
}

function stepValue(c: CodeContext, expr: Expr & { readonly kind: "step" }): Operand {
  const { target, op, prefix } = expr;
  const amount = stepAmount(c.analysis.typeOf(expr), op);
  if (target.kind === "map") return stepMap(c, target, amount, prefix ? "after" : "before");
  if (target.kind !== "variable") throw new Error(`generate bpf: ${op} on ${target.kind}`);
  const register = c.variableRegister(target.name);
  const before = prefix ? undefined : c.b.copy(register);
  c.b.aluInto("add", register, amount);
  return before ?? c.b.copy(register);
}

/** What `++` or `--` adds. */
export function stepAmount(type: Type, op: "++" | "--"): bigint {
  const size = type.kind === "pointer" ? pointeeBytes(type) : 1n;
  return op === "++" ? size : -size;
}

function binaryValue(c: CodeContext, expr: Expr & { readonly kind: "binary" }): Operand {
  const { op } = expr;
  const leftType = c.analysis.typeOf(expr.left);
  const rightType = c.analysis.typeOf(expr.right);
  const alu = findAlu(op, isSigned(leftType), isSigned(rightType));
  if (alu === undefined) return truthValue(c, expr);
  const left = stableValue(c, expr.left, expr.right);
  const right = c.value(expr.right);
  return arithmetic(c, alu, left, leftType, right, rightType);
}

/** The ALU operation of an arithmetic operator; undefined for comparisons and logic. */
export function findAlu(op: BinaryOp, leftSigned: boolean, rightSigned: boolean): AluName | undefined {
  const signed = leftSigned && rightSigned;
  switch (op) {
    case "+":
      return "add";
    case "-":
      return "sub";
    case "*":
      return "mul";
    case "/":
      return signed ? "sdiv" : "div";
    case "%":
      return signed ? "smod" : "mod";
    case "<<":
      return "lsh";
    case ">>":
      return leftSigned ? "arsh" : "rsh";
    case "&":
      return "and";
    case "|":
      return "or";
    case "^":
      return "xor";
    default:
      return undefined;
  }
}

/** `left alu right`, where a pointer counts in the size of what it points to. */
export function arithmetic(
  c: CodeContext,
  alu: AluName,
  left: Operand,
  leftType: Type,
  right: Operand,
  rightType: Type,
): Operand {
  if (leftType.kind === "pointer" && rightType.kind === "pointer") {
    return c.b.alu("sdiv", c.b.alu("sub", left, right), pointeeBytes(leftType));
  }
  if (leftType.kind === "pointer") return offsetPointer(c, alu, left, leftType, right);
  if (rightType.kind === "pointer") return offsetPointer(c, alu, right, rightType, left);
  return c.b.alu(alu, left, right);
}

function offsetPointer(c: CodeContext, alu: AluName, pointer: Operand, type: Type, count: Operand): Operand {
  const size = type.kind === "pointer" ? pointeeBytes(type) : WORD_BYTES;
  return c.b.alu(alu, pointer, c.b.alu("mul", count, size));
}

function pointeeBytes(type: Type & { readonly kind: "pointer" }): bigint {
  return type.to === undefined ? 1n : BigInt(typeBytes(type.to));
}

function ternaryValue(c: CodeContext, expr: Expr & { readonly kind: "ternary" }): Operand {
  const { b } = c;
  const result = b.register();
  const otherwise = b.label("else");
  const end = b.label("end");
  c.branch(expr.condition, otherwise, false);
  c.sometimes(() => b.move(result, c.value(expr.consequent)));
  b.goto(end);
  b.bind(otherwise);
  c.sometimes(() => b.move(result, c.value(expr.alternate)));
  b.bind(end);
  return result;
}

/** 1 or 0. */
function truthValue(c: CodeContext, expr: Expr): Operand {
  const { b } = c;
  const result = b.register();
  const end = b.label("end");
  b.move(result, 0n);
  c.branch(expr, end, false);
  b.move(result, 1n);
  b.bind(end);
  return result;
}

function castValue(c: CodeContext, value: Operand, type: Type): Operand {
  if (type.kind !== "integer" || type.bits === 64) return value;
  return c.b.extend(value, type.bits, type.signed);
}

/** What a pointer points to, as a value of `type`; 0 if it cannot be read. */
function readUser(c: CodeContext, address: Operand, type: Type): Operand {
  if (type.kind !== "integer") return readWord(c, address, 8, false);
  return readWord(c, address, (type.bits / 8) as 1 | 2 | 4 | 8, type.signed);
}

function readWord(c: CodeContext, address: Operand, bytes: 1 | 2 | 4 | 8, signed: boolean): Operand {
  const memory = c.b.frame(8);
  c.b.callVoid(HELPER_PROBE_READ_USER, addressArgument(memory), BigInt(bytes), address);
  return c.b.load(memory, bytes, signed);
}

function elementValue(c: CodeContext, expr: Expr & { readonly kind: "element" }): Operand {
  return c.b.load(elementMemory(c, expr));
}
