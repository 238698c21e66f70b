/**
 * Splitting a command line into words as a shell does (POSIX shell, 2.2 Quoting): blanks separate, single quotes keep
 * everything, double quotes keep all but a backslash before `$`, a backquote, `"`, `\` or a newline, a backslash keeps
 * the next character. Nothing is expanded, and there are no operators: the command is run without a shell.
 */

export type SplitWords =
  | { readonly kind: "words"; readonly words: readonly string[] }
  | { readonly kind: "unfinished"; readonly what: "single quote" | "double quote" | "backslash" };

const ESCAPED_IN_DOUBLE_QUOTES = '$`"\\\n';

export function splitWords(line: string): SplitWords {
  const words: string[] = [];
  /** The word that is being read; undefined between words: an empty pair of quotes is a word. */
  let word: string | undefined;
  let at = 0;
  while (at < line.length) {
    const char = line[at++]!;
    if (/\s/.test(char)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (char === "'") {
      const end = line.indexOf("'", at);
      if (end < 0) return { kind: "unfinished", what: "single quote" };
      word = (word ?? "") + line.slice(at, end);
      at = end + 1;
    } else if (char === '"') {
      const quoted = readDoubleQuoted(line, at);
      if (quoted === undefined) return { kind: "unfinished", what: "double quote" };
      word = (word ?? "") + quoted.text;
      at = quoted.end;
    } else if (char === "\\") {
      if (at >= line.length) return { kind: "unfinished", what: "backslash" };
      const next = line[at++]!;
      // An escaped newline joins two lines.
      if (next !== "\n") word = (word ?? "") + next;
    } else {
      word = (word ?? "") + char;
    }
  }
  if (word !== undefined) words.push(word);
  return { kind: "words", words };
}

/** What stands between `start` and the closing quote; undefined when there is none. */
function readDoubleQuoted(
  line: string,
  start: number,
): { readonly text: string; readonly end: number } | undefined {
  let text = "";
  for (let at = start; at < line.length; at++) {
    const char = line[at]!;
    if (char === '"') return { text, end: at + 1 };
    const next = line[at + 1];
    if (char === "\\" && next !== undefined && ESCAPED_IN_DOUBLE_QUOTES.includes(next)) {
      if (next !== "\n") text += next;
      at++;
    } else {
      text += char;
    }
  }
  return undefined;
}
