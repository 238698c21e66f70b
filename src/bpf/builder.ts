/**
 * Writes eBPF programs: one method per kind of instruction, labels instead of offsets.
 *
 * Registers are objects (`r0` to `r10`), so that a register can never be mistaken for an immediate. Offsets are
 * filled in by `build()`: a goto that does not reach with 16 bits becomes `gotol`; a conditional jump that does
 * not reach hops over one. Code that no path reaches is left out, because the verifier refuses it and a code
 * generator would have to know where an `exit` ends a branch; only a program with raw jumps is kept as it is. Operands
 * that do not fit their field are bugs of the caller and assert.
 */
import { type Insn, jumpTarget } from "./insn.ts";
import {
  ALU_ADD,
  ALU_AND,
  ALU_ARSH,
  ALU_DIV,
  ALU_END,
  ALU_LSH,
  ALU_MOD,
  ALU_MOV,
  ALU_MUL,
  ALU_NEG,
  ALU_OR,
  ALU_RSH,
  ALU_SUB,
  ALU_XOR,
  ATOMIC_ADD,
  ATOMIC_AND,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  ATOMIC_OR,
  ATOMIC_XCHG,
  ATOMIC_XOR,
  CALL_LOCAL,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_JMP,
  CLASS_JMP32,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
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
  MODE_ATOMIC,
  MODE_MEM,
  MODE_MEMSX,
  OP_CALL,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  OP_LDIMM64,
  PSEUDO_FUNCTION,
  PSEUDO_MAP_FD,
  PSEUDO_MAP_VALUE,
  SIZE_B,
  SIZE_DW,
  SIZE_H,
  SIZE_W,
  SRC_K,
  SRC_X,
} from "./opcodes.ts";
import type { SourcePlace } from "./program.ts";

/** A BPF register. */
export interface BpfReg {
  readonly reg: number;
}

export const r0: BpfReg = { reg: 0 };
export const r1: BpfReg = { reg: 1 };
export const r2: BpfReg = { reg: 2 };
export const r3: BpfReg = { reg: 3 };
export const r4: BpfReg = { reg: 4 };
export const r5: BpfReg = { reg: 5 };
export const r6: BpfReg = { reg: 6 };
export const r7: BpfReg = { reg: 7 };
export const r8: BpfReg = { reg: 8 };
export const r9: BpfReg = { reg: 9 };
/** The frame pointer: the stack lies below it. */
export const r10: BpfReg = { reg: 10 };

/** All registers by number. */
export const bpfRegs: readonly BpfReg[] = [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10];

/** A register, or an immediate: signed 32 bits (32-bit operations also take unsigned 32 bits). */
export type Operand = BpfReg | number;

const aluOps = {
  add: [ALU_ADD, 0],
  sub: [ALU_SUB, 0],
  mul: [ALU_MUL, 0],
  div: [ALU_DIV, 0],
  sdiv: [ALU_DIV, 1],
  or: [ALU_OR, 0],
  and: [ALU_AND, 0],
  lsh: [ALU_LSH, 0],
  rsh: [ALU_RSH, 0],
  mod: [ALU_MOD, 0],
  smod: [ALU_MOD, 1],
  xor: [ALU_XOR, 0],
  mov: [ALU_MOV, 0],
  arsh: [ALU_ARSH, 0],
} as const satisfies Record<string, readonly [op: number, off: number]>;

/** Arithmetic by name; `sdiv` and `smod` are the signed forms. */
export type AluName = keyof typeof aluOps;

const jumpOps = {
  eq: JMP_JEQ,
  ne: JMP_JNE,
  gt: JMP_JGT,
  ge: JMP_JGE,
  lt: JMP_JLT,
  le: JMP_JLE,
  set: JMP_JSET,
  sgt: JMP_JSGT,
  sge: JMP_JSGE,
  slt: JMP_JSLT,
  sle: JMP_JSLE,
} as const;

/** Conditions by name: `gt` is unsigned, `sgt` signed, `set` is `dst & src` not 0. */
export type JumpName = keyof typeof jumpOps;

const sizeBits = { 1: SIZE_B, 2: SIZE_H, 4: SIZE_W, 8: SIZE_DW } as const;

/** Width of a memory access in bytes. */
export type AccessBytes = keyof typeof sizeBits;

const atomicOps = {
  add: ATOMIC_ADD,
  or: ATOMIC_OR,
  and: ATOMIC_AND,
  xor: ATOMIC_XOR,
  fetch_add: ATOMIC_ADD | ATOMIC_FETCH,
  fetch_or: ATOMIC_OR | ATOMIC_FETCH,
  fetch_and: ATOMIC_AND | ATOMIC_FETCH,
  fetch_xor: ATOMIC_XOR | ATOMIC_FETCH,
  xchg: ATOMIC_XCHG,
  cmpxchg: ATOMIC_CMPXCHG,
} as const;

/** Atomic operations; the `fetch_` forms and `xchg` leave the old value in `src`, `cmpxchg` in r0. */
export type AtomicName = keyof typeof atomicOps;

/** A place in a program that jumps and calls can name; made by `InsnBuilder.label`. */
export interface Label {
  readonly name: string;
}

/** A finished program: slots, and the source place of each slot that has one. */
export interface BuiltInsns {
  readonly insns: Insn[];
  readonly places: Map<number, SourcePlace>;
}

/** One instruction (one slot, or the two of `ldimm64`) before its jump offset is known. */
interface Piece {
  readonly slots: Insn[];
  readonly target?: Label;
  readonly place?: SourcePlace;
}

/** Builds one program in order; every method returns the builder. */
export class InsnBuilder {
  readonly #pieces: Piece[] = [];
  /** Index of the piece that a label stands before. */
  readonly #labels = new Map<Label, number>();
  #place: SourcePlace | undefined;

  /** A new label; it may be jumped to before it is placed. */
  label(name = "label"): Label {
    return { name };
  }

  /** Puts `label` before the next instruction. */
  bind(label: Label): this {
    if (this.#labels.has(label)) throw new Error(`place label ${label.name}: it is placed already`);
    this.#labels.set(label, this.#pieces.length);
    return this;
  }

  /** The source place of the instructions that follow. */
  at(place: SourcePlace | undefined): this {
    this.#place = place;
    return this;
  }

  /** How many instructions were added; `ldimm64` counts once. */
  get length(): number {
    return this.#pieces.length;
  }

  /** Adds a finished instruction as it is. */
  raw(...slots: Insn[]): this {
    return this.#add(slots);
  }

  /** `dst = dst op src` on 64 bits (`mov`: `dst = src`). */
  alu64(op: AluName, dst: BpfReg, src: Operand): this {
    return this.#alu(CLASS_ALU64, op, dst, src);
  }

  /** The same on the low 32 bits; the high half becomes 0. */
  alu32(op: AluName, dst: BpfReg, src: Operand): this {
    return this.#alu(CLASS_ALU, op, dst, src);
  }

  mov64(dst: BpfReg, src: Operand): this {
    return this.alu64("mov", dst, src);
  }

  mov32(dst: BpfReg, src: Operand): this {
    return this.alu32("mov", dst, src);
  }

  /** `dst` = the low `bits` of `src`, sign-extended to 64 bits. */
  movsx64(dst: BpfReg, src: BpfReg, bits: 8 | 16 | 32): this {
    return this.#add([slot(CLASS_ALU64 | ALU_MOV | SRC_X, dst.reg, src.reg, bits, 0)]);
  }

  /** `dst` = the low `bits` of `src`, sign-extended to 32 bits; the high half becomes 0. */
  movsx32(dst: BpfReg, src: BpfReg, bits: 8 | 16): this {
    return this.#add([slot(CLASS_ALU | ALU_MOV | SRC_X, dst.reg, src.reg, bits, 0)]);
  }

  neg64(dst: BpfReg): this {
    return this.#add([slot(CLASS_ALU64 | ALU_NEG, dst.reg, 0, 0, 0)]);
  }

  neg32(dst: BpfReg): this {
    return this.#add([slot(CLASS_ALU | ALU_NEG, dst.reg, 0, 0, 0)]);
  }

  /** Byte order of the low `bits`: to little endian, to big endian, or always swapped; higher bits become 0. */
  swap(kind: "le" | "be" | "bswap", dst: BpfReg, bits: 16 | 32 | 64): this {
    const opcode =
      kind === "bswap" ? CLASS_ALU64 | ALU_END : CLASS_ALU | ALU_END | (kind === "be" ? SRC_X : SRC_K);
    return this.#add([slot(opcode, dst.reg, 0, 0, bits)]);
  }

  /** `if dst cond src goto target`, on 64 bits. */
  jmp(cond: JumpName, dst: BpfReg, src: Operand, target: Label): this {
    return this.#jump(CLASS_JMP, cond, dst, src, target);
  }

  /** The same on the low 32 bits. */
  jmp32(cond: JumpName, dst: BpfReg, src: Operand, target: Label): this {
    return this.#jump(CLASS_JMP32, cond, dst, src, target);
  }

  goto(target: Label): this {
    return this.#add([slot(OP_JA, 0, 0, 0, 0)], target);
  }

  /** `goto` in its 32-bit form, however near the target is. */
  gotol(target: Label): this {
    return this.#add([slot(OP_JA32, 0, 0, 0, 0)], target);
  }

  /** Calls the helper with this number: arguments in r1 to r5, result in r0. */
  call(helper: number): this {
    return this.#add([slot(OP_CALL, 0, 0, 0, helper)]);
  }

  /** Calls the function of the program that begins at `target`. */
  callLocal(target: Label): this {
    return this.#add([slot(OP_CALL, 0, CALL_LOCAL, 0, 0)], target);
  }

  /** The function of the program that begins at `target`, as the callback argument of a helper. */
  ldFunction(dst: BpfReg, target: Label): this {
    return this.#add([slot(OP_LDIMM64, dst.reg, PSEUDO_FUNCTION, 0, 0), slot(0, 0, 0, 0, 0)], target);
  }

  exit(): this {
    return this.#add([slot(OP_EXIT, 0, 0, 0, 0)]);
  }

  /** `dst = *(uN *)(base + off)` */
  ldx(bytes: AccessBytes, dst: BpfReg, base: BpfReg, off: number): this {
    return this.#add([slot(CLASS_LDX | MODE_MEM | sizeBits[bytes], dst.reg, base.reg, off, 0)]);
  }

  /** `dst = *(sN *)(base + off)`, sign-extended. */
  ldsx(bytes: 1 | 2 | 4, dst: BpfReg, base: BpfReg, off: number): this {
    return this.#add([slot(CLASS_LDX | MODE_MEMSX | sizeBits[bytes], dst.reg, base.reg, off, 0)]);
  }

  /** `*(uN *)(base + off) = src` */
  stx(bytes: AccessBytes, base: BpfReg, off: number, src: BpfReg): this {
    return this.#add([slot(CLASS_STX | MODE_MEM | sizeBits[bytes], base.reg, src.reg, off, 0)]);
  }

  /** `*(uN *)(base + off) = imm`; 8 bytes store the sign-extended imm. */
  st(bytes: AccessBytes, base: BpfReg, off: number, imm: number): this {
    return this.#add([slot(CLASS_ST | MODE_MEM | sizeBits[bytes], base.reg, 0, off, imm)]);
  }

  /** `lock *(uN *)(base + off) op= src`. */
  atomic(op: AtomicName, bytes: 4 | 8, base: BpfReg, off: number, src: BpfReg): this {
    const opcode = CLASS_STX | MODE_ATOMIC | sizeBits[bytes];
    return this.#add([slot(opcode, base.reg, src.reg, off, atomicOps[op])]);
  }

  /** Two slots. `value` may be signed or unsigned 64 bits. */
  ldImm64(dst: BpfReg, value: bigint): this {
    if (value !== BigInt.asIntN(64, value) && value !== BigInt.asUintN(64, value)) {
      throw new RangeError(`build ldimm64 r${dst.reg}: ${value} does not fit 64 bits`);
    }
    const low = Number(BigInt.asIntN(32, value));
    const high = Number(BigInt.asIntN(32, value >> 32n));
    return this.#add([slot(OP_LDIMM64, dst.reg, 0, 0, low), slot(0, 0, 0, 0, high)]);
  }

  /** The shortest way to load a 64-bit constant: `mov64` where it sign-extends, else `ldimm64`. */
  loadConst(dst: BpfReg, value: bigint): this {
    const signed = BigInt.asIntN(64, value);
    if (signed === BigInt.asIntN(32, signed)) return this.mov64(dst, Number(signed));
    if (signed === BigInt.asUintN(32, signed)) return this.mov32(dst, Number(signed));
    return this.ldImm64(dst, value);
  }

  /** The map itself, as the first argument of a map helper. */
  ldMapFd(dst: BpfReg, mapIndex: number): this {
    return this.#add([slot(OP_LDIMM64, dst.reg, PSEUDO_MAP_FD, 0, mapIndex), slot(0, 0, 0, 0, 0)]);
  }

  /** The address `offset` bytes into element 0 of an array map. */
  ldMapValue(dst: BpfReg, mapIndex: number, offset = 0): this {
    return this.#add([slot(OP_LDIMM64, dst.reg, PSEUDO_MAP_VALUE, 0, mapIndex), slot(0, 0, 0, 0, offset)]);
  }

  /** The slots with all offsets filled in. Asserts that every label is placed. */
  build(): BuiltInsns {
    const far = new Set<Piece>();
    const dead = this.#findDead();
    // Growing one jump can push another out of reach: repeat until nothing grows. Each round grows at least one.
    for (;;) {
      const starts = this.#starts(far, dead);
      const grown = this.#pieces.filter(
        (piece, i) => piece.target && !dead.has(piece) && !far.has(piece) && !this.#reaches(starts, i),
      );
      if (grown.length === 0) return this.#emit(starts, far, dead);
      for (const piece of grown) far.add(piece);
    }
  }

  /** The pieces that no path from the first one reaches. */
  #findDead(): ReadonlySet<Piece> {
    if (
      this.#pieces.some(({ slots, target }) => !target && slots.some((s) => jumpTarget(s, 0) !== undefined))
    ) {
      return new Set();
    }
    const dead = new Set(this.#pieces);
    const work = [0];
    for (let at = work.pop(); at !== undefined; at = work.pop()) {
      const piece = this.#pieces[at];
      if (!piece || !dead.delete(piece)) continue;
      const { opcode } = piece.slots.at(-1)!;
      if (piece.target) work.push(this.#indexOf(piece.target));
      if (opcode !== OP_EXIT && opcode !== OP_JA && opcode !== OP_JA32) work.push(at + 1);
    }
    return dead;
  }

  #starts(far: ReadonlySet<Piece>, dead: ReadonlySet<Piece>): number[] {
    const starts: number[] = [];
    let at = 0;
    for (const piece of this.#pieces) {
      starts.push(at);
      if (dead.has(piece)) continue;
      at += far.has(piece) && piece.slots[0]!.opcode !== OP_JA ? 3 : piece.slots.length;
    }
    starts.push(at);
    return starts;
  }

  #indexOf(label: Label): number {
    const index = this.#labels.get(label);
    if (index === undefined) throw new Error(`build bpf program: label ${label.name} was never placed`);
    return index;
  }

  #reaches(starts: readonly number[], index: number): boolean {
    if (hasWideTarget(this.#pieces[index]!)) return true;
    const off = starts[this.#indexOf(this.#pieces[index]!.target!)]! - starts[index]! - 1;
    return off >= -0x8000 && off <= 0x7fff;
  }

  #emit(starts: readonly number[], far: ReadonlySet<Piece>, dead: ReadonlySet<Piece>): BuiltInsns {
    const insns: Insn[] = [];
    const places = new Map<number, SourcePlace>();
    for (const piece of this.#pieces) {
      if (dead.has(piece)) continue;
      const start = insns.length;
      const first = piece.slots[0]!;
      if (piece.target === undefined) {
        insns.push(...piece.slots);
      } else {
        const target = starts[this.#indexOf(piece.target)]!;
        if (hasWideTarget(piece)) {
          insns.push({ ...first, imm: target - start - 1 }, ...piece.slots.slice(1));
        } else if (!far.has(piece)) {
          insns.push({ ...first, off: target - start - 1 });
        } else if (first.opcode === OP_JA) {
          insns.push(slot(OP_JA32, 0, 0, 0, target - start - 1));
        } else {
          // if cond goto +1; goto +1; gotol target
          insns.push({ ...first, off: 1 }, slot(OP_JA, 0, 0, 1, 0));
          insns.push(slot(OP_JA32, 0, 0, 0, target - (start + 2) - 1));
        }
      }
      if (piece.place) for (let i = start; i < insns.length; i++) places.set(i, piece.place);
    }
    return { insns, places };
  }

  #alu(cls: number, name: AluName, dst: BpfReg, src: Operand): this {
    const [op, off] = aluOps[name];
    return this.#add([operandSlot(cls, op, dst, src, off)]);
  }

  #jump(cls: number, cond: JumpName, dst: BpfReg, src: Operand, target: Label): this {
    return this.#add([operandSlot(cls, jumpOps[cond], dst, src, 0)], target);
  }

  #add(slots: Insn[], target?: Label): this {
    this.#pieces.push({
      slots,
      ...(target ? { target } : {}),
      ...(this.#place ? { place: this.#place } : {}),
    });
    return this;
  }
}

/** Whether the distance to the target is in `imm`. */
function hasWideTarget({ slots: [first] }: Piece): boolean {
  return first!.opcode === OP_JA32 || first!.opcode === OP_CALL || first!.opcode === OP_LDIMM64;
}

function operandSlot(cls: number, op: number, dst: BpfReg, src: Operand, off: number): Insn {
  if (typeof src !== "number") return slot(cls | op | SRC_X, dst.reg, src.reg, off, 0);
  const is32 = cls === CLASS_ALU || cls === CLASS_JMP32;
  const max = is32 ? 0xffffffff : 0x7fffffff;
  if (!Number.isInteger(src) || src < -0x80000000 || src > max) {
    throw new RangeError(`build bpf insn on r${dst.reg}: immediate ${src} does not fit 32 bits`);
  }
  return slot(cls | op | SRC_K, dst.reg, 0, off, src | 0);
}

function slot(opcode: number, dst: number, src: number, off: number, imm: number): Insn {
  if (!Number.isInteger(off) || off < -0x8000 || off > 0x7fff) {
    throw new RangeError(`build bpf insn 0x${opcode.toString(16)}: offset ${off} does not fit 16 bits`);
  }
  if (!Number.isInteger(imm) || imm < -0x80000000 || imm > 0x7fffffff) {
    throw new RangeError(`build bpf insn 0x${opcode.toString(16)}: immediate ${imm} does not fit 32 bits`);
  }
  return { opcode, dst, src, off, imm };
}
