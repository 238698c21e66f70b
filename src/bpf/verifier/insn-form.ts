/**
 * The form of one instruction (RFC 9669, sections 3 to 5): a known opcode, registers that exist, nothing in reserved
 * fields, helpers and maps that exist.
 */
import { findHelper, findHelperName, findRefusal } from "../helpers.ts";
import type { Insn } from "../insn.ts";
import * as op from "../opcodes.ts";
import type { MapSpec } from "../program.ts";
import { MAX_OFFSET } from "./access.ts";
import { FRAME_POINTER } from "./state.ts";

const MAX_REG = FRAME_POINTER;

/** Undefined: a legal instruction. */
export function wrongInsn(insn: Insn, next: Insn | undefined, maps: readonly MapSpec[]): string | undefined {
  if (insn.dst > MAX_REG) return `R${insn.dst} is invalid`;
  if (insn.src > MAX_REG) return `R${insn.src} is invalid`;
  switch (op.classOf(insn.opcode)) {
    case op.CLASS_ALU:
    case op.CLASS_ALU64:
      return wrongAlu(insn) ?? wrongDestination(insn.dst);
    case op.CLASS_JMP:
    case op.CLASS_JMP32:
      return wrongJump(insn);
    case op.CLASS_LD:
      return wrongLoadImm64(insn, next, maps);
    case op.CLASS_LDX:
      return wrongLoad(insn) ?? wrongDestination(insn.dst);
    case op.CLASS_ST:
      if (op.modeOf(insn.opcode) !== op.MODE_MEM) return unknownOpcode(insn);
      return insn.src === 0 ? undefined : "BPF_ST uses reserved fields";
    default:
      return wrongStore(insn);
  }
}

function unknownOpcode(insn: Insn): string {
  return `unknown opcode ${insn.opcode.toString(16).padStart(2, "0")}`;
}

function wrongDestination(reg: number): string | undefined {
  return reg === FRAME_POINTER ? "frame pointer is read only" : undefined;
}

function wrongAlu(insn: Insn): string | undefined {
  const { opcode, src, off, imm } = insn;
  const bySrc = op.isSrcReg(opcode);
  const is64 = op.classOf(opcode) === op.CLASS_ALU64;
  const code = op.opOf(opcode);
  switch (code) {
    case op.ALU_NEG:
      return bySrc || src !== 0 || off !== 0 || imm !== 0 ? "BPF_NEG uses reserved fields" : undefined;
    case op.ALU_END:
      if (imm !== 16 && imm !== 32 && imm !== 64) return "BPF_END uses reserved fields";
      return src !== 0 || off !== 0 || (is64 && bySrc) ? "BPF_END uses reserved fields" : undefined;
    case op.ALU_MOV: {
      if (bySrc ? imm !== 0 : src !== 0) return "BPF_MOV uses reserved fields";
      const extends_ = off === 8 || off === 16 || (off === 32 && is64);
      return off === 0 || (bySrc && extends_) ? undefined : "BPF_MOV uses reserved fields";
    }
    default: {
      if (code > op.ALU_END) return unknownOpcode(insn);
      if (bySrc ? imm !== 0 : src !== 0) return "BPF_ALU uses reserved fields";
      const maySign = code === op.ALU_DIV || code === op.ALU_MOD;
      return off === 0 || (maySign && off === 1) ? undefined : "BPF_ALU uses reserved fields";
    }
  }
}

function wrongJump(insn: Insn): string | undefined {
  const { opcode, dst, src, off, imm } = insn;
  const is32 = op.classOf(opcode) === op.CLASS_JMP32;
  const bySrc = op.isSrcReg(opcode);
  switch (op.opOf(opcode)) {
    case op.JMP_JA:
      if (bySrc) return unknownOpcode(insn);
      return dst !== 0 || src !== 0 || (is32 ? off : imm) !== 0 ? "BPF_JA uses reserved fields" : undefined;
    case op.JMP_EXIT:
      if (is32 || bySrc) return unknownOpcode(insn);
      return dst !== 0 || src !== 0 || off !== 0 || imm !== 0 ? "BPF_EXIT uses reserved fields" : undefined;
    case op.JMP_CALL:
      if (is32 || bySrc) return unknownOpcode(insn);
      return wrongCall(insn);
    default:
      if (!op.isConditionalJump(opcode) || op.opOf(opcode) > op.JMP_JSLE) return unknownOpcode(insn);
      return (bySrc ? imm : src) !== 0 ? "BPF_JMP uses reserved fields" : undefined;
  }
}

function wrongCall({ dst, src, off, imm }: Insn): string | undefined {
  if (dst !== 0 || off !== 0) return "BPF_CALL uses reserved fields";
  if (src === op.CALL_LOCAL) return undefined;
  if (src === op.CALL_PLATFORM)
    return `calling kernel function ${imm} is not allowed: a process has no functions for programs`;
  if (src !== op.CALL_HELPER) return "BPF_CALL uses reserved fields";
  if (findHelper(imm)) return undefined;
  const name = findHelperName(imm);
  if (name === undefined) return `invalid func unknown#${imm}`;
  const reason = findRefusal(imm);
  const refusal = `program of this type cannot use helper ${name}#${imm}`;
  return reason === undefined ? refusal : `${refusal}: ${reason}`;
}

function wrongLoadImm64(insn: Insn, next: Insn | undefined, maps: readonly MapSpec[]): string | undefined {
  const mode = op.modeOf(insn.opcode);
  if (mode === op.MODE_ABS || mode === op.MODE_IND) {
    return "BPF_LD_[ABS|IND] instructions not allowed for this program type";
  }
  if (insn.opcode !== op.OP_LDIMM64) return unknownOpcode(insn);
  if (next?.opcode !== 0) return "invalid bpf_ld_imm64 insn";
  if (insn.off !== 0 || next.dst !== 0 || next.src !== 0 || next.off !== 0) {
    return "BPF_LD_IMM64 uses reserved fields";
  }
  switch (insn.src) {
    case op.PSEUDO_NONE:
      return wrongDestination(insn.dst);
    case op.PSEUDO_MAP_FD:
    case op.PSEUDO_MAP_VALUE:
    case op.PSEUDO_MAP_INDEX:
    case op.PSEUDO_MAP_INDEX_VALUE:
      return wrongMap(insn, next, maps) ?? wrongDestination(insn.dst);
    case op.PSEUDO_VARIABLE:
      return `pseudo btf_id ${insn.imm} is refused: a process has no variables for programs`;
    case op.PSEUDO_FUNCTION:
      // Where it leads is checked together with calls.
      return next.imm === 0 ? wrongDestination(insn.dst) : "unrecognized bpf_ld_imm64 insn";
    default:
      return `unrecognized bpf_ld_imm64 insn: source ${insn.src} is not supported`;
  }
}

function wrongMap(insn: Insn, next: Insn, maps: readonly MapSpec[]): string | undefined {
  const spec = maps[insn.imm];
  if (!spec) return `map ${insn.imm} does not exist: there are ${maps.length}`;
  if (insn.src === op.PSEUDO_MAP_FD || insn.src === op.PSEUDO_MAP_INDEX) {
    return next.imm === 0 ? undefined : "unrecognized bpf_ld_imm64 insn";
  }
  if (spec.kind !== "array") return "no direct value access support for this map type";
  const off = next.imm >>> 0;
  if (off < spec.valueBytes) return undefined;
  return off < MAX_OFFSET
    ? `invalid access to map value pointer, value_size=${spec.valueBytes} off=${off}`
    : `direct value offset of ${off} is not allowed`;
}

function wrongLoad(insn: Insn): string | undefined {
  const mode = op.modeOf(insn.opcode);
  const extends_ = mode === op.MODE_MEMSX;
  if (mode !== op.MODE_MEM && !(extends_ && op.sizeBytesOf(insn.opcode) < 8)) return unknownOpcode(insn);
  return insn.imm === 0 ? undefined : "BPF_LDX uses reserved fields";
}

function wrongStore(insn: Insn): string | undefined {
  const mode = op.modeOf(insn.opcode);
  if (mode === op.MODE_MEM) return insn.imm === 0 ? undefined : "BPF_STX uses reserved fields";
  if (mode !== op.MODE_ATOMIC) return unknownOpcode(insn);
  if (op.sizeBytesOf(insn.opcode) < 4) return "invalid atomic operand size";
  if (!op.isAtomicOp(insn.imm))
    return `BPF_ATOMIC uses invalid atomic opcode ${(insn.imm >>> 0).toString(16).padStart(2, "0")}`;
  const loads = (insn.imm & op.ATOMIC_FETCH) !== 0 && insn.imm !== op.ATOMIC_CMPXCHG;
  return loads ? wrongDestination(insn.src) : undefined;
}
