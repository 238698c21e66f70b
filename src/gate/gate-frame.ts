/**
 * What a gate must save, store and undo around the programs of one point, decided from data before any code is
 * emitted.
 *
 * The context of a program is a `struct pt_regs` at the stack pointer of the gate, but a sparse one: only slots that
 * some program reads, or that a register is saved in, are written. The layout below, growing upwards from rsp:
 *
 *      rsp + 0            pt_regs, cut off behind the highest slot in use
 *      rsp + flagsSlot    status flags, if they must survive
 *      rsp + frameBytes   red zone of 128 bytes, unless the point is a function's entry
 *      original rsp
 *
 * A point whose programs read no context has no pt_regs: saved registers are packed at rsp. A point where nothing
 * must survive has no frame at all.
 *
 * Invariant: a register is restored if and only if it is live at the site and something between the gate's two
 * sides may change it.
 */
import type { Liveness } from "../x86/liveness.ts";
import {
  hasReg,
  PT_REGS_BYTES,
  PT_REGS_COOKIE,
  PT_REGS_CS,
  PT_REGS_FLAGS,
  PT_REGS_IP,
  PT_REGS_SP,
  PT_REGS_SS,
  ptRegsOffset,
  RAX,
  type Reg,
  type RegSet,
  RSP,
  regsOf,
} from "../x86/registers.ts";

/** Bytes below rsp that a leaf function may use (psABI, 3.2.2). */
export const RED_ZONE_BYTES = 128;

/**
 * Words behind the pt_regs that helpers use and programs cannot see, by their offset in the context. A program that has
 * such a helper names them in `ctxReads`.
 */
/** 1 at a function's entry: the return address is on top of the stack. Else 0. */
export const GATE_SITE = PT_REGS_BYTES;
/** 0, until a program wants the function to be left with the value in the next word. */
export const GATE_OVERRIDES = GATE_SITE + 8;
export const GATE_OVERRIDE_VALUE = GATE_OVERRIDES + 8;

/** A compiled program as the gate calls it. */
export interface GateProgram {
  /** Names it in explanations. */
  readonly name: string;
  readonly entry: bigint;
  /** Registers that it may change; flags always. */
  readonly clobbers: RegSet;
  /** Offsets of the `struct pt_regs` slots that it may read. */
  readonly ctxReads: ReadonlySet<number>;
  /** Stack that it may use below the return address of its call. */
  readonly stackBytes: number;
  /** Attach cookie. */
  readonly cookie: bigint;
}

export interface GateSpec {
  readonly programs: readonly GateProgram[];
  readonly liveness: Liveness;
  /** Is nothing below rsp live? True only where a call has just led. */
  readonly isEntry: boolean;
  /** Changed by other code between the gate's two sides. */
  readonly otherClobbers: RegSet;
  readonly otherClobbersFlags: boolean;
}

export interface SavedReg {
  readonly reg: Reg;
  /** Offset from rsp inside the gate. */
  readonly slot: number;
  /** A program reads it. */
  readonly isRead: boolean;
  /** It is live and gets changed, so it is restored. */
  readonly isRestored: boolean;
}

export interface GateFrame {
  /** Distance from rsp inside the gate to the original rsp. */
  readonly totalBytes: number;
  readonly redZoneBytes: number;
  readonly regs: readonly SavedReg[];
  /** Where the status flags are kept, or undefined if they are dead or untouched. */
  readonly flagsSlot: number | undefined;
  /** Slots besides registers that some program reads. */
  readonly reads: ReadonlySet<number>;
  /** A register that may be used between the gate's entry and the first program; undefined: none is free. */
  readonly scratch: Reg | undefined;
  /** Stack below the original rsp that the gate and the deepest program use. */
  readonly stackBytes: number;
}

/** Slots that are no general-purpose register, and the stack pointer. */
const otherSlots = [
  PT_REGS_COOKIE,
  PT_REGS_IP,
  PT_REGS_CS,
  PT_REGS_FLAGS,
  PT_REGS_SP,
  PT_REGS_SS,
  GATE_SITE,
  GATE_OVERRIDES,
];

export function planFrame(spec: GateSpec): GateFrame {
  const reads = new Set<number>();
  let clobbers = spec.otherClobbers;
  for (const program of spec.programs) {
    clobbers |= program.clobbers;
    for (const slot of program.ctxReads) reads.add(slot);
  }
  clobbers &= ~(1 << RSP);
  const changesFlags = spec.programs.length > 0 || spec.otherClobbersFlags;
  const keepsFlags = changesFlags && spec.liveness.flagsLive;
  // lahf and seto go through rax.
  if (keepsFlags) clobbers |= 1 << RAX;

  const dead = ~spec.liveness.regs & ~(1 << RSP) & 0xffff;
  let scratch = regsOf(dead)[0];
  const needsScratch = reads.has(PT_REGS_SP) || reads.has(PT_REGS_IP) || reads.has(PT_REGS_COOKIE);
  if (needsScratch && scratch === undefined) {
    if (clobbers === 0) clobbers |= 1 << RAX;
    scratch = regsOf(clobbers)[0];
  }

  const hasContext = reads.size > 0;
  const regs: SavedReg[] = [];
  let packed = 0;
  for (let reg = 0; reg < 16; reg++) {
    if (reg === RSP) continue;
    const isRead = reads.has(ptRegsOffset[reg]!);
    const isRestored = hasReg(clobbers, reg) && hasReg(spec.liveness.regs, reg);
    if (!isRead && !isRestored) continue;
    regs.push({ reg, slot: hasContext ? ptRegsOffset[reg]! : 8 * packed++, isRead, isRestored });
  }
  const slots = [...regs.map(({ slot }) => slot), ...reads];
  let frameBytes = slots.length === 0 ? 0 : Math.max(...slots) + 8;
  let flagsSlot: number | undefined;
  if (keepsFlags) {
    flagsSlot = frameBytes;
    frameBytes += 8;
  }
  const redZoneBytes = spec.isEntry ? 0 : RED_ZONE_BYTES;
  const totalBytes = frameBytes + redZoneBytes;
  const deepest = spec.programs.reduce((most, program) => Math.max(most, program.stackBytes), 0);
  return {
    totalBytes,
    redZoneBytes,
    regs,
    flagsSlot,
    reads: new Set([...reads].filter((slot) => otherSlots.includes(slot))),
    scratch,
    stackBytes: totalBytes + 8 + deepest,
  };
}
