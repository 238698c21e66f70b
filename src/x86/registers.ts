/**
 * The sixteen general-purpose registers, sets of them, and their places in `struct pt_regs`.
 *
 * A register is its encoding number (Intel SDM 2A, table 2-2), so that it can be put into ModRM and REX fields
 * as it is. Sets are bit masks: bit n stands for register n.
 */

export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RBP = 5;
export const RSI = 6;
export const RDI = 7;
export const R8 = 8;
export const R9 = 9;
export const R10 = 10;
export const R11 = 11;
export const R12 = 12;
export const R13 = 13;
export const R14 = 14;
export const R15 = 15;

/** Encoding number of a 64-bit general-purpose register, 0 to 15. */
export type Reg = number;

/** Names by encoding number. */
export const regNames: readonly string[] = [
  "rax",
  "rcx",
  "rdx",
  "rbx",
  "rsp",
  "rbp",
  "rsi",
  "rdi",
  "r8",
  "r9",
  "r10",
  "r11",
  "r12",
  "r13",
  "r14",
  "r15",
];

/** A set of general-purpose registers: bit n stands for register n. */
export type RegSet = number;

export function regSet(...regs: readonly Reg[]): RegSet {
  return regs.reduce((set, reg) => set | (1 << reg), 0);
}

export function hasReg(set: RegSet, reg: Reg): boolean {
  return ((set >>> reg) & 1) === 1;
}

/** The members in encoding order. */
export function regsOf(set: RegSet): Reg[] {
  const regs: Reg[] = [];
  for (let reg = 0; reg < 16; reg++) if (hasReg(set, reg)) regs.push(reg);
  return regs;
}

/**
 * Size of `struct pt_regs` in bytes, as Linux defines it for x86-64 (arch/x86/include/uapi/asm/ptrace.h).
 * It is the context of a probe program.
 */
export const PT_REGS_BYTES = 168;

/** Byte offset of each general-purpose register in `struct pt_regs`, by encoding number. */
export const ptRegsOffset: readonly number[] = [
  80, // rax
  88, // rcx
  96, // rdx
  40, // rbx
  152, // rsp
  32, // rbp
  104, // rsi
  112, // rdi
  72, // r8
  64, // r9
  56, // r10
  48, // r11
  24, // r12
  16, // r13
  8, // r14
  0, // r15
];

/** In a probe's context the `orig_rax` slot carries the attach cookie of the probe that runs. */
export const PT_REGS_COOKIE = 120;
/** Address of the probed instruction; in a return probe the address that is returned to. */
export const PT_REGS_IP = 128;
export const PT_REGS_CS = 136;
export const PT_REGS_FLAGS = 144;
export const PT_REGS_SP = 152;
export const PT_REGS_SS = 160;
