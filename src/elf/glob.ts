/**
 * Shell patterns over symbol and image names: `*`, `?`, `[a-z]`, `[!a-z]`, and a backslash before a literal.
 *
 * Matching works on the bytes of a string table, so that a pattern can be tried on hundreds of thousands of
 * names without making a string of each. Names are compared byte by byte; `?` is one byte and sets hold ASCII.
 * An unclosed `[` stands for itself.
 */

const utf8 = new TextEncoder();

type Token =
  | { readonly kind: "byte"; readonly byte: number }
  | { readonly kind: "any" }
  | { readonly kind: "many" }
  | { readonly kind: "set"; readonly members: Uint8Array };

/** Whether the text is a pattern rather than a plain name. */
export function isGlob(pattern: string): boolean {
  return parseGlob(pattern).some((token) => token.kind !== "byte");
}

export class Glob {
  readonly pattern: string;
  /** The literal bytes that every match begins with. */
  readonly prefix: Uint8Array;
  readonly #tokens: readonly Token[];

  constructor(pattern: string) {
    this.pattern = pattern;
    this.#tokens = parseGlob(pattern);
    const firstWild = this.#tokens.findIndex((token) => token.kind !== "byte");
    const literal = firstWild < 0 ? this.#tokens : this.#tokens.slice(0, firstWild);
    this.prefix = Uint8Array.from(literal, (token) => (token.kind === "byte" ? token.byte : 0));
  }

  matches(name: string): boolean {
    const bytes = utf8.encode(name);
    return this.matchesBytes(bytes, 0, bytes.length);
  }

  /** Whether the whole of bytes [start, end) matches. Linear for one `*`, quadratic at worst. */
  matchesBytes(bytes: Uint8Array, start: number, end: number): boolean {
    const tokens = this.#tokens;
    let at = start;
    let t = 0;
    // The last `*` seen and where its text ends now: on a mismatch it takes one more byte.
    let starToken = -1;
    let starEnd = 0;
    for (;;) {
      const token = tokens[t];
      if (token?.kind === "many") {
        starToken = t++;
        starEnd = at;
      } else if (token !== undefined && at < end && tokenTakes(token, bytes[at]!)) {
        at++;
        t++;
      } else if (token === undefined && at === end) {
        return true;
      } else if (starToken >= 0 && starEnd < end) {
        at = ++starEnd;
        t = starToken + 1;
      } else {
        return false;
      }
    }
  }
}

function tokenTakes(token: Token, byte: number): boolean {
  switch (token.kind) {
    case "byte":
      return token.byte === byte;
    case "any":
      return true;
    case "set":
      return token.members[byte] === 1;
    case "many":
      return false;
    default:
      return token satisfies never;
  }
}

function parseGlob(pattern: string): Token[] {
  const tokens: Token[] = [];
  const bytes = utf8.encode(pattern);
  for (let i = 0; i < bytes.length; i++) {
    const char = String.fromCharCode(bytes[i]!);
    if (char === "*") {
      if (tokens.at(-1)?.kind !== "many") tokens.push({ kind: "many" });
    } else if (char === "?") {
      tokens.push({ kind: "any" });
    } else if (char === "[") {
      const set = parseSet(bytes, i);
      if (set) {
        tokens.push({ kind: "set", members: set.members });
        i = set.last;
      } else {
        tokens.push({ kind: "byte", byte: bytes[i]! });
      }
    } else {
      if (char === "\\" && i + 1 < bytes.length) i++;
      tokens.push({ kind: "byte", byte: bytes[i]! });
    }
  }
  return tokens;
}

/** The set that opens at `open`; `]` right after the opening is a member. Undefined when it is not closed. */
function parseSet(bytes: Uint8Array, open: number): { members: Uint8Array; last: number } | undefined {
  const [caret, bang, close, dash] = [0x5e, 0x21, 0x5d, 0x2d];
  let i = open + 1;
  const negated = bytes[i] === caret || bytes[i] === bang;
  if (negated) i++;
  const members = new Uint8Array(256);
  for (let first = true; i < bytes.length; first = false) {
    if (bytes[i] === close && !first) {
      return { members: negated ? members.map((member) => 1 - member) : members, last: i };
    }
    const from = bytes[i]!;
    const isRange = bytes[i + 1] === dash && i + 2 < bytes.length && bytes[i + 2] !== close;
    const to = isRange ? bytes[i + 2]! : from;
    for (let byte = from; byte <= to; byte++) members[byte] = 1;
    i += isRange ? 3 : 1;
  }
  return undefined;
}
