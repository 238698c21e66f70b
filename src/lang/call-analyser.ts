/** Calls: the arguments that each function takes and the type of its value. */
import type { Analysis, MapTypes } from "./analysis.ts";
import type { CallExpr, Expr, MapExpr } from "./ast.ts";
import { findConstant } from "./constant.ts";
import { findFormatMismatch, parseFormat, unknownConversions } from "./format.ts";
import { messages } from "./messages.ts";
import { aggregateNames, type BuiltinPlace, registerOffsets } from "./names.ts";
import { nearestName } from "./suggestion.ts";
import {
  type Aggregate,
  type AggregateName,
  isScalar,
  isSigned,
  noneType,
  printKind,
  printType,
  stringType,
  symbolType,
  type Type,
  uint64,
  unknownType,
} from "./types.ts";
import { findValueType } from "./value-type.ts";

const MAX_LHIST_BUCKETS = 1000n;

/** What the checks need of the analysis of expressions. */
export interface CallContext {
  readonly analysis: Analysis;
  visitValue(expr: Expr): Type;
  visitStatement(expr: Expr): Type;
  visitMapAccess(expr: MapExpr): MapTypes;
  visitMapUse(expr: MapExpr): MapTypes;
  checkPlace(name: string, place: BuiltinPlace, expr: Expr): void;
}

/** The type of a call of a function that is known by name. */
export function checkCall(context: CallContext, call: CallExpr): Type {
  if (aggregateNames.has(call.name)) {
    context.analysis.error(call.span, messages.aggregateUse(call.name));
    return unknownType;
  }
  switch (call.name) {
    case "printf":
      return checkPrintf(context, call);
    case "print":
      return checkPrint(context, call);
    case "clear":
    case "zero":
      return checkWholeMap(context, call);
    case "delete":
      return checkDelete(context, call);
    case "exit":
      takes(context, call, 0, 0, "no arguments");
      return noneType;
    case "time":
      return checkTime(context, call);
    case "strftime":
      return checkStrftime(context, call);
    case "join":
      return checkJoin(context, call);
    case "str":
      return checkStr(context, call);
    case "buf":
      return checkBuf(context, call);
    case "strlen":
      return checkStrlen(context, call);
    case "strncmp":
      return checkStrncmp(context, call);
    case "reg":
      return checkReg(context, call);
    case "sym":
    case "usym":
      if (!takes(context, call, 1, 1, "one argument")) return symbolType;
      scalarArgument(context, call, 0);
      return symbolType;
    case "uptr":
      if (!takes(context, call, 1, 1, "one argument")) return unknownType;
      return scalarArgument(context, call, 0);
    case "bswap":
      return checkBswap(context, call);
    default:
      return unknownType;
  }
}

/** The aggregate of `@x = call`. */
export function checkAggregate(context: CallContext, call: CallExpr): Type {
  const fn = call.name as AggregateName;
  const { analysis } = context;
  if (fn === "count") {
    takes(context, call, 0, 0, "no arguments");
    return aggregateType({ fn, signed: true });
  }
  const wanted = fn === "lhist" ? 4 : 1;
  if (fn === "hist" && call.args.length === 2) {
    analysis.error(call.args[1]!.span, messages.unsupported("the second argument of hist()"));
  } else if (!takes(context, call, wanted, wanted, wanted === 1 ? "one argument" : `${wanted} arguments`)) {
    for (const arg of call.args) context.visitValue(arg);
    return unknownType;
  }
  const type = context.visitValue(call.args[0]!);
  if (type.kind !== "integer" && type.kind !== "unknown") {
    analysis.error(call.args[0]!.span, messages.argumentType(fn, "integer", printKind(type)));
    return unknownType;
  }
  const signed = isSigned(type);
  if (fn !== "lhist") return aggregateType({ fn, signed });
  const [min, max, step] = call.args.slice(1).map((arg) => literalArgument(context, call, arg));
  if (min === undefined || max === undefined || step === undefined) return unknownType;
  return checkLinear(context, call, { min, max, step }, signed);
}

function checkLinear(
  context: CallContext,
  call: CallExpr,
  linear: { readonly min: bigint; readonly max: bigint; readonly step: bigint },
  signed: boolean,
): Type {
  const { min, max, step } = linear;
  const { analysis } = context;
  const range = max - min;
  if (step < 1n) {
    analysis.error(call.span, messages.lhistStep(step));
    return unknownType;
  }
  if (range <= 0n) {
    analysis.error(call.span, messages.lhistRange(min, max));
    return unknownType;
  }
  if (step > range) {
    analysis.error(call.span, messages.lhistStepTooLarge(step, range));
    return unknownType;
  }
  const buckets = (range + step - 1n) / step;
  if (buckets > MAX_LHIST_BUCKETS) {
    analysis.error(call.span, messages.lhistBuckets(Number(MAX_LHIST_BUCKETS), buckets));
    return unknownType;
  }
  return aggregateType({ fn: "lhist", signed, linear });
}

function aggregateType(aggregate: Aggregate): Type {
  return { kind: "aggregate", aggregate };
}

function checkPrintf(context: CallContext, call: CallExpr): Type {
  const format = call.args[0];
  const types = call.args.slice(1).map((arg) => context.visitValue(arg));
  if (format === undefined) {
    context.analysis.error(call.span, messages.argumentCount("printf", "at least one argument", 0));
    return noneType;
  }
  if (format.kind !== "string") {
    const type = context.visitValue(format);
    context.analysis.error(format.span, messages.literalNeeded("printf", "string", printKind(type)));
    return noneType;
  }
  const parts = parseFormat(format.bytes);
  context.analysis.formats.set(call, parts);
  const conversions = parts.filter((part) => part.kind === "conversion");
  if (types.length !== conversions.length) {
    const make = types.length < conversions.length ? messages.formatTooFew : messages.formatTooMany;
    context.analysis.error(
      call.span,
      make("printf", types.length, conversions.length, unknownConversions(parts)),
    );
    return noneType;
  }
  for (const [i, conversion] of conversions.entries()) {
    const mismatch = findFormatMismatch(conversion.conversion, types[i]!);
    if (!mismatch) continue;
    context.analysis.error(
      call.args[i + 1]!.span,
      messages.formatType("printf", conversion.conversion, mismatch.wanted, mismatch.got),
    );
  }
  return noneType;
}

function checkPrint(context: CallContext, call: CallExpr): Type {
  const { analysis } = context;
  if (!takes(context, call, 1, 3, "one to three arguments")) return noneType;
  const what = call.args[0]!;
  const rest = call.args.slice(1);
  if (what.kind !== "map") {
    const type = context.visitStatement(what);
    if (type.kind === "none" || (type.kind !== "unknown" && findValueType(type) === undefined)) {
      analysis.error(call.span, messages.notPrintable(printType(type)));
    }
    if (rest.length > 0) analysis.error(rest[0]!.span, messages.printTopDiv("can only be used with a map"));
    return noneType;
  }
  if (what.keys.length > 0) {
    const map = context.visitMapAccess(what);
    context.visitMapUse(what);
    if (map.value.kind === "aggregate") {
      analysis.error(
        what.span,
        messages.unsupported(`print() of one element of a ${map.value.aggregate.fn}() map`),
      );
    }
    if (rest.length > 0) analysis.error(rest[0]!.span, messages.printTopDiv("need a map without a key"));
    return noneType;
  }
  const map = context.visitMapUse(what);
  for (const arg of rest) {
    const value = literalArgument(context, call, arg);
    if (value !== undefined && value < 0n) {
      analysis.error(arg.span, messages.printTopDiv("must not be negative"));
    }
  }
  if (rest.length > 0 && map.value.kind === "aggregate" && map.value.aggregate.fn === "stats") {
    analysis.warning(call.span, messages.topDivIgnored("stats"));
  }
  return noneType;
}

function checkWholeMap(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 1, 1, "one argument")) return noneType;
  const map = call.args[0]!;
  if (map.kind !== "map") context.analysis.error(map.span, messages.mapNeeded(call.name));
  else if (map.keys.length > 0) context.analysis.error(map.span, messages.mapWithoutKey(call.name));
  else context.visitMapUse(map);
  return noneType;
}

function checkDelete(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 1, 2, "a map element, or a map and a key")) return noneType;
  const element = findDeletedElement(call);
  if (element === undefined) context.analysis.error(call.args[0]!.span, messages.mapNeeded("delete"));
  else {
    context.visitMapAccess(element);
    context.visitMapUse(element);
    context.analysis.types.set(element, unknownType);
  }
  return noneType;
}

/** The element that `delete(@x[k])` or `delete(@x, k)` names. */
export function findDeletedElement(call: CallExpr): MapExpr | undefined {
  const [map, key] = call.args;
  if (map?.kind !== "map") return undefined;
  if (key === undefined) return map;
  return map.keys.length === 0 ? { ...map, keys: [key] } : undefined;
}

function checkTime(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 0, 1, "at most one argument")) return noneType;
  const format = call.args[0];
  if (format !== undefined && format.kind !== "string") {
    const type = context.visitValue(format);
    context.analysis.error(format.span, messages.literalNeeded("time", "string", printKind(type)));
  }
  return noneType;
}

function checkStrftime(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 2, 2, "two arguments")) return unknownType;
  const format = call.args[0]!;
  scalarArgument(context, call, 1);
  if (format.kind === "string") return { kind: "timestamp", format: String.fromCharCode(...format.bytes) };
  const type = context.visitValue(format);
  context.analysis.error(format.span, messages.literalNeeded("strftime", "string", printKind(type)));
  return unknownType;
}

function checkJoin(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 1, 2, "one or two arguments")) return noneType;
  scalarArgument(context, call, 0);
  const delimiter = call.args[1];
  if (delimiter !== undefined && delimiter.kind !== "string") {
    const type = context.visitValue(delimiter);
    context.analysis.error(delimiter.span, messages.literalNeeded("join", "string", printKind(type)));
  }
  return noneType;
}

function checkStr(context: CallContext, call: CallExpr): Type {
  const { params, strLen } = context.analysis.options;
  if (call.args.length === 0) {
    context.analysis.error(call.span, messages.argumentCount("str", "at least one argument", 0));
    return stringType(strLen);
  }
  if (call.args.length > 2) {
    context.analysis.error(call.span, messages.argumentCountMost("str", 2, call.args.length));
    return stringType(strLen);
  }
  const source = call.args[0]!;
  if (source.kind === "parameter") {
    const text = new TextEncoder().encode(params[source.index - 1] ?? "");
    return stringType(text.length + 1);
  }
  scalarArgument(context, call, 0);
  const length = call.args[1];
  if (length === undefined) return stringType(strLen);
  scalarArgument(context, call, 1);
  const most = findConstant(length, params);
  if (most === undefined) return stringType(strLen);
  if (most < 0n) {
    context.analysis.error(length.span, messages.lengthTooSmall("str", 0, most));
    return stringType(strLen);
  }
  return stringType(most + 1n < BigInt(strLen) ? Number(most) + 1 : strLen);
}

function checkBuf(context: CallContext, call: CallExpr): Type {
  const { params, strLen } = context.analysis.options;
  const whole: Type = { kind: "buffer", sizeBytes: strLen };
  if (call.args.length === 1) {
    scalarArgument(context, call, 0);
    context.analysis.error(
      call.span,
      messages.argumentCount("buf", "a length argument where the size is not known", 1),
    );
    return whole;
  }
  if (!takes(context, call, 2, 2, "two arguments")) return whole;
  scalarArgument(context, call, 0);
  scalarArgument(context, call, 1);
  const length = findConstant(call.args[1]!, params);
  if (length === undefined) return whole;
  if (length < 1n) {
    context.analysis.error(call.args[1]!.span, messages.lengthTooSmall("buf", 1, length));
    return whole;
  }
  if (length > BigInt(strLen)) context.analysis.warning(call.span, messages.bufferShortened(strLen));
  return { kind: "buffer", sizeBytes: length < BigInt(strLen) ? Number(length) : strLen };
}

function checkStrlen(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 1, 1, "one argument")) return uint64;
  stringArgument(context, call, 0);
  return uint64;
}

function checkStrncmp(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 3, 3, "3 arguments")) return uint64;
  stringArgument(context, call, 0);
  stringArgument(context, call, 1);
  const length = literalArgument(context, call, call.args[2]!);
  if (length !== undefined && length < 0n) {
    context.analysis.error(call.args[2]!.span, messages.lengthTooSmall("strncmp", 0, length));
  }
  return uint64;
}

function checkReg(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 1, 1, "one argument")) return uint64;
  context.checkPlace("reg", "user", call);
  const name = call.args[0]!;
  if (name.kind !== "string") {
    const type = context.visitValue(name);
    context.analysis.error(name.span, messages.literalNeeded("reg", "string", printKind(type)));
    return uint64;
  }
  const text = String.fromCharCode(...name.bytes);
  if (!Object.hasOwn(registerOffsets, text)) {
    const all = Object.keys(registerOffsets);
    context.analysis.error(name.span, messages.unknownRegister(text, nearestName(text, all), all.join(" ")));
  }
  return uint64;
}

function checkBswap(context: CallContext, call: CallExpr): Type {
  if (!takes(context, call, 1, 1, "one argument")) return uint64;
  const type = scalarArgument(context, call, 0);
  return type.kind === "integer" ? { ...type, signed: false } : uint64;
}

/** Checks the number of arguments. */
function takes(context: CallContext, call: CallExpr, least: number, most: number, needs: string): boolean {
  const got = call.args.length;
  if (got >= least && got <= most) return true;
  context.analysis.error(call.span, messages.argumentCount(call.name, needs, got));
  return false;
}

function scalarArgument(context: CallContext, call: CallExpr, index: number): Type {
  const arg = call.args[index]!;
  const type = context.visitValue(arg);
  if (isScalar(type)) return type;
  context.analysis.error(arg.span, messages.argumentType(call.name, "integer", printKind(type)));
  return unknownType;
}

function stringArgument(context: CallContext, call: CallExpr, index: number): void {
  const arg = call.args[index]!;
  const type = context.visitValue(arg);
  if (type.kind === "string" || type.kind === "unknown") return;
  context.analysis.error(arg.span, messages.argumentType(call.name, "string", printKind(type)));
}

/** The value of an argument that must be known when the script is compiled. */
function literalArgument(context: CallContext, call: CallExpr, arg: Expr): bigint | undefined {
  const type = context.visitValue(arg);
  const value = type.kind === "integer" ? findConstant(arg, context.analysis.options.params) : undefined;
  if (value === undefined && type.kind !== "unknown") {
    context.analysis.error(arg.span, messages.literalNeeded(call.name, "integer", printKind(type)));
  }
  return value;
}
