/**
 * Instructions as text, in the C-like form of verifier logs and llvm-objdump:
 *
 *     r1 = *(u64 *)(r2 +8)      if r1 s> 5 goto +3      lock *(u64 *)(r0 +0) += r1      call bpf_map_lookup_elem#1
 *
 * `w` registers are the low halves. `ldimm64` ends in `ll` or names what it loads: a map or a value in it by the index
 * of the map (`map[0]`, `map[0][0]+16`; `map[idx:0]` where the source says index and not descriptor), a function of the
 * program (`subprog[+3]`, counted from the next slot), a variable of the platform (`var[7]`).
 * Everything can be printed: a slot that is no instruction, or that has something in a reserved field, becomes
 * `.8byte 0x...`, so that text and slots convert both ways without loss.
 */
import { findHelperName } from "./helpers.ts";
import { encodeInsns, type Insn, imm64Of } from "./insn.ts";
import {
  ALU_DIV,
  ALU_END,
  ALU_MOD,
  ALU_MOV,
  ALU_NEG,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  ATOMIC_XCHG,
  CALL_HELPER,
  CALL_LOCAL,
  CALL_PLATFORM,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_JMP,
  CLASS_JMP32,
  CLASS_LD,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
  classOf,
  isSrcReg,
  MODE_ABS,
  MODE_ATOMIC,
  MODE_IND,
  MODE_MEM,
  MODE_MEMSX,
  modeOf,
  OP_CALL,
  OP_CALLX,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  OP_LDIMM64,
  opOf,
  PSEUDO_FUNCTION,
  PSEUDO_MAP_FD,
  PSEUDO_MAP_INDEX,
  PSEUDO_MAP_INDEX_VALUE,
  PSEUDO_MAP_VALUE,
  PSEUDO_NONE,
  PSEUDO_VARIABLE,
  SIZE_DW,
  sizeBytesOf,
} from "./opcodes.ts";
import { aluSymbols, atomicNames, atomicSymbols, jumpSymbols, sizeNames } from "./text-names.ts";

/** The whole program, one instruction per line, each after its slot index. */
export function printProgram(insns: readonly Insn[]): string {
  const width = String(Math.max(0, insns.length - 1)).length;
  let text = "";
  for (let at = 0; at < insns.length; at += slotsOf(insns, at)) {
    text += `${String(at).padStart(width)}: ${printInsn(insns, at)}\n`;
  }
  return text;
}

/** The instruction at slot `at`. */
export function printInsn(insns: readonly Insn[], at: number): string {
  const insn = insns[at];
  if (!insn) throw new RangeError(`print bpf insn ${at}: the program has ${insns.length}`);
  return (slotsOf(insns, at) === 2 ? wide(insn, insns[at + 1]!) : single(insn)) ?? rawSlot(insn);
}

/** How many slots the instruction at `at` takes: 2 for a whole `ldimm64` that can be written as one. */
function slotsOf(insns: readonly Insn[], at: number): 1 | 2 {
  const high = insns[at + 1];
  return high && wide(insns[at]!, high) !== undefined ? 2 : 1;
}

function rawSlot(insn: Insn): string {
  const value = new DataView(encodeInsns([insn]).buffer).getBigUint64(0, true);
  return `.8byte 0x${value.toString(16)}`;
}

function wide(low: Insn, high: Insn): string | undefined {
  if (low.opcode !== OP_LDIMM64 || low.off !== 0 || !isReg(low.dst)) return undefined;
  if (high.opcode !== 0 || high.dst !== 0 || high.src !== 0 || high.off !== 0) return undefined;
  // Indexes are written without a sign.
  if (low.imm < 0 && low.src !== PSEUDO_NONE && low.src !== PSEUDO_FUNCTION) return undefined;
  switch (low.src) {
    case PSEUDO_NONE:
      return `r${low.dst} = 0x${imm64Of(low, high).toString(16)} ll`;
    case PSEUDO_MAP_FD:
      return high.imm === 0 ? `r${low.dst} = map[${low.imm}]` : undefined;
    case PSEUDO_MAP_VALUE:
      return `r${low.dst} = map[${low.imm}][0]${signed(high.imm)}`;
    case PSEUDO_MAP_INDEX:
      return high.imm === 0 ? `r${low.dst} = map[idx:${low.imm}]` : undefined;
    case PSEUDO_MAP_INDEX_VALUE:
      return `r${low.dst} = map[idx:${low.imm}][0]${signed(high.imm)}`;
    case PSEUDO_FUNCTION:
      return high.imm === 0 ? `r${low.dst} = subprog[${signed(low.imm)}]` : undefined;
    case PSEUDO_VARIABLE:
      return high.imm === 0 ? `r${low.dst} = var[${low.imm}]` : undefined;
    default:
      return undefined;
  }
}

/** Undefined: not an instruction of one slot. */
function single(insn: Insn): string | undefined {
  if (!isReg(insn.dst)) return undefined;
  switch (classOf(insn.opcode)) {
    case CLASS_ALU:
    case CLASS_ALU64:
      return alu(insn);
    case CLASS_JMP:
    case CLASS_JMP32:
      return jump(insn);
    case CLASS_LD:
      return legacyLoad(insn);
    case CLASS_LDX:
      return load(insn);
    case CLASS_ST:
      return modeOf(insn.opcode) === MODE_MEM && insn.src === 0
        ? `${place(insn.opcode, insn.dst, insn.off)} = ${insn.imm}`
        : undefined;
    case CLASS_STX:
      return store(insn);
    default:
      return undefined;
  }
}

function alu(insn: Insn): string | undefined {
  const { dst, src, off, imm } = insn;
  const op = opOf(insn.opcode);
  const is64 = classOf(insn.opcode) === CLASS_ALU64;
  const letter = is64 ? "r" : "w";
  const bySrc = isSrcReg(insn.opcode);
  if (op === ALU_END) {
    if ((imm !== 16 && imm !== 32 && imm !== 64) || src !== 0 || off !== 0 || (is64 && bySrc))
      return undefined;
    const name = is64 ? "bswap" : bySrc ? "be" : "le";
    return `r${dst} = ${name}${imm} r${dst}`;
  }
  if (op === ALU_NEG) {
    return bySrc || src !== 0 || off !== 0 || imm !== 0 ? undefined : `${letter}${dst} = -${letter}${dst}`;
  }
  if (bySrc ? imm !== 0 || !isReg(src) : src !== 0) return undefined;
  const operand = bySrc ? `${letter}${src}` : `${imm}`;
  if (op === ALU_MOV) {
    if (off === 0) return `${letter}${dst} = ${operand}`;
    const canExtend = bySrc && (off === 8 || off === 16 || (off === 32 && is64));
    return canExtend ? `${letter}${dst} = (s${off})${operand}` : undefined;
  }
  const symbol = aluSymbols.nameOf.get(op);
  const isSigned = off === 1 && (op === ALU_DIV || op === ALU_MOD);
  if (symbol === undefined || (off !== 0 && !isSigned)) return undefined;
  return `${letter}${dst} ${isSigned ? "s" : ""}${symbol}= ${operand}`;
}

function jump(insn: Insn): string | undefined {
  const { dst, src, off, imm } = insn;
  const isBare = dst === 0 && src === 0;
  switch (insn.opcode) {
    case OP_JA:
      return isBare && imm === 0 ? `goto ${signed(off)}` : undefined;
    case OP_JA32:
      return isBare && off === 0 ? `gotol ${signed(imm)}` : undefined;
    case OP_EXIT:
      return isBare && off === 0 && imm === 0 ? "exit" : undefined;
    case OP_CALL:
      if (dst !== 0 || off !== 0) return undefined;
      if (src === CALL_HELPER)
        return imm >= 0 ? `call ${findHelperName(imm) ?? "unknown"}#${imm}` : undefined;
      if (src === CALL_PLATFORM) return imm >= 0 ? `call kernel-function#${imm}` : undefined;
      return src === CALL_LOCAL ? `call pc${signed(imm)}` : undefined;
    case OP_CALLX:
      return src === 0 && off === 0 && imm === 0 ? `callx r${dst}` : undefined;
    default: {
      const symbol = jumpSymbols.nameOf.get(opOf(insn.opcode));
      const bySrc = isSrcReg(insn.opcode);
      if (symbol === undefined || (bySrc ? imm !== 0 || !isReg(src) : src !== 0)) return undefined;
      const letter = classOf(insn.opcode) === CLASS_JMP ? "r" : "w";
      return `if ${letter}${dst} ${symbol} ${bySrc ? `${letter}${src}` : imm} goto ${signed(off)}`;
    }
  }
}

function legacyLoad(insn: Insn): string | undefined {
  const { dst, src, off, imm } = insn;
  const mode = modeOf(insn.opcode);
  const type = typeOf(insn.opcode, "u");
  if (dst !== 0 || off !== 0) return undefined;
  if (mode === MODE_ABS && src === 0) return `r0 = *(${type} *)skb[${imm}]`;
  if (mode === MODE_IND && isReg(src)) return `r0 = *(${type} *)skb[r${src} ${signed(imm)}]`;
  return undefined;
}

function load(insn: Insn): string | undefined {
  const mode = modeOf(insn.opcode);
  const extends_ = mode === MODE_MEMSX;
  if ((mode !== MODE_MEM && !extends_) || insn.imm !== 0 || !isReg(insn.src)) return undefined;
  if (extends_ && (insn.opcode & 0x18) === SIZE_DW) return undefined;
  return `r${insn.dst} = ${place(insn.opcode, insn.src, insn.off, extends_ ? "s" : "u")}`;
}

function store(insn: Insn): string | undefined {
  const { dst, src, off, imm } = insn;
  if (!isReg(src)) return undefined;
  const mode = modeOf(insn.opcode);
  if (mode === MODE_MEM) return imm === 0 ? `${place(insn.opcode, dst, off)} = r${src}` : undefined;
  const lenBytes = sizeBytesOf(insn.opcode);
  if (mode !== MODE_ATOMIC || lenBytes < 4) return undefined;
  const prefix = lenBytes === 8 ? "atomic64" : "atomic";
  const where = `(${typeOf(insn.opcode, "u")} *)(r${dst} ${signed(off)})`;
  if (imm === ATOMIC_XCHG) return `r${src} = ${prefix}_xchg(${where}, r${src})`;
  if (imm === ATOMIC_CMPXCHG) return `r0 = ${prefix}_cmpxchg(${where}, r0, r${src})`;
  const op = imm & ~ATOMIC_FETCH;
  const symbol = atomicSymbols.nameOf.get(op);
  if (symbol === undefined) return undefined;
  if (imm === op) return `lock *${where} ${symbol}= r${src}`;
  return `r${src} = ${prefix}_fetch_${atomicNames.nameOf.get(op)}(${where}, r${src})`;
}

function place(opcode: number, base: number, off: number, sign: "u" | "s" = "u"): string {
  return `*(${typeOf(opcode, sign)} *)(r${base} ${signed(off)})`;
}

function typeOf(opcode: number, sign: "u" | "s"): string {
  return sign + sizeNames.nameOf.get(opcode & 0x18)!;
}

function signed(value: number): string {
  return value < 0 ? `${value}` : `+${value}`;
}

function isReg(reg: number): boolean {
  return reg <= 10;
}
