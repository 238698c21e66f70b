/** One action block to a program: predicate, statements, variables. */
import { ACCOUNT_FILTERED, ACCOUNT_PASSED, type BuiltInsns, type SourcePlace } from "../../bpf/index.ts";
import type { Analysis } from "../analysis.ts";
import {
  type Assignment,
  type BinaryOp,
  type Block,
  type CallExpr,
  childrenOf,
  type Expr,
  exprsOf,
  type ProbeNode,
  type Statement,
  someExpr,
} from "../ast.ts";
import { findDeletedElement } from "../call-analyser.ts";
import { findConstant } from "../constant.ts";
import type { SourceText } from "../source.ts";
import { isSigned, type Type } from "../types.ts";
import { findValueType, type ValueType, valueTypeBytes } from "../value-type.ts";
import { assignAggregate, countHit } from "./aggregates.ts";
import { type CodeContext, hasEffects, type OnceName } from "./context.ts";
import type { CountedHits } from "./counted-hits.ts";
import { emitProgram } from "./emitter.ts";
import { sendAction, sendExit, sendJoin, sendPrint, sendPrintf } from "./events.ts";
import { type IrLabel, isVReg, type Operand, type VReg } from "./ir.ts";
import { IrBuilder, type Memory } from "./ir-builder.ts";
import { assignMap, deleteElement, stepMap, updateMap } from "./map-access.ts";
import { COMM_BYTES, fillComm, isInMemory, valueMemory, writeValue } from "./memory-values.ts";
import type { ScriptPlan } from "./plan.ts";
import { allocateRegisters } from "./registers.ts";
import { arithmetic, findAlu, scalarValue, stepAmount } from "./scalars.ts";
import { branchIfDifferent } from "./strings.ts";

/** A compiled block. */
export interface GeneratedProgram extends BuiltInsns {
  /** Bytes of stack that it uses. */
  readonly stackBytes: number;
}

/** Compiles one block; what it shares with the others is added to `plan`. */
export function generateProgram(
  plan: ScriptPlan,
  probe: ProbeNode,
  source: SourceText,
  counting: CountedHits,
): GeneratedProgram {
  return new ProgramGenerator(plan, probe, source, counting).generate();
}

interface MemoryVariable {
  readonly memory: Memory;
  readonly type: ValueType;
}

class ProgramGenerator implements CodeContext {
  readonly b = new IrBuilder();
  readonly analysis: Analysis;
  readonly plan: ScriptPlan;
  readonly #probe: ProbeNode;
  readonly #source: SourceText;
  readonly #counting: CountedHits;
  readonly #registers = new Map<string, VReg>();
  readonly #memories = new Map<string, MemoryVariable>();
  readonly #loops: { readonly again: IrLabel; readonly end: IrLabel }[] = [];
  /** Where the values are that were computed on every way to the current place. */
  #known = new Map<OnceName, VReg>();
  #comm: { readonly memory: Memory; readonly isFilled: boolean } | undefined;
  #end: IrLabel;

  constructor(plan: ScriptPlan, probe: ProbeNode, source: SourceText, counting: CountedHits) {
    this.plan = plan;
    this.analysis = plan.analysis;
    this.#probe = probe;
    this.#source = source;
    this.#counting = counting;
    this.#end = this.b.label("end");
  }

  generate(): GeneratedProgram {
    this.#declareVariables();
    const { predicate, body } = this.#probe;
    const isAccounted = this.#counting.isAccounted(this.#probe);
    const filtered = isAccounted ? this.b.label("filtered") : this.#end;
    if (predicate) {
      this.#at(predicate);
      const mark = this.b.markFrame();
      this.branch(predicate, filtered, false);
      this.b.releaseFrame(mark);
    }
    if (isAccounted) {
      this.#at(predicate ?? body);
      countHit(this, ACCOUNT_PASSED);
    }
    const first = this.#counting.isCountedFirst(this.#probe) ? 1 : 0;
    this.#block(body, first);
    this.b.bind(this.#end);
    this.b.exit();
    if (predicate && isAccounted) {
      this.b.bind(filtered);
      this.#at(predicate);
      this.#known = new Map();
      countHit(this, ACCOUNT_FILTERED);
      this.b.exit();
    }
    const allocation = allocateRegisters(this.b.insns, this.b.registerCount, this.b.framePeakBytes);
    return { ...emitProgram(allocation), stackBytes: allocation.frameBytes };
  }

  value(expr: Expr): Operand {
    return scalarValue(this, expr);
  }

  into(expr: Expr, to: Memory, type: ValueType, padded: boolean): void {
    writeValue(this, expr, to, type, padded);
  }

  memoryOf(expr: Expr): MemoryVariable {
    return valueMemory(this, expr);
  }

  once(name: OnceName, compute: () => VReg): VReg {
    const known = this.#known.get(name);
    if (known) return known;
    const value = compute();
    this.#known.set(name, value);
    return value;
  }

  sometimes(generate: () => void): void {
    const known = new Map(this.#known);
    const comm = this.#comm;
    generate();
    this.#known = known;
    this.#comm = comm;
  }

  commMemory(): Memory | undefined {
    if (!this.#comm) return undefined;
    const { memory, isFilled } = this.#comm;
    if (!isFilled) {
      fillComm(this, memory);
      this.#comm = { memory, isFilled: true };
    }
    return memory;
  }

  variableRegister(name: string): VReg {
    const register = this.#registers.get(name);
    if (!register) throw new Error(`generate bpf: ${name} has no register`);
    return register;
  }

  variableMemory(name: string): MemoryVariable {
    const memory = this.#memories.get(name);
    if (!memory) throw new Error(`generate bpf: ${name} has no memory`);
    return memory;
  }

  branch(expr: Expr, target: IrLabel, when: boolean): void {
    const constant = findConstant(expr, this.analysis.options.params);
    if (constant !== undefined) {
      if ((constant !== 0n) === when) this.b.goto(target);
      return;
    }
    if (expr.kind === "unary" && expr.op === "!") {
      this.branch(expr.operand, target, !when);
      return;
    }
    if (expr.kind === "binary") {
      if (expr.op === "&&" || expr.op === "||") {
        this.#branchLogical(expr.op, expr.left, expr.right, target, when);
        return;
      }
      if (comparisons[expr.op]) {
        this.#branchComparison(expr.op, expr.left, expr.right, target, when);
        return;
      }
    }
    if (expr.kind === "call" && expr.name === "strncmp") {
      const limit = Number(findConstant(expr.args[2]!, this.analysis.options.params) ?? 0n);
      this.#branchDifferent(expr.args[0]!, expr.args[1]!, target, when, limit);
      return;
    }
    this.b.jump(when ? "ne" : "eq", this.value(expr), 0n, target);
  }

  #branchLogical(op: "&&" | "||", left: Expr, right: Expr, target: IrLabel, when: boolean): void {
    // Decided by the left side alone, where it is false for && and true for ||.
    const short = op === "||";
    if (when === short) {
      this.branch(left, target, when);
      this.sometimes(() => this.branch(right, target, when));
      return;
    }
    const skip = this.b.label("skip");
    this.branch(left, skip, short);
    this.sometimes(() => this.branch(right, target, when));
    this.b.bind(skip);
  }

  #branchComparison(op: BinaryOp, left: Expr, right: Expr, target: IrLabel, when: boolean): void {
    const leftType = this.analysis.typeOf(left);
    const rightType = this.analysis.typeOf(right);
    if (leftType.kind === "string") {
      this.#branchDifferent(left, right, target, (op === "!=") === when, undefined);
      return;
    }
    const comparison = comparisons[op]!;
    const signed = isSigned(leftType) && isSigned(rightType);
    const name = when ? op : comparison.inverse;
    const leftValue = this.value(left);
    const a = isVReg(leftValue) && hasEffects(right) ? this.b.copy(leftValue) : leftValue;
    const b = this.value(right);
    if (!isVReg(a) && isVReg(b)) {
      this.b.jump(jumpOf(comparisons[name]!.mirrored, signed), b, a, target);
    } else {
      this.b.jump(jumpOf(name, signed), a, b, target);
    }
  }

  /** Jumps if "the strings differ" is `when`. */
  #branchDifferent(
    left: Expr,
    right: Expr,
    target: IrLabel,
    when: boolean,
    limitBytes: number | undefined,
  ): void {
    if (when) {
      branchIfDifferent(this, left, right, target, limitBytes);
      return;
    }
    const differ = this.b.label("differ");
    branchIfDifferent(this, left, right, differ, limitBytes);
    this.b.goto(target);
    this.b.bind(differ);
  }

  /** Registers begin as 0; memory too, unless it is written first thing in any case. */
  #declareVariables(): void {
    if (countComm(this.#probe) > 1) this.#comm = { memory: this.b.frame(COMM_BYTES), isFilled: false };
    const variables = this.analysis.scopes.get(this.#probe)?.variables ?? new Map<string, Type>();
    for (const [name, type] of variables) {
      const valueType = findValueType(type);
      if (!valueType) continue;
      if (!isInMemory(valueType)) {
        const register = this.b.register();
        this.b.move(register, 0n);
        this.#registers.set(name, register);
        continue;
      }
      const bytes = valueTypeBytes(valueType);
      const memory = this.b.frame(bytes);
      this.#memories.set(name, { memory, type: valueType });
      if (!isAssignedFirst(name, this.#probe.body)) this.b.clear(memory, bytes);
    }
  }

  #block(block: Block, first = 0): void {
    for (const statement of block.statements.slice(first)) {
      this.#at(statement);
      const mark = this.b.markFrame();
      this.#statement(statement);
      this.b.releaseFrame(mark);
    }
  }

  #statement(statement: Statement): void {
    const { b } = this;
    switch (statement.kind) {
      case "expression":
        this.#discard(statement.expr);
        break;
      case "assign":
        this.#assign(statement);
        break;
      case "if": {
        const otherwise = b.label("else");
        this.branch(statement.condition, otherwise, false);
        this.sometimes(() => this.#block(statement.consequent));
        if (!statement.alternate) {
          b.bind(otherwise);
          break;
        }
        const end = b.label("endif");
        b.goto(end);
        b.bind(otherwise);
        const { alternate } = statement;
        this.sometimes(() => this.#block(alternate));
        b.bind(end);
        break;
      }
      case "while": {
        const again = b.label("while");
        const end = b.label("endwhile");
        b.bind(again);
        this.branch(statement.condition, end, false);
        this.#loops.push({ again, end });
        this.sometimes(() => this.#block(statement.body));
        this.#loops.pop();
        b.goto(again);
        b.bind(end);
        break;
      }
      case "unroll": {
        const times = findConstant(statement.times, this.analysis.options.params) ?? 0n;
        for (let i = 0n; i < times; i++) this.#block(statement.body);
        break;
      }
      case "break":
        b.goto(this.#loops.at(-1)!.end);
        break;
      case "continue":
        b.goto(this.#loops.at(-1)!.again);
        break;
      case "return":
        b.goto(this.#end);
        break;
      case "block":
        this.#block(statement);
        break;
    }
  }

  /** An expression for its effect only. */
  #discard(expr: Expr): void {
    if (expr.kind === "call" && this.#action(expr)) return;
    if (expr.kind === "ternary") {
      const otherwise = this.b.label("else");
      const end = this.b.label("end");
      this.branch(expr.condition, otherwise, false);
      this.sometimes(() => this.#discard(expr.consequent));
      this.b.goto(end);
      this.b.bind(otherwise);
      this.sometimes(() => this.#discard(expr.alternate));
      this.b.bind(end);
      return;
    }
    if (expr.kind === "step" && expr.target.kind === "map") {
      stepMap(this, expr.target, stepAmount(this.analysis.typeOf(expr), expr.op), "none");
      return;
    }
    const type = findValueType(this.analysis.typeOf(expr));
    if (type && isInMemory(type)) this.memoryOf(expr);
    else this.value(expr);
  }

  /** A call that gives nothing; false if it is not one. */
  #action(call: CallExpr): boolean {
    switch (call.name) {
      case "printf":
        sendPrintf(this, call);
        return true;
      case "print":
        sendPrint(this, call);
        return true;
      case "clear":
      case "zero":
      case "time":
        sendAction(this, call);
        return true;
      case "join":
        sendJoin(this, call);
        return true;
      case "exit":
        sendExit(this, call);
        this.b.goto(this.#end);
        return true;
      case "delete":
        deleteElement(this, findDeletedElement(call)!);
        return true;
      default:
        return false;
    }
  }

  #assign(assignment: Assignment): void {
    const { target, value, op } = assignment;
    if (op !== undefined) {
      this.#compound(assignment, op);
      return;
    }
    if (target.kind === "map") {
      const map = this.plan.map(target.name);
      if (map.value.kind === "sharded" && value.kind === "call") assignAggregate(this, target, value);
      else assignMap(this, target, value);
      return;
    }
    const register = this.#registers.get(target.name);
    if (register) {
      this.b.move(register, this.value(value));
      return;
    }
    const { memory, type } = this.variableMemory(target.name);
    if (value.kind === "variable" && value.name === target.name) return;
    if (!mentionsVariable(value, target.name)) {
      this.into(value, memory, type, true);
      return;
    }
    const bytes = valueTypeBytes(type);
    const temporary = this.b.frame(bytes);
    this.into(value, temporary, type, true);
    this.b.copyMemory(memory, temporary, bytes);
  }

  #compound(assignment: Assignment, op: BinaryOp): void {
    const { target, value } = assignment;
    const targetType = this.analysis.typeOf(target);
    const valueType = this.analysis.typeOf(value);
    const alu = findAlu(op, isSigned(targetType), isSigned(valueType));
    if (!alu) throw new Error(`generate bpf: ${op}= has no code`);
    if (target.kind === "map") {
      const computed = this.value(value);
      const operand = isVReg(computed) ? this.b.copy(computed) : computed;
      const scaled =
        targetType.kind === "pointer" ? this.b.alu("mul", operand, stepAmount(targetType, "++")) : operand;
      updateMap(this, target, alu, scaled, "none");
      return;
    }
    const register = this.variableRegister(target.name);
    const operand = this.value(value);
    this.b.move(register, arithmetic(this, alu, register, targetType, operand, valueType));
  }

  #at(node: { readonly span: { readonly start: number } }): void {
    const place: SourcePlace = this.#source.placeOf(node.span.start);
    this.b.at(place);
  }
}

interface Comparison {
  readonly inverse: BinaryOp;
  /** With the sides swapped. */
  readonly mirrored: BinaryOp;
}

const comparisons: Readonly<Partial<Record<BinaryOp, Comparison>>> = {
  "==": { inverse: "!=", mirrored: "==" },
  "!=": { inverse: "==", mirrored: "!=" },
  "<": { inverse: ">=", mirrored: ">" },
  "<=": { inverse: ">", mirrored: ">=" },
  ">": { inverse: "<=", mirrored: "<" },
  ">=": { inverse: "<", mirrored: "<=" },
};

function jumpOf(op: BinaryOp, signed: boolean) {
  switch (op) {
    case "==":
      return "eq";
    case "!=":
      return "ne";
    case "<":
      return signed ? "slt" : "lt";
    case "<=":
      return signed ? "sle" : "le";
    case ">":
      return signed ? "sgt" : "gt";
    case ">=":
      return signed ? "sge" : "ge";
    default:
      throw new Error(`generate bpf: ${op} is no comparison`);
  }
}

/** Whether a statement of the block itself assigns the variable before any nested block mentions it. */
function isAssignedFirst(name: string, body: Block): boolean {
  for (const statement of body.statements) {
    if (statement.kind === "assign" && statement.target.kind === "variable") {
      if (statement.target.name === name) return statement.op === undefined;
    }
    const nested = ["if", "while", "unroll", "block"].includes(statement.kind);
    if (nested) return false;
  }
  return false;
}

function mentionsVariable(expr: Expr, name: string): boolean {
  return someExpr(expr, (part) => part.kind === "variable" && part.name === name);
}

function countComm(probe: ProbeNode): number {
  let count = 0;
  const visit = (expr: Expr): void => {
    if (expr.kind === "builtin" && expr.name === "comm") count++;
    for (const child of childrenOf(expr)) visit(child);
  };
  if (probe.predicate) visit(probe.predicate);
  for (const expr of exprsOf(probe.body)) visit(expr);
  return count;
}
