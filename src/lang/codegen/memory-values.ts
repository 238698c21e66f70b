/** Values that do not fit a register: strings, buffers and tuples, written to where they are needed. */
import {
  HELPER_GET_CURRENT_COMM,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
} from "../../bpf/index.ts";
import type { CallExpr, Expr } from "../ast.ts";
import { findConstant } from "../constant.ts";
import { findValueType, type ValueType, valueTypeBytes } from "../value-type.ts";
import type { CodeContext } from "./context.ts";
import { isVReg } from "./ir.ts";
import { addressArgument, advance, type Memory } from "./ir-builder.ts";
import { copyFromMap } from "./map-access.ts";

/** Bytes of a thread's name with its end mark (TASK_COMM_LEN). */
export const COMM_BYTES = 16;

/** Whether values of this type live in memory. */
export function isInMemory(type: ValueType): boolean {
  return type.kind === "string" || type.kind === "buffer" || type.kind === "tuple";
}

/** The stored form of an expression's type. */
export function valueTypeOf(c: CodeContext, expr: Expr): ValueType {
  const type = findValueType(c.analysis.typeOf(expr));
  if (!type) throw new Error(`generate bpf: ${expr.kind} has no stored type`);
  return type;
}

/** Implements `CodeContext.into`. */
export function writeValue(c: CodeContext, expr: Expr, to: Memory, type: ValueType, padded: boolean): void {
  if (!isInMemory(type)) {
    c.b.store(to, c.value(expr));
    return;
  }
  switch (expr.kind) {
    case "string":
      writeLiteral(c, expr.bytes, to, type, padded);
      break;
    case "builtin":
      writeComm(c, to, type, padded);
      break;
    case "variable": {
      const variable = c.variableMemory(expr.name);
      copyValue(c, to, type, variable.memory, variable.type, padded);
      break;
    }
    case "map":
      copyFromMap(c, expr, to, type);
      break;
    case "call":
      writeCall(c, expr, to, type, padded);
      break;
    case "ternary": {
      const otherwise = c.b.label("else");
      const end = c.b.label("end");
      c.branch(expr.condition, otherwise, false);
      c.sometimes(() => c.into(expr.consequent, to, type, padded));
      c.b.goto(end);
      c.b.bind(otherwise);
      c.sometimes(() => c.into(expr.alternate, to, type, padded));
      c.b.bind(end);
      break;
    }
    case "element": {
      const memory = elementMemory(c, expr);
      copyValue(c, to, type, memory, valueTypeOf(c, expr), padded);
      break;
    }
    case "tuple":
      writeTuple(c, expr.elements, to, type, padded);
      break;
    default:
      throw new Error(`generate bpf: ${expr.kind} has no value in memory`);
  }
}

/** Implements `CodeContext.memoryOf`. */
export function valueMemory(
  c: CodeContext,
  expr: Expr,
): { readonly memory: Memory; readonly type: ValueType } {
  if (expr.kind === "variable") return c.variableMemory(expr.name);
  const comm = expr.kind === "builtin" ? c.commMemory() : undefined;
  if (comm) return { memory: comm, type: valueTypeOf(c, expr) };
  const type = valueTypeOf(c, expr);
  if (expr.kind === "element") return { memory: elementMemory(c, expr), type };
  const memory = c.b.frame(valueTypeBytes(type));
  c.into(expr, memory, type, true);
  return { memory, type };
}

/** Where an element of a tuple lies. */
export function elementMemory(c: CodeContext, expr: Expr & { readonly kind: "element" }): Memory {
  const { memory, type } = c.memoryOf(expr.base);
  if (type.kind !== "tuple") throw new Error(`generate bpf: element of ${type.kind}`);
  const before = type.elements.slice(0, expr.index);
  return advance(
    memory,
    before.reduce((offset, element) => offset + valueTypeBytes(element), 0),
  );
}

/** Copies a padded value into a place of a type that is as large or larger. */
function copyValue(
  c: CodeContext,
  to: Memory,
  toType: ValueType,
  from: Memory,
  fromType: ValueType,
  padded: boolean,
): void {
  if (toType.kind === "tuple" && fromType.kind === "tuple") {
    let toOffset = 0;
    let fromOffset = 0;
    for (const [i, toElement] of toType.elements.entries()) {
      const fromElement = fromType.elements[i]!;
      copyValue(c, advance(to, toOffset), toElement, advance(from, fromOffset), fromElement, padded);
      toOffset += valueTypeBytes(toElement);
      fromOffset += valueTypeBytes(fromElement);
    }
    return;
  }
  const room = valueTypeBytes(toType);
  const bytes = Math.min(room, valueTypeBytes(fromType));
  c.b.copyMemory(to, from, bytes);
  if (padded) c.b.clear(advance(to, bytes), room - bytes);
}

function writeTuple(
  c: CodeContext,
  elements: readonly Expr[],
  to: Memory,
  type: ValueType,
  padded: boolean,
): void {
  if (type.kind !== "tuple") throw new Error("generate bpf: tuple into something else");
  let offset = 0;
  for (const [i, element] of elements.entries()) {
    const elementType = type.elements[i]!;
    c.into(element, advance(to, offset), elementType, padded);
    offset += valueTypeBytes(elementType);
  }
}

/** Bytes known now, as stores of constants. */
export function writeLiteral(
  c: CodeContext,
  bytes: Uint8Array,
  to: Memory,
  type: ValueType,
  padded: boolean,
): void {
  const room = valueTypeBytes(type);
  const content = new Uint8Array(room);
  const limit = type.kind === "string" ? type.sizeBytes - 1 : room;
  content.set(bytes.subarray(0, limit));
  const view = new DataView(content.buffer);
  const needed = padded ? room : Math.min(room, (Math.min(bytes.length, limit) + 8) & ~7);
  for (let at = 0; at < needed; at += 8) {
    const low = view.getInt32(at, true);
    const high = view.getInt32(at + 4, true);
    if (high === low >> 31) {
      c.b.store(advance(to, at), BigInt(low));
    } else {
      c.b.store(advance(to, at), BigInt(low), 4);
      c.b.store(advance(to, at + 4), BigInt(high), 4);
    }
  }
}

/** Asks for the thread's name. */
export function fillComm(c: CodeContext, to: Memory): void {
  c.b.callVoid(HELPER_GET_CURRENT_COMM, addressArgument(to), BigInt(COMM_BYTES));
}

function writeComm(c: CodeContext, to: Memory, type: ValueType, padded: boolean): void {
  const held = c.commMemory();
  if (held) c.b.copyMemory(to, held, COMM_BYTES);
  else fillComm(c, to);
  if (padded) c.b.clear(advance(to, COMM_BYTES), valueTypeBytes(type) - COMM_BYTES);
}

function writeCall(c: CodeContext, call: CallExpr, to: Memory, type: ValueType, padded: boolean): void {
  switch (call.name) {
    case "str":
      writeStr(c, call, to, type, padded);
      break;
    case "buf":
      writeBuf(c, call, to, type);
      break;
    default:
      throw new Error(`generate bpf: ${call.name}() has no value in memory`);
  }
}

/**
 * `str(pointer[, length])`: the helper ends what it reads with a 0 and gives an empty string where it cannot read.
 * `type` may be smaller than the string's own: then less is read.
 */
export function writeStr(c: CodeContext, call: CallExpr, to: Memory, type: ValueType, padded: boolean): void {
  if (type.kind !== "string") throw new Error("generate bpf: str() into something else");
  const source = call.args[0]!;
  const { params } = c.analysis.options;
  if (source.kind === "parameter") {
    const text = new TextEncoder().encode(params[source.index - 1] ?? "");
    writeLiteral(c, text, to, type, padded);
    return;
  }
  const own = c.analysis.typeOf(call);
  const ownBytes = own.kind === "string" ? own.sizeBytes : type.sizeBytes;
  const most = BigInt(Math.min(ownBytes, type.sizeBytes));
  const length = call.args[1];
  const address = c.value(source);
  const stable = isVReg(address) && length !== undefined ? c.b.copy(address) : address;
  if (length === undefined || findConstant(length, params) !== undefined) {
    if (padded) c.b.clear(to, valueTypeBytes(type));
    c.b.callVoid(HELPER_PROBE_READ_USER_STR, addressArgument(to), most, stable);
    return;
  }
  const size = boundedLength(c, c.b.alu("add", c.value(length), 1n), most);
  if (padded) c.b.clear(to, valueTypeBytes(type));
  else c.b.store(to, 0n);
  c.b.callVoid(HELPER_PROBE_READ_USER_STR, addressArgument(to), size, stable);
}

/** `buf(pointer, length)`: the length, then the bytes. */
function writeBuf(c: CodeContext, call: CallExpr, to: Memory, type: ValueType): void {
  if (type.kind !== "buffer") throw new Error("generate bpf: buf() into something else");
  const own = c.analysis.typeOf(call);
  const most = BigInt(own.kind === "buffer" ? own.sizeBytes : type.sizeBytes);
  const address = c.b.copy(c.value(call.args[0]!));
  const length = call.args[1]!;
  const constant = findConstant(length, c.analysis.options.params);
  const size =
    constant === undefined ? boundedLength(c, c.value(length), most) : constant < most ? constant : most;
  c.b.clear(to, valueTypeBytes(type));
  c.b.store(to, size);
  c.b.callVoid(HELPER_PROBE_READ_USER, addressArgument(advance(to, 8)), size, address);
}

/** The value, at most `most`, unsigned; in a register of its own. */
function boundedLength(c: CodeContext, value: ReturnType<CodeContext["value"]>, most: bigint) {
  const size = c.b.copy(value);
  const fits = c.b.label("fits");
  c.b.jump("le", size, most, fits);
  c.b.move(size, most);
  c.b.bind(fits);
  return size;
}
