/**
 * A script's text with its line table: turns offsets into lines and columns.
 *
 * Offsets count UTF-16 units from 0, as JavaScript strings do; lines and columns count from 1.
 */

/** A range of the text: `end` is one past the last character. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

export interface TextPlace {
  readonly line: number;
  readonly column: number;
}

/** The smallest span that covers both. */
export function joinSpans(a: Span, b: Span): Span {
  return { start: Math.min(a.start, b.start), end: Math.max(a.end, b.end) };
}

export class SourceText {
  readonly fileName: string;
  readonly text: string;
  /** Offset of the first character of each line. */
  readonly #lineStarts: readonly number[];

  constructor(fileName: string, text: string) {
    this.fileName = fileName;
    this.text = text;
    const starts = [0];
    for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
    this.#lineStarts = starts;
  }

  /** Line and column of an offset; offsets past the end belong to the end. */
  placeOf(offset: number): TextPlace {
    let low = 0;
    let high = this.#lineStarts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#lineStarts[middle]! <= offset) low = middle;
      else high = middle - 1;
    }
    return { line: low + 1, column: Math.min(offset, this.text.length) - this.#lineStarts[low]! + 1 };
  }

  /** A line without its line break; an empty string where there is no such line. */
  line(line: number): string {
    const start = this.#lineStarts[line - 1];
    if (start === undefined) return "";
    const next = this.#lineStarts[line];
    return this.text.slice(start, next === undefined ? undefined : next - 1).replace(/\r$/, "");
  }

  slice(span: Span): string {
    return this.text.slice(span.start, span.end);
  }
}
