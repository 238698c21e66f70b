/**
 * Every message about a script, in one place. Where bpftrace has the same message, its wording is kept.
 */
import { describeToken, type Token } from "./token.ts";

export interface Message {
  /** Stable name, for tests and tools. */
  readonly code: string;
  readonly text: string;
  readonly hint?: string;
}

function message(code: string, text: string, hint?: string): Message {
  return hint === undefined ? { code, text } : { code, text, hint };
}

function didYouMean(near: string | undefined): string | undefined {
  return near === undefined ? undefined : `did you mean '${near}'?`;
}

function unknownFormat(unknown: readonly string[]): string | undefined {
  return unknown.length === 0 ? undefined : `'${unknown[0]}' is not a conversion and is printed as it is`;
}

const CAST_HINT = "cast it, for example (int64)retval, if it holds a signed number";

export const messages = {
  // Text
  invalidCharacter: (char: string) => message("invalid-character", `invalid character '${char}'`),
  unterminatedString: () =>
    message("unterminated-string", "unterminated string", "a string ends with '\"' on the same line"),
  unterminatedComment: () => message("unterminated-comment", "end of file during comment"),
  invalidEscape: (char: string) =>
    message(
      "invalid-escape",
      `invalid escape character '\\${char}'`,
      'known escapes: \\n \\t \\r \\" \\\\ \\NNN (octal) \\xNN',
    ),
  invalidCharacterLiteral: () =>
    message("invalid-character-literal", "a character literal holds exactly one byte"),
  invalidInteger: (text: string) =>
    message(
      "invalid-integer",
      `invalid integer: ${text}`,
      "integers are written as 10, 0x1f, 017, 1e6, 1_000 or with a time unit as in 10ms",
    ),
  integerTooLarge: (text: string) => message("integer-too-large", `integer ${text} does not fit 64 bits`),
  invalidParameter: (text: string) =>
    message(
      "invalid-parameter",
      `${text} is not a positional parameter`,
      "parameters are $1, $2, ... and $#",
    ),

  // Syntax
  syntax: (token: Token, expected: string, hint?: string) =>
    message("syntax", `syntax error, unexpected ${describeToken(token)}, expecting ${expected}`, hint),
  emptyScript: () =>
    message(
      "empty-script",
      "syntax error, unexpected end of file, expecting a probe",
      'for example: BEGIN { printf("hi\\n"); }',
    ),
  tooDeep: () => message("too-deep", "the expression is nested too deeply"),
  tooManyBlocks: () => message("too-many-blocks", "blocks are nested too deeply"),
  notAssignable: () =>
    message("not-assignable", "only a variable ($x) or a map (@x) can be assigned to", "compare with '=='"),
  elseWithoutIf: () => message("else-without-if", "syntax error, 'else' without 'if'"),
  returnValue: () => message("return-value", "return takes no value"),
  unsupported: (what: string, hint?: string) => message("unsupported", `${what} is not supported yet`, hint),

  // Attach points
  noAttachPoint: () =>
    message(
      "no-attach-point",
      "syntax error, expecting a probe",
      "for example: uprobe:libc:malloc { @ = count(); }",
    ),
  unknownProvider: (name: string, near: string | undefined) =>
    message(
      "unknown-provider",
      `Invalid probe type: ${name}`,
      didYouMean(near) ?? "probes are BEGIN, END, interval, uprobe and uretprobe",
    ),
  unsupportedProvider: (name: string) =>
    message(
      "unsupported-provider",
      `probe type ${name} is not supported yet`,
      "supported: BEGIN, END, interval, uprobe, uretprobe",
    ),
  attachPointParts: (provider: string, count: number, form: string | undefined) =>
    message(
      "attach-point-parts",
      `${provider} probe type requires ${count} argument${count === 1 ? "" : "s"}`,
      form === undefined ? undefined : `write ${form}`,
    ),
  attachPointPlace: (place: string, reason: string) =>
    message("attach-point-place", `invalid place '${place}': ${reason}`),
  intervalUnit: (unit: string) =>
    message("interval-unit", `${unit} is not an accepted unit of time`, "units are s, ms, us and hz"),
  intervalCount: (count: string) =>
    message("interval-count", `interval count '${count}' must be an integer greater than 0`),
  duplicateProbe: (name: string) => message("duplicate-probe", `More than one ${name} probe defined`),

  // Names
  unknownFunction: (name: string, near: string | undefined) =>
    message("unknown-function", `Unknown function: '${name}'`, didYouMean(near)),
  unknownIdentifier: (name: string, near: string | undefined, hint?: string) =>
    message("unknown-identifier", `Unknown identifier: '${name}'`, hint ?? didYouMean(near)),
  undefinedVariable: (name: string, near: string | undefined) =>
    message("undefined-variable", `Undefined or undeclared variable: ${name}`, didYouMean(near)),
  undefinedMap: (name: string, near: string | undefined) =>
    message(
      "undefined-map",
      `Undefined map: ${name}`,
      didYouMean(near) ?? "a map must be assigned somewhere",
    ),
  unknownType: (name: string, near: string | undefined) =>
    message("unknown-type", `Unknown type: '${name}'`, didYouMean(near)),
  unknownRegister: (name: string, near: string | undefined, all: string) =>
    message(
      "unknown-register",
      `'${name}' is not a valid register on this architecture (x86_64)`,
      didYouMean(near) ?? `registers are ${all}`,
    ),

  // Builtins and the probes that they need
  builtinProbe: (name: string, needs: string, attach: string) =>
    message(
      "builtin-probe",
      `The ${name} builtin can only be used with ${needs} probes`,
      `this block is attached to ${attach}`,
    ),
  noSuchArgument: (name: string) =>
    message("no-such-argument", `x86_64 doesn't support ${name}`, "arguments in registers are arg0 to arg5"),
  parameterNotNumber: (name: string, text: string) =>
    message("parameter-not-number", `${name} used numerically but given "${text}".`, `try str(${name})`),

  // Types
  operatorType: (op: string, type: string) =>
    message("operator-type", `The ${op} operator can not be used on expressions of type '${type}'`),
  operatorTypes: (op: string, left: string, right: string) =>
    message("operator-types", `The ${op} operator can not be used on expressions of types ${left}, ${right}`),
  comparisonTypes: (op: string, left: string, right: string) =>
    message("comparison-types", `Type mismatch for '${op}': comparing '${left}' with '${right}'`),
  mixedSigns: (what: string, left: string, right: string) =>
    message(
      "mixed-signs",
      `${what} of integers of different signs: '${left}' and '${right}' is done unsigned`,
      "cast one of them, for example (int64)",
    ),
  alwaysUnsigned: (op: string) =>
    message(
      "always-unsigned",
      `'${op} 0' is always ${op === "<" ? "false" : "true"}: the value is unsigned`,
      CAST_HINT,
    ),
  conditionType: (type: string) =>
    message("condition-type", `Invalid condition: expected an integer or a pointer, got '${type}'`),
  ternaryTypes: (left: string, right: string) =>
    message("ternary-types", `Ternary operator must return the same type: have '${left}' and '${right}'`),
  variableType: (name: string, had: string, got: string) =>
    message(
      "variable-type",
      `Type mismatch for ${name}: trying to assign value of type '${got}' when variable already contains a value of type '${had}'`,
    ),
  mapType: (name: string, had: string, got: string) =>
    message(
      "map-type",
      `Type mismatch for ${name}: trying to assign value of type '${got}' when map already contains a value of type '${had}'`,
    ),
  mapKeys: (name: string, had: string, got: string) =>
    message(
      "map-keys",
      `Argument mismatch for ${name}: trying to access with arguments: [${got}] when map expects arguments: [${had}]`,
    ),
  keyType: (type: string) => message("key-type", `'${type}' cannot be used as part of a map key`),
  notStorable: (type: string) => message("not-storable", `Invalid expression for assignment: ${type}`),
  notAValue: (name: string) =>
    message("not-a-value", `${name}() returns nothing`, "it can only stand as a statement of its own"),
  aggregateUse: (fn: string) =>
    message("aggregate-use", `${fn}() should be directly assigned to a map`, `for example: @ = ${fn}(...);`),
  aggregateValue: (name: string, fn: string) =>
    message(
      "aggregate-value",
      `${name} holds ${fn}(), which has no single value to read here`,
      `print(${name}) shows it`,
    ),
  castType: (type: string, from: string) => message("cast-type", `Cannot cast from '${from}' to '${type}'`),
  dereference: (type: string) =>
    message(
      "dereference",
      `Can not dereference type '${type}', as it's not a pointer`,
      "cast it to a pointer first, for example *(uint32 *)arg0",
    ),
  dereferenceVoid: () =>
    message("dereference-void", "Can not dereference 'void *'", "cast it, for example *(uint32 *)p"),
  indexType: (type: string) =>
    message("index-type", `The array index operator [] can not be used on expressions of type '${type}'`),
  tupleIndex: (index: number, count: number) =>
    message("tuple-index", `Invalid tuple index: ${index}. Found ${count} elements in tuple.`),
  notATuple: (type: string) => message("not-a-tuple", `Cannot access field of type '${type}' as of a tuple`),
  stepTarget: (op: string) =>
    message("step-target", `The ${op} operator must be applied to a map or variable`),

  // Calls
  argumentCount: (name: string, needs: string, got: number) =>
    message("argument-count", `${name}() requires ${needs} (${got} provided)`),
  argumentCountMost: (name: string, most: number, got: number) =>
    message("argument-count", `${name}() takes up to ${most} arguments (${got} provided)`),
  argumentType: (name: string, wanted: string, got: string) =>
    message("argument-type", `${name}() only supports ${wanted} arguments (${got} provided)`),
  literalNeeded: (name: string, what: string, got: string) =>
    message(
      "literal-needed",
      `${name}() expects ${what === "integer" ? "an" : "a"} ${what} literal (${got} provided)`,
    ),
  mapNeeded: (name: string) => message("map-needed", `${name}() expects a map to be provided`),
  mapWithoutKey: (name: string) =>
    message("map-without-key", `The map passed to ${name}() should not be indexed by a key`),
  notPrintable: (type: string) => message("not-printable", `${type} type passed to print() is not printable`),
  printTopDiv: (what: string) => message("print-top-div", `print()'s top and div arguments ${what}`),
  topDivIgnored: (fn: string) =>
    message("top-div-ignored", `print()'s top and div arguments are ignored when used on ${fn}() maps.`),
  lhistRange: (min: bigint, max: bigint) =>
    message("lhist-range", `lhist() min must be less than max (provided min ${min} and max ${max})`),
  lhistStep: (step: bigint) => message("lhist-step", `lhist() step must be >= 1 (${step} provided)`),
  lhistStepTooLarge: (step: bigint, range: bigint) =>
    message(
      "lhist-step-too-large",
      `lhist() step is too large for the given range (provided step ${step} for range ${range})`,
    ),
  lhistBuckets: (most: number, needed: bigint) =>
    message("lhist-buckets", `lhist() too many buckets, must be <= ${most} (would need ${needed})`),
  lengthTooSmall: (name: string, least: number, got: bigint) =>
    message("length-too-small", `${name}() length must be at least ${least} (${got} provided)`),
  bufferShortened: (most: number) =>
    message(
      "buffer-shortened",
      `buf() length is too long and will be shortened to ${most} bytes (see BPFTRACE_STRLEN)`,
    ),

  // printf
  formatTooFew: (name: string, supplied: number, expected: number, unknown: readonly string[]) =>
    message(
      "format-too-few",
      `${name}: Not enough arguments for format string (${supplied} supplied, ${expected} expected)`,
      unknownFormat(unknown),
    ),
  formatTooMany: (name: string, supplied: number, expected: number, unknown: readonly string[]) =>
    message(
      "format-too-many",
      `${name}: Too many arguments for format string (${supplied} supplied, ${expected} expected)`,
      unknownFormat(unknown),
    ),
  formatType: (name: string, spec: string, wanted: string, got: string) =>
    message("format-type", `${name}: %${spec} specifier expects a value of type ${wanted} (${got} supplied)`),

  // Control flow
  unrollMinimum: () => message("unroll-minimum", "unroll minimum value is 1"),
  unrollMaximum: (most: number) => message("unroll-maximum", `unroll maximum value is ${most}`),
  unrollLiteral: () => message("unroll-literal", "unroll expects a number known when the script is compiled"),
  outsideLoop: (word: string) => message("outside-loop", `${word} used outside of a loop`),

  // Limits
  stackTooLarge: (needed: number, limit: number) =>
    message(
      "stack-too-large",
      `the program needs ${needed} bytes of stack, more than the ${limit} that BPF has`,
      "use fewer or shorter strings (str(p, LENGTH), BPFTRACE_STRLEN)",
    ),
  keyTooLarge: (name: string, bytes: number, limit: number) =>
    message("key-too-large", `the key of ${name} takes ${bytes} bytes, more than ${limit}`),
  programTooLarge: (insns: number, limit: number) =>
    message(
      "program-too-large",
      `the program takes ${insns} instructions, more than ${limit}`,
      "unroll fewer times",
    ),
  recordTooLarge: (bytes: number, limit: number) =>
    message("record-too-large", `the event takes ${bytes} bytes, more than ${limit}`),
} as const satisfies Record<string, (...args: never[]) => Message>;
