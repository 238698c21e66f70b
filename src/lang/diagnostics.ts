/**
 * What is wrong with a script: collected while it is read, then shown all together.
 *
 * The form is bpftrace's: file, line, columns, severity and message; the source line; the range underlined. A
 * hint follows on a line of its own. The wording lives in messages.ts.
 */
import type { Message } from "./messages.ts";
import type { SourceText, Span, TextPlace } from "./source.ts";

export type Severity = "error" | "warning";

export interface Diagnostic {
  readonly severity: Severity;
  /** Stable name of the message, for tests and tools. */
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
  readonly fileName: string;
  readonly start: TextPlace;
  /** One past the last character. */
  readonly end: TextPlace;
  /** The line that holds `start`. */
  readonly sourceLine: string;
}

/** Collects diagnostics; the same message at the same place is kept once. */
export class DiagnosticList {
  readonly #source: SourceText;
  readonly #list: Diagnostic[] = [];
  readonly #seen = new Set<string>();

  constructor(source: SourceText) {
    this.#source = source;
  }

  error(span: Span, message: Message): void {
    this.#add("error", span, message);
  }

  warning(span: Span, message: Message): void {
    this.#add("warning", span, message);
  }

  get hasErrors(): boolean {
    return this.#list.some((d) => d.severity === "error");
  }

  /** In the order of their places. */
  sorted(): Diagnostic[] {
    return [...this.#list].sort((a, b) => a.start.line - b.start.line || a.start.column - b.start.column);
  }

  #add(severity: Severity, span: Span, message: Message): void {
    const key = `${severity} ${span.start} ${span.end} ${message.text}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    const start = this.#source.placeOf(span.start);
    this.#list.push({
      severity,
      code: message.code,
      message: message.text,
      ...(message.hint === undefined ? {} : { hint: message.hint }),
      fileName: this.#source.fileName,
      start,
      end: this.#source.placeOf(span.end),
      sourceLine: this.#source.line(start.line),
    });
  }
}

/** The diagnostic as text, several lines, with a line break at the end. A range over several lines is cut at the first. */
export function printDiagnostic(diagnostic: Diagnostic): string {
  const { start, end, sourceLine } = diagnostic;
  const where =
    start.line === end.line
      ? `${start.line}:${start.column}-${end.column}`
      : `${start.line}:${start.column}-${end.line}:${end.column}`;
  const endColumn = start.line === end.line ? end.column : sourceLine.length + 1;
  const severity = diagnostic.severity === "error" ? "ERROR" : "WARNING";
  const lines = [`${diagnostic.fileName}:${where}: ${severity}: ${diagnostic.message}`];
  lines.push(sourceLine.replaceAll("\t", " "));
  lines.push(" ".repeat(start.column - 1) + "~".repeat(Math.max(1, endColumn - start.column)));
  if (diagnostic.hint !== undefined) lines.push(`HINT: ${diagnostic.hint}`);
  return `${lines.join("\n")}\n`;
}

/** All diagnostics as text. */
export function printDiagnostics(diagnostics: readonly Diagnostic[]): string {
  return diagnostics.map(printDiagnostic).join("");
}
