/** The words of the language. */
import type { Span } from "./source.ts";

export type Token =
  | { readonly kind: "end"; readonly span: Span }
  | { readonly kind: "name"; readonly text: string; readonly span: Span }
  | { readonly kind: "integer"; readonly value: bigint; readonly span: Span }
  | { readonly kind: "string"; readonly bytes: Uint8Array; readonly span: Span }
  /** `$x`, with the `$`. */
  | { readonly kind: "variable"; readonly text: string; readonly span: Span }
  /** `@x`, with the `@`; `@` alone is a name too. */
  | { readonly kind: "map"; readonly text: string; readonly span: Span }
  | { readonly kind: "parameter"; readonly index: number; readonly span: Span }
  | { readonly kind: "parameter-count"; readonly span: Span }
  | { readonly kind: "mark"; readonly text: Mark; readonly span: Span }
  /** `#include` and the like: the whole line. */
  | { readonly kind: "directive"; readonly text: string; readonly span: Span };

/** Operators and punctuation, the longest first: the lexer takes the first that fits. */
export const marks = [
  "<<=",
  ">>=",
  "...",
  "++",
  "--",
  "<<",
  ">>",
  "<=",
  ">=",
  "==",
  "!=",
  "&&",
  "||",
  "->",
  "..",
  "+=",
  "-=",
  "*=",
  "/=",
  "%=",
  "&=",
  "|=",
  "^=",
  "+",
  "-",
  "*",
  "/",
  "%",
  "<",
  ">",
  "=",
  "!",
  "~",
  "&",
  "|",
  "^",
  "?",
  ":",
  ";",
  ",",
  ".",
  "(",
  ")",
  "[",
  "]",
  "{",
  "}",
] as const;

export type Mark = (typeof marks)[number];

/** How a token is called in a message. */
export function describeToken(token: Token): string {
  switch (token.kind) {
    case "end":
      return "end of file";
    case "name":
      return `'${token.text}'`;
    case "integer":
      return "integer";
    case "string":
      return "string";
    case "variable":
      return `variable ${token.text}`;
    case "map":
      return `map ${token.text}`;
    case "parameter":
    case "parameter-count":
      return "positional parameter";
    case "mark":
      return `'${token.text}'`;
    case "directive":
      return "preprocessor directive";
  }
}
