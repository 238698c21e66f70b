/**
 * Tokens to syntax tree: probes, predicates and statements. Expressions are in expression-parser.ts.
 *
 * A syntax error is reported and the statement that holds it is left out; reading goes on after the next `;` or at
 * the closing brace, so that one run shows all errors.
 */
import type { Assignment, BinaryOp, Block, Expr, ProbeNode, ScriptNode, Statement } from "./ast.ts";
import { type AttachPoint, parseAttachPoint } from "./attach-point.ts";
import type { DiagnosticList } from "./diagnostics.ts";
import { ExpressionParser, SyntaxFailure } from "./expression-parser.ts";
import { Lexer } from "./lexer.ts";
import { messages } from "./messages.ts";
import { joinSpans, type SourceText, type Span } from "./source.ts";
import type { Token } from "./token.ts";

/** Words that begin something at the top level which bpftrace has and this language does not have yet. */
const preambles: Readonly<Record<string, string>> = {
  struct: "a struct definition",
  union: "a union definition",
  enum: "an enum definition",
  typedef: "a typedef",
  import: "an import",
  config: "a config block",
  let: "a map declaration (let)",
  fn: "a function definition",
  subprog: "a function definition",
  macro: "a macro",
};

/** Statements that bpftrace has and this language does not have yet. */
const unsupportedStatements: Readonly<Record<string, string>> = {
  for: "a for loop",
  let: "a variable declaration (let)",
};

const assignmentOps: Readonly<Record<string, BinaryOp>> = {
  "+=": "+",
  "-=": "-",
  "*=": "*",
  "/=": "/",
  "%=": "%",
  "<<=": "<<",
  ">>=": ">>",
  "&=": "&",
  "|=": "|",
  "^=": "^",
};

/** How many blocks may be open at once. */
const MAX_DEPTH = 200;

/** Reads a whole script. The tree is usable only if `diagnostics` has no errors afterwards. */
export function parseScript(
  source: SourceText,
  params: readonly string[],
  diagnostics: DiagnosticList,
): ScriptNode {
  return new Parser(source, params, diagnostics).script();
}

class Parser {
  readonly #source: SourceText;
  readonly #params: readonly string[];
  readonly #diagnostics: DiagnosticList;
  readonly #lexer: Lexer;
  readonly #expressions: ExpressionParser;
  #depth = 0;

  constructor(source: SourceText, params: readonly string[], diagnostics: DiagnosticList) {
    this.#source = source;
    this.#params = params;
    this.#diagnostics = diagnostics;
    this.#lexer = new Lexer(source, diagnostics);
    this.#expressions = new ExpressionParser(this.#lexer, diagnostics);
  }

  script(): ScriptNode {
    const probes: ProbeNode[] = [];
    let seen = false;
    while (this.#lexer.peekChar() !== undefined) {
      seen = true;
      if (this.#preamble()) continue;
      const probe = this.#probe();
      if (probe) probes.push(probe);
    }
    if (!seen) {
      this.#diagnostics.error(
        { start: 0, end: Math.min(1, this.#source.text.length) },
        messages.emptyScript(),
      );
    }
    return { probes };
  }

  /** Reports and skips what stands where only probes are supported. */
  #preamble(): boolean {
    const start = this.#lexer.offset;
    const rest = this.#source.text.slice(start, start + 80);
    if (rest.startsWith("#")) {
      const token = this.#lexer.next();
      this.#diagnostics.error(token.span, messages.unsupported("the preprocessor"));
      return true;
    }
    const word = /^([a-z]+)(?=[\s({;=<@])/.exec(rest)?.[1];
    const what = word === undefined ? undefined : preambles[word];
    if (word === undefined || what === undefined) return false;
    this.#diagnostics.error({ start, end: start + word.length }, messages.unsupported(what));
    this.#skipPreamble(word);
    return true;
  }

  #skipPreamble(word: string): void {
    const endsAtSemicolon = word === "let" || word === "import" || word === "typedef";
    for (let depth = 0; ; ) {
      const token = this.#lexer.next();
      if (token.kind === "end") return;
      if (token.kind !== "mark") continue;
      if (token.text === "{") depth++;
      if (token.text === "}" && --depth <= 0 && !endsAtSemicolon) {
        if (this.#lexer.peekChar() === ";") this.#lexer.next();
        return;
      }
      if (token.text === ";" && depth === 0) return;
    }
  }

  #probe(): ProbeNode | undefined {
    const attachPoints: AttachPoint[] = [];
    const start = this.#lexer.offset;
    for (;;) {
      const { text, span } = this.#lexer.attachPointText();
      const point = parseAttachPoint(text, span, this.#params, this.#diagnostics);
      if (point) attachPoints.push(point);
      if (this.#lexer.peekChar() !== ",") break;
      this.#lexer.next();
    }
    const headEnd = this.#lexer.offset;
    let predicate: Expr | undefined;
    try {
      if (this.#lexer.peekChar() === "/") {
        this.#lexer.next();
        predicate = this.#expressions.predicate();
      }
      const body = this.#block("'{' and the actions of the probe");
      return {
        attachPoints,
        ...(predicate ? { predicate } : {}),
        body,
        span: { start, end: headEnd },
      };
    } catch (error) {
      if (!(error instanceof SyntaxFailure)) throw error;
      this.#depth = 0;
      this.#skipToBlock();
      return undefined;
    }
  }

  /** After a broken head: to the end of the action block that follows, if there is one. */
  #skipToBlock(): void {
    for (let depth = 0; ; ) {
      const token = this.#expressions.take();
      if (token.kind === "end") return;
      if (token.kind !== "mark") continue;
      if (token.text === "{") depth++;
      if (token.text === "}" && --depth <= 0) return;
    }
  }

  #block(expected = "'{'"): Block {
    const open = this.#expressions.expectMark("{", expected);
    this.#enter(open.span);
    const block = this.#statements(open.span);
    this.#depth--;
    return block;
  }

  /** Counts what is open: blocks, and `else if` after `else if`. */
  #enter(span: Span): void {
    if (++this.#depth <= MAX_DEPTH) return;
    this.#depth = 0;
    this.#diagnostics.error(span, messages.tooManyBlocks());
    throw new SyntaxFailure();
  }

  /** Up to the closing brace. */
  #statements(open: Span): Block {
    const statements: Statement[] = [];
    const depth = this.#depth;
    for (;;) {
      const token = this.#expressions.peek();
      if (token.kind === "end") {
        this.#diagnostics.error(token.span, messages.syntax(token, "'}'", this.#openedAt(open)));
        return { kind: "block", statements, span: joinSpans(open, token.span) };
      }
      if (token.kind === "mark" && token.text === "}") {
        this.#expressions.take();
        return { kind: "block", statements, span: joinSpans(open, token.span) };
      }
      if (token.kind === "mark" && token.text === ";") {
        this.#expressions.take();
        continue;
      }
      try {
        statements.push(this.#statement());
      } catch (error) {
        if (!(error instanceof SyntaxFailure)) throw error;
        this.#depth = depth;
        this.#skipStatement();
      }
    }
  }

  #openedAt(span: Span): string {
    return `the block was opened in line ${this.#source.placeOf(span.start).line}`;
  }

  /** To the next `;`, which is taken, or the `}` that closes this block, which is not. */
  #skipStatement(): void {
    for (let depth = 0; ; ) {
      const token = this.#expressions.peek();
      if (token.kind === "end") return;
      if (token.kind === "mark") {
        if (token.text === "}" && depth === 0) return;
        if (token.text === "{") depth++;
        if (token.text === "}" && --depth === 0) {
          this.#expressions.take();
          return;
        }
        if (token.text === ";" && depth === 0) {
          this.#expressions.take();
          return;
        }
      }
      this.#expressions.take();
    }
  }

  #statement(): Statement {
    const token = this.#expressions.peek();
    if (token.kind === "mark" && token.text === "{") return this.#block();
    if (token.kind === "directive") {
      this.#diagnostics.error(token.span, messages.unsupported("the preprocessor"));
      throw new SyntaxFailure();
    }
    if (token.kind === "name") {
      const word = this.#wordStatement(token);
      if (word) return word;
    }
    const statement = this.#simpleStatement();
    this.#endStatement();
    return statement;
  }

  /** A statement that begins with a word of its own; undefined if the word is an expression's. */
  #wordStatement(token: Token & { readonly kind: "name" }): Statement | undefined {
    const unsupported = unsupportedStatements[token.text];
    if (unsupported !== undefined) {
      this.#diagnostics.error(token.span, messages.unsupported(unsupported));
      throw new SyntaxFailure();
    }
    switch (token.text) {
      case "if":
        return this.#if();
      case "while": {
        this.#expressions.take();
        const condition = this.#expressions.expression();
        const body = this.#block();
        return { kind: "while", condition, body, span: token.span };
      }
      case "unroll": {
        this.#expressions.take();
        const times = this.#expressions.expression();
        const body = this.#block();
        return { kind: "unroll", times, body, span: joinSpans(token.span, times.span) };
      }
      case "break":
      case "continue":
        this.#expressions.take();
        this.#endStatement();
        return { kind: token.text, span: token.span };
      case "return": {
        this.#expressions.take();
        const next = this.#expressions.peek();
        if (next.kind !== "end" && !(next.kind === "mark" && (next.text === ";" || next.text === "}"))) {
          this.#diagnostics.error(next.span, messages.returnValue());
          throw new SyntaxFailure();
        }
        this.#endStatement();
        return { kind: "return", span: token.span };
      }
      case "else":
        this.#diagnostics.error(token.span, messages.elseWithoutIf());
        throw new SyntaxFailure();
      default:
        return undefined;
    }
  }

  #if(): Statement {
    const start = this.#expressions.take();
    const condition = this.#expressions.expression();
    const consequent = this.#block();
    const span = joinSpans(start.span, condition.span);
    const next = this.#expressions.peek();
    if (next.kind !== "name" || next.text !== "else") return { kind: "if", condition, consequent, span };
    this.#expressions.take();
    const after = this.#expressions.peek();
    if (after.kind === "name" && after.text === "if") {
      this.#enter(after.span);
      const nested = this.#if();
      this.#depth--;
      return {
        kind: "if",
        condition,
        consequent,
        alternate: { kind: "block", statements: [nested], span: nested.span },
        span,
      };
    }
    return { kind: "if", condition, consequent, alternate: this.#block(), span };
  }

  /** An assignment or an expression. */
  #simpleStatement(): Statement {
    const target = this.#expressions.expression();
    const token = this.#expressions.peek();
    const op = token.kind === "mark" ? assignmentOps[token.text] : undefined;
    const isAssignment = op !== undefined || (token.kind === "mark" && token.text === "=");
    if (!isAssignment) return { kind: "expression", expr: target, span: target.span };
    if (target.kind !== "variable" && target.kind !== "map") {
      this.#diagnostics.error(target.span, messages.notAssignable());
      throw new SyntaxFailure();
    }
    this.#expressions.take();
    const value = this.#expressions.expression();
    const assignment: Assignment = {
      kind: "assign",
      target,
      ...(op === undefined ? {} : { op }),
      value,
      span: joinSpans(target.span, value.span),
    };
    return assignment;
  }

  #endStatement(): void {
    const token = this.#expressions.peek();
    if (token.kind === "mark" && token.text === ";") {
      this.#expressions.take();
      return;
    }
    if (token.kind === "mark" && token.text === "}") return;
    if (token.kind === "end") return;
    this.#diagnostics.error(token.span, messages.syntax(token, "';' or '}'"));
    // The statement itself is whole; what follows it is read as another one.
    if (token.kind !== "name" && token.kind !== "map" && token.kind !== "variable") throw new SyntaxFailure();
  }
}
