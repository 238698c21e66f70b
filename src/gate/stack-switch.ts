/**
 * From a thread's own stack to its private one, and back.
 *
 *     lea rsp, [rsp - sill]             over the red zone; a few words on the thread's own stack, the sill
 *     mov [rsp + ..], r10, r11          if they are live
 *     lahf; seto al; mov [rsp + ..]     if flags are live
 *     signals wait, key open            at level "strict": deferred-signals.ts, gate-key.ts
 *     r10 = the thread's slot           private-stacks.ts; first time: `find`
 *     cmp [r10 + sp], 0; jne            in use: unless it is held by nobody (`isHeld`), pass by without running
 *     mov [r10 + sp], rsp               from here on in use
 *     mov [r10 + recover], ..           where the way back begins, for whoever has to leave the programs in between
 *     rsp on an ordinary stack?         not at level "strict"; if that is not known: `settle`
 *     lea rsp, [r10 + head]
 *         gate's frame, programs
 *     mov r11, rsp; mov rsp, [r11 + sp]
 *     mov [r11 + sp], 0
 *     key closed, signals as before
 *     flags, registers back
 *     lea rsp, [rsp + sill]
 *
 * A signal may arrive between any two of them. Until `sp` is 0 again a handler that comes by the same or another
 * point finds the stack in use and passes by; from there on nothing of ours is on the private stack. What a thread has on its
 * own stack is above rsp at every moment.
 */
import type { Label } from "../x86/assembler.ts";
import { hasReg, R10, R11, RAX, RDX, type RegSet, RSP } from "../x86/registers.ts";
import type { CodeWriter } from "./code-writer.ts";
import { emitDefer, emitDeliver } from "./deferred-signals.ts";
import type { GateFrame, Sill } from "./gate-frame.ts";
import { emitKeyClose, emitKeyOpen } from "./gate-key.ts";
import {
  emitHash,
  HEAD_HITS_LEFT,
  HEAD_MASKED,
  HEAD_OWNER,
  HEAD_PLAIN_BYTES,
  HEAD_PLAIN_START,
  HEAD_RECOVER,
  HEAD_SP,
  type PrivateStacks,
  STACK_HEAD,
} from "./private-stacks.ts";

/** What has to be emitted once the straight way through the gate is complete. */
export interface SwitchSides {
  /** Where the thread's own stack has been left for, or never was: registers and flags come back from the sill. */
  readonly undo: Label;
  /** Where the way out of the gate begins, from behind the programs. */
  readonly leave: Label;
  /** The sides of the way in; they are seldom taken. `totalBytes`: from the head down to the stack pointer of the programs. */
  emit(totalBytes: number): void;
}

/** `turnedAway` are addresses of counters of hits whose thread was in the gate already. */
export function emitSwitchIn(writer: CodeWriter, sill: Sill, turnedAway: readonly bigint[]): SwitchSides {
  const { asm } = writer;
  const { stacks } = sill;
  const [undo, leave] = [asm.label("undo"), asm.label("leave")];
  const [search, found, inUse, take] = [
    asm.label("search"),
    asm.label("found"),
    asm.label("in use"),
    asm.label("take"),
  ];
  writer.note("what the switch changes is kept on the thread's own stack");
  asm.lea(RSP, { base: RSP, disp: -sill.lenBytes });
  if (sill.rflagsSlot !== undefined) {
    asm.pushfq();
    asm.pop({ base: RSP, disp: sill.rflagsSlot });
  }
  for (const { reg, slot } of sill.regs) asm.mov({ base: RSP, disp: slot }, reg);
  if (sill.flagsSlot !== undefined) {
    asm.lahf();
    asm.set("o", RAX);
    asm.mov({ base: RSP, disp: sill.flagsSlot }, RAX, 32);
  }
  if (sill.maskSlot !== undefined) emitDefer(writer, sill.maskSlot);
  if (stacks.key !== undefined) emitKeyOpen(writer, stacks.key);
  writer.note("to the thread's private stack");
  emitHash(writer, stacks);
  asm.cmp({ base: R10, disp: STACK_HEAD + HEAD_OWNER }, R11);
  asm.jcc("ne", search);
  asm.bind(found);
  asm.cmpImm({ base: R10, disp: STACK_HEAD + HEAD_SP }, 0);
  asm.jcc("ne", inUse);
  asm.bind(take);
  const recover = asm.label("recover");
  // First the stack pointer: a handler that came between would take the stack, and leave its own way back behind.
  asm.mov({ base: R10, disp: STACK_HEAD + HEAD_SP }, RSP);
  asm.lea(R11, { ripTo: recover });
  asm.mov({ base: R10, disp: STACK_HEAD + HEAD_RECOVER }, R11);
  const [unsure, settled] = [asm.label("unsure"), asm.label("settled")];
  if (stacks.findsAlternate) {
    writer.note("known not to be on an alternate stack?");
    asm.subImm({ base: R10, disp: STACK_HEAD + HEAD_HITS_LEFT }, 1, 32);
    asm.jcc("b", unsure);
    asm.mov(R11, RSP);
    asm.sub(R11, { base: R10, disp: STACK_HEAD + HEAD_PLAIN_START });
    asm.cmp(R11, { base: R10, disp: STACK_HEAD + HEAD_PLAIN_BYTES });
    asm.jcc("ae", unsure);
    asm.bind(settled);
  }
  asm.lea(RSP, { base: R10, disp: STACK_HEAD });
  const again = sill.regs.filter(({ isRead }) => isRead);
  if (again.length > 0) {
    asm.mov(R11, { base: RSP, disp: HEAD_SP });
    // r11 leads to the others, so it comes last.
    for (const { reg, slot } of again.toSorted((a, b) => a.reg - b.reg))
      asm.mov(reg, { base: R11, disp: slot });
  }

  const emit = (totalBytes: number) => {
    writer.note("first time here, or not where the hash says");
    asm.bind(search);
    emitRoutine(writer, stacks, "find");
    asm.test(R10, R10);
    asm.jcc("ne", found);
    const pass = asm.here("pass");
    writer.note("pass by");
    for (const counter of turnedAway) {
      asm.movImm(R11, counter);
      asm.lock().inc({ base: R11 });
    }
    asm.jmp(undo);
    writer.note("the stack is in use: by a handler's interrupted gate, or by nobody any more");
    asm.bind(inUse);
    emitRoutine(writer, stacks, "isHeld");
    asm.test(R11, R11);
    asm.jcc("e", take);
    asm.jmp(pass);
    if (stacks.findsAlternate) {
      writer.note("not known: find out, or have signals wait");
      asm.bind(unsure);
      writer.call(stacks.routines.settle);
      asm.jmp(settled);
    }
    emitRecovery(writer, recover, { totalBytes, defersSignals: stacks.defersSignals }, leave);
  };
  return { undo, leave, emit };
}

/** Where a key is open nothing returns through an address that lies on the thread's own stack. */
function emitRoutine(writer: CodeWriter, { key, routines }: PrivateStacks, name: "find" | "isHeld"): void {
  if (key === undefined) {
    writer.call(routines[name]);
    return;
  }
  const { asm } = writer;
  const back = asm.label("back");
  asm.lea(RDX, { ripTo: back });
  writer.jump(routines[`${name}WithKey`]);
  asm.bind(back);
}

/**
 * The way out for a thread that something has gone wrong with in a program: with r10 = its slot it goes on as if the programs
 * had returned, whatever the other registers hold. Before it are two words about the gate: whether signals wait in it, and how far
 * below the head the frame lies, right below which is the return address of the program that was running.
 */
function emitRecovery(
  writer: CodeWriter,
  recover: Label,
  { totalBytes, defersSignals }: { readonly totalBytes: number; readonly defersSignals: boolean },
  leave: Label,
): void {
  const { asm } = writer;
  asm.align(8, "int3");
  writer.note("do signals wait? size of the frame", true);
  asm.data64(defersSignals ? 1n : 0n);
  asm.data64(BigInt(totalBytes));
  writer.note("leave a program that cannot go on");
  asm.bind(recover);
  asm.lea(RSP, { base: R10, disp: STACK_HEAD - totalBytes });
  asm.jmp(leave);
}

/** Bytes before the recovery where the size of its frame stands, and whether signals wait: 0 or 1. */
export const FRAME_SIZE_BEFORE_RECOVERY = 8;
export const DEFERS_BEFORE_RECOVERY = 16;

/** From the bottom of the gate's frame, which must be gone, back to the sill; r11 = the head. */
export function emitSwitchBack(writer: CodeWriter): void {
  const { asm } = writer;
  writer.note("back to the thread's own stack");
  asm.mov(R11, RSP);
  asm.mov(RSP, { base: R11, disp: HEAD_SP });
}

/** r11 = the head. Everything from the sill back, but for `kept` registers, and `aboveBytes` more. The private stack is free from here on. */
export function emitSill(
  writer: CodeWriter,
  sill: Sill,
  {
    kept,
    aboveBytes,
    undo,
  }: { readonly kept: RegSet; readonly aboveBytes: number; readonly undo: Label | undefined },
): void {
  const { asm } = writer;
  asm.movImm({ base: R11, disp: HEAD_SP }, 0);
  if (sill.stacks.findsAlternate) {
    const goOn = asm.label("go on");
    asm.cmpImm({ base: R11, disp: HEAD_MASKED }, 0);
    asm.jcc("e", goOn);
    writer.call(sill.stacks.routines.deliver);
    asm.bind(goOn);
  }
  if (hasReg(kept, RAX)) {
    // What follows goes through rax.
    const value = sill.regs.find(({ reg }) => reg === RAX);
    if (value !== undefined) asm.mov({ base: RSP, disp: value.slot }, RAX);
  }
  if (undo !== undefined) asm.bind(undo);
  if (sill.stacks.key !== undefined) emitKeyClose(writer, sill.stacks.key);
  if (sill.maskSlot !== undefined) emitDeliver(writer, sill.maskSlot);
  if (sill.flagsSlot !== undefined && !hasReg(kept, RAX)) {
    asm.mov(RAX, { base: RSP, disp: sill.flagsSlot }, 32);
    asm.addImm(RAX, 0x7f, 8);
    asm.sahf();
  }
  for (const { reg, slot, isLive } of sill.regs) if (isLive) asm.mov(reg, { base: RSP, disp: slot });
  asm.lea(RSP, { base: RSP, disp: sill.lenBytes + aboveBytes });
}

/** The stack pointer as it was before the gate, plus `plus`. */
export function emitOriginalSp(writer: CodeWriter, frame: GateFrame, reg: number, plus = 0): void {
  const { asm } = writer;
  if (frame.sill === undefined) {
    asm.lea(reg, { base: RSP, disp: frame.totalBytes + plus });
    return;
  }
  asm.mov(reg, { base: RSP, disp: frame.totalBytes + HEAD_SP });
  asm.lea(reg, { base: reg, disp: frame.sill.lenBytes + plus });
}

/** The word on top of the stack as it was before the gate. */
export function emitTopWord(writer: CodeWriter, frame: GateFrame, reg: number): void {
  const { asm } = writer;
  if (frame.sill === undefined) {
    asm.mov(reg, { base: RSP, disp: frame.totalBytes });
    return;
  }
  emitOriginalSp(writer, frame, reg);
  asm.mov(reg, { base: reg });
}
