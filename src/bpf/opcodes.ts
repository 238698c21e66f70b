/**
 * The numbers inside an eBPF opcode (RFC 9669, sections 3 to 5).
 *
 *       arithmetic and jumps             loads and stores
 *      7        4   3   2    0          7      5 4   3 2    0
 *     +----------+---+--------+        +--------+-----+-------+
 *     |    op    | s | class  |        |  mode  | size| class |
 *     +----------+---+--------+        +--------+-----+-------+
 *
 * `s` 0: the second operand is `imm`; 1: it is the register `src`.
 */

export const CLASS_LD = 0x00;
export const CLASS_LDX = 0x01;
export const CLASS_ST = 0x02;
export const CLASS_STX = 0x03;
export const CLASS_ALU = 0x04;
export const CLASS_JMP = 0x05;
export const CLASS_JMP32 = 0x06;
export const CLASS_ALU64 = 0x07;

export const SRC_K = 0x00;
export const SRC_X = 0x08;

export const SIZE_W = 0x00;
export const SIZE_H = 0x08;
export const SIZE_B = 0x10;
export const SIZE_DW = 0x18;

export const MODE_IMM = 0x00;
/** Legacy packet access; refused by name. */
export const MODE_ABS = 0x20;
/** Legacy packet access; refused by name. */
export const MODE_IND = 0x40;
export const MODE_MEM = 0x60;
export const MODE_MEMSX = 0x80;
export const MODE_ATOMIC = 0xc0;

export const ALU_ADD = 0x00;
export const ALU_SUB = 0x10;
export const ALU_MUL = 0x20;
/** With `off` 1 it is signed. */
export const ALU_DIV = 0x30;
export const ALU_OR = 0x40;
export const ALU_AND = 0x50;
export const ALU_LSH = 0x60;
export const ALU_RSH = 0x70;
export const ALU_NEG = 0x80;
/** With `off` 1 it is signed. */
export const ALU_MOD = 0x90;
export const ALU_XOR = 0xa0;
/** With `off` 8, 16 or 32 it sign-extends that many bits of `src`. */
export const ALU_MOV = 0xb0;
export const ALU_ARSH = 0xc0;
/** Byte order; `imm` is the width in bits. */
export const ALU_END = 0xd0;

export const JMP_JA = 0x00;
export const JMP_JEQ = 0x10;
export const JMP_JGT = 0x20;
export const JMP_JGE = 0x30;
export const JMP_JSET = 0x40;
export const JMP_JNE = 0x50;
export const JMP_JSGT = 0x60;
export const JMP_JSGE = 0x70;
export const JMP_CALL = 0x80;
export const JMP_EXIT = 0x90;
export const JMP_JLT = 0xa0;
export const JMP_JLE = 0xb0;
export const JMP_JSLT = 0xc0;
export const JMP_JSLE = 0xd0;

/** Atomic operations are in `imm`. */
export const ATOMIC_ADD = 0x00;
export const ATOMIC_OR = 0x40;
export const ATOMIC_AND = 0x50;
export const ATOMIC_XOR = 0xa0;
/** Added to one of the four above: `src` receives the old value. */
export const ATOMIC_FETCH = 0x01;
export const ATOMIC_XCHG = 0xe1;
export const ATOMIC_CMPXCHG = 0xf1;

/** `ldimm64` by its `src`: a plain number. */
export const PSEUDO_NONE = 0;
/** `ldimm64` by its `src`: the map with index `imm`. */
export const PSEUDO_MAP_FD = 1;
/** `ldimm64` by its `src`: the address of element 0 of map `imm`, plus the second slot's `imm`. */
export const PSEUDO_MAP_VALUE = 2;
/** `ldimm64` by its `src`: the address of a variable of the platform, of which there are none. */
export const PSEUDO_VARIABLE = 3;
/** `ldimm64` by its `src`: the function of the program that starts at the next slot plus `imm`; for callbacks. */
export const PSEUDO_FUNCTION = 4;
/** `ldimm64` by its `src`: as PSEUDO_MAP_FD. */
export const PSEUDO_MAP_INDEX = 5;
/** `ldimm64` by its `src`: as PSEUDO_MAP_VALUE. */
export const PSEUDO_MAP_INDEX_VALUE = 6;

/** `call` by its `src`: a helper with the number `imm`. */
export const CALL_HELPER = 0;
/** `call` by its `src`: a program-local function. */
export const CALL_LOCAL = 1;
/** `call` by its `src`: a function of the platform, of which there are none. */
export const CALL_PLATFORM = 2;

/** `ldimm64`, which takes two slots. */
export const OP_LDIMM64 = CLASS_LD | SIZE_DW | MODE_IMM;
/** `goto` with a 16-bit offset in `off`. */
export const OP_JA = CLASS_JMP | JMP_JA;
/** `gotol`: a 32-bit offset in `imm`. */
export const OP_JA32 = CLASS_JMP32 | JMP_JA;
export const OP_CALL = CLASS_JMP | JMP_CALL;
/** A call through a register, which compilers emit for function pointers; no platform has it. */
export const OP_CALLX = CLASS_JMP | JMP_CALL | SRC_X;
export const OP_EXIT = CLASS_JMP | JMP_EXIT;

/** The instruction class of an opcode. */
export function classOf(opcode: number): number {
  return opcode & 0x07;
}

/** The operation of an arithmetic or jump opcode. */
export function opOf(opcode: number): number {
  return opcode & 0xf0;
}

/** Whether an arithmetic or jump opcode takes its second operand from `src`. */
export function isSrcReg(opcode: number): boolean {
  return (opcode & SRC_X) !== 0;
}

/** The mode of a load or store opcode. */
export function modeOf(opcode: number): number {
  return opcode & 0xe0;
}

/** The access width of a load or store opcode, in bytes. */
export function sizeBytesOf(opcode: number): 1 | 2 | 4 | 8 {
  switch (opcode & 0x18) {
    case SIZE_B:
      return 1;
    case SIZE_H:
      return 2;
    case SIZE_W:
      return 4;
    default:
      return 8;
  }
}

/** Whether the opcode belongs to one of the two arithmetic classes. */
export function isAlu(opcode: number): boolean {
  const cls = classOf(opcode);
  return cls === CLASS_ALU || cls === CLASS_ALU64;
}

/** Whether the opcode belongs to one of the two jump classes. */
export function isJump(opcode: number): boolean {
  const cls = classOf(opcode);
  return cls === CLASS_JMP || cls === CLASS_JMP32;
}

/** Whether the opcode compares and branches (not goto, call, exit). */
export function isConditionalJump(opcode: number): boolean {
  if (!isJump(opcode)) return false;
  const op = opOf(opcode);
  return op !== JMP_JA && op !== JMP_CALL && op !== JMP_EXIT;
}

/** Whether the `imm` of an atomic instruction names an operation. */
export function isAtomicOp(imm: number): boolean {
  if (imm === ATOMIC_XCHG || imm === ATOMIC_CMPXCHG) return true;
  const op = imm & ~ATOMIC_FETCH;
  return op === ATOMIC_ADD || op === ATOMIC_OR || op === ATOMIC_AND || op === ATOMIC_XOR;
}
