/** The arguments of one helper call, each against what the helper's signature says of it. */
import { CTX_BYTES } from "../context.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_PERF_EVENT_OUTPUT,
  HELPER_RINGBUF_OUTPUT,
  HELPER_SNPRINTF,
  HELPER_TAIL_CALL,
  type HelperArg,
  type HelperSpec,
} from "../helpers.ts";
import { mapKindNumber } from "../map-kinds.ts";
import { MAX_FORMAT_ARGS } from "../print-format.ts";
import { checkFormat } from "../printk.ts";
import type { MapSpec } from "../program.ts";
import {
  checkCtxPointer,
  checkHelperMemory,
  checkHelperU64,
  checkRegion,
  getMemoryArgument,
  getReg,
  MAX_OFFSET,
  type Step,
} from "./access.ts";
import { reject } from "./rejection.ts";
import { isConstant, min, type Scalar } from "./scalar.ts";
import { isFixed, type Pointer, typeName, type Value } from "./value.ts";

/** Helpers that change what is in the map that they get. */
const writers: ReadonlySet<number> = new Set([
  HELPER_MAP_UPDATE_ELEM,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_PUSH_ELEM,
]);
/** Helpers whose memory argument becomes a record of the map. */
const recorders: ReadonlySet<number> = new Set([HELPER_RINGBUF_OUTPUT, HELPER_PERF_EVENT_OUTPUT]);

/** Largest record where the map does not say. */
const MAX_RECORD_BYTES = 1 << 20;

/** What the arguments of one call turned out to be. */
export interface Arguments {
  /** Number of the map, -1 for none. */
  map: number;
  recordBytes: number;
  /** Upper bound of the last size argument. */
  size: bigint;
  releases: number;
  /** Slot where the callback starts, -1 for none. */
  callback: number;
  /** Whether the memory argument before a size is 0. */
  memoryIsNull: boolean;
  /** How the memory argument before a size is used. */
  memoryMode: "read" | "fill";
}

/** Checks all of them. */
export function checkArguments(step: Step, helper: HelperSpec): Arguments {
  const found: Arguments = {
    map: -1,
    recordBytes: 0,
    size: 0n,
    releases: 0,
    callback: -1,
    memoryIsNull: false,
    memoryMode: "read",
  };
  helper.args.forEach((arg, i) => {
    checkArgument(step, helper, arg, i + 1, found);
  });
  return found;
}

/** An address in the context that a helper takes for a number may be read from: any part has to be there. */
function needWholeContext({ machine }: Step): void {
  for (let off = 0; off < CTX_BYTES; off += 8) machine.findings.ctxReads.add(off);
}

function checkArgument(step: Step, helper: HelperSpec, arg: HelperArg, reg: number, found: Arguments): void {
  if (arg.kind === "anything" && arg.optional === true) return;
  const value = getReg(step, reg);
  switch (arg.kind) {
    case "anything":
      if (value.kind === "pointer" && value.to === "ctx") needWholeContext(step);
      return;
    case "ctx":
      checkCtxPointer(reg, expectPointer(value, reg, "ctx"));
      return;
    case "map":
      checkMap(step, helper, expectPointer(value, reg, "map_ptr"), found, arg.kinds);
      return;
    case "map-key":
      checkHelperMemory(step, reg, mapOf(step, found).keyBytes, "read", true);
      return;
    case "map-value":
      checkHelperMemory(step, reg, mapOf(step, found).valueBytes, "read", true);
      return;
    case "map-value-out":
      checkHelperMemory(step, reg, mapOf(step, found).valueBytes, outMode(step, helper, found), true);
      return;
    case "memory-in":
    case "memory-out":
      // Checked together with its size, which is the next argument.
      found.memoryMode = arg.kind === "memory-in" ? "read" : "fill";
      found.memoryIsNull = arg.orNull === true && isNull(step, reg, value);
      if (!found.memoryIsNull) getMemoryArgument(step, reg);
      return;
    case "u64-out":
      checkHelperU64(step, reg);
      return;
    case "const-string":
      checkString(step, helper, reg, expectPointer(value, reg, "map_value"));
      return;
    case "callback":
      found.callback = expectPointer(value, reg, "func").target;
      return;
    case "callback-context":
      if (!isNull(step, reg, value)) expectPointer(value, reg, "fp");
      return;
    case "size":
      checkSize(step, helper, value, reg, arg.zero, found);
      return;
    case "record-size":
      checkRecordSize(step, value, reg, found);
      return;
    case "record": {
      const pointer = expectPointer(value, reg, "ringbuf_mem");
      if (pointer.off !== 0 || !isFixed(pointer))
        reject(`R${reg} must have zero offset when passed to release func`);
      if (pointer.ref === 0) reject(`release of R${reg}, which holds no reference`);
      found.releases = pointer.ref;
    }
  }
}

function expectPointer(value: Value, reg: number, expected: string): Pointer {
  if (value.kind !== "pointer" || typeName(value) !== expected)
    reject(`R${reg} type=${typeName(value)} expected=${expected}`);
  return value;
}

/** Whether the register holds the number 0 that stands for no address; noted as decisive where it is a number. */
function isNull(step: Step, reg: number, value: Value): boolean {
  if (value.kind !== "scalar") return false;
  step.note.needs |= 1 << reg;
  return isConstant(value) && value.value === 0n;
}

function checkMap(
  step: Step,
  helper: HelperSpec,
  pointer: Pointer,
  found: Arguments,
  kinds: readonly string[],
): void {
  found.map = pointer.target;
  const { kind, isReadOnly } = mapOf(step, found);
  if (!kinds.includes(kind)) {
    if (helper.number === HELPER_TAIL_CALL) reject("expected prog array map for tail call");
    reject(`cannot pass map_type ${mapKindNumber(kind)} into func ${helper.name}#${helper.number}`);
  }
  if (isReadOnly === true && writers.has(helper.number)) reject("write into map forbidden");
}

function mapOf(step: Step, found: Arguments): MapSpec {
  return step.machine.getMap(found.map);
}

/** A look into a bloom filter asks for the value that is passed. */
function outMode(step: Step, helper: HelperSpec, found: Arguments): "read" | "fill" {
  const asks = helper.number === HELPER_MAP_PEEK_ELEM && mapOf(step, found).kind === "bloom_filter";
  return asks ? "read" : "fill";
}

/** A string that is known now, so that what it asks for can be compiled. */
function checkString(step: Step, helper: HelperSpec, reg: number, pointer: Pointer): void {
  const { machine, at } = step;
  const { isReadOnly, contents } = machine.getMap(pointer.target);
  if (isReadOnly !== true || !contents) reject(`R${reg} does not point to a readonly map'`);
  if (!isConstant(pointer.variable)) reject(`R${reg} is not a constant address'`);
  checkRegion(reg, pointer, 0, 1);
  const from = pointer.off + Number(pointer.variable.smin);
  const end = contents.indexOf(0, from);
  if (end < 0) reject("string is not zero-terminated");
  const text = contents.slice(from, end);
  if (helper.number === HELPER_SNPRINTF) checkSnprintf(step, text);
  machine.noteStringAtCall(at, text, nameOf(helper));
}

/** Its format is known, so the number of arguments that it takes is; r5 says how many there are. */
function checkSnprintf(step: Step, format: Uint8Array): void {
  const bytes = getReg(step, 5);
  if (bytes.kind !== "scalar") reject(`R5 type=${typeName(bytes)} expected=scalar`);
  step.note.needs |= 1 << 5;
  if (((bytes.value | bytes.mask) & 7n) !== 0n) reject("R5 is not a multiple of 8: data is an array of u64");
  const wrong = checkFormat(format, Number(min(bytes.umin / 8n, BigInt(MAX_FORMAT_ARGS))));
  if (wrong !== undefined) reject(wrong);
}

/** The size in `reg` belongs to the memory in the register before it. */
function checkSize(
  step: Step,
  helper: HelperSpec,
  value: Value,
  reg: number,
  mayBeZero: boolean,
  found: Arguments,
): void {
  if (value.kind !== "scalar") reject(`R${reg} type=${typeName(value)} expected=scalar`);
  step.note.needs |= 1 << reg;
  if (value.smin < 0n) reject(`R${reg} min value is negative, either use unsigned or 'var &= const'`);
  if (value.umin === 0n && !mayBeZero) reject(`R${reg} invalid zero-sized read: u64=[0,${value.umax}]`);
  if (value.umax >= MAX_OFFSET)
    reject(`R${reg} unbounded memory access, use 'var &= const' or 'if (var < const)'`);
  found.size = value.umax;
  if (found.memoryIsNull) {
    if (value.umax !== 0n) reject(`R${reg - 1} type=scalar expected=fp`);
    return;
  }
  checkHelperMemory(step, reg - 1, Number(value.umax), found.memoryMode, isConstant(value));
  if (recorders.has(helper.number)) noteOutput(step, value, reg, found);
}

/** What is sent as a record must fit the cells of the ring. */
function noteOutput(step: Step, size: Scalar, reg: number, found: Arguments): void {
  const { valueBytes, name } = mapOf(step, found);
  const limit = valueBytes === 0 ? MAX_RECORD_BYTES : valueBytes;
  if (size.umax > BigInt(limit)) {
    reject(`R${reg} record of up to ${size.umax} bytes: ${name} has records of up to ${limit} bytes`);
  }
  step.machine.noteRecord(found.map, Number(size.umax));
}

function checkRecordSize(step: Step, value: Value, reg: number, found: Arguments): void {
  if (value.kind !== "scalar" || !isConstant(value)) reject(`R${reg} is not a known constant`);
  step.note.needs |= 1 << reg;
  const { valueBytes, name } = mapOf(step, found);
  const limit = valueBytes === 0 ? MAX_RECORD_BYTES : valueBytes;
  if (value.value === 0n || value.value > BigInt(limit)) {
    reject(`R${reg} record of ${value.value} bytes: ring buffer ${name} has records of 1 to ${limit} bytes`);
  }
  found.recordBytes = Number(value.value);
  step.machine.noteRecord(found.map, found.recordBytes);
}

/** A helper as messages name it. */
export function nameOf(helper: HelperSpec): string {
  return `${helper.name}#${helper.number}`;
}
