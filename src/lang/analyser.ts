/**
 * Statements: which types flow into which variables and maps, and what may stand where.
 */
import { Analysis, type AnalysisOptions, type ProbeScope } from "./analysis.ts";
import type { Assignment, Block, Expr, ProbeNode, ScriptNode, Statement } from "./ast.ts";
import { findConstant } from "./constant.ts";
import type { DiagnosticList } from "./diagnostics.ts";
import { ExpressionAnalyser } from "./expression-analyser.ts";
import { messages } from "./messages.ts";
import { aggregateNames } from "./names.ts";
import { isScalar, printKind, printType, storedType, type Type } from "./types.ts";
import { findValueType } from "./value-type.ts";

export const MAX_UNROLL = 100;
/** Widening strings and signs settles after a few rounds; this only guards against a bug. */
const MAX_ROUNDS = 32;

/** Infers all types, then checks them. The result is usable only if `diagnostics` has no errors afterwards. */
export function analyseScript(
  script: ScriptNode,
  options: AnalysisOptions,
  diagnostics: DiagnosticList,
): Analysis {
  const analysis = new Analysis(options);
  for (let round = 0; round < MAX_ROUNDS; round++) {
    analysis.changed = false;
    visitScript(script, analysis);
    if (!analysis.changed) break;
  }
  analysis.diagnostics = diagnostics;
  checkDuplicates(script, diagnostics);
  visitScript(script, analysis);
  return analysis;
}

function visitScript(script: ScriptNode, analysis: Analysis): void {
  for (const probe of script.probes) {
    let scope = analysis.scopes.get(probe);
    if (!scope) {
      scope = { node: probe, variables: new Map() };
      analysis.scopes.set(probe, scope);
    }
    new StatementAnalyser(analysis, scope).probe(probe);
  }
}

function checkDuplicates(script: ScriptNode, diagnostics: DiagnosticList): void {
  const seen = new Set<string>();
  for (const point of script.probes.flatMap((probe) => probe.attachPoints)) {
    if (point.kind !== "begin" && point.kind !== "end") continue;
    if (seen.has(point.name)) diagnostics.error(point.span, messages.duplicateProbe(point.name));
    seen.add(point.name);
  }
}

class StatementAnalyser {
  readonly #analysis: Analysis;
  readonly #scope: ProbeScope;
  readonly #expressions: ExpressionAnalyser;
  #loopDepth = 0;

  constructor(analysis: Analysis, scope: ProbeScope) {
    this.#analysis = analysis;
    this.#scope = scope;
    this.#expressions = new ExpressionAnalyser(analysis, scope);
  }

  probe(probe: ProbeNode): void {
    if (probe.predicate) this.#condition(probe.predicate);
    this.#block(probe.body);
  }

  #block(block: Block): void {
    for (const statement of block.statements) this.#statement(statement);
  }

  #statement(statement: Statement): void {
    switch (statement.kind) {
      case "expression":
        this.#expressions.visitStatement(statement.expr);
        break;
      case "assign":
        this.#assign(statement);
        break;
      case "if":
        this.#condition(statement.condition);
        this.#block(statement.consequent);
        if (statement.alternate) this.#block(statement.alternate);
        break;
      case "while":
        this.#condition(statement.condition);
        this.#loopDepth++;
        this.#block(statement.body);
        this.#loopDepth--;
        break;
      case "unroll":
        this.#unroll(statement.times);
        // break and continue would have to leave copies of the block: bpftrace has neither.
        this.#block(statement.body);
        break;
      case "break":
      case "continue":
        if (this.#loopDepth === 0) {
          this.#analysis.error(statement.span, messages.outsideLoop(statement.kind));
        }
        break;
      case "return":
        break;
      case "block":
        this.#block(statement);
        break;
    }
  }

  #condition(expr: Expr): void {
    const type = this.#expressions.visitValue(expr);
    if (!isScalar(type)) this.#analysis.error(expr.span, messages.conditionType(printType(type)));
  }

  #unroll(times: Expr): void {
    this.#expressions.visitValue(times);
    const count = findConstant(times, this.#analysis.options.params);
    if (count === undefined) this.#analysis.error(times.span, messages.unrollLiteral());
    else if (count < 1n) this.#analysis.error(times.span, messages.unrollMinimum());
    else if (count > BigInt(MAX_UNROLL)) {
      this.#analysis.error(times.span, messages.unrollMaximum(MAX_UNROLL));
    }
  }

  #assign(assignment: Assignment): void {
    const { target, value, op } = assignment;
    if (value.kind === "call" && aggregateNames.has(value.name)) {
      this.#assignAggregate(assignment);
      return;
    }
    const type = this.#expressions.visitValue(value);
    if (op !== undefined) {
      this.#compound(assignment, type);
      return;
    }
    const stored = storedType(type);
    if (stored.kind !== "unknown" && findValueType(stored) === undefined) {
      this.#analysis.error(value.span, messages.notStorable(printKind(stored)));
      return;
    }
    if (target.kind === "variable") {
      const had = this.#scope.variables.get(target.name);
      if (!this.#analysis.widenVariable(this.#scope, target.name, stored)) {
        this.#analysis.error(
          assignment.span,
          messages.variableType(target.name, printType(had!), printType(stored)),
        );
      }
      this.#expressions.declare(target);
      return;
    }
    const map = this.#expressions.visitMapAccess(target);
    if (!this.#analysis.widenMap(map, stored)) {
      this.#analysis.error(
        assignment.span,
        messages.mapType(target.name, printType(map.value), printType(stored)),
      );
    }
  }

  #assignAggregate(assignment: Assignment): void {
    const { target, value, op } = assignment;
    if (value.kind !== "call") return;
    if (target.kind === "variable" || op !== undefined) {
      this.#analysis.error(value.span, messages.aggregateUse(value.name));
      return;
    }
    const map = this.#expressions.visitMapAccess(target);
    const type = this.#expressions.visitAggregate(value);
    if (type.kind === "unknown") return;
    if (!this.#analysis.widenMap(map, type)) {
      this.#analysis.error(
        assignment.span,
        messages.mapType(target.name, printType(map.value), printType(type)),
      );
    }
  }

  /** `x op= value`. */
  #compound(assignment: Assignment, type: Type): void {
    const { target, value, op } = assignment;
    if (target.kind === "map") {
      const map = this.#expressions.visitMapAccess(target);
      if (map.value.kind === "unknown") this.#analysis.widenMap(map, storedType(type));
      if (!isScalar(map.value) || !isScalar(type)) {
        this.#analysis.error(
          assignment.span,
          messages.operatorTypes(`${op}=`, printType(map.value), printType(type)),
        );
      }
      return;
    }
    const had = this.#expressions.visitValue(target);
    if (!isScalar(had) || !isScalar(type)) {
      this.#analysis.error(value.span, messages.operatorTypes(`${op}=`, printType(had), printType(type)));
    }
  }
}
