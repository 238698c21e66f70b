/**
 * The syntax tree of a script. Every node has the span of its text; nothing here has a type yet.
 */
import type { AttachPoint } from "./attach-point.ts";
import type { Span } from "./source.ts";

export interface ScriptNode {
  readonly probes: readonly ProbeNode[];
}

/** One action block with everything it is attached to. */
export interface ProbeNode {
  readonly attachPoints: readonly AttachPoint[];
  readonly predicate?: Expr;
  readonly body: Block;
  readonly span: Span;
}

export interface Block {
  readonly kind: "block";
  readonly statements: readonly Statement[];
  readonly span: Span;
}

export type Statement =
  | { readonly kind: "expression"; readonly expr: Expr; readonly span: Span }
  | Assignment
  | {
      readonly kind: "if";
      readonly condition: Expr;
      readonly consequent: Block;
      readonly alternate?: Block;
      readonly span: Span;
    }
  | { readonly kind: "while"; readonly condition: Expr; readonly body: Block; readonly span: Span }
  | { readonly kind: "unroll"; readonly times: Expr; readonly body: Block; readonly span: Span }
  | { readonly kind: "break" | "continue" | "return"; readonly span: Span }
  | Block;

export interface Assignment {
  readonly kind: "assign";
  readonly target: VariableExpr | MapExpr;
  /** Undefined for a plain `=`. */
  readonly op?: BinaryOp;
  readonly value: Expr;
  readonly span: Span;
}

export type BinaryOp =
  | "+"
  | "-"
  | "*"
  | "/"
  | "%"
  | "<<"
  | ">>"
  | "&"
  | "|"
  | "^"
  | "=="
  | "!="
  | "<"
  | "<="
  | ">"
  | ">="
  | "&&"
  | "||";

export type UnaryOp = "-" | "!" | "~" | "*" | "&";

export interface VariableExpr {
  readonly kind: "variable";
  /** With the `$`. */
  readonly name: string;
  readonly span: Span;
}

export interface MapExpr {
  readonly kind: "map";
  /** With the `@`. */
  readonly name: string;
  readonly keys: readonly Expr[];
  readonly span: Span;
}

export interface CallExpr {
  readonly kind: "call";
  readonly name: string;
  readonly args: readonly Expr[];
  readonly nameSpan: Span;
  readonly span: Span;
}

export interface StringExpr {
  readonly kind: "string";
  /** Without the end mark. */
  readonly bytes: Uint8Array;
  readonly span: Span;
}

/** A C type as written: `uint32`, `int8 **`. */
export interface TypeExpr {
  readonly base: string;
  readonly stars: number;
  readonly span: Span;
}

export type Expr =
  | { readonly kind: "integer"; readonly value: bigint; readonly span: Span }
  | StringExpr
  | { readonly kind: "builtin"; readonly name: string; readonly span: Span }
  | { readonly kind: "parameter"; readonly index: number; readonly span: Span }
  | { readonly kind: "parameter-count"; readonly span: Span }
  | VariableExpr
  | MapExpr
  | CallExpr
  | { readonly kind: "unary"; readonly op: UnaryOp; readonly operand: Expr; readonly span: Span }
  | {
      readonly kind: "step";
      readonly op: "++" | "--";
      readonly prefix: boolean;
      readonly target: Expr;
      readonly span: Span;
    }
  | {
      readonly kind: "binary";
      readonly op: BinaryOp;
      readonly left: Expr;
      readonly right: Expr;
      readonly span: Span;
    }
  | {
      readonly kind: "ternary";
      readonly condition: Expr;
      readonly consequent: Expr;
      readonly alternate: Expr;
      readonly span: Span;
    }
  | { readonly kind: "cast"; readonly type: TypeExpr; readonly operand: Expr; readonly span: Span }
  /** Of a type or of an expression: one of the two is set. */
  | {
      readonly kind: "sizeof";
      readonly type?: TypeExpr | undefined;
      readonly operand?: Expr | undefined;
      readonly span: Span;
    }
  | { readonly kind: "index"; readonly base: Expr; readonly index: Expr; readonly span: Span }
  | { readonly kind: "element"; readonly base: Expr; readonly index: number; readonly span: Span }
  | {
      readonly kind: "field";
      readonly base: Expr;
      readonly name: string;
      readonly arrow: boolean;
      readonly span: Span;
    }
  | { readonly kind: "tuple"; readonly elements: readonly Expr[]; readonly span: Span };

/** The expressions directly inside an expression, in the order of the text. */
export function childrenOf(expr: Expr): readonly Expr[] {
  switch (expr.kind) {
    case "integer":
    case "string":
    case "builtin":
    case "parameter":
    case "parameter-count":
    case "variable":
    // Its operand is not evaluated.
    case "sizeof":
      return [];
    case "map":
      return expr.keys;
    case "call":
      return expr.args;
    case "unary":
    case "cast":
      return [expr.operand];
    case "step":
      return [expr.target];
    case "binary":
      return [expr.left, expr.right];
    case "ternary":
      return [expr.condition, expr.consequent, expr.alternate];
    case "index":
      return [expr.base, expr.index];
    case "element":
    case "field":
      return [expr.base];
    case "tuple":
      return expr.elements;
  }
}

/** Whether the expression or one inside it fits. */
export function someExpr(expr: Expr, fits: (expr: Expr) => boolean): boolean {
  return fits(expr) || childrenOf(expr).some((child) => someExpr(child, fits));
}

/** The expressions directly in a statement, and those in the statements inside it. */
export function exprsOf(statement: Statement): readonly Expr[] {
  switch (statement.kind) {
    case "expression":
      return [statement.expr];
    case "assign":
      return [statement.target, statement.value];
    case "if":
      return [
        statement.condition,
        ...exprsOf(statement.consequent),
        ...(statement.alternate ? exprsOf(statement.alternate) : []),
      ];
    case "while":
      return [statement.condition, ...exprsOf(statement.body)];
    case "unroll":
      return exprsOf(statement.body);
    case "block":
      return statement.statements.flatMap(exprsOf);
    case "break":
    case "continue":
    case "return":
      return [];
  }
}
