/** The log of a rejected program: the path to the mistake, what was known there, and the message, as the kernel writes it. */
import type { Insn } from "../insn.ts";
import type { MapSpec } from "../program.ts";
import { printInsn } from "../text-print.ts";
import { printBits } from "./access.ts";
import { isConstant, S32_MAX, S32_MIN, S64_MAX, S64_MIN, type Scalar, U32_MAX, U64_MAX } from "./scalar.ts";
import { BYTE_MISC, BYTE_UNINIT, BYTE_VALUE, BYTE_ZERO, type Slot } from "./stack.ts";
import type { State } from "./state.ts";
import { isFixed, type Pointer, typeName, type Value } from "./value.ts";

/** Instructions with their index and opcode, one a line. */
export function printPath(insns: readonly Insn[], path: readonly number[]): string {
  return path
    .filter((at) => at < insns.length)
    .map((at) => `${at}: (${insns[at]!.opcode.toString(16).padStart(2, "0")}) ${printInsn(insns, at)}\n`)
    .join("");
}

/** Where functions start, where there are several; as the kernel's log begins. */
export function printFunctions(starts: readonly number[]): string {
  return starts.length < 2 ? "" : starts.map((start, fn) => `func#${fn} @${start}\n`).join("");
}

/** All that is known: one line for the running function, after those that wait for it. */
export function printState(state: State, maps: MapSpecs): string {
  if (state.depth === 0) return printFrame(state, 0, maps);
  const lines: string[] = [];
  for (let frame = 0; frame <= state.depth; frame++) {
    lines.push(frame === state.depth ? "callee:" : "caller:", ` ${printFrame(state, frame, maps)}`);
  }
  return lines.join("\n");
}

function printFrame(state: State, frame: number, maps: MapSpecs): string {
  const parts = frame === 0 ? [] : [`frame${frame}:`];
  state.regsOf(frame).forEach((value, reg) => {
    if (value.kind !== "uninit") parts.push(`R${reg}=${printValue(value, maps, frame)}`);
  });
  const slots = state.slotsOf(frame);
  for (let i = slots.length - 1; i >= 0; i--) {
    const slot = slots[i];
    if (slot) parts.push(`fp${-8 * (i + 1)}=${printSlot(slot, maps, frame)}`);
  }
  if (frame === state.depth && state.refs.length > 0)
    parts.push(`refs=${state.refs.map(({ id }) => id).join(",")}`);
  return parts.join(" ");
}

/** Gives maps by their number, see `Machine.getMap`. */
export interface MapSpecs {
  readonly getMap: (target: number) => MapSpec;
}

function printValue(value: Value, maps: MapSpecs, frame: number): string {
  if (value.kind === "uninit") return "?";
  return value.kind === "scalar" ? printScalar(value) : printPointer(value, maps, frame);
}

function printScalar(scalar: Scalar): string {
  if (isConstant(scalar)) return `${scalar.smin}`;
  const fields: string[] = [];
  const field = (name: string, value: bigint, trivial: bigint) => {
    if (value !== trivial) fields.push(`${name}=${value}`);
  };
  if (scalar.id !== 0) fields.push(`id=${scalar.id}`);
  field("smin", scalar.smin, S64_MIN);
  field("smax", scalar.smax, S64_MAX);
  field("umin", scalar.umin, 0n);
  field("umax", scalar.umax, U64_MAX);
  field("smin32", scalar.smin32, S32_MIN);
  field("smax32", scalar.smax32, S32_MAX);
  field("umin32", scalar.umin32, 0n);
  field("umax32", scalar.umax32, U32_MAX);
  if (scalar.mask !== U64_MAX) fields.push(`var_off=${printBits(scalar)}`);
  return `scalar(${fields.join(",")})`;
}

function printPointer(pointer: Pointer, maps: MapSpecs, frame: number): string {
  const { to, target } = pointer;
  // As the kernel does it, a pointer to another function's frame says which.
  const name = to === "stack" && target !== frame ? `fp[${target}]` : typeName(pointer);
  if (to === "stack" && isFixed(pointer)) return `${name}${pointer.off}`;
  const fields: string[] = [];
  if (pointer.nullId !== 0) fields.push(`id=${pointer.nullId}`);
  if (pointer.ref !== 0) fields.push(`ref_obj_id=${pointer.ref}`);
  if (pointer.off !== 0) fields.push(`off=${pointer.off}`);
  if (to === "map" || to === "map-value" || to === "map-key") {
    const map = maps.getMap(target);
    fields.push(`map=${map.name},ks=${map.keyBytes},vs=${map.valueBytes}`);
  } else if (to === "function") {
    fields.push(`insn=${target}`);
  } else if (pointer.lenBytes !== 0) {
    fields.push(`sz=${pointer.lenBytes}`);
  }
  if (!isFixed(pointer)) {
    const { variable } = pointer;
    fields.push(`smin=${variable.smin},smax=${variable.smax},var_off=${printBits(variable)}`);
  }
  return `${name}(${fields.join(",")})`;
}

const byteLetters = { [BYTE_UNINIT]: "?", [BYTE_MISC]: "m", [BYTE_ZERO]: "0", [BYTE_VALUE]: "r" } as const;

/** A value, or a letter per byte from the highest down: `m` anything, `0` zero, `r` part of a number, `?` unwritten. */
function printSlot(slot: Slot, maps: MapSpecs, frame: number): string {
  if (slot.whole) return printValue(slot.whole, maps, frame);
  return slot.bytes
    .map((kind) => byteLetters[kind])
    .reverse()
    .join("");
}
