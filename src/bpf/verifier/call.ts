/** Calls of helpers: every argument against the helper's signature, then the result. */
import { CTX_COOKIE, CTX_IP } from "../context.ts";
import {
  findHelper,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_FUNC_IP,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  type HelperArg,
  type HelperSpec,
  MIN_ERRNO,
} from "../helpers.ts";
import type { MapSpec } from "../program.ts";
import { checkCtxPointer, checkHelperMemory, getReg, MAX_OFFSET, type Step } from "./access.ts";
import { reject } from "./rejection.ts";
import { isConstant, S64_MAX, S64_MIN, type Scalar, signedRange, unknownScalar } from "./scalar.ts";
import { isFixed, pointerTo, typeName, uninit, type Value } from "./value.ts";

/** Far more than a program can use; without a limit a loop that leaks would fill the memory of the verifier. */
const MAX_REFERENCES = 64;

/** Helpers that change what is in the map that they get. */
const writers: ReadonlySet<number> = new Set([HELPER_MAP_UPDATE_ELEM, HELPER_MAP_DELETE_ELEM]);

/** What the arguments of one call turned out to be. */
interface Arguments {
  map: number;
  recordBytes: number;
  /** Upper bound of the last size argument. */
  size: bigint;
  releases: number;
}

export function callHelper(step: Step, helperNumber: number): void {
  const helper = findHelper(helperNumber);
  if (!helper) reject(`invalid func unknown#${helperNumber}`);
  const found: Arguments = { map: -1, recordBytes: 0, size: 0n, releases: 0 };
  helper.args.forEach((arg, i) => {
    checkArgument(step, helper, arg, i + 1, found);
  });
  const { machine, state, at } = step;
  machine.findings.helpers.add(helperNumber);
  if (found.map >= 0) machine.noteMapAtCall(at, found.map, `${helper.name}#${helperNumber}`);
  if (helperNumber === HELPER_GET_ATTACH_COOKIE) machine.findings.ctxReads.add(CTX_COOKIE);
  if (helperNumber === HELPER_GET_FUNC_IP) machine.findings.ctxReads.add(CTX_IP);
  if (found.releases !== 0) state.release(found.releases, unknownScalar);
  for (let reg = 1; reg <= 5; reg++) state.regs[reg] = uninit;
  state.regs[0] = result(step, helper, found);
}

function checkArgument(step: Step, helper: HelperSpec, arg: HelperArg, reg: number, found: Arguments): void {
  const value = getReg(step, reg);
  switch (arg.kind) {
    case "anything":
      return;
    case "ctx":
      expectType(value, reg, "ctx");
      if (value.kind === "pointer") checkCtxPointer(reg, value);
      return;
    case "map":
      expectType(value, reg, "map_ptr");
      if (value.kind === "pointer") found.map = value.map;
      if (!arg.kinds.includes(mapOf(step, found).kind)) {
        reject(`cannot pass map_type ${mapOf(step, found).kind} into func ${helper.name}#${helper.number}`);
      }
      if (mapOf(step, found).isReadOnly === true && writers.has(helper.number))
        reject("write into map forbidden");
      return;
    case "map-key":
      checkHelperMemory(step, reg, mapOf(step, found).keyBytes, "read", true);
      return;
    case "map-value":
      checkHelperMemory(step, reg, mapOf(step, found).valueBytes, "read", true);
      return;
    case "memory-out":
      // Checked together with its size, which is the next argument.
      return;
    case "size":
      checkSize(step, value, reg, arg.zero, found);
      return;
    case "record-size":
      checkRecordSize(step, value, reg, found);
      return;
    case "record":
      expectType(value, reg, "ringbuf_mem");
      if (value.kind !== "pointer") return;
      if (value.off !== 0 || !isFixed(value))
        reject(`R${reg} must have zero offset when passed to release func`);
      if (value.ref === 0) reject(`release of R${reg}, which holds no reference`);
      found.releases = value.ref;
  }
}

function expectType(value: Value, reg: number, expected: string): void {
  if (typeName(value) !== expected) reject(`R${reg} type=${typeName(value)} expected=${expected}`);
}

function mapOf(step: Step, found: Arguments): MapSpec {
  return step.machine.maps[found.map]!;
}

/** The size in `reg` belongs to the memory in the register before it, which the helper fills. */
function checkSize(step: Step, value: Value, reg: number, mayBeZero: boolean, found: Arguments): void {
  if (value.kind !== "scalar") reject(`R${reg} type=${typeName(value)} expected=scalar`);
  step.note.needs |= 1 << reg;
  if (value.smin < 0n) reject(`R${reg} min value is negative, either use unsigned or 'var &= const'`);
  if (value.umin === 0n && !mayBeZero) reject(`R${reg} invalid zero-sized read: u64=[0,${value.umax}]`);
  if (value.umax >= MAX_OFFSET)
    reject(`R${reg} unbounded memory access, use 'var &= const' or 'if (var < const)'`);
  checkHelperMemory(step, reg - 1, Number(value.umax), "fill", isConstant(value));
  found.size = value.umax;
}

function checkRecordSize(step: Step, value: Value, reg: number, found: Arguments): void {
  if (value.kind !== "scalar" || !isConstant(value)) reject(`R${reg} is not a known constant`);
  step.note.needs |= 1 << reg;
  const { valueBytes, name } = mapOf(step, found);
  if (value.value === 0n || value.value > BigInt(valueBytes)) {
    reject(
      `R${reg} record of ${value.value} bytes: ring buffer ${name} has records of 1 to ${valueBytes} bytes`,
    );
  }
  found.recordBytes = Number(value.value);
}

function result(step: Step, helper: HelperSpec, found: Arguments): Value {
  const { machine, state, at } = step;
  const { returns } = helper;
  switch (returns.kind) {
    case "integer":
      return integer(returns.min, returns.max);
    case "length-or-error":
      return signedRange(BigInt(MIN_ERRNO), found.size);
    case "void":
      return uninit;
    case "map-value-or-null": {
      const { valueBytes } = mapOf(step, found);
      return { ...pointerTo("map-value", valueBytes, found.map), nullId: machine.newId() };
    }
    case "record-or-null": {
      if (state.refs.length >= MAX_REFERENCES)
        reject(`more than ${MAX_REFERENCES} records are reserved at once`);
      const ref = machine.newId();
      state.refs = [...state.refs, { id: ref, at }];
      return { ...pointerTo("record", found.recordBytes), nullId: machine.newId(), ref };
    }
  }
}

function integer(low: bigint = S64_MIN, high: bigint = S64_MAX): Scalar {
  return signedRange(low, high);
}
