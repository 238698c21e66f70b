/**
 * Into the world of the programs and back: on the thread's own stack (level "none"), or on a private one (level "stack",
 * stack-switch.ts), there with signals deferred and a protection key opened (level "strict").
 *
 *     lea rsp, [rsp - total]      over the red zone; lea, because sub would change the flags
 *     mov [rsp + slot], reg       registers that are read or must survive
 *     lahf; seto al; mov [..]     status flags, if they must survive: pushfq and popfq cost ten times as much
 *     mov [rsp + 128], ip ...     other slots of the context that are read
 *       mov [rsp + 120], cookie   before each program, if it reads it
 *       call program
 *     cmp [..], 0; jne ...        if a program may override the function's result: `emitOverride`
 *     mov eax, [..]; add al, 0x7f; sahf
 *     mov reg, [rsp + slot]
 *     lea rsp, [rsp + total]
 *
 * Nothing before `lahf` and nothing behind `sahf` changes a flag. A signal may arrive anywhere: everything below
 * rsp is free, everything in use is above it.
 *
 * Facts: Intel SDM 2B (lahf: ah = SF ZF 0 AF 0 PF 1 CF); 0x7f + al sets OF exactly when al is 1.
 */
import type { Label } from "../x86/assembler.ts";
import {
  hasReg,
  PT_REGS_COOKIE,
  PT_REGS_CS,
  PT_REGS_FLAGS,
  PT_REGS_IP,
  PT_REGS_SP,
  PT_REGS_SS,
  R11,
  RAX,
  type RegSet,
  RSP,
  regNames,
} from "../x86/registers.ts";
import type { CodeWriter } from "./code-writer.ts";
import {
  GATE_OVERRIDE_VALUE,
  GATE_OVERRIDES,
  GATE_SITE,
  type GateFrame,
  type GateProgram,
} from "./gate-frame.ts";
import { emitKeyClose, emitKeyOpen } from "./gate-key.ts";
import { HEAD_SP } from "./private-stacks.ts";
import { emitOriginalSp, emitSill, emitSwitchBack, emitSwitchIn, type SwitchSides } from "./stack-switch.ts";

/** User code and stack segments of 64-bit Linux processes. */
const USER_CS = 0x33;
const USER_SS = 0x2b;

/** Original stack pointer and address of the point, for the slots of the same names. */
export interface GatePlace {
  /** Undefined: the slot is filled by the caller. */
  readonly ip: bigint | undefined;
  /** From the original stack pointer to the one that programs see. */
  readonly spDelta: number;
  /** The return address is on top of the stack. */
  readonly isEntry: boolean;
  /** Addresses of counters of hits that find the private stack in use. */
  readonly turnedAway?: readonly bigint[] | undefined;
}

/** With private stacks: what `emitLeave` needs, and what has to be emitted behind everything. */
export function emitEnter(writer: CodeWriter, frame: GateFrame, place: GatePlace): SwitchSides | undefined {
  const { asm } = writer;
  const sides =
    frame.sill === undefined ? undefined : emitSwitchIn(writer, frame.sill, place.turnedAway ?? []);
  if (frame.totalBytes > 0) {
    writer.note(frame.redZoneBytes > 0 ? "step over the red zone, make room" : "make room");
    asm.lea(RSP, { base: RSP, disp: -frame.totalBytes });
  }
  if (frame.reads.has(PT_REGS_FLAGS) && frame.sill === undefined) {
    writer.note("flags, read by a program");
    asm.pushfq();
    asm.pop({ base: RSP, disp: PT_REGS_FLAGS });
  }
  for (const { reg, slot, isRead, isRestored } of frame.regs) {
    const why = [isRestored ? "live" : "", isRead ? "read by a program" : ""].filter((text) => text !== "");
    writer.note(`${regNames[reg]}: ${why.join(", ")}`);
    asm.mov({ base: RSP, disp: slot }, reg);
  }
  if (frame.flagsSlot !== undefined) {
    writer.note("keep the status flags");
    asm.lahf();
    asm.set("o", RAX);
    asm.mov({ base: RSP, disp: frame.flagsSlot }, RAX, 32);
  }
  if (frame.sill?.rflagsSlot !== undefined) {
    writer.note("flags, read by a program");
    asm.mov(R11, { base: RSP, disp: frame.totalBytes + HEAD_SP });
    asm.mov(R11, { base: R11, disp: frame.sill.rflagsSlot });
    asm.mov({ base: RSP, disp: PT_REGS_FLAGS }, R11);
  }
  emitContextSlots(writer, frame, place);
  if (frame.window !== undefined) emitKeyOpen(writer, frame.window);
  return sides;
}

function emitContextSlots(writer: CodeWriter, frame: GateFrame, place: GatePlace): void {
  const { asm } = writer;
  if (frame.reads.has(PT_REGS_SP)) {
    const scratch = frame.scratch!;
    writer.note("stack pointer, read by a program");
    emitOriginalSp(writer, frame, scratch, place.spDelta);
    asm.mov({ base: RSP, disp: PT_REGS_SP }, scratch);
  }
  if (frame.reads.has(PT_REGS_IP) && place.ip !== undefined) {
    writer.note("address of the point, read by a program");
    emitConstant(writer, frame, PT_REGS_IP, place.ip);
  }
  if (frame.reads.has(PT_REGS_CS)) {
    writer.note("code segment, read by a program");
    asm.movImm({ base: RSP, disp: PT_REGS_CS }, USER_CS);
  }
  if (frame.reads.has(PT_REGS_SS)) {
    writer.note("stack segment, read by a program");
    asm.movImm({ base: RSP, disp: PT_REGS_SS }, USER_SS);
  }
  if (frame.reads.has(GATE_SITE)) {
    writer.note("whether the caller is on top of the stack, for a walk of the stack");
    asm.movImm({ base: RSP, disp: GATE_SITE }, place.isEntry ? 1 : 0);
  }
  if (frame.reads.has(GATE_OVERRIDES)) {
    writer.note("no program has overridden the result");
    asm.movImm({ base: RSP, disp: GATE_OVERRIDES }, 0);
  }
}

/** One 8-byte store: two halves would make the program's load wait for both. */
function emitConstant(writer: CodeWriter, frame: GateFrame, slot: number, value: bigint): void {
  const { asm } = writer;
  if (BigInt.asUintN(64, BigInt.asIntN(32, value)) === BigInt.asUintN(64, value)) {
    asm.movImm({ base: RSP, disp: slot }, BigInt.asIntN(64, value));
    return;
  }
  const scratch = frame.scratch!;
  asm.movImm(scratch, value);
  asm.mov({ base: RSP, disp: slot }, scratch);
}

/** `scratch` holds for the first program only; later ones may use what the programs before them clobbered. */
export function emitPrograms(writer: CodeWriter, frame: GateFrame, programs: readonly GateProgram[]): void {
  for (const program of programs) {
    if (program.ctxReads.has(PT_REGS_COOKIE)) {
      writer.note(`attach cookie of ${program.name}`);
      emitConstant(writer, frame, PT_REGS_COOKIE, program.cookie);
    }
    writer.note(`run ${program.name}`);
    writer.call(program.entry);
  }
}

/**
 * At a function's entry, where a program may want it to be left at once: if one does, its value goes into rax, the rest is
 * put back, and this returns to the caller. Nothing of the function has run then, and flags are free. `aboveBytes`: what a
 * call of the gate has left between the frame and the function's return address.
 */
export function emitOverride(writer: CodeWriter, frame: GateFrame, aboveBytes = 0): void {
  if (!frame.reads.has(GATE_OVERRIDES)) return;
  const { asm } = writer;
  const goOn = asm.label("go on");
  writer.note("does a program override the result?");
  asm.cmpImm({ base: RSP, disp: GATE_OVERRIDES }, 0);
  asm.jcc("e", goOn);
  writer.note("its value is what the function returns");
  asm.mov(RAX, { base: RSP, disp: GATE_OVERRIDE_VALUE });
  emitRestore(writer, frame, 1 << RAX, { aboveBytes });
  asm.ret();
  asm.bind(goOn);
}

export function emitLeave(writer: CodeWriter, frame: GateFrame, sides?: SwitchSides): void {
  const { asm } = writer;
  if (sides !== undefined) asm.bind(sides.leave);
  if (frame.window !== undefined) emitKeyClose(writer, frame.window);
  if (frame.flagsSlot !== undefined) {
    writer.note("status flags back");
    asm.mov(RAX, { base: RSP, disp: frame.flagsSlot }, 32);
    asm.addImm(RAX, 0x7f, 8);
    asm.sahf();
  }
  emitRestore(writer, frame, 0, { undo: sides?.undo });
}

/** Registers but for `kept`, and the stack, with `aboveBytes` above the frame. */
function emitRestore(
  writer: CodeWriter,
  frame: GateFrame,
  kept: RegSet,
  { aboveBytes = 0, undo }: { readonly aboveBytes?: number; readonly undo?: Label | undefined },
): void {
  const { asm } = writer;
  for (const { reg, slot, isRestored } of frame.regs) {
    if (!isRestored || hasReg(kept, reg)) continue;
    writer.note(`${regNames[reg]} back`);
    asm.mov(reg, { base: RSP, disp: slot });
  }
  const frameBytes = frame.totalBytes + (frame.sill === undefined ? aboveBytes : 0);
  if (frameBytes > 0) {
    writer.note("stack back");
    asm.lea(RSP, { base: RSP, disp: frameBytes });
  }
  if (frame.sill === undefined) return;
  emitSwitchBack(writer);
  emitSill(writer, frame.sill, { kept, aboveBytes, undo });
}
