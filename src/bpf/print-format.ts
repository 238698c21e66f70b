/**
 * Format strings of bpf_snprintf, bpf_trace_printk and bpf_trace_vprintk: what the kernel takes and what it prints
 * (kernel/bpf/helpers.c and lib/vsprintf.c are the reference).
 *
 *     %[0 +-][width] d i u x X    with l or ll before it: 64 bits, else 32
 *                    c
 *                    s pks pus    strings at any address; what cannot be read is empty
 *     %[..][width]   p px pK      an address as hexadecimal digits
 *                    ps pS pB     an address as the kernel prints one that it knows no symbol for
 *     %              pi4 pI4 pi6 pI6   IP addresses at any address; the big I sets separators
 *     %%
 *
 * The parse is shared: the interpreter prints by it, the JIT generates code from it, the reader of printk's records
 * uses it, the verifier refuses what it refuses.
 */

/** How a number or a text is put into its field. */
export interface Field {
  readonly width: number;
  readonly isLeft: boolean;
  readonly padsZero: boolean;
  /** What stands before a number that is not negative. */
  readonly sign: "" | "+" | " ";
}

export type FormatPart =
  | { readonly kind: "text"; readonly bytes: Uint8Array }
  | {
      readonly kind: "number";
      readonly bits: 32 | 64;
      readonly base: 10 | 16;
      readonly isSigned: boolean;
      readonly isUpper: boolean;
      readonly hasPrefix: boolean;
      readonly field: Field;
    }
  | { readonly kind: "char"; readonly field: Field }
  | { readonly kind: "string"; readonly field: Field }
  | { readonly kind: "ip"; readonly lenBytes: 4 | 16; readonly isSeparated: boolean };

/** A part that takes an argument. */
export type FormatSpec = Exclude<FormatPart, { kind: "text" }>;

/** Most arguments of bpf_snprintf and bpf_trace_vprintk. */
export const MAX_FORMAT_ARGS = 12;
/** A string that is printed is cut behind this many bytes, with its NUL. */
export const FORMAT_STRING_BYTES = 512;
/** The kernel's limit of a field's width. */
const MAX_WIDTH = (1 << 23) - 1;
const ADDRESS_DIGITS = 16;
const noField: Field = { width: 0, isLeft: false, padsZero: false, sign: "" };

/** The parts of a format without its NUL; undefined: the kernel would refuse it. */
export function parseFormat(format: Uint8Array): readonly FormatPart[] | undefined {
  const parts: FormatPart[] = [];
  let text: number[] = [];
  const endText = () => {
    if (text.length > 0) parts.push({ kind: "text", bytes: Uint8Array.from(text) });
    text = [];
  };
  for (let at = 0; at < format.length; ) {
    const char = format[at]!;
    if (!isPrintable(char) && !isSpace(char)) return undefined;
    if (char !== PERCENT || format[at + 1] === PERCENT) {
      text.push(char);
      at += char === PERCENT ? 2 : 1;
      continue;
    }
    const parsed = parseSpec(format, at + 1);
    if (parsed === undefined) return undefined;
    endText();
    parts.push(parsed.spec);
    at = parsed.end;
  }
  endText();
  return parts;
}

/** The arguments that a parsed format takes, in order. */
export function formatSpecs(parts: readonly FormatPart[]): readonly FormatSpec[] {
  return parts.filter((part) => part.kind !== "text");
}

interface ParsedSpec {
  readonly spec: FormatSpec;
  readonly end: number;
}

function parseSpec(format: Uint8Array, start: number): ParsedSpec | undefined {
  const char = (at: number) => (at < format.length ? String.fromCharCode(format[at]!) : "");
  let at = start;
  const flags = new Set<string>();
  while (char(at) !== "" && "0 +-".includes(char(at))) flags.add(char(at++));
  let width = 0;
  while (/[0-9]/.test(char(at))) width = Math.min(MAX_WIDTH, width * 10 + Number(char(at++)));
  const isLeft = flags.has("-");
  const sign = flags.has("+") ? "+" : flags.has(" ") ? " " : "";
  const field: Field = { width, isLeft, padsZero: flags.has("0") && !isLeft, sign };
  switch (char(at)) {
    case "p":
      return parsePointer(format, at + 1, field);
    case "s":
      return endsWord(char(at + 1))
        ? { spec: { kind: "string", field: { ...field, padsZero: false } }, end: at + 1 }
        : undefined;
    case "c":
      return { spec: { kind: "char", field }, end: at + 1 };
    default:
  }
  let longs = 0;
  while (longs < 2 && char(at) === "l") {
    longs++;
    at++;
  }
  const letter = char(at);
  if (letter === "" || !"diuxX".includes(letter)) return undefined;
  const isHex = letter === "x" || letter === "X";
  return {
    spec: {
      kind: "number",
      bits: longs === 0 ? 32 : 64,
      base: isHex ? 16 : 10,
      isSigned: letter === "d" || letter === "i",
      isUpper: letter === "X",
      hasPrefix: false,
      field,
    },
    end: at + 1,
  };
}

/** What follows `%p`: the kernel steps over letters and digits behind what it knows. */
function parsePointer(format: Uint8Array, at: number, field: Field): ParsedSpec | undefined {
  const word = /^[0-9A-Za-z]*/.exec(String.fromCharCode(...format.subarray(at)))![0];
  const next = at + word.length;
  if (/^[ku]s/.test(word))
    return word.length === 2 ? { spec: { kind: "string", field: noField }, end: next } : undefined;
  if (/^[iI][46]/.test(word)) {
    const lenBytes = word[1] === "4" ? 4 : 16;
    return { spec: { kind: "ip", lenBytes, isSeparated: word[0] === "I" }, end: next };
  }
  const isUnknown = /^[sSB]/.test(word);
  if (word !== "" && !isUnknown && !/^[Kx]/.test(word)) return undefined;
  if (word === "" && at < format.length && !endsWord(String.fromCharCode(format[at]!))) return undefined;
  const isDefault = field.width === 0 && !isUnknown;
  return {
    spec: {
      kind: "number",
      bits: 64,
      base: 16,
      isSigned: false,
      isUpper: false,
      hasPrefix: isUnknown,
      field: {
        width: isDefault ? ADDRESS_DIGITS : word.startsWith("B") ? 0 : field.width,
        isLeft: field.isLeft,
        padsZero: (isDefault && !field.isLeft) || (field.padsZero && !isUnknown),
        sign: "",
      },
    },
    end: next,
  };
}

const PERCENT = 0x25;

function isPrintable(char: number): boolean {
  return char >= 0x20 && char < 0x7f;
}

function isSpace(char: number): boolean {
  return char === 0x20 || (char >= 9 && char <= 13);
}

/** The end, white space or punctuation. */
function endsWord(char: string): boolean {
  if (char === "") return true;
  const code = char.charCodeAt(0);
  return isSpace(code) || (isPrintable(code) && !/[0-9A-Za-z]/.test(char));
}

/** Memory that arguments point to, as far as it can be read. `index` counts the arguments. */
export interface FormatMemory {
  /** The string's bytes up to its NUL, at most FORMAT_STRING_BYTES - 1; empty where nothing can be read. */
  string(addr: bigint, index: number): Uint8Array;
  /** Undefined: cannot be read. */
  bytes(addr: bigint, lenBytes: number, index: number): Uint8Array | undefined;
}

/** Prints; there are as many arguments as the parts take, or more. */
export function printFormat(
  parts: readonly FormatPart[],
  args: readonly bigint[],
  memory: FormatMemory,
): Uint8Array {
  const out: Uint8Array[] = [];
  let index = 0;
  for (const part of parts) {
    if (part.kind === "text") {
      out.push(part.bytes);
      continue;
    }
    out.push(printSpec(part, args[index] ?? 0n, index, memory));
    index++;
  }
  return Uint8Array.from(out.flatMap((bytes) => [...bytes]));
}

function printSpec(spec: FormatSpec, arg: bigint, index: number, memory: FormatMemory): Uint8Array {
  switch (spec.kind) {
    case "number":
      return ascii(printNumber(spec, arg));
    case "char":
      return inField(Uint8Array.of(Number(arg & 0xffn)), spec.field);
    case "string":
      return inField(memory.string(arg, index), spec.field);
    case "ip":
      return ascii(printAddress(spec, memory.bytes(arg, spec.lenBytes, index)));
    default:
      return spec satisfies never;
  }
}

function printNumber(spec: Extract<FormatSpec, { kind: "number" }>, arg: bigint): string {
  const { field } = spec;
  const value = spec.isSigned ? BigInt.asIntN(spec.bits, arg) : BigInt.asUintN(spec.bits, arg);
  const digits = (value < 0n ? -value : value).toString(spec.base);
  const shown = `${spec.hasPrefix ? "0x" : ""}${spec.isUpper ? digits.toUpperCase() : digits}`;
  const sign = value < 0n ? "-" : spec.isSigned ? field.sign : "";
  const pad = Math.max(0, field.width - shown.length - sign.length);
  if (field.isLeft) return sign + shown + " ".repeat(pad);
  return field.padsZero ? sign + "0".repeat(pad) + shown : " ".repeat(pad) + sign + shown;
}

function inField(text: Uint8Array, field: Field): Uint8Array {
  const pad = new Uint8Array(Math.max(0, field.width - text.length)).fill(0x20);
  return Uint8Array.from(field.isLeft ? [...text, ...pad] : [...pad, ...text]);
}

function printAddress(
  spec: Extract<FormatSpec, { kind: "ip" }>,
  bytes: Uint8Array = new Uint8Array(spec.lenBytes),
): string {
  if (spec.lenBytes === 4)
    return Array.from(bytes, (byte) => `${byte}`.padStart(spec.isSeparated ? 0 : 3, "0")).join(".");
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return spec.isSeparated ? hex.match(/.{4}/g)!.join(":") : hex;
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (char) => char.charCodeAt(0));
}
