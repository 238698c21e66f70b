/**
 * Expressions, with C's precedence, from the language's tokens.
 *
 * A slash followed by an opening brace ends a predicate instead of dividing. `(name)` is a cast where the name is
 * a type, alternate a parenthesis or a tuple.
 */
import type { BinaryOp, Expr, TypeExpr } from "./ast.ts";
import type { DiagnosticList } from "./diagnostics.ts";
import type { Lexer } from "./lexer.ts";
import { messages } from "./messages.ts";
import { joinSpans } from "./source.ts";
import type { Mark, Token } from "./token.ts";
import { isTypeName, typeWords } from "./types.ts";

/** Leaves a statement whose error is reported already. */
export class SyntaxFailure extends Error {}

/** Binary operators, loosest first. */
const precedence: readonly (readonly BinaryOp[])[] = [
  ["||"],
  ["&&"],
  ["|"],
  ["^"],
  ["&"],
  ["==", "!="],
  ["<", "<=", ">", ">="],
  ["<<", ">>"],
  ["+", "-"],
  ["*", "/", "%"],
];

/** How deep expressions may nest. */
const MAX_DEPTH = 200;
/** How many operators of one precedence may follow each other: each makes the tree deeper. */
const MAX_OPERATORS = 500;

export class ExpressionParser {
  readonly #lexer: Lexer;
  readonly #diagnostics: DiagnosticList;
  #token: Token | undefined;
  #depth = 0;
  #inPredicate = false;

  constructor(lexer: Lexer, diagnostics: DiagnosticList) {
    this.#lexer = lexer;
    this.#diagnostics = diagnostics;
  }

  /** The next token, which stays. */
  peek(): Token {
    this.#token ??= this.#lexer.next();
    return this.#token;
  }

  take(): Token {
    const token = this.peek();
    this.#token = undefined;
    return token;
  }

  expectMark(mark: Mark, expected = `'${mark}'`): Token {
    const token = this.peek();
    if (token.kind === "mark" && token.text === mark) return this.take();
    this.#fail(token, expected);
  }

  expression(): Expr {
    if (++this.#depth > MAX_DEPTH) this.#tooDeep();
    const expr = this.#conditional();
    this.#depth--;
    return expr;
  }

  /** The expression of a predicate and the slash that closes it; the opening slash is taken already. */
  predicate(): Expr {
    this.#depth = 0;
    this.#inPredicate = true;
    try {
      const expr = this.expression();
      this.expectMark("/", "'/' that closes the predicate");
      return expr;
    } finally {
      this.#inPredicate = false;
    }
  }

  #conditional(): Expr {
    const condition = this.#binary(0);
    if (!this.#takeMark("?")) return condition;
    const consequent = this.expression();
    this.expectMark(":");
    const alternate = this.#nested(() => this.#conditional());
    return {
      kind: "ternary",
      condition,
      consequent,
      alternate,
      span: joinSpans(condition.span, alternate.span),
    };
  }

  #binary(level: number): Expr {
    const ops = precedence[level];
    if (ops === undefined) return this.#unary();
    let left = this.#binary(level + 1);
    for (let operators = 0; ; operators++) {
      if (operators > MAX_OPERATORS) this.#tooDeep();
      const token = this.peek();
      if (token.kind !== "mark") return left;
      const op = ops.find((candidate) => candidate === token.text);
      if (op === undefined) return left;
      if (op === "/" && this.#inPredicate && this.#lexer.closesPredicate(token.span.start)) return left;
      this.take();
      const right = this.#binary(level + 1);
      left = { kind: "binary", op, left, right, span: joinSpans(left.span, right.span) };
    }
  }

  #unary(): Expr {
    const token = this.peek();
    if (token.kind !== "mark") return this.#postfix();
    switch (token.text) {
      case "-":
      case "!":
      case "~":
      case "*":
      case "&": {
        this.take();
        const operand = this.#nested(() => this.#unary());
        return { kind: "unary", op: token.text, operand, span: joinSpans(token.span, operand.span) };
      }
      case "+":
        this.take();
        return this.#nested(() => this.#unary());
      case "++":
      case "--": {
        this.take();
        const target = this.#nested(() => this.#unary());
        return {
          kind: "step",
          op: token.text,
          prefix: true,
          target,
          span: joinSpans(token.span, target.span),
        };
      }
      case "(": {
        const type = this.#castType();
        if (type === undefined) return this.#postfix();
        const operand = this.#nested(() => this.#unary());
        return { kind: "cast", type, operand, span: joinSpans(token.span, operand.span) };
      }
      default:
        return this.#postfix();
    }
  }

  #nested(parse: () => Expr): Expr {
    if (++this.#depth > MAX_DEPTH) this.#tooDeep();
    const expr = parse();
    this.#depth--;
    return expr;
  }

  /** `(TYPE)` if that is what stands here; alternate nothing is taken. */
  #castType(): TypeExpr | undefined {
    const open = this.take();
    const type = this.#type();
    if (type !== undefined && this.#takeMark(")")) return type;
    const next = this.peek();
    if (type !== undefined && isTypeName(type.base) && next.kind === "mark" && next.text === "[") {
      this.#diagnostics.error(joinSpans(type.span, next.span), messages.unsupported("an array type"));
      throw new SyntaxFailure();
    }
    this.#lexer.rewind(open.span.end);
    this.#token = open;
    return undefined;
  }

  /** A type's name and stars; undefined if the next word is not a type. What was taken is not given back. */
  #type(): TypeExpr | undefined {
    const first = this.peek();
    if (first.kind !== "name") return undefined;
    this.take();
    const isKnown = typeWords.has(first.text);
    let base = first.text;
    let span = first.span;
    for (;;) {
      const token = this.peek();
      const isTag = base === "struct" || base === "union" || base === "enum";
      if (!isKnown || token.kind !== "name" || !(isTag || typeWords.has(token.text))) break;
      this.take();
      base += ` ${token.text}`;
      span = joinSpans(span, token.span);
      if (isTag) break;
    }
    let stars = 0;
    for (;;) {
      const star = this.#takeMark("*");
      if (star === undefined) break;
      stars++;
      span = joinSpans(span, star.span);
    }
    // A star after an unknown name makes a type only where the parenthesis ends: the caller sees to that.
    if (!isTypeName(base) && stars === 0 && !base.includes(" ")) return undefined;
    return { base, stars, span };
  }

  #postfix(): Expr {
    let expr = this.#primary();
    for (let operators = 0; ; operators++) {
      if (operators > MAX_OPERATORS) this.#tooDeep();
      const token = this.peek();
      if (token.kind !== "mark") return expr;
      switch (token.text) {
        case "++":
        case "--":
          this.take();
          expr = {
            kind: "step",
            op: token.text,
            prefix: false,
            target: expr,
            span: joinSpans(expr.span, token.span),
          };
          break;
        case "[": {
          this.take();
          const index = this.expression();
          const close = this.expectMark("]");
          expr = { kind: "index", base: expr, index, span: joinSpans(expr.span, close.span) };
          break;
        }
        case ".":
        case "->":
          expr = this.#member(expr, token.text === "->");
          break;
        default:
          return expr;
      }
    }
  }

  #member(base: Expr, arrow: boolean): Expr {
    this.take();
    const token = this.take();
    const span = joinSpans(base.span, token.span);
    if (token.kind === "integer" && !arrow && token.value < 1000n) {
      return { kind: "element", base, index: Number(token.value), span };
    }
    if (token.kind === "name") return { kind: "field", base, name: token.text, arrow, span };
    this.#fail(token, "a field name or a tuple index");
  }

  #primary(): Expr {
    const token = this.peek();
    switch (token.kind) {
      case "integer":
        this.take();
        return { kind: "integer", value: token.value, span: token.span };
      case "string":
        this.take();
        return { kind: "string", bytes: token.bytes, span: token.span };
      case "variable":
        this.take();
        return { kind: "variable", name: token.text, span: token.span };
      case "parameter":
        this.take();
        return { kind: "parameter", index: token.index, span: token.span };
      case "parameter-count":
        this.take();
        return { kind: "parameter-count", span: token.span };
      case "map":
        return this.#map(token.text);
      case "name":
        return this.#name(token.text);
      case "mark":
        if (token.text === "(") return this.#parenthesis();
        break;
      default:
    }
    this.#fail(token, "an expression");
  }

  #map(name: string): Expr {
    const token = this.take();
    if (!this.#takeMark("[")) return { kind: "map", name, keys: [], span: token.span };
    const keys = this.#list("]");
    return { kind: "map", name, keys: keys.items, span: joinSpans(token.span, keys.close.span) };
  }

  #name(name: string): Expr {
    const token = this.take();
    if (!this.#takeMark("(")) return { kind: "builtin", name, span: token.span };
    if (name === "offsetof") {
      this.#diagnostics.error(token.span, messages.unsupported("the function offsetof()"));
      throw new SyntaxFailure();
    }
    if (name === "sizeof") {
      return this.#sizeof(token);
    }
    const args = this.#list(")");
    return {
      kind: "call",
      name,
      args: args.items,
      nameSpan: token.span,
      span: joinSpans(token.span, args.close.span),
    };
  }

  /** What follows `sizeof(`: a type or an expression. */
  #sizeof(word: Token): Expr {
    const open = this.peek();
    const type = this.#type();
    const end = type && this.#takeMark(")");
    if (end) return { kind: "sizeof", type, span: joinSpans(word.span, end.span) };
    this.#lexer.rewind(open.span.start);
    this.#token = undefined;
    const operand = this.expression();
    const close = this.expectMark(")");
    return { kind: "sizeof", operand, span: joinSpans(word.span, close.span) };
  }

  #parenthesis(): Expr {
    const open = this.take();
    const inPredicate = this.#inPredicate;
    this.#inPredicate = false;
    const first = this.expression();
    this.#inPredicate = inPredicate;
    if (this.#takeMark(")")) return first;
    this.expectMark(",", "')' or ','");
    const rest = this.#list(")");
    return {
      kind: "tuple",
      elements: [first, ...rest.items],
      span: joinSpans(open.span, rest.close.span),
    };
  }

  /** Expressions separated by commas up to `close`. */
  #list(close: Mark): { readonly items: Expr[]; readonly close: Token } {
    const items: Expr[] = [];
    const end = this.#takeMark(close);
    if (end) return { items, close: end };
    for (;;) {
      items.push(this.expression());
      const token = this.peek();
      if (token.kind === "mark" && token.text === close) return { items, close: this.take() };
      this.expectMark(",", `'${close}' or ','`);
    }
  }

  #takeMark(mark: Mark): Token | undefined {
    const token = this.peek();
    return token.kind === "mark" && token.text === mark ? this.take() : undefined;
  }

  #tooDeep(): never {
    this.#depth = 0;
    this.#diagnostics.error(this.peek().span, messages.tooDeep());
    throw new SyntaxFailure();
  }

  #fail(token: Token, expected: string): never {
    this.#depth = 0;
    this.#diagnostics.error(token.span, messages.syntax(token, expected));
    throw new SyntaxFailure();
  }
}
