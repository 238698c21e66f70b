/**
 * The cells of a ring buffer. The kernel's ring has a size in bytes; ours has cells of one size, for the largest record
 * that programs reserve. So the records that are reserved decide how many cells the ring's bytes are.
 */
import { HELPER_RINGBUF_RESERVE } from "../helpers.ts";
import type { Insn } from "../insn.ts";
import {
  ALU_MOV,
  CALL_HELPER,
  CLASS_ALU,
  CLASS_ALU64,
  classOf,
  isSrcReg,
  OP_CALL,
  OP_LDIMM64,
  opOf,
  PSEUDO_MAP_FD,
} from "../opcodes.ts";
import type { MapSpec } from "../program.ts";

/** What a record takes in the kernel's ring besides itself. */
const RECORD_HEADER_BYTES = 8;
/** For a ring that nothing is reserved from in a way that we see. */
const OTHERWISE_BYTES = 256;
const MAP_ARGUMENT = 1;
const SIZE_ARGUMENT = 2;
/** Slots before a call that are searched for its arguments. */
const SEARCHED_SLOTS = 64;

/** `spec.maxEntries` is in bytes, as the kernel has it; the result's in cells. */
export function fitRing(spec: MapSpec, index: number, programs: readonly (readonly Insn[])[]): MapSpec {
  const sizes = programs.flatMap((insns) => reservedSizes(insns, index));
  const valueBytes = sizes.length > 0 ? Math.max(...sizes) : OTHERWISE_BYTES;
  const cellBytes = Math.ceil(valueBytes / 8) * 8 + RECORD_HEADER_BYTES;
  return { ...spec, valueBytes, maxEntries: Math.max(2, Math.floor(spec.maxEntries / cellBytes)) };
}

/** Constant sizes of the records that may be reserved from map `index`. */
function reservedSizes(insns: readonly Insn[], index: number): number[] {
  return insns.flatMap(({ opcode, src, imm }, at) => {
    if (opcode !== OP_CALL || src !== CALL_HELPER || imm !== HELPER_RINGBUF_RESERVE) return [];
    const map = lastSetting(insns, at, MAP_ARGUMENT);
    const size = lastSetting(insns, at, SIZE_ARGUMENT);
    const isOther = map?.opcode === OP_LDIMM64 && map.src === PSEUDO_MAP_FD && map.imm !== index;
    const isConstant = size !== undefined && opOf(size.opcode) === ALU_MOV && !isSrcReg(size.opcode);
    return isOther || !isConstant || size.imm <= 0 ? [] : [size.imm];
  });
}

/** The last instruction before `at` that computes a register. */
function lastSetting(insns: readonly Insn[], at: number, reg: number): Insn | undefined {
  for (let slot = at - 1; slot >= Math.max(0, at - SEARCHED_SLOTS); slot--) {
    const insn = insns[slot]!;
    const cls = classOf(insn.opcode);
    if (insn.dst === reg && (insn.opcode === OP_LDIMM64 || cls === CLASS_ALU || cls === CLASS_ALU64))
      return insn;
  }
  return undefined;
}
