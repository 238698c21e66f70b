/**
 * Format strings of printf: split into text and conversions, as plain data for those who print.
 *
 * A conversion that is not known is text, as in bpftrace. Text is a byte string: one UTF-16 unit per byte.
 */
import type { Type } from "./types.ts";
import { printKind } from "./types.ts";

export type FormatPart =
  | { readonly kind: "text"; readonly text: string }
  | {
      readonly kind: "conversion";
      /** Any of `-`, `+`, space, `#`, `0`. */
      readonly flags: string;
      readonly width: number;
      /** -1 where none is given. */
      readonly precision: number;
      readonly length: "" | "hh" | "h" | "l" | "ll" | "z" | "t" | "j";
      readonly conversion: Conversion;
    };

export type Conversion = "d" | "i" | "u" | "x" | "X" | "o" | "c" | "p" | "s" | "r" | "rx" | "rh";

const conversionPattern =
  /%(?:%|([-+ #0]*)([0-9]{0,4})(?:\.([0-9]{0,4}))?(?:(hh|h|ll|l|z|t|j)?([diuxXoc])|(p|s|rx|rh|r)))/g;

/** The parts of a format string. */
export function parseFormat(bytes: Uint8Array): FormatPart[] {
  const format = byteString(bytes);
  const parts: FormatPart[] = [];
  let text = "";
  let at = 0;
  for (const found of format.matchAll(conversionPattern)) {
    text += format.slice(at, found.index);
    at = found.index + found[0].length;
    if (found[0] === "%%") {
      text += "%";
      continue;
    }
    if (text !== "") parts.push({ kind: "text", text });
    text = "";
    parts.push({
      kind: "conversion",
      flags: found[1] ?? "",
      width: Number(found[2] || "0"),
      precision: found[3] === undefined ? -1 : Number(found[3] || "0"),
      length: (found[4] ?? "") as FormatLength,
      conversion: (found[5] ?? found[6]) as Conversion,
    });
  }
  text += format.slice(at);
  if (text !== "") parts.push({ kind: "text", text });
  return parts;
}

type FormatLength = (FormatPart & { kind: "conversion" })["length"];

/** Conversions that are written like one but are not known, for hints: `%f`. */
export function unknownConversions(parts: readonly FormatPart[]): string[] {
  return parts.flatMap((part) =>
    part.kind === "text" ? [...part.text.matchAll(/%[-+ #0-9.*]*[A-Za-z]/g)].map((found) => found[0]) : [],
  );
}

/** What a conversion takes, in words, if `type` is not it. */
export function findFormatMismatch(
  conversion: Conversion,
  type: Type,
): { readonly wanted: string; readonly got: string } | undefined {
  if (type.kind === "unknown") return undefined;
  const got = printKind(type);
  switch (conversion) {
    case "s":
      return ["string", "symbol", "probe", "timestamp"].includes(type.kind)
        ? undefined
        : { wanted: "string", got };
    case "r":
    case "rx":
    case "rh":
      return type.kind === "buffer" ? undefined : { wanted: "buffer", got };
    case "p":
      return type.kind === "integer" || type.kind === "pointer" || type.kind === "symbol"
        ? undefined
        : { wanted: "pointer or integer", got };
    default:
      return type.kind === "integer" || type.kind === "pointer" ? undefined : { wanted: "integer", got };
  }
}

/** Bytes as a string with one UTF-16 unit per byte. */
export function byteString(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}
