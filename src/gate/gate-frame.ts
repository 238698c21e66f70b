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
 * With private stacks the frame lies below the head of the thread's private stack, has no red zone, and keeps no flags; what
 * the switch needs is on the thread's own stack, the sill.
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
  R10,
  R11,
  RAX,
  type Reg,
  type RegSet,
  RSP,
  regSet,
  regsOf,
} from "../x86/registers.ts";
import { DEFER_CLOBBERS } from "./deferred-signals.ts";
import { type GateKey, KEY_CLOBBERS } from "./gate-key.ts";
import { type GateStacks, PRIVATE_STACK_BYTES, SWITCH_STACK_BYTES } from "./private-stacks.ts";

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
  /** Undefined: the frame lies on the thread's own stack. */
  readonly stacks?: GateStacks | undefined;
  /** Opened for what runs between the gate's sides on the thread's own stack: a window. */
  readonly key?: GateKey | undefined;
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

/**
 * What stays on a thread's own stack while it is on its private one:
 *
 *      rsp + 0 ..         registers that the switch itself needs, status flags, and the signal mask if signals wait
 *      rsp + lenBytes     original rsp; below it the red zone, unless the point is a function's entry
 */
export interface Sill {
  readonly stacks: GateStacks;
  readonly lenBytes: number;
  readonly regs: readonly {
    readonly reg: Reg;
    readonly slot: number;
    readonly isLive: boolean;
    readonly isRead: boolean;
  }[];
  /** Status flags, if they must survive. */
  readonly flagsSlot: number | undefined;
  /** All flags, if a program reads them. */
  readonly rflagsSlot: number | undefined;
  /** The thread's signal mask, if signals wait. */
  readonly maskSlot: number | undefined;
}

export interface GateFrame {
  /** Distance from rsp inside the gate to the original rsp; with a sill, to the head of the private stack. */
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
  /** Undefined: the frame is on the thread's own stack. */
  readonly sill: Sill | undefined;
  /** The key of a window. */
  readonly window: GateKey | undefined;
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
  const window = spec.stacks === undefined ? spec.key : undefined;
  if (window !== undefined) clobbers |= KEY_CLOBBERS;
  clobbers &= ~(1 << RSP);
  const changesFlags = spec.programs.length > 0 || spec.otherClobbersFlags || window !== undefined;
  const keepsFlags = changesFlags && spec.liveness.flagsLive;
  // lahf and seto go through rax.
  if (keepsFlags) clobbers |= 1 << RAX;
  const sill = spec.stacks === undefined ? undefined : planSill(spec, spec.stacks, reads, keepsFlags);

  const dead = ~spec.liveness.regs & ~(1 << RSP) & 0xffff;
  let scratch = sill === undefined ? regsOf(dead)[0] : R11;
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
    const isKept = sill?.regs.some((kept) => kept.reg === reg) ?? false;
    const isRestored = hasReg(clobbers, reg) && hasReg(spec.liveness.regs, reg) && !isKept;
    if (!isRead && !isRestored) continue;
    regs.push({ reg, slot: hasContext ? ptRegsOffset[reg]! : 8 * packed++, isRead, isRestored });
  }
  const slots = [...regs.map(({ slot }) => slot), ...reads];
  let frameBytes = slots.length === 0 ? 0 : Math.max(...slots) + 8;
  let flagsSlot: number | undefined;
  if (keepsFlags && sill === undefined) {
    flagsSlot = frameBytes;
    frameBytes += 8;
  }
  const redZoneBytes = spec.isEntry || sill !== undefined ? 0 : RED_ZONE_BYTES;
  const totalBytes = frameBytes + redZoneBytes;
  const deepest = spec.programs.reduce((most, program) => Math.max(most, program.stackBytes), 0);
  const frameNeed = totalBytes + 8 + deepest;
  if (sill !== undefined && frameNeed > PRIVATE_STACK_BYTES / 2)
    throw new Error(`plan gate: ${frameNeed} bytes are too many for a private stack`);
  return {
    totalBytes,
    redZoneBytes,
    regs,
    flagsSlot,
    reads: new Set([...reads].filter((slot) => otherSlots.includes(slot))),
    scratch,
    stackBytes: sill === undefined ? frameNeed : sill.lenBytes + SWITCH_STACK_BYTES,
    sill,
    window,
  };
}

/** What the way to a private stack and back changes. */
export function switchClobbers({ defersSignals, key }: GateStacks): RegSet {
  return regSet(R10, R11) | (defersSignals ? DEFER_CLOBBERS : 0) | (key === undefined ? 0 : KEY_CLOBBERS);
}

/** The registers of the switch are kept on the sill; so is rax where the flags, or a value for the caller, go through it. */
function planSill(spec: GateSpec, stacks: GateStacks, reads: ReadonlySet<number>, keepsFlags: boolean): Sill {
  const { liveness } = spec;
  let lenBytes = 0;
  const take = (wanted: boolean): number | undefined => {
    if (!wanted) return undefined;
    lenBytes += 8;
    return lenBytes - 8;
  };
  const changed = switchClobbers(stacks) | (keepsFlags ? regSet(RAX) : 0);
  const overrides = reads.has(GATE_OVERRIDES);
  const regs = regsOf(changed).flatMap((reg): Sill["regs"][number][] => {
    const isLive = hasReg(liveness.regs, reg) || (reg === RAX && overrides);
    const isRead = reads.has(ptRegsOffset[reg]!);
    const slot = take(isLive || isRead);
    return slot === undefined ? [] : [{ reg, slot, isLive, isRead }];
  });
  const flagsSlot = take(keepsFlags);
  const rflagsSlot = take(reads.has(PT_REGS_FLAGS));
  const maskSlot = take(stacks.defersSignals);
  return {
    stacks,
    lenBytes: lenBytes + (spec.isEntry ? 0 : RED_ZONE_BYTES),
    regs,
    flagsSlot,
    rflagsSlot,
    maskSlot,
  };
}
