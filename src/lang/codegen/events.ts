/**
 * Calls that only send a record to the tracer: printf, print, clear, zero, time, join, exit.
 *
 * A record is reserved in the ring buffer, filled in place and submitted; where there is no room the action is
 * skipped, and the ring counts the drop. Arguments that change something are evaluated whether or not there is
 * room.
 */
import {
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
} from "../../bpf/index.ts";
import type { CallExpr, Expr } from "../ast.ts";
import { findConstant } from "../constant.ts";
import { byteString } from "../format.ts";
import type { EventField, ScriptEvent } from "../script.ts";
import type { ValueType } from "../value-type.ts";
import { type CodeContext, hasEffects } from "./context.ts";
import type { Operand, VReg } from "./ir.ts";
import { addressArgument, type Memory } from "./ir-builder.ts";
import { isInMemory, valueTypeOf } from "./memory-values.ts";
import { layOutFields } from "./plan.ts";

const DEFAULT_TIME_FORMAT = "%H:%M:%S\n";
/** How many strings join() takes, as in bpftrace. */
const JOIN_ARGS = 16;

export function sendPrintf(c: CodeContext, call: CallExpr): void {
  const args = call.args.slice(1);
  const { fields, recordBytes } = layOutFields(args.map((arg) => valueTypeOf(c, arg)));
  const id = c.plan.eventId(call, () => ({
    kind: "printf",
    format: c.analysis.formats.get(call) ?? [],
    fields,
    recordBytes,
  }));
  sendValues(c, id, recordBytes, args, fields);
}

export function sendPrint(c: CodeContext, call: CallExpr): void {
  const what = call.args[0]!;
  if (what.kind === "map" && what.keys.length === 0) {
    const { params } = c.analysis.options;
    const numberAt = (i: number): bigint => (call.args[i] ? (findConstant(call.args[i], params) ?? 0n) : 0n);
    const top = numberAt(1);
    sendBare(c, call, {
      kind: "print-map",
      map: c.plan.map(what.name).map,
      top: Number(top > 0xffff_ffffn ? 0xffff_ffffn : top),
      div: numberAt(2),
      recordBytes: 8,
    });
    return;
  }
  if (what.kind === "map") {
    const map = c.plan.map(what.name);
    const values = [...what.keys, what];
    const { fields, recordBytes } = layOutFields(values.map((value) => valueTypeOf(c, value)));
    const id = c.plan.eventId(call, () => ({
      kind: "print-element",
      map: map.map,
      keys: fields.slice(0, -1),
      value: fields.at(-1)!,
      recordBytes,
    }));
    sendValues(c, id, recordBytes, values, fields);
    return;
  }
  const { fields, recordBytes } = layOutFields([valueTypeOf(c, what)]);
  const id = c.plan.eventId(call, () => ({ kind: "print-value", field: fields[0]!, recordBytes }));
  sendValues(c, id, recordBytes, [what], fields);
}

/** clear, zero, time: nothing but the event's id. */
export function sendAction(c: CodeContext, call: CallExpr): void {
  const first = call.args[0];
  if (call.name === "time") {
    const format = first?.kind === "string" ? byteString(first.bytes) : DEFAULT_TIME_FORMAT;
    sendBare(c, call, { kind: "time", format, recordBytes: 8 });
    return;
  }
  if (first?.kind !== "map") throw new Error(`generate bpf: ${call.name}() without a map`);
  const kind = call.name === "clear" ? "clear" : "zero";
  sendBare(c, call, { kind, map: c.plan.map(first.name).map, recordBytes: 8 });
}

/** exit() also works when the ring is full: then a flag says it. The caller ends the program. */
export function sendExit(c: CodeContext, call: CallExpr): void {
  const { b } = c;
  const id = c.plan.eventId(call, () => ({ kind: "exit", recordBytes: 8 }));
  const flag = c.plan.exitFlag;
  const full = b.label("full");
  const end = b.label("end");
  const record = reserve(c, 8, full);
  b.store({ base: record, offset: 0 }, BigInt(id));
  submit(c, record);
  b.goto(end);
  b.bind(full);
  b.store({ base: b.mapValue(flag), offset: 0 }, 1n);
  b.bind(end);
}

/** join(array of strings[, delimiter]): reads up to the null pointer that ends the array. */
export function sendJoin(c: CodeContext, call: CallExpr): void {
  const { b } = c;
  const { joinArgBytes } = c.plan.options;
  const delimiter = call.args[1];
  const recordBytes = 8 + JOIN_ARGS * joinArgBytes;
  const id = c.plan.eventId(call, () => ({
    kind: "join",
    delimiter: delimiter?.kind === "string" ? byteString(delimiter.bytes) : " ",
    offset: 8,
    args: JOIN_ARGS,
    argBytes: joinArgBytes,
    recordBytes,
  }));
  const array = b.copy(c.value(call.args[0]!));
  const full = b.label("full");
  const done = b.label("done");
  const record = reserve(c, recordBytes, full);
  b.store({ base: record, offset: 0 }, BigInt(id));
  const slots = Array.from({ length: JOIN_ARGS }, (_, i) => ({ base: record, offset: 8 + i * joinArgBytes }));
  for (const slot of slots) b.store(slot, 0n);
  const pointer = b.frame(8);
  for (const slot of slots) {
    b.callVoid(HELPER_PROBE_READ_USER, addressArgument(pointer), 8n, array);
    const text = b.load(pointer);
    b.jump("eq", text, 0n, done);
    b.callVoid(HELPER_PROBE_READ_USER_STR, addressArgument(slot), BigInt(joinArgBytes), text);
    b.aluInto("add", array, 8n);
  }
  b.bind(done);
  submit(c, record);
  b.bind(full);
}

function sendBare(c: CodeContext, call: CallExpr, event: ScriptEvent): void {
  const id = c.plan.eventId(call, () => event);
  sendValues(c, id, event.recordBytes, [], []);
}

function sendValues(
  c: CodeContext,
  id: number,
  recordBytes: number,
  values: readonly Expr[],
  fields: readonly EventField[],
): void {
  const { b } = c;
  const early = values.some(hasEffects)
    ? values.map((value, i) => evaluateEarly(c, value, fields[i]!.type))
    : undefined;
  const full = b.label("full");
  const record = reserve(c, recordBytes, full);
  b.store({ base: record, offset: 0 }, BigInt(id));
  c.sometimes(() => {
    for (const [i, value] of values.entries()) {
      const { offset, type } = fields[i]!;
      const to: Memory = { base: record, offset };
      const held = early?.[i];
      if (held === undefined) c.into(value, to, type, false);
      else if (held.kind === "scalar") b.store(to, held.value);
      else b.copyMemory(to, held.memory, held.bytes);
    }
  });
  submit(c, record);
  b.bind(full);
}

type Held =
  | { readonly kind: "scalar"; readonly value: Operand }
  | { readonly kind: "memory"; readonly memory: Memory; readonly bytes: number };

/** A value computed before there is a record; strings whose making changes nothing wait until there is one. */
function evaluateEarly(c: CodeContext, expr: Expr, type: ValueType): Held | undefined {
  if (!isInMemory(type)) {
    const value = c.value(expr);
    return { kind: "scalar", value: typeof value === "bigint" ? value : c.b.copy(value) };
  }
  if (!hasEffects(expr)) return undefined;
  const { memory, type: held } = c.memoryOf(expr);
  const bytes = layOutFields([held]).recordBytes - 8;
  return { kind: "memory", memory, bytes };
}

/** The address of a new record; jumps to `full` where there is none. */
function reserve(c: CodeContext, recordBytes: number, full: ReturnType<CodeContext["b"]["label"]>): VReg {
  const { b } = c;
  const record = b.call(HELPER_RINGBUF_RESERVE, { kind: "map", map: c.plan.ring }, BigInt(recordBytes), 0n);
  b.jump("eq", record, 0n, full);
  return record;
}

function submit(c: CodeContext, record: VReg): void {
  c.b.callVoid(HELPER_RINGBUF_SUBMIT, record, 0n);
}
