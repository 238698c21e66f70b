/**
 * The code that runs instead of the displaced instructions: gate in, programs, gate out, the instructions, jump back.
 *
 *     entry:   nop                             (five bytes: the slot)
 *              gate enter
 *              program 1 .. n
 *              return to the caller, if a program overrides the function
 *              program 1 .. n of the return    (points at a function's exit)
 *              claim the return address        (points whose caller is to be found again by a trampoline)
 *              gate leave
 *              jmp behind                      (the link: only where another session's detour of the site comes next)
 *              displaced instructions
 *              jmp site + length
 *
 * An `e9` at the site and the trap handler both lead to `entry`, with every register and flag as at the site. There stands a
 * NOP that a jump can be written over, so that a later detour of the same site comes before this one: nobody can stand inside it,
 * so nobody has to be moved for that. The later one leads here again, to the gate behind the NOP.
 * At a conditional tail call the return address is claimed only when the branch is taken: the copy of the branch leads to
 * code behind the displaced instructions, which claims it and goes on to where the branch led.
 *
 * The displaced instructions have twins in the text: a thread at one of them can be moved when the site is armed or
 * disarmed. In the gate nothing has a twin; a thread there has to leave first.
 */

import { type CodeNote, CodeWriter } from "../gate/code-writer.ts";
import { emitEnter, emitLeave, emitOverride, emitPrograms } from "../gate/gate.ts";
import {
  GATE_OVERRIDES,
  GATE_SITE,
  type GateFrame,
  type GateProgram,
  planFrame,
  RED_ZONE_BYTES,
} from "../gate/gate-frame.ts";
import type { GateKey } from "../gate/gate-key.ts";
import type { GateStacks } from "../gate/private-stacks.ts";
import { emitOriginalSp, emitTopWord } from "../gate/stack-switch.ts";
import type { Label } from "../x86/assembler.ts";
import { everythingLive, type Liveness } from "../x86/liveness.ts";
import { encodeJump } from "../x86/punning.ts";
import {
  PT_REGS_IP,
  PT_REGS_SP,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15,
  RBP,
  RBX,
  RSP,
  regSet,
} from "../x86/registers.ts";
import { relocate, type Twin } from "../x86/relocate.ts";
import type { SitePlan } from "./plan.ts";
import type { Refusal } from "./refusal.ts";
import { CLAIM_CLOBBERS, CLAIM_STACK_BYTES } from "./return-table.ts";

/** What a detour needs for a point's return probes. */
export interface ReturnHook {
  /** Stubs of the point: `ReturnTrampoline.stubs`. */
  readonly trampoline: bigint;
  /** The claim routine: `ReturnRuntime.claim`. */
  readonly claim: bigint;
}

export interface DetourSpec {
  readonly plan: SitePlan;
  /** Where the code will be; within 2 GiB of the image. */
  readonly at: bigint;
  readonly programs: readonly GateProgram[];
  /** Programs that run for the return which the site, a `ret`, is about to make. */
  readonly leaving?: readonly GateProgram[];
  readonly returnHook?: ReturnHook | undefined;
  /**
   * The gate of the detour that comes next, where the site belongs to another session already. It displaces the same
   * instructions; the own copy is for the time when the other one has gone.
   */
  readonly behind?: bigint | undefined;
  /** Programs run on the thread's private stack; undefined: on its own. */
  readonly privateStack?: PrivateStackHook | undefined;
  /** What runs on the thread's own stack uses data under this key. */
  readonly key?: GateKey | undefined;
}

/** What a detour needs for private stacks. */
export interface PrivateStackHook {
  readonly stacks: GateStacks;
  /** Addresses of counters of hits that find their stack in use. */
  readonly turnedAway: readonly bigint[];
}

export interface Detour {
  readonly kind: "detour";
  readonly at: bigint;
  /** Where the site's jump or the trap handler leads: the slot. The gate begins `SLOT_BYTES` behind it. */
  readonly entry: bigint;
  readonly bytes: Uint8Array;
  readonly frame: GateFrame;
  /** Positions that are the same in the text and in the detour. */
  readonly twins: readonly Twin[];
  readonly notes: readonly CodeNote[];
  /** Offset of the displaced instructions: threads before it are in the gate. */
  readonly displacedOffset: number;
}

/** Where in a detour that has one the link stands: `e9 rel32`, or the NOP of a slot, right before the displaced instructions. */
export const linkOffset = (displacedOffset: number): number => displacedOffset - SLOT_BYTES;

/** `0f 1f 44 00 00` at the entry of every detour, which may become `e9 rel32`. */
export const SLOT: Uint8Array = Uint8Array.of(0x0f, 0x1f, 0x44, 0x00, 0x00);
export const SLOT_BYTES = SLOT.length;

/** What the slot of a detour holds when it leads to another one: `e9 rel32`. */
export function emitSlotJump(slot: bigint, to: bigint): Uint8Array {
  const bytes = encodeJump(slot, to);
  if (bytes === undefined)
    throw new Error(`lead 0x${slot.toString(16)} to 0x${to.toString(16)}: it is out of reach`);
  return bytes;
}

export type DetourResult = Detour | { readonly kind: "refused"; readonly refusal: Refusal };

export function emitDetour(spec: DetourSpec): DetourResult {
  const { plan, at } = spec;
  const distance = at - plan.at;
  if (BigInt.asIntN(32, distance) !== distance)
    return { kind: "refused", refusal: { reason: "detour-out-of-reach", site: plan.at, detour: at } };

  const { programs, leaving = [], returnHook: hook, privateStack } = spec;
  const overrides = programs.some(({ ctxReads }) => ctxReads.has(GATE_OVERRIDES));
  if (overrides && !plan.isEntry) throw new Error(`override at 0x${plan.at.toString(16)}: no function entry`);
  // A branch that is not taken claims nothing.
  const isBranch = hook !== undefined && plan.region.insns[0]!.flow === "branch";
  const claimsHere = hook !== undefined && !isBranch;
  const stacks = programs.length + leaving.length > 0 ? privateStack?.stacks : undefined;
  // Return addresses lie on the thread's own stack, and their table is no part of what the gate protects.
  const claimsInside = claimsHere && stacks === undefined;
  const frame = planFrame({
    programs: [...programs, ...leaving],
    liveness: overrides ? withCalleeSaved(plan.liveness) : plan.liveness,
    isEntry: plan.isEntry,
    otherClobbers: claimsInside ? CLAIM_CLOBBERS : 0,
    otherClobbersFlags: claimsInside,
    stacks,
    key: programs.length + leaving.length > 0 ? spec.key : undefined,
  });
  const writer = new CodeWriter(at);
  writer.note("slot of a later detour");
  writer.asm.bytes(SLOT);
  const isLeavingOnly = programs.length === 0 && leaving.length > 0;
  const sides = emitEnter(writer, frame, {
    ip: isLeavingOnly ? undefined : plan.at,
    spDelta: isLeavingOnly ? returnedBytes(plan) : 0,
    isEntry: plan.isEntry && !isLeavingOnly,
    turnedAway: privateStack?.turnedAway,
  });
  emitPrograms(writer, frame, programs);
  emitOverride(writer, frame);
  if (leaving.length > 0) {
    emitReturnAddress(writer, frame);
    if (!isLeavingOnly) emitReturnContext(writer, frame, returnedBytes(plan));
    emitPrograms(writer, frame, leaving);
  }
  if (claimsInside) emitClaim(writer, frame, hook);
  emitLeave(writer, frame, sides);
  if (claimsHere && !claimsInside) emitClaimBehind(writer, plan, plan.liveness, hook);
  if (spec.behind !== undefined) {
    writer.note("on to the other session's detour of this site");
    writer.asm.jmp32(spec.behind);
  }

  // The displaced instructions follow the gate; constants of the gate stand behind everything.
  const relocated = relocateBehind(writer, plan);
  if (relocated.kind === "refused") return relocated;
  const taken = isBranch ? emitTaken(writer, plan, hook) : undefined;
  sides?.emit(frame.totalBytes);
  const written = writer.finish();
  const displacedOffset = written.notes.find((note) => note.text === DISPLACED)!.offset;
  const copy = relocate(plan.region, at + BigInt(displacedOffset));
  if (copy.kind === "refused") return copy;
  const bytes = written.bytes.slice();
  bytes.set(copy.bytes, displacedOffset);
  if (taken !== undefined) {
    const end = displacedOffset + copy.parts[0]!.lenBytes;
    new DataView(bytes.buffer, bytes.byteOffset).setInt32(end - 4, writer.asm.offsetOf(taken) - end, true);
  }

  const notes = written.notes.filter((note) => note.text !== DISPLACED);
  const partNotes = copy.parts.map((part, i) => ({
    offset: displacedOffset + part.offset,
    isData: part.kind === "constant",
    text:
      part.kind === "insn"
        ? `displaced instruction ${i + 1} of ${plan.region.insns.length}`
        : part.kind === "jump-back"
          ? "back to the text"
          : "return address of the displaced call",
  }));
  return {
    kind: "detour",
    at,
    entry: at,
    bytes,
    frame,
    twins: copy.twins,
    notes: [...notes, ...partNotes].sort((a, b) => a.offset - b.offset),
    displacedOffset,
  };
}

/** What the caller finds again after a call (psABI, 3.2.1), also in a function that never returns by itself. */
function withCalleeSaved(liveness: Liveness): Liveness {
  return { ...liveness, regs: liveness.regs | regSet(RBX, RBP, R12, R13, R14, R15) };
}

const DISPLACED = "displaced";

/** Makes room for the copies: their size does not depend on their place. */
function relocateBehind(
  writer: CodeWriter,
  plan: SitePlan,
): { kind: "ok" } | { kind: "refused"; refusal: Refusal } {
  const probe = relocate(plan.region, plan.at);
  if (probe.kind === "refused") return probe;
  writer.note(DISPLACED);
  writer.asm.bytes(probe.bytes);
  return { kind: "ok" };
}

/** Where programs of a return are: at the address returned to. */
function emitReturnAddress(writer: CodeWriter, frame: GateFrame): void {
  if (!frame.reads.has(PT_REGS_IP)) return;
  const { asm } = writer;
  writer.note("the address returned to, read by a program");
  emitTopWord(writer, frame, frame.scratch!);
  asm.mov({ base: RSP, disp: PT_REGS_IP }, frame.scratch!);
}

/** What else is different behind the return, after programs that have seen the site itself. */
function emitReturnContext(writer: CodeWriter, frame: GateFrame, returned: number): void {
  const { asm } = writer;
  if (frame.reads.has(PT_REGS_SP)) {
    writer.note("the stack pointer behind the return, read by a program");
    emitOriginalSp(writer, frame, frame.scratch!, returned);
    asm.mov({ base: RSP, disp: PT_REGS_SP }, frame.scratch!);
  }
  if (frame.reads.has(GATE_SITE)) asm.movImm({ base: RSP, disp: GATE_SITE }, 0);
}

/** What the `ret` at the site takes from the stack: `ret imm16` = c2 iw. */
function returnedBytes({ region }: SitePlan): number {
  const { bytes } = region.insns[0]!;
  return 8 + (bytes.at(-3) === 0xc2 ? bytes.at(-2)! | (bytes.at(-1)! << 8) : 0);
}

/** Where a conditional tail call goes when it is taken. Whatever the branch led to finds everything as it was. */
function emitTaken(writer: CodeWriter, plan: SitePlan, hook: ReturnHook): Label {
  const { asm } = writer;
  const taken = asm.here("taken");
  emitClaimBehind(writer, plan, everythingLive, hook);
  writer.note("on to where the branch leads");
  asm.jmp32(plan.region.insns[0]!.target!);
  return taken;
}

/** Behind the gate, in a frame of its own. */
function emitClaimBehind(
  writer: CodeWriter,
  { isEntry }: SitePlan,
  liveness: Liveness,
  hook: ReturnHook,
): void {
  const frame = planFrame({
    programs: [],
    liveness,
    isEntry,
    otherClobbers: CLAIM_CLOBBERS,
    otherClobbersFlags: true,
  });
  emitEnter(writer, frame, { ip: undefined, spDelta: 0, isEntry });
  emitClaim(writer, frame, hook);
  emitLeave(writer, frame);
}

function emitClaim(writer: CodeWriter, frame: GateFrame, hook: ReturnHook): void {
  const { asm } = writer;
  writer.note("claim the return address for the return probes");
  emitOriginalSp(writer, frame, R10);
  asm.movImm(R11, hook.trampoline);
  writer.call(hook.claim);
}

/** Registers that a claim saves, behind the red zone. */
const CLAIM_FRAME_BYTES = RED_ZONE_BYTES + 6 * 8;

/** Stack that a hit of this detour may use below the thread's stack pointer. */
export function stackNeed({ frame }: Detour, hook: ReturnHook | undefined): number {
  if (hook === undefined) return frame.stackBytes;
  const claimBytes = frame.sill === undefined ? frame.totalBytes : CLAIM_FRAME_BYTES;
  return Math.max(frame.stackBytes, claimBytes + CLAIM_STACK_BYTES);
}
