/** The log of a rejected program: the path to the mistake, what was known there, and the message, as the kernel writes it. */
import type { Insn } from "../insn.ts";
import type { MapSpec } from "../program.ts";
import { printInsn } from "../text-print.ts";
import { printBits } from "./access.ts";
import { isConstant, S32_MAX, S32_MIN, S64_MAX, S64_MIN, type Scalar, U32_MAX, U64_MAX } from "./scalar.ts";
import { BYTE_MISC, BYTE_UNINIT, BYTE_VALUE, BYTE_ZERO, type Slot, STACK_BYTES } from "./stack.ts";
import type { State } from "./state.ts";
import { isFixed, type Pointer, typeName, type Value } from "./value.ts";

/** Instructions with their index and opcode, one a line. */
export function printPath(insns: readonly Insn[], path: readonly number[]): string {
  return path
    .filter((at) => at < insns.length)
    .map((at) => `${at}: (${insns[at]!.opcode.toString(16).padStart(2, "0")}) ${printInsn(insns, at)}\n`)
    .join("");
}

/** All that is known, on one line. */
export function printState(state: State, maps: readonly MapSpec[]): string {
  const parts: string[] = [];
  state.regs.forEach((value, reg) => {
    if (value.kind !== "uninit") parts.push(`R${reg}=${printValue(value, maps)}`);
  });
  state.slots.forEach((slot, i) => {
    if (slot) parts.push(`fp${i * 8 - STACK_BYTES}=${printSlot(slot, maps)}`);
  });
  if (state.refs.length > 0) parts.push(`refs=${state.refs.map(({ id }) => id).join(",")}`);
  return parts.join(" ");
}

export function printValue(value: Value, maps: readonly MapSpec[]): string {
  if (value.kind === "uninit") return "?";
  return value.kind === "scalar" ? printScalar(value) : printPointer(value, maps);
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

function printPointer(pointer: Pointer, maps: readonly MapSpec[]): string {
  if (pointer.to === "stack" && isFixed(pointer)) return `fp${pointer.off}`;
  const fields: string[] = [];
  const map = maps[pointer.map];
  if (pointer.nullId !== 0) fields.push(`id=${pointer.nullId}`);
  if (pointer.ref !== 0) fields.push(`ref_obj_id=${pointer.ref}`);
  if (pointer.off !== 0) fields.push(`off=${pointer.off}`);
  if (map) fields.push(`map=${map.name},ks=${map.keyBytes},vs=${map.valueBytes}`);
  else if (pointer.lenBytes !== 0) fields.push(`sz=${pointer.lenBytes}`);
  if (!isFixed(pointer)) {
    const { variable } = pointer;
    fields.push(`smin=${variable.smin},smax=${variable.smax},var_off=${printBits(variable)}`);
  }
  return `${typeName(pointer)}(${fields.join(",")})`;
}

const byteLetters = { [BYTE_UNINIT]: "?", [BYTE_MISC]: "m", [BYTE_ZERO]: "0", [BYTE_VALUE]: "r" } as const;

/** A value, or a letter per byte from the highest down: `m` anything, `0` zero, `r` part of a number, `?` unwritten. */
function printSlot(slot: Slot, maps: readonly MapSpec[]): string {
  if (slot.whole) return printValue(slot.whole, maps);
  return slot.bytes
    .map((kind) => byteLetters[kind])
    .reverse()
    .join("");
}
