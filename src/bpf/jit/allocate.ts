/**
 * Gives every BPF register that a program still uses a register of the machine.
 *
 * Problem: a detour saves each register that is live at the probed instruction and that the program changes. At a
 * function's entry rax, r10 and r11 are dead and the argument and callee-saved registers are live, so a fixed
 * assignment (r0 rax, r1 rdi, ...) would cost saves that are not needed.
 *
 * Strategy: colour the interference graph with the registers that are least likely to be live first. A function that
 * calls anything keeps r0 to r5 where routines want them, and its other registers avoid what is changed by what it
 * calls. The arguments of a local function come where routines have theirs.
 */

import type { Reg, RegSet } from "../../x86/registers.ts";
import {
  hasReg,
  R8,
  R9,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
  regSet,
} from "../../x86/registers.ts";
import { JitError } from "./jit-error.ts";
import type { Liveness, OpList } from "./liveness.ts";
import { calleesOf, definesOf, isCallLike, type Op, usesOf } from "./operations.ts";

/** Machine registers of r0 to r9; undefined for one that the program does not use. */
export type Assignment = readonly (Reg | undefined)[];

/** r0 to r5 where routines take their arguments and give their result. */
export const conventionalRegs: readonly Reg[] = [RAX, RDI, RSI, RDX, RCX, R8];

/** Least likely to be live in the traced code first. */
export const preferredRegs: readonly Reg[] = [
  R11,
  R10,
  RAX,
  R9,
  R8,
  RCX,
  RSI,
  RDX,
  RDI,
  R12,
  RBX,
  R15,
  R14,
  R13,
  RBP,
];

/** A local function gives these back as they were; it may change all others. */
export const calleeSavedRegs: RegSet = regSet(RBX, RBP, R12, R13, R14, R15);

const BPF_REGS = 10;

export interface AssignmentRules {
  /** Whether arguments arrive in registers. */
  readonly isLocalFunction: boolean;
  /** Registers that are never given away. */
  readonly reserved: RegSet;
}

export function assignRegs(list: OpList, live: Liveness, rules: AssignmentRules): Assignment {
  const candidates = preferredRegs.filter((machine) => !hasReg(rules.reserved, machine));
  const interferes = Array.from({ length: BPF_REGS }, () => 0);
  /** Machine registers that a routine changes while the BPF register holds a value. */
  const forbidden: RegSet[] = Array.from({ length: BPF_REGS }, () => 0);
  const useCount = Array.from({ length: BPF_REGS }, () => 0);
  const moves: [number, number][] = [];
  /** Where an instruction wants the value. */
  const wanted: (Reg | undefined)[] = Array.from({ length: BPF_REGS }, () => undefined);
  let hasCalls = false;

  const meet = (reg: number, others: number) => {
    for (let other = 0; other < BPF_REGS; other++) {
      if (other === reg || ((others >> other) & 1) === 0) continue;
      interferes[reg]! |= 1 << other;
      interferes[other]! |= 1 << reg;
    }
  };
  for (let reg = 0; reg < BPF_REGS; reg++) if (((live.atEntry >> reg) & 1) !== 0) meet(reg, live.atEntry);
  for (const [slot, op] of list.ops.entries()) {
    if (op === undefined) continue;
    const after = live.after[slot]!;
    const uses = usesOf(op, list.keepsResult);
    const defines = definesOf(op);
    for (let reg = 0; reg < BPF_REGS; reg++) {
      if ((((uses | defines) >> reg) & 1) !== 0 && !isCallLike(op)) useCount[reg]!++;
      if (((uses >> reg) & 1) !== 0) useCount[reg]!++;
    }
    if (isCallLike(op)) {
      hasCalls = true;
      const changed = calleesOf(op).reduce((set, { clobbers }) => set | clobbers, changedBy(op));
      for (let reg = 6; reg < BPF_REGS; reg++) if (((after >> reg) & 1) !== 0) forbidden[reg]! |= changed;
      useCount[0]!++;
      continue;
    }
    if (op.kind === "move" && op.width === 64) moves.push([op.dst, op.src]);
    if (op.kind === "shift" && op.src.kind === "reg") wanted[op.src.reg] = RCX;
    // A value that a move only copies may share the register of its source.
    const others = op.kind === "move" && op.width === 64 ? after & ~(1 << op.src) : after;
    for (let reg = 0; reg < BPF_REGS; reg++) if (((defines >> reg) & 1) !== 0) meet(reg, others);
  }

  const assignment: (Reg | undefined)[] = Array.from({ length: BPF_REGS }, () => undefined);
  const fixedCount = hasCalls ? 6 : 0;
  for (let reg = 0; reg < fixedCount; reg++) if (useCount[reg]! > 0) assignment[reg] = conventionalRegs[reg]!;
  if (list.keepsResult) assignment[0] = RAX;
  if (rules.isLocalFunction)
    for (let reg = 1; reg <= 5; reg++)
      if (((live.atEntry >> reg) & 1) !== 0) assignment[reg] = conventionalRegs[reg]!;
  const order = Array.from({ length: BPF_REGS }, (_, reg) => reg)
    .filter((reg) => assignment[reg] === undefined && useCount[reg]! > 0)
    .sort((a, b) => useCount[b]! - useCount[a]!);
  for (const reg of order) {
    const taken = assignment.reduce<RegSet>(
      (set, machine, other) =>
        machine !== undefined && ((interferes[reg]! >> other) & 1) !== 0 ? set | (1 << machine) : set,
      forbidden[reg]!,
    );
    const partner = moves.find(([dst, src]) => {
      const other = dst === reg ? src : src === reg ? dst : undefined;
      const machine = other === undefined ? undefined : assignment[other];
      return machine !== undefined && !hasReg(taken, machine);
    });
    const shared =
      partner === undefined ? undefined : assignment[partner[0] === reg ? partner[1] : partner[0]];
    // Registers that something else in the program already changes cost nothing more.
    const used = assignment.reduce<RegSet>(
      (set, machine) => (machine === undefined ? set : set | (1 << machine)),
      0,
    );
    const asWanted = wanted[reg] !== undefined && !hasReg(taken, wanted[reg]) ? wanted[reg] : undefined;
    assignment[reg] =
      asWanted ??
      shared ??
      candidates.find((machine) => hasReg(used, machine) && !hasReg(taken, machine)) ??
      candidates.find((machine) => !hasReg(taken, machine));
    if (assignment[reg] === undefined) throw new JitError(`assign register r${reg}: none is left`);
  }
  return assignment;
}

/** Registers that the operation itself changes, besides those of r0 to r5 and what it calls. */
function changedBy(op: Op): RegSet {
  switch (op.kind) {
    case "loop":
    case "for-each":
    case "tail-call":
      return regSet(R11, ...conventionalRegs);
    default:
      // Where a per-CPU slot is handed over.
      return op.kind === "call" && op.takesSlot ? regSet(R11) : 0;
  }
}
