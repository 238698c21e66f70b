/**
 * Where a program is attached, as written: `uprobe:libc:malloc+4`. Names and wildcards are kept as they are; they
 * are looked up in a target later.
 */
import type { DiagnosticList } from "./diagnostics.ts";
import { parseInteger } from "./lexer.ts";
import { messages } from "./messages.ts";
import type { Span } from "./source.ts";
import { nearestName } from "./suggestion.ts";

export type AttachPoint =
  | { readonly kind: "begin" | "end"; readonly name: string; readonly span: Span }
  | {
      readonly kind: "interval";
      /** Full spelling, as the builtin `probe` shows it. */
      readonly name: string;
      readonly periodNs: bigint;
      readonly span: Span;
    }
  | UserAttachPoint;

/** A place in user code. `image` is a path, file name or short library name, with wildcards. */
export interface UserAttachPoint {
  readonly kind: "uprobe" | "uretprobe";
  /** Full spelling with wildcards as written. */
  readonly name: string;
  readonly image: string;
  readonly location: /** `symbol` may hold the wildcards `*`, `?` and `[...]`. */
    | { readonly kind: "symbol"; readonly symbol: string; readonly offset: bigint }
    | { readonly kind: "address"; readonly address: bigint };
  readonly span: Span;
}

/** The name of an action block's kind for messages. */
export type AttachKind = AttachPoint["kind"];

const aliases: Readonly<Record<string, string>> = {
  u: "uprobe",
  ur: "uretprobe",
  i: "interval",
  begin: "BEGIN",
  end: "END",
  U: "usdt",
  k: "kprobe",
  kr: "kretprobe",
  t: "tracepoint",
  p: "profile",
  s: "software",
  h: "hardware",
  f: "kfunc",
  fr: "kretfunc",
  it: "iter",
  w: "watchpoint",
  aw: "asyncwatchpoint",
  rt: "rawtracepoint",
};

const supported = ["BEGIN", "END", "interval", "uprobe", "uretprobe"];

/** Providers of bpftrace that are understood but not supported. */
const unsupported = [
  "usdt",
  "kprobe",
  "kretprobe",
  "tracepoint",
  "rawtracepoint",
  "profile",
  "software",
  "hardware",
  "kfunc",
  "kretfunc",
  "fentry",
  "fexit",
  "iter",
  "watchpoint",
  "asyncwatchpoint",
  "self",
  "bench",
  "test",
];

const intervalUnits: Readonly<Record<string, bigint>> = {
  s: 1_000_000_000n,
  ms: 1_000_000n,
  us: 1_000n,
};

/** Reads an attach point; a wrong one is reported and undefined. `params` fill in `$1`, `$2`, .... */
export function parseAttachPoint(
  text: string,
  span: Span,
  params: readonly string[],
  diagnostics: DiagnosticList,
): AttachPoint | undefined {
  if (text === "") {
    diagnostics.error(span, messages.noAttachPoint());
    return undefined;
  }
  const parts = splitParts(text).map((part) => substituteParams(part, params));
  const written = parts[0]!;
  const provider = aliases[written] ?? written;
  const args = parts.slice(1);
  const expectParts = (count: number): boolean => {
    if (args.length === count && args.every((arg) => arg !== "")) return true;
    diagnostics.error(span, messages.attachPointParts(provider, count, attachForms[provider]));
    return false;
  };
  switch (provider) {
    case "BEGIN":
    case "END":
      if (!expectParts(0)) return undefined;
      return { kind: provider === "BEGIN" ? "begin" : "end", name: provider, span };
    case "interval":
      return expectParts(2) ? parseInterval(args[0]!, args[1]!, span, diagnostics) : undefined;
    case "uprobe":
    case "uretprobe":
      if (args.length === 3 && /^[a-z]+$/.test(args[1]!) && args[2] !== "") {
        diagnostics.error(span, messages.unsupported(`a language (${args[1]}) in an attach point`));
        return undefined;
      }
      return expectParts(2) ? parseUser(provider, args[0]!, args[1]!, span, diagnostics) : undefined;
    default:
      if (unsupported.includes(provider)) {
        diagnostics.error(span, messages.unsupportedProvider(provider));
      } else if (written.includes("*")) {
        diagnostics.error(span, messages.unsupported("a wildcard in the kind of a probe"));
      } else {
        const near = nearestName(written, [...supported, ...unsupported]);
        diagnostics.error(span, messages.unknownProvider(written, near));
      }
      return undefined;
  }
}

const attachForms: Readonly<Record<string, string>> = {
  BEGIN: "BEGIN",
  END: "END",
  interval: "interval:UNIT:COUNT, with unit s, ms, us or hz",
  uprobe: "uprobe:IMAGE:FUNCTION, uprobe:IMAGE:FUNCTION+OFFSET or uprobe:IMAGE:ADDRESS",
  uretprobe: "uretprobe:IMAGE:FUNCTION",
};

function parseInterval(
  unit: string,
  count: string,
  span: Span,
  diagnostics: DiagnosticList,
): AttachPoint | undefined {
  const value = parseInteger(count);
  if (value === undefined || value === 0n) {
    diagnostics.error(span, messages.intervalCount(count));
    return undefined;
  }
  const name = `interval:${unit}:${count}`;
  if (unit === "hz") {
    return {
      kind: "interval",
      name,
      periodNs: 1_000_000_000n / value > 0n ? 1_000_000_000n / value : 1n,
      span,
    };
  }
  const unitNs = intervalUnits[unit];
  if (unitNs === undefined) {
    diagnostics.error(span, messages.intervalUnit(unit));
    return undefined;
  }
  return { kind: "interval", name, periodNs: unitNs * value, span };
}

function parseUser(
  kind: "uprobe" | "uretprobe",
  image: string,
  place: string,
  span: Span,
  diagnostics: DiagnosticList,
): AttachPoint | undefined {
  const name = `${kind}:${image}:${place}`;
  const fail = (reason: string): undefined => {
    diagnostics.error(span, messages.attachPointPlace(place, reason));
    return undefined;
  };
  const address = /^[0-9]/.test(place) ? parseInteger(place) : undefined;
  if (address !== undefined) {
    if (kind === "uretprobe") return fail("a return probe is attached to a function by name");
    return { kind, name, image, location: { kind: "address", address }, span };
  }
  if (/^[0-9]/.test(place)) return fail("it begins like an address but is not a number");
  const plus = /^(.+)\+([^+]*)$/.exec(place);
  // `operator+` and the like: what follows the last plus must look like a number to be an offset.
  if (plus && /^[0-9]/.test(plus[2]!)) {
    const offset = parseInteger(plus[2]!);
    if (offset === undefined) return fail(`'${plus[2]}' is not a number`);
    const symbol = plus[1]!;
    if (kind === "uretprobe" && offset !== 0n) return fail("a return probe takes no offset");
    if (hasWildcard(symbol)) return fail("an offset needs one function, not a wildcard");
    return { kind, name, image, location: { kind: "symbol", symbol, offset }, span };
  }
  return { kind, name, image, location: { kind: "symbol", symbol: place, offset: 0n }, span };
}

function hasWildcard(symbol: string): boolean {
  return symbol.includes("*") || symbol.includes("?");
}

/** Splits at colons outside quotes; quotes are taken away. A double colon of a C++ name does not split. */
function splitParts(text: string): string[] {
  const parts = [""];
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const char = text[i]!;
    if (char === '"') {
      quoted = !quoted;
    } else if (!quoted && char === ":" && text[i + 1] === ":" && parts.length >= 3) {
      parts[parts.length - 1] += "::";
      i++;
    } else if (!quoted && char === ":") {
      parts.push("");
    } else {
      parts[parts.length - 1] += char;
    }
  }
  return parts;
}

/** A parameter that was not given becomes the empty string. */
function substituteParams(part: string, params: readonly string[]): string {
  return part.replace(/\$([1-9][0-9]*)/g, (_, digits: string) => params[Number(digits) - 1] ?? "");
}
