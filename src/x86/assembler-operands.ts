/**
 * Operands of the assembler, and the ModRM, SIB and displacement bytes that address memory.
 *
 * Facts: Intel SDM 2A, section 2.1.5 (tables 2-2 and 2-3), section 2.2.1 (REX), section 2.2.1.6 (RIP-relative).
 *
 *      ModRM  mod:2 reg:3 rm:3      SIB  scale:2 index:3 base:3      REX  0100 W R X B
 *
 * The places where the regular scheme has holes, all decided here:
 *  - rm = 100 means "a SIB byte follows": rsp and r12 as base always take a SIB byte;
 *  - mod = 00 with rm (or SIB base) = 101 means "disp32, no base": rbp and r13 as base take at least a disp8;
 *  - index = 100 means "no index": rsp cannot be an index, r12 can.
 */
import { type Reg, RSP } from "./registers.ts";

/** A place in the code of one assembler. Made by `Assembler.label`, given its place by `Assembler.bind`. */
export interface Label {
  readonly name: string;
  /** Used by the assembler that made the label. */
  readonly id: number;
}

/** Where a jump, a call or a RIP-relative operand leads: a label, or an absolute address. */
export type CodeTarget = Label | bigint;

/** Base plus scaled index plus displacement. Without a base the displacement is a 32-bit absolute address. */
export interface IndexedMem {
  readonly base?: Reg;
  readonly index?: Reg;
  readonly scale?: 1 | 2 | 4 | 8;
  readonly disp?: number;
}

/** Addressed relative to the next instruction; the assembler computes the displacement. */
export interface RipMem {
  readonly ripTo: CodeTarget;
  /** Added to the target, in bytes. */
  readonly disp?: number;
}

/** At a fixed offset from the thread pointer. */
export interface FsMem {
  readonly fs: number;
}

export type Mem = IndexedMem | RipMem | FsMem;

/** What can stand in a ModRM.rm field. */
export type RegMem = Reg | Mem;

/** A mistake in what the assembler was asked to encode, or a target out of reach. */
export class AssemblerError extends Error {
  readonly code = "assembler";
  override readonly name = "AssemblerError";
}

/** The bytes after the opcode, and the REX bits that belong to them. */
export interface ModRm {
  /** REX.X and REX.B, in place. */
  readonly rexXb: number;
  /** ModRM, SIB and displacement. */
  readonly bytes: readonly number[];
  /** A segment prefix, or 0. */
  readonly segment: number;
  /** Set when `bytes` ends with a displacement that must be made relative to the end of the instruction. */
  readonly rip: RipMem | undefined;
}

const SEGMENT_FS = 0x64;

/** ModRM for `reg` (a register or an opcode extension; its REX.R bit is the caller's) and `rm`. */
export function encodeModRm(reg: number, rm: RegMem): ModRm {
  const regBits = (reg & 7) << 3;
  if (typeof rm === "number") {
    return { rexXb: rm >> 3, bytes: [0xc0 | regBits | (rm & 7)], segment: 0, rip: undefined };
  }
  if ("ripTo" in rm) {
    return { rexXb: 0, bytes: [regBits | 5, 0, 0, 0, 0], segment: 0, rip: rm };
  }
  if ("fs" in rm) {
    return {
      rexXb: 0,
      bytes: [regBits | 4, 0x25, ...disp32Bytes(rm.fs)],
      segment: SEGMENT_FS,
      rip: undefined,
    };
  }
  return encodeIndexed(regBits, rm);
}

function encodeIndexed(regBits: number, mem: IndexedMem): ModRm {
  const { base, index, scale = 1, disp = 0 } = mem;
  if (index === RSP) throw new AssemblerError("encode memory operand: rsp cannot be an index");
  const scaleBits = Math.log2(scale) << 6;
  const indexBits = index === undefined ? 4 << 3 : (index & 7) << 3;
  const rexX = index === undefined ? 0 : (index >> 3) << 1;

  if (base === undefined) {
    // mod 00, SIB base 101: disp32 without a base.
    return {
      rexXb: rexX,
      bytes: [regBits | 4, scaleBits | indexBits | 5, ...disp32Bytes(disp)],
      segment: 0,
      rip: undefined,
    };
  }
  const needsDisp = (base & 7) === 5;
  const mod = disp === 0 && !needsDisp ? 0x00 : disp >= -128 && disp <= 127 ? 0x40 : 0x80;
  const dispBytes = mod === 0x00 ? [] : mod === 0x40 ? [disp & 0xff] : disp32Bytes(disp);
  const needsSib = index !== undefined || (base & 7) === 4;
  const head = needsSib
    ? [mod | regBits | 4, scaleBits | indexBits | (base & 7)]
    : [mod | regBits | (base & 7)];
  return { rexXb: rexX | (base >> 3), bytes: [...head, ...dispBytes], segment: 0, rip: undefined };
}

function disp32Bytes(disp: number): number[] {
  if ((disp | 0) !== disp)
    throw new AssemblerError(`encode memory operand: displacement ${disp} exceeds 32 bits`);
  return [disp & 0xff, (disp >> 8) & 0xff, (disp >> 16) & 0xff, (disp >> 24) & 0xff];
}
