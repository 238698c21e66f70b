/** Comparing and measuring strings. */
import { HELPER_PROBE_READ_USER_STR } from "../../bpf/index.ts";
import type { Expr } from "../ast.ts";
import { type ValueType, valueTypeBytes } from "../value-type.ts";
import type { CodeContext } from "./context.ts";
import type { IrLabel, Operand } from "./ir.ts";
import { addressArgument, advance, type Memory } from "./ir-builder.ts";
import { valueTypeOf, writeStr } from "./memory-values.ts";

/** One side of a comparison: bytes known now, or a padded string in memory. */
type Side =
  | { readonly kind: "literal"; readonly bytes: Uint8Array }
  | { readonly kind: "memory"; readonly memory: Memory; readonly sizeBytes: number };

/**
 * Jumps to `different` unless the strings are equal in their first `limitBytes` bytes (all, if undefined).
 * Strings in memory end with a 0 and hold zeros behind it, so whole words can be compared.
 */
export function branchIfDifferent(
  c: CodeContext,
  left: Expr,
  right: Expr,
  different: IrLabel,
  limitBytes?: number,
): void {
  const a = sideOf(c, left, right);
  const b = sideOf(c, right, left);
  if (a.kind === "literal" && b.kind === "literal") {
    if (!sameBytes(a.bytes, b.bytes, limitBytes)) c.b.goto(different);
    return;
  }
  const count = Math.min(sizeOf(a), sizeOf(b), limitBytes ?? Number.POSITIVE_INFINITY);
  // A literal that fills the other side has no room there for its end: they cannot be equal.
  if (a.kind === "literal" && limitBytes === undefined && a.bytes.length >= sizeOf(b)) {
    c.b.goto(different);
    return;
  }
  if (b.kind === "literal" && limitBytes === undefined && b.bytes.length >= sizeOf(a)) {
    c.b.goto(different);
    return;
  }
  const whole = limitBytes === undefined || limitBytes > count;
  for (let at = 0; at < count; ) {
    const bytes = whole ? 8 : chunkBytes(count - at);
    compareChunk(c, a, b, at, bytes, different);
    at += bytes;
  }
}

function compareChunk(
  c: CodeContext,
  a: Side,
  b: Side,
  at: number,
  bytes: 1 | 2 | 4 | 8,
  different: IrLabel,
): void {
  // A literal goes on the right, where it can be an immediate.
  const [left, right] = a.kind === "literal" ? [b, a] : [a, b];
  c.b.jump("ne", chunkOf(c, left, at, bytes), chunkOf(c, right, at, bytes), different);
}

function chunkOf(c: CodeContext, side: Side, at: number, bytes: 1 | 2 | 4 | 8): Operand {
  if (side.kind === "memory") return c.b.load(advance(side.memory, at), bytes);
  let value = 0n;
  for (let i = 0; i < bytes; i++) value |= BigInt(side.bytes[at + i] ?? 0) << BigInt(i * 8);
  return BigInt.asIntN(64, value);
}

function chunkBytes(left: number): 1 | 2 | 4 | 8 {
  if (left >= 8) return 8;
  if (left >= 4) return 4;
  return left >= 2 ? 2 : 1;
}

function sizeOf(side: Side): number {
  return side.kind === "literal" ? side.bytes.length + 1 : side.sizeBytes;
}

function sideOf(c: CodeContext, expr: Expr, other: Expr): Side {
  const literal = findLiteral(c, expr);
  if (literal) return { kind: "literal", bytes: literal };
  if (expr.kind === "call" && expr.name === "str") {
    // No more than decides the comparison: the literal, its end, and one byte to see that more follows.
    const otherBytes = findLiteral(c, other)?.length;
    const own = stringBytes(valueTypeOf(c, expr));
    const sizeBytes = otherBytes === undefined ? own : Math.min(own, otherBytes + 2);
    const type: ValueType = { kind: "string", sizeBytes };
    const memory = c.b.frame(valueTypeBytes(type));
    writeStr(c, expr, memory, type, true);
    return { kind: "memory", memory, sizeBytes };
  }
  const { memory, type } = c.memoryOf(expr);
  return { kind: "memory", memory, sizeBytes: stringBytes(type) };
}

/** The bytes of a string that is known when the script is compiled. */
function findLiteral(c: CodeContext, expr: Expr): Uint8Array | undefined {
  if (expr.kind === "string") return untilEnd(expr.bytes);
  const first = expr.kind === "call" && expr.name === "str" ? expr.args[0] : undefined;
  if (first?.kind !== "parameter") return undefined;
  return untilEnd(new TextEncoder().encode(c.analysis.options.params[first.index - 1] ?? ""));
}

function untilEnd(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

function sameBytes(a: Uint8Array, b: Uint8Array, limit: number | undefined): boolean {
  const count = limit ?? Math.max(a.length, b.length);
  for (let i = 0; i < count; i++) {
    if ((a[i] ?? 0) !== (b[i] ?? 0)) return false;
    if (a[i] === undefined) break;
  }
  return true;
}

function stringBytes(type: ValueType): number {
  if (type.kind !== "string") throw new Error(`generate bpf: ${type.kind} as a string`);
  return type.sizeBytes;
}

/** `strlen(text)`. */
export function stringLength(c: CodeContext, text: Expr): Operand {
  const { b } = c;
  const literal = findLiteral(c, text);
  if (literal) return BigInt(literal.length);
  if (text.kind === "call" && text.name === "str" && text.args.length === 1) {
    return readLength(c, text);
  }
  const { memory, type } = c.memoryOf(text);
  const result = b.register();
  const zeros = b.register();
  const found = b.label("found");
  const ones = 0x0101_0101_0101_0101n;
  const bytes = valueTypeBytes(type);
  for (let at = 0; at < bytes; at += 8) {
    // The lowest byte of the word that is 0 has its highest bit set in `zeros`, and no lower byte has.
    const word = b.load(advance(memory, at));
    b.move(zeros, word);
    b.aluInto("sub", zeros, ones);
    b.aluInto("and", zeros, b.alu("xor", word, -1n));
    b.aluInto("and", zeros, BigInt.asIntN(64, ones << 7n));
    b.move(result, BigInt(at));
    b.jump("ne", zeros, 0n, found);
  }
  const end = b.label("end");
  b.move(result, BigInt(stringBytes(type)));
  b.goto(end);
  b.bind(found);
  // Isolate that bit; 2^(8k) times this constant has k in its top byte.
  const lowest = b.alu("and", b.negate(zeros), zeros);
  const index = b.alu("mul", b.alu("rsh", lowest, 7n), 0x0001_0203_0405_0607n);
  b.aluInto("add", result, b.alu("rsh", index, 56n));
  b.bind(end);
  return result;
}

/** The helper that reads a string gives its length, counting the end. */
function readLength(c: CodeContext, call: Expr & { readonly kind: "call" }): Operand {
  const { b } = c;
  const sizeBytes = stringBytes(valueTypeOf(c, call));
  const memory = b.frame(sizeBytes);
  const address = c.value(call.args[0]!);
  const result = b.copy(
    b.call(HELPER_PROBE_READ_USER_STR, addressArgument(memory), BigInt(sizeBytes), address),
  );
  const failed = b.label("failed");
  const end = b.label("end");
  b.jump("sle", result, 0n, failed);
  b.aluInto("sub", result, 1n);
  b.goto(end);
  b.bind(failed);
  b.move(result, 0n);
  b.bind(end);
  return result;
}
