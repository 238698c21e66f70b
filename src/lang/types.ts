/**
 * The types of expressions.
 *
 * Integers are computed on 64 bits whatever their width; the width matters for casts, pointers and `sizeof`, and a
 * variable, map or key that holds an integer holds 64 bits of it. A result is unsigned if an operand is.
 */

export type AggregateName = "count" | "sum" | "avg" | "min" | "max" | "stats" | "hist" | "lhist";

/** What a map collects; `signed` is the type of the collected values. */
export interface Aggregate {
  readonly fn: AggregateName;
  readonly signed: boolean;
  /** For lhist. */
  readonly linear?: { readonly min: bigint; readonly max: bigint; readonly step: bigint };
}

export type Type =
  /** Not known (yet), or wrong and reported: compatible with everything. */
  | { readonly kind: "unknown" }
  /** The "value" of a call that only acts. */
  | { readonly kind: "none" }
  | { readonly kind: "integer"; readonly bits: 8 | 16 | 32 | 64; readonly signed: boolean }
  /** `to` undefined: `void *`. */
  | { readonly kind: "pointer"; readonly to: Type | undefined }
  /** `sizeBytes` counts the end mark. */
  | { readonly kind: "string"; readonly sizeBytes: number }
  | { readonly kind: "buffer"; readonly sizeBytes: number }
  | { readonly kind: "tuple"; readonly elements: readonly Type[] }
  /** An address that is shown as a symbol. */
  | { readonly kind: "symbol" }
  /** The id of a probe, shown as its name or as that of the function that it is attached to. */
  | { readonly kind: "probe"; readonly shows: "probe" | "function" }
  /** A time that is shown with a strftime format. */
  | { readonly kind: "timestamp"; readonly format: string }
  | { readonly kind: "aggregate"; readonly aggregate: Aggregate };

export const unknownType: Type = { kind: "unknown" };
export const noneType: Type = { kind: "none" };
export const int64: Type = { kind: "integer", bits: 64, signed: true };
export const uint64: Type = { kind: "integer", bits: 64, signed: false };
export const symbolType: Type = { kind: "symbol" };
export const probeType: Type = { kind: "probe", shows: "probe" };
export const functionType: Type = { kind: "probe", shows: "function" };

export function stringType(sizeBytes: number): Type {
  return { kind: "string", sizeBytes };
}

const namedTypes: Readonly<Record<string, Type>> = {
  int8: { kind: "integer", bits: 8, signed: true },
  int16: { kind: "integer", bits: 16, signed: true },
  int32: { kind: "integer", bits: 32, signed: true },
  int64,
  uint8: { kind: "integer", bits: 8, signed: false },
  uint16: { kind: "integer", bits: 16, signed: false },
  uint32: { kind: "integer", bits: 32, signed: false },
  uint64,
  char: { kind: "integer", bits: 8, signed: true },
  short: { kind: "integer", bits: 16, signed: true },
  int: { kind: "integer", bits: 32, signed: true },
  long: int64,
  bool: { kind: "integer", bits: 8, signed: false },
  uintptr_t: uint64,
  intptr_t: int64,
  size_t: uint64,
  ssize_t: int64,
};

/** Words that can begin or continue the name of a type in a cast. */
export const typeWords: ReadonlySet<string> = new Set([
  ...Object.keys(namedTypes),
  ...[8, 16, 32, 64].flatMap((bits) => [`int${bits}_t`, `uint${bits}_t`]),
  ..."void signed unsigned struct union enum const".split(" "),
]);

/** Whether a written type, without stars, is one that `findNamedType` knows, or `void`. */
export function isTypeName(base: string): boolean {
  return base === "void" || findNamedType(base) !== undefined;
}

/** An integer type by its name as written in a cast: `uint32`, `unsigned long`, `int16_t`. */
export function findNamedType(base: string): Type | undefined {
  const words = base.split(" ").filter((word) => word !== "const");
  const isUnsigned = words.includes("unsigned");
  const rest = words.filter((word) => word !== "unsigned" && word !== "signed");
  const longs = rest.filter((word) => word === "long").length;
  let name = rest.join(" ");
  if (longs > 0 && rest.every((word) => word === "long" || word === "int")) name = "long";
  if (name === "short int") name = "short";
  if (name === "" && words.length > 0) name = "int";
  const type = Object.hasOwn(namedTypes, name)
    ? namedTypes[name]
    : /^u?int(8|16|32|64)_t$/.test(name)
      ? namedTypes[name.slice(0, -2)]
      : undefined;
  if (type?.kind !== "integer" || !isUnsigned) return type;
  return { ...type, signed: false };
}

/** Names of integer types, for suggestions. */
export const integerTypeNames: readonly string[] = Object.keys(namedTypes);

/** The type as messages show it. */
export function printType(type: Type): string {
  switch (type.kind) {
    case "unknown":
    case "none":
      return "none";
    case "integer":
      return `${type.signed ? "" : "u"}int${type.bits}`;
    case "pointer":
      return `${type.to ? printType(type.to) : "void"} *`;
    case "string":
      return `string[${type.sizeBytes}]`;
    case "buffer":
      return `buf[${type.sizeBytes}]`;
    case "tuple":
      return `(${type.elements.map(printType).join(",")})`;
    case "symbol":
      return "usym";
    case "probe":
      return type.shows;
    case "timestamp":
      return "timestamp";
    case "aggregate":
      return type.aggregate.fn;
  }
}

/** The kind in words, as messages about arguments name it. */
export function printKind(type: Type): string {
  switch (type.kind) {
    case "integer":
    case "string":
    case "pointer":
    case "tuple":
      return type.kind;
    case "buffer":
      return "buffer";
    default:
      return printType(type);
  }
}

/** Integers and pointers: what arithmetic and conditions work on. */
export function isScalar(type: Type): boolean {
  return type.kind === "integer" || type.kind === "pointer" || type.kind === "unknown";
}

export function isSigned(type: Type): boolean {
  return type.kind === "integer" && type.signed;
}

/** The type of a variable, map value or key that first receives a value of this type: integers widen to 64 bits. */
export function storedType(type: Type): Type {
  if (type.kind === "integer") return type.signed ? int64 : uint64;
  if (type.kind === "tuple") return { kind: "tuple", elements: type.elements.map(storedType) };
  return type;
}

/**
 * The type that can hold values of both, or undefined: strings and buffers grow, integers of any kind fit each
 * other and keep the first's signedness, pointers must agree in what they point to.
 */
export function unifyTypes(a: Type, b: Type): Type | undefined {
  if (a.kind === "unknown") return b;
  if (b.kind === "unknown") return a;
  if (a.kind === "integer" && b.kind === "integer") return a;
  if (a.kind === "pointer" && b.kind === "integer") return a;
  if (a.kind === "pointer" && b.kind === "pointer") {
    if (a.to === undefined || b.to === undefined) return a.to === undefined ? b : a;
    return printType(a.to) === printType(b.to) ? a : undefined;
  }
  if (a.kind === "string" && b.kind === "string") return a.sizeBytes >= b.sizeBytes ? a : b;
  if (a.kind === "buffer" && b.kind === "buffer") return a.sizeBytes >= b.sizeBytes ? a : b;
  if (a.kind === "tuple" && b.kind === "tuple") {
    if (a.elements.length !== b.elements.length) return undefined;
    const elements: Type[] = [];
    for (const [i, element] of a.elements.entries()) {
      const unified = unifyTypes(element, b.elements[i]!);
      if (unified === undefined) return undefined;
      elements.push(unified);
    }
    return { kind: "tuple", elements };
  }
  if (a.kind === "aggregate" && b.kind === "aggregate") {
    return sameAggregate(a.aggregate, b.aggregate) ? a : undefined;
  }
  if (a.kind === "timestamp" && b.kind === "timestamp") return a.format === b.format ? a : undefined;
  if (a.kind === "probe" && b.kind === "probe") return a.shows === b.shows ? a : undefined;
  return a.kind === b.kind ? a : undefined;
}

function sameAggregate(a: Aggregate, b: Aggregate): boolean {
  if (a.fn !== b.fn) return false;
  return (
    a.linear?.min === b.linear?.min && a.linear?.max === b.linear?.max && a.linear?.step === b.linear?.step
  );
}
