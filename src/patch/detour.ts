/**
 * The code that runs instead of the displaced instructions: gate in, programs, gate out, the instructions, jump back.
 *
 *     entry:   gate enter
 *              program 1 .. n
 *              return to the caller, if a program overrides the function
 *              claim the return address        (points with return probes)
 *              gate leave
 *              displaced instructions
 *              jmp site + length
 *
 * An `e9` at the site and the trap handler both lead to `entry`, with every register and flag as at the site.
 * The displaced instructions have twins in the text: a thread at one of them can be moved when the site is armed or
 * disarmed. In the gate nothing has a twin; a thread there has to leave first.
 */
import { type CodeNote, CodeWriter } from "../gate/code-writer.ts";
import { emitEnter, emitLeave, emitOverride, emitPrograms } from "../gate/gate.ts";
import { GATE_OVERRIDES, type GateFrame, type GateProgram, planFrame } from "../gate/gate-frame.ts";
import type { Liveness } from "../x86/liveness.ts";
import { R10, R11, R12, R13, R14, R15, RBP, RBX, RSP, regSet } from "../x86/registers.ts";
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
  readonly returnHook?: ReturnHook | undefined;
}

export interface Detour {
  readonly kind: "detour";
  readonly at: bigint;
  /** Where the site's jump or the trap handler leads. */
  readonly entry: bigint;
  readonly bytes: Uint8Array;
  readonly frame: GateFrame;
  /** Positions that are the same in the text and in the detour. */
  readonly twins: readonly Twin[];
  readonly notes: readonly CodeNote[];
  /** Offset of the displaced instructions: threads before it are in the gate. */
  readonly displacedOffset: number;
}

export type DetourResult = Detour | { readonly kind: "refused"; readonly refusal: Refusal };

export function emitDetour(spec: DetourSpec): DetourResult {
  const { plan, at } = spec;
  const distance = at - plan.at;
  if (BigInt.asIntN(32, distance) !== distance)
    return { kind: "refused", refusal: { reason: "detour-out-of-reach", site: plan.at, detour: at } };

  const overrides = spec.programs.some(({ ctxReads }) => ctxReads.has(GATE_OVERRIDES));
  if (overrides && !plan.isEntry) throw new Error(`override at 0x${plan.at.toString(16)}: no function entry`);
  const hook = spec.returnHook;
  const frame = planFrame({
    programs: spec.programs,
    liveness: overrides ? withCalleeSaved(plan.liveness) : plan.liveness,
    isEntry: plan.isEntry,
    otherClobbers: hook === undefined ? 0 : CLAIM_CLOBBERS | regSet(R10, R11),
    otherClobbersFlags: hook !== undefined,
  });
  const writer = new CodeWriter(at);
  emitEnter(writer, frame, { ip: plan.at, spOffset: frame.totalBytes, isEntry: plan.isEntry });
  emitPrograms(writer, frame, spec.programs);
  emitOverride(writer, frame);
  if (hook !== undefined) emitClaim(writer, frame, hook);
  emitLeave(writer, frame);

  // The displaced instructions follow the gate; constants of the gate stand behind everything.
  const relocated = relocateBehind(writer, plan);
  if (relocated.kind === "refused") return relocated;
  const written = writer.finish();
  const displacedOffset = written.notes.find((note) => note.text === DISPLACED)!.offset;
  const copy = relocate(plan.region, at + BigInt(displacedOffset));
  if (copy.kind === "refused") return copy;
  const bytes = written.bytes.slice();
  bytes.set(copy.bytes, displacedOffset);

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

function emitClaim(writer: CodeWriter, frame: GateFrame, hook: ReturnHook): void {
  const { asm } = writer;
  writer.note("claim the return address for the return probes");
  asm.lea(R10, { base: RSP, disp: frame.totalBytes });
  asm.movImm(R11, hook.trampoline);
  writer.call(hook.claim);
}

/** Stack that a hit of this detour may use below the thread's stack pointer. */
export function stackNeed(detour: Detour, hook: ReturnHook | undefined): number {
  return Math.max(
    detour.frame.stackBytes,
    hook === undefined ? 0 : detour.frame.totalBytes + CLAIM_STACK_BYTES,
  );
}
