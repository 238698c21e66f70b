/** Operators and type names of the text form; one table for printing and parsing. */
import {
  ALU_ADD,
  ALU_AND,
  ALU_ARSH,
  ALU_DIV,
  ALU_LSH,
  ALU_MOD,
  ALU_MUL,
  ALU_OR,
  ALU_RSH,
  ALU_SUB,
  ALU_XOR,
  ATOMIC_ADD,
  ATOMIC_AND,
  ATOMIC_OR,
  ATOMIC_XOR,
  JMP_JEQ,
  JMP_JGE,
  JMP_JGT,
  JMP_JLE,
  JMP_JLT,
  JMP_JNE,
  JMP_JSET,
  JMP_JSGE,
  JMP_JSGT,
  JMP_JSLE,
  JMP_JSLT,
  SIZE_B,
  SIZE_DW,
  SIZE_H,
  SIZE_W,
} from "./opcodes.ts";

/** Two-way lookup. */
export interface NameTable {
  readonly nameOf: ReadonlyMap<number, string>;
  readonly numberOf: ReadonlyMap<string, number>;
}

/** Arithmetic operators without their `=`; signed division and modulo get an `s` before. */
export const aluSymbols = table([
  [ALU_ADD, "+"],
  [ALU_SUB, "-"],
  [ALU_MUL, "*"],
  [ALU_DIV, "/"],
  [ALU_MOD, "%"],
  [ALU_OR, "|"],
  [ALU_AND, "&"],
  [ALU_XOR, "^"],
  [ALU_LSH, "<<"],
  [ALU_RSH, ">>"],
  [ALU_ARSH, "s>>"],
]);

export const jumpSymbols = table([
  [JMP_JEQ, "=="],
  [JMP_JNE, "!="],
  [JMP_JGT, ">"],
  [JMP_JGE, ">="],
  [JMP_JLT, "<"],
  [JMP_JLE, "<="],
  [JMP_JSET, "&"],
  [JMP_JSGT, "s>"],
  [JMP_JSGE, "s>="],
  [JMP_JSLT, "s<"],
  [JMP_JSLE, "s<="],
]);

export const atomicSymbols = table([
  [ATOMIC_ADD, "+"],
  [ATOMIC_OR, "|"],
  [ATOMIC_AND, "&"],
  [ATOMIC_XOR, "^"],
]);

export const atomicNames = table([
  [ATOMIC_ADD, "add"],
  [ATOMIC_OR, "or"],
  [ATOMIC_AND, "and"],
  [ATOMIC_XOR, "xor"],
]);

/** Widths of memory accesses in bits. */
export const sizeNames = table([
  [SIZE_B, "8"],
  [SIZE_H, "16"],
  [SIZE_W, "32"],
  [SIZE_DW, "64"],
]);

function table(rows: readonly (readonly [number, string])[]): NameTable {
  return { nameOf: new Map(rows), numberOf: new Map(rows.map(([number, name]) => [name, number])) };
}
