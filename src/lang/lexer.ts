/**
 * Text to tokens, on demand: the parser asks for the next token, or, where a probe begins, for the raw text of
 * an attach point, whose paths and wildcards are not made of the language's tokens.
 *
 * Comments and a `#!` line are skipped. A token that is wrong in itself is reported and replaced by a usable one.
 */
import type { DiagnosticList } from "./diagnostics.ts";
import { messages } from "./messages.ts";
import type { SourceText, Span } from "./source.ts";
import { marks, type Token } from "./token.ts";

const nameStart = /[A-Za-z_]/;
const namePattern = /[A-Za-z_][A-Za-z0-9_]*/y;
const wordPattern = /[0-9A-Za-z_]+/y;
const spacePattern = /[ \t\r\n\f\v]+/y;

/** Nanoseconds of a time suffix. */
const timeUnits: Readonly<Record<string, bigint>> = {
  ns: 1n,
  us: 1_000n,
  ms: 1_000_000n,
  s: 1_000_000_000n,
  m: 60_000_000_000n,
  h: 3_600_000_000_000n,
  d: 86_400_000_000_000n,
};

const simpleEscapes: Readonly<Record<string, number>> = {
  n: 10,
  t: 9,
  r: 13,
  '"': 34,
  "'": 39,
  "\\": 92,
};

export class Lexer {
  readonly #source: SourceText;
  readonly #text: string;
  readonly #diagnostics: DiagnosticList;
  #at = 0;

  constructor(source: SourceText, diagnostics: DiagnosticList) {
    this.#source = source;
    this.#text = source.text;
    this.#diagnostics = diagnostics;
    if (this.#text.startsWith("#!")) this.#skipLine();
  }

  /** Offset of the next unread character. */
  get offset(): number {
    return this.#at;
  }

  /** Goes back to an offset that `offset` gave. */
  rewind(offset: number): void {
    this.#at = offset;
  }

  next(): Token {
    this.skipBlanks();
    const start = this.#at;
    const char = this.#text[start];
    if (char === undefined) return { kind: "end", span: { start, end: start } };
    if (nameStart.test(char)) {
      const text = this.#match(namePattern)!;
      return { kind: "name", text, span: this.#spanFrom(start) };
    }
    if (char >= "0" && char <= "9") return this.#integer(start);
    if (char === '"') return this.#string(start);
    if (char === "'") return this.#character(start);
    if (char === "$") return this.#dollar(start);
    if (char === "@") {
      this.#at++;
      const text = `@${this.#match(namePattern) ?? ""}`;
      return { kind: "map", text, span: this.#spanFrom(start) };
    }
    if (char === "#") {
      this.#skipLine();
      return {
        kind: "directive",
        text: this.#text.slice(start, this.#at).trimEnd(),
        span: this.#spanFrom(start),
      };
    }
    for (const text of marks) {
      if (!this.#text.startsWith(text, start)) continue;
      this.#at += text.length;
      return { kind: "mark", text, span: this.#spanFrom(start) };
    }
    this.#at += (this.#text.codePointAt(start) ?? 0) > 0xffff ? 2 : 1;
    this.#diagnostics.error(
      this.#spanFrom(start),
      messages.invalidCharacter(this.#text.slice(start, this.#at)),
    );
    return this.next();
  }

  /** Skips white space and comments. */
  skipBlanks(): void {
    for (;;) {
      if (this.#match(spacePattern) !== undefined) continue;
      if (this.#text.startsWith("//", this.#at)) {
        this.#skipLine();
      } else if (this.#text.startsWith("/*", this.#at)) {
        const end = this.#text.indexOf("*/", this.#at + 2);
        if (end < 0) {
          const start = this.#at;
          this.#at = this.#text.length;
          this.#diagnostics.error({ start, end: start + 2 }, messages.unterminatedComment());
        } else {
          this.#at = end + 2;
        }
      } else {
        return;
      }
    }
  }

  /** The next character after blanks, which are skipped; nothing else is read. */
  peekChar(): string | undefined {
    this.skipBlanks();
    return this.#text[this.#at];
  }

  /**
   * The raw text of an attach point: up to white space, a comma or an opening brace outside quotes. A slash
   * belongs to it, except right after a bare word such as `BEGIN`, where it opens a predicate.
   */
  attachPointText(): { readonly text: string; readonly span: Span } {
    this.skipBlanks();
    const start = this.#at;
    let quoted = false;
    for (; this.#at < this.#text.length; this.#at++) {
      const char = this.#text[this.#at]!;
      if (char === "\n") break;
      if (char === '"') quoted = !quoted;
      if (quoted) continue;
      if (char === "," || char === "{" || char === " " || char === "\t" || char === "\r") break;
      if (char === "/" && !this.#text.slice(start, this.#at).includes(":")) break;
    }
    const span = this.#spanFrom(start);
    if (quoted) this.#diagnostics.error(span, messages.unterminatedString());
    return { text: this.#source.slice(span), span };
  }

  /** Whether the slash at `offset` closes a predicate: an opening brace follows. */
  closesPredicate(offset: number): boolean {
    const before = this.#at;
    this.#at = offset + 1;
    this.skipBlanks();
    const closes = this.#text[this.#at] === "{";
    this.#at = before;
    return closes;
  }

  #dollar(start: number): Token {
    this.#at++;
    if (this.#text[this.#at] === "#") {
      this.#at++;
      return { kind: "parameter-count", span: this.#spanFrom(start) };
    }
    const word = this.#match(wordPattern);
    const span = this.#spanFrom(start);
    if (word === undefined) {
      this.#diagnostics.error(span, messages.invalidCharacter("$"));
      return this.next();
    }
    if (!/^[0-9]/.test(word)) return { kind: "variable", text: `$${word}`, span };
    if (/^[1-9][0-9]{0,4}$/.test(word)) return { kind: "parameter", index: Number(word), span };
    this.#diagnostics.error(span, messages.invalidParameter(`$${word}`));
    return { kind: "parameter", index: 1, span };
  }

  #integer(start: number): Token {
    const word = this.#match(wordPattern)!;
    const span = this.#spanFrom(start);
    const value = parseInteger(word);
    if (value === undefined) {
      this.#diagnostics.error(span, messages.invalidInteger(word));
      return { kind: "integer", value: 0n, span };
    }
    if (value > 0xffff_ffff_ffff_ffffn) {
      this.#diagnostics.error(span, messages.integerTooLarge(word));
      return { kind: "integer", value: 0n, span };
    }
    return { kind: "integer", value, span };
  }

  #string(start: number): Token {
    this.#at++;
    const bytes: number[] = [];
    for (;;) {
      const char = this.#text[this.#at];
      if (char === undefined || char === "\n") {
        this.#diagnostics.error(this.#spanFrom(start), messages.unterminatedString());
        break;
      }
      if (char === '"') {
        this.#at++;
        break;
      }
      this.#readCharacter(bytes);
    }
    return { kind: "string", bytes: Uint8Array.from(bytes), span: this.#spanFrom(start) };
  }

  #character(start: number): Token {
    this.#at++;
    const bytes: number[] = [];
    while (this.#at < this.#text.length && this.#text[this.#at] !== "'" && this.#text[this.#at] !== "\n") {
      this.#readCharacter(bytes);
    }
    if (this.#text[this.#at] === "'") this.#at++;
    const span = this.#spanFrom(start);
    if (bytes.length !== 1) this.#diagnostics.error(span, messages.invalidCharacterLiteral());
    return { kind: "integer", value: BigInt(bytes[0] ?? 0), span };
  }

  /** One character or escape of a literal, as bytes. */
  #readCharacter(bytes: number[]): void {
    const char = this.#text[this.#at]!;
    if (char !== "\\") {
      const whole = String.fromCodePoint(this.#text.codePointAt(this.#at)!);
      this.#at += whole.length;
      bytes.push(...new TextEncoder().encode(whole));
      return;
    }
    const start = this.#at++;
    const octal = this.#match(/[0-7]{1,3}/y);
    if (octal !== undefined) {
      bytes.push(Number.parseInt(octal, 8) & 0xff);
      return;
    }
    const hex = this.#match(/x[0-9a-fA-F]{1,2}/y);
    if (hex !== undefined) {
      bytes.push(Number.parseInt(hex.slice(1), 16));
      return;
    }
    const letter = this.#text[this.#at] ?? "";
    const byte = simpleEscapes[letter];
    if (letter !== "" && letter !== "\n") this.#at++;
    if (byte === undefined) this.#diagnostics.error(this.#spanFrom(start), messages.invalidEscape(letter));
    else bytes.push(byte);
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found === undefined || found === "") return undefined;
    this.#at += found.length;
    return found;
  }

  #skipLine(): void {
    const end = this.#text.indexOf("\n", this.#at);
    this.#at = end < 0 ? this.#text.length : end;
  }

  #spanFrom(start: number): Span {
    return { start, end: this.#at };
  }
}

/**
 * The value of an integer as written: decimal, 0x, octal with a leading 0, `1e6`, `_` between digits, C suffixes
 * (which change nothing), or a time suffix, which gives nanoseconds.
 */
export function parseInteger(word: string): bigint | undefined {
  const hex = /^0[xX]([0-9a-fA-F_]+?)[uUlL]*$/.exec(word);
  if (hex) {
    const digits = hex[1]!.replaceAll("_", "");
    return digits === "" ? undefined : BigInt(`0x${digits}`);
  }
  const octal = /^0([0-7_]+)[uUlL]*$/.exec(word);
  if (octal) {
    const digits = octal[1]!.replaceAll("_", "");
    return digits === "" ? 0n : BigInt(`0o${digits}`);
  }
  const decimal = /^([1-9][0-9_]*|0)(?:[eE]([0-9]{1,2}))?([uUlL]*|ns|us|ms|s|m|h|d)$/.exec(word);
  if (!decimal) return undefined;
  const mantissa = BigInt(decimal[1]!.replaceAll("_", ""));
  const scaled = decimal[2] === undefined ? mantissa : mantissa * 10n ** BigInt(decimal[2]);
  return scaled * (timeUnits[decimal[3]!] ?? 1n);
}
