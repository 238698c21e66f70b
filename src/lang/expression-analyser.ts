/** Expressions: the type of each, and whether operators fit it. Calls are in call-analyser.ts. */
import type { Analysis, MapTypes, ProbeScope } from "./analysis.ts";
import type { BinaryOp, CallExpr, Expr, MapExpr, VariableExpr } from "./ast.ts";
import { checkAggregate, checkCall } from "./call-analyser.ts";
import { findConstant, findParameterValue, findSizeBytes } from "./constant.ts";
import { messages } from "./messages.ts";
import {
  type BuiltinPlace,
  builtins,
  functionNames,
  stackArgumentPattern,
  unsupportedBuiltins,
  unsupportedFunctions,
} from "./names.ts";
import { nearestName } from "./suggestion.ts";
import {
  findNamedType,
  functionType,
  int64,
  integerTypeNames,
  isScalar,
  isSigned,
  noneType,
  printKind,
  printType,
  probeType,
  storedType,
  stringType,
  type Type,
  uint64,
  unifyTypes,
  unknownType,
} from "./types.ts";
import { findValueType } from "./value-type.ts";

const placeNames: Readonly<Record<BuiltinPlace, string>> = {
  any: "any",
  entry: "'uprobe'",
  return: "'uretprobe'",
  user: "'uprobe' and 'uretprobe'",
};

/** Bytes of a thread's name with its end mark (TASK_COMM_LEN). */
const COMM_BYTES = 16;

export class ExpressionAnalyser {
  readonly analysis: Analysis;
  readonly scope: ProbeScope;
  /** Variables that were assigned above the place that is looked at. */
  readonly #declared = new Set<string>();

  constructor(analysis: Analysis, scope: ProbeScope) {
    this.analysis = analysis;
    this.scope = scope;
  }

  /** The variable has a value from here on. */
  declare(target: VariableExpr): void {
    this.#declared.add(target.name);
    this.analysis.types.set(target, this.scope.variables.get(target.name) ?? unknownType);
  }

  /** An expression that stands as a statement: it may give nothing. */
  visitStatement(expr: Expr): Type {
    const type = this.#visit(expr);
    this.analysis.types.set(expr, type);
    return type;
  }

  /** An expression whose value is used. */
  visitValue(expr: Expr): Type {
    const type = this.visitStatement(expr);
    if (type.kind === "none") {
      const name = expr.kind === "call" ? expr.name : "this";
      this.analysis.error(expr.span, messages.notAValue(name));
      this.analysis.types.set(expr, unknownType);
      return unknownType;
    }
    if (type.kind === "aggregate") {
      const name = expr.kind === "map" ? expr.name : "this";
      this.analysis.error(expr.span, messages.aggregateValue(name, type.aggregate.fn));
      this.analysis.types.set(expr, unknownType);
      return unknownType;
    }
    return type;
  }

  /** Checks the keys of a map and gives what is known about it. */
  visitMapAccess(expr: MapExpr): MapTypes {
    const map = this.analysis.mapOf(expr.name);
    const keys = expr.keys.map((key) => this.#key(key));
    const flat = keys.flatMap((key) => (key.kind === "tuple" ? key.elements : [key]));
    if (!flat.some((key) => key.kind === "unknown") && !this.analysis.widenKeys(map, flat)) {
      const got = flat.map(printType).join(", ");
      const had = (map.keys ?? []).map(printType).join(", ");
      this.analysis.error(expr.span, messages.mapKeys(expr.name, had, got));
    }
    this.analysis.types.set(expr, map.value);
    return map;
  }

  /** A map that must exist: something assigns it. */
  visitMapUse(expr: MapExpr): MapTypes {
    const map = this.analysis.mapOf(expr.name);
    if (map.value.kind === "unknown") {
      const others = [...this.analysis.maps.values()].filter((other) => other.value.kind !== "unknown");
      const near = nearestName(
        expr.name,
        others.map((other) => other.name),
      );
      this.analysis.error(expr.span, messages.undefinedMap(expr.name, near));
    }
    return map;
  }

  /** The aggregate that a call assigns to a map. */
  visitAggregate(call: CallExpr): Type {
    const type = checkAggregate(this, call);
    this.analysis.types.set(call, type);
    return type;
  }

  #key(expr: Expr): Type {
    const type = storedType(this.visitValue(expr));
    if (type.kind === "unknown") return type;
    if (findValueType(type) === undefined || type.kind === "timestamp") {
      this.analysis.error(expr.span, messages.keyType(printKind(type)));
      return unknownType;
    }
    return type;
  }

  #visit(expr: Expr): Type {
    switch (expr.kind) {
      case "integer":
        return expr.value > 0x7fff_ffff_ffff_ffffn ? uint64 : int64;
      case "string":
        return stringType(expr.bytes.length + 1);
      case "builtin":
        return this.#builtin(expr.name, expr);
      case "parameter": {
        const { params } = this.analysis.options;
        if (findParameterValue(params, expr.index) === undefined) {
          const name = `$${expr.index}`;
          this.analysis.error(expr.span, messages.parameterNotNumber(name, params[expr.index - 1] ?? ""));
        }
        return int64;
      }
      case "parameter-count":
        return int64;
      case "variable":
        return this.#variable(expr);
      case "map":
        this.visitMapAccess(expr);
        return this.visitMapUse(expr).value;
      case "call":
        return this.#call(expr);
      case "unary":
        return this.#unary(expr);
      case "step":
        return this.#step(expr);
      case "binary":
        return this.#binary(expr);
      case "ternary":
        return this.#ternary(expr);
      case "cast":
        return this.#cast(expr);
      case "sizeof":
        return this.#sizeof(expr);
      case "index":
        return this.#index(expr);
      case "element":
        return this.#element(expr);
      case "field":
        this.analysis.error(
          expr.span,
          messages.unsupported(
            `field access (${expr.arrow ? "->" : "."}${expr.name})`,
            "read memory with an offset, for example *(int32 *)(arg0 + 8)",
          ),
        );
        return unknownType;
      case "tuple":
        return { kind: "tuple", elements: expr.elements.map((element) => this.visitValue(element)) };
    }
  }

  #builtin(name: string, expr: Expr): Type {
    const spec = builtins.get(name);
    const stackArgument = stackArgumentPattern.exec(name);
    if (spec === undefined && !stackArgument) {
      this.#unknownBuiltin(name, expr);
      return unknownType;
    }
    this.checkPlace(name, spec?.place ?? "entry", expr);
    switch (name) {
      case "comm":
        return stringType(COMM_BYTES);
      case "probe":
        return probeType;
      case "func":
        return functionType;
      default:
        return uint64;
    }
  }

  #unknownBuiltin(name: string, expr: Expr): void {
    if (/^arg[0-9]+$/.test(name)) {
      this.analysis.error(expr.span, messages.noSuchArgument(name));
    } else if (unsupportedBuiltins.has(name)) {
      this.analysis.error(expr.span, messages.unsupported(`the ${name} builtin`));
    } else {
      const hint = functionNames.includes(name) ? `${name} is a function: write ${name}(...)` : undefined;
      const near = nearestName(name, [...builtins.keys(), ...functionNames]);
      this.analysis.error(expr.span, messages.unknownIdentifier(name, near, hint));
    }
  }

  /** Whether every attach point of the block has what `name` needs. */
  checkPlace(name: string, place: BuiltinPlace, expr: Expr): void {
    for (const point of this.scope.node.attachPoints) {
      const fits =
        place === "any" ||
        (point.kind === "uprobe" && place !== "return") ||
        (point.kind === "uretprobe" && place !== "entry");
      if (fits) continue;
      this.analysis.error(expr.span, messages.builtinProbe(name, placeNames[place], point.name));
      return;
    }
  }

  #variable(expr: VariableExpr): Type {
    if (!this.#declared.has(expr.name)) {
      const near = nearestName(expr.name, this.#declared);
      this.analysis.error(expr.span, messages.undefinedVariable(expr.name, near));
      return unknownType;
    }
    return this.scope.variables.get(expr.name) ?? unknownType;
  }

  #call(call: CallExpr): Type {
    if (unsupportedFunctions.has(call.name)) {
      this.analysis.error(call.nameSpan, messages.unsupported(`the function ${call.name}()`));
      return unknownType;
    }
    if (!functionNames.includes(call.name)) {
      const near = nearestName(call.name, functionNames);
      this.analysis.error(call.nameSpan, messages.unknownFunction(call.name, near));
      for (const arg of call.args) this.visitStatement(arg);
      return unknownType;
    }
    return checkCall(this, call);
  }

  #unary(expr: Expr & { readonly kind: "unary" }): Type {
    if (expr.op === "&") {
      this.analysis.error(expr.span, messages.unsupported("the address operator &"));
      return unknownType;
    }
    const type = this.visitValue(expr.operand);
    if (type.kind === "unknown") return unknownType;
    if (expr.op === "*") return this.#dereference(type, expr);
    if (!isScalar(type) || (type.kind === "pointer" && expr.op !== "!")) {
      this.analysis.error(expr.span, messages.operatorType(expr.op, printType(type)));
      return unknownType;
    }
    if (expr.op === "!") return int64;
    // A literal above 2^63 with a minus, such as -9223372036854775808, is signed.
    if (expr.op === "-" && expr.operand.kind === "integer") return int64;
    return isSigned(type) ? int64 : uint64;
  }

  #dereference(type: Type, expr: Expr): Type {
    if (type.kind === "pointer") {
      if (type.to !== undefined) return type.to;
      this.analysis.error(expr.span, messages.dereferenceVoid());
      return unknownType;
    }
    if (type.kind === "integer") return uint64;
    this.analysis.error(expr.span, messages.dereference(printType(type)));
    return unknownType;
  }

  #step(expr: Expr & { readonly kind: "step" }): Type {
    const { target, op } = expr;
    if (target.kind === "map") {
      const map = this.visitMapAccess(target);
      this.analysis.widenMap(map, map.value.kind === "unknown" ? int64 : map.value);
      if (!isScalar(map.value)) {
        this.analysis.error(expr.span, messages.operatorType(op, printType(map.value)));
        return unknownType;
      }
      return map.value;
    }
    if (target.kind !== "variable") {
      this.visitValue(target);
      this.analysis.error(expr.span, messages.stepTarget(op));
      return unknownType;
    }
    const type = this.visitValue(target);
    if (isScalar(type)) return type;
    this.analysis.error(expr.span, messages.operatorType(op, printType(type)));
    return unknownType;
  }

  #binary(expr: Expr & { readonly kind: "binary" }): Type {
    const left = this.visitValue(expr.left);
    const right = this.visitValue(expr.right);
    if (left.kind === "unknown" || right.kind === "unknown") {
      return isComparison(expr.op) || isLogical(expr.op) ? int64 : unknownType;
    }
    if (isLogical(expr.op)) {
      for (const [side, type] of [
        [expr.left, left],
        [expr.right, right],
      ] as const) {
        if (!isScalar(type)) this.analysis.error(side.span, messages.operatorType(expr.op, printType(type)));
      }
      return int64;
    }
    const bothText = left.kind === "string" && right.kind === "string";
    if (bothText && (expr.op === "==" || expr.op === "!=")) return int64;
    if (bothText || (left.kind === right.kind && !isScalar(left))) {
      this.analysis.error(expr.span, messages.operatorTypes(expr.op, printType(left), printType(right)));
      return unknownType;
    }
    if (!isScalar(left) || !isScalar(right)) {
      this.analysis.error(expr.span, messages.comparisonTypes(expr.op, printType(left), printType(right)));
      return unknownType;
    }
    if (left.kind === "pointer" || right.kind === "pointer") return this.#pointerBinary(expr, left, right);
    this.#checkSigns(expr, left, right);
    if (isComparison(expr.op)) return int64;
    if (expr.op === "<<" || expr.op === ">>") return isSigned(left) ? int64 : uint64;
    return isSigned(left) && isSigned(right) ? int64 : uint64;
  }

  #pointerBinary(expr: Expr & { readonly kind: "binary" }, left: Type, right: Type): Type {
    if (isComparison(expr.op)) return int64;
    if (expr.op === "+" && left.kind === "pointer" && right.kind === "integer") return left;
    if (expr.op === "+" && left.kind === "integer") return right;
    if (expr.op === "-" && left.kind === "pointer" && right.kind === "integer") return left;
    if (expr.op === "-" && left.kind === "pointer" && right.kind === "pointer") return int64;
    this.analysis.error(expr.span, messages.operatorTypes(expr.op, printType(left), printType(right)));
    return unknownType;
  }

  #checkSigns(expr: Expr & { readonly kind: "binary" }, left: Type, right: Type): void {
    if (isSigned(left) === isSigned(right)) return;
    const { params } = this.analysis.options;
    const leftValue = findConstant(expr.left, params);
    const rightValue = findConstant(expr.right, params);
    if (rightValue === 0n && (expr.op === "<" || expr.op === ">=")) {
      this.analysis.warning(expr.span, messages.alwaysUnsigned(expr.op));
    }
    if (leftValue !== undefined || rightValue !== undefined) return;
    if (!["<", "<=", ">", ">=", "/", "%"].includes(expr.op)) return;
    const what = isComparison(expr.op) ? "comparison" : "arithmetic";
    this.analysis.warning(expr.span, messages.mixedSigns(what, printType(left), printType(right)));
  }

  #ternary(expr: Expr & { readonly kind: "ternary" }): Type {
    const condition = this.visitValue(expr.condition);
    if (!isScalar(condition)) {
      this.analysis.error(expr.condition.span, messages.conditionType(printType(condition)));
    }
    const consequent = this.visitStatement(expr.consequent);
    const alternate = this.visitStatement(expr.alternate);
    if (consequent.kind === "unknown" || alternate.kind === "unknown") return unknownType;
    if (consequent.kind === "none" && alternate.kind === "none") return noneType;
    for (const side of [expr.consequent, expr.alternate]) {
      if (this.analysis.typeOf(side).kind === "aggregate") return this.visitValue(side);
    }
    const type = unifyTypes(consequent, alternate);
    if (type === undefined) {
      this.analysis.error(expr.span, messages.ternaryTypes(printKind(consequent), printKind(alternate)));
      return unknownType;
    }
    if (type.kind === "integer") return isSigned(consequent) && isSigned(alternate) ? int64 : uint64;
    return type;
  }

  #cast(expr: Expr & { readonly kind: "cast" }): Type {
    const from = this.visitValue(expr.operand);
    const to = this.#writtenType(expr.type.base, expr.type.stars, expr);
    if (from.kind === "unknown" || to.kind === "unknown") return to;
    if (isScalar(from) || (from.kind === "symbol" && to.kind === "integer")) return to;
    this.analysis.error(expr.span, messages.castType(printType(to), printType(from)));
    return unknownType;
  }

  #writtenType(base: string, stars: number, expr: Expr): Type {
    const tag = /^(struct|union|enum) /.exec(base)?.[1];
    if (tag !== undefined) {
      this.analysis.error(expr.span, messages.unsupported(`${tag === "enum" ? "an" : "a"} ${tag} type`));
      return unknownType;
    }
    const named = findNamedType(base);
    if (named === undefined && base !== "void") {
      const near = nearestName(base, integerTypeNames);
      this.analysis.error(expr.span, messages.unknownType(base, near));
      return unknownType;
    }
    if (named === undefined && stars === 0) {
      this.analysis.error(expr.span, messages.unknownType(base, undefined));
      return unknownType;
    }
    let type: Type | undefined = named;
    for (let i = 0; i < stars; i++) type = { kind: "pointer", to: type };
    return type ?? unknownType;
  }

  #sizeof(expr: Expr & { readonly kind: "sizeof" }): Type {
    if (expr.operand) this.visitValue(expr.operand);
    if (expr.type && findSizeBytes(expr.type.base, expr.type.stars) === undefined) {
      this.#writtenType(expr.type.base, expr.type.stars, expr);
    }
    return uint64;
  }

  #index(expr: Expr & { readonly kind: "index" }): Type {
    const base = this.visitValue(expr.base);
    const index = this.visitValue(expr.index);
    if (base.kind === "unknown") return unknownType;
    if (base.kind !== "pointer" || !(index.kind === "integer" || index.kind === "unknown")) {
      this.analysis.error(expr.span, messages.indexType(printType(base)));
      return unknownType;
    }
    return this.#dereference(base, expr);
  }

  #element(expr: Expr & { readonly kind: "element" }): Type {
    const base = this.visitValue(expr.base);
    if (base.kind === "unknown") return unknownType;
    if (base.kind !== "tuple") {
      this.analysis.error(expr.span, messages.notATuple(printType(base)));
      return unknownType;
    }
    const element = base.elements[expr.index];
    if (element === undefined) {
      this.analysis.error(expr.span, messages.tupleIndex(expr.index, base.elements.length));
      return unknownType;
    }
    return element;
  }
}

export function isComparison(op: BinaryOp): boolean {
  return op === "==" || op === "!=" || op === "<" || op === "<=" || op === ">" || op === ">=";
}

export function isLogical(op: BinaryOp): boolean {
  return op === "&&" || op === "||";
}
