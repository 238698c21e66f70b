/**
 * The code that a `call` at a function's entry leads to: one trampoline for all sites that run the same programs.
 *
 *     entry:   gate enter            [rsp] = behind the call, [rsp + 8] = the function's return address
 *              program 1 .. n
 *              return to the caller, if a program overrides the function
 *              gate leave
 *              ret                   back behind the call: the function goes on
 *
 * The call has pushed one word, so everything that programs see of the stack is one word further up than in a detour. Where
 * a site is, is told by that word: it lies `entryDistance` bytes behind the function's first one, which is what programs see
 * as `ip` (five, or nine behind an endbr64). So trampolines differ by that only if a program reads `ip`, and by cookies only
 * if a program reads them.
 *
 * What is live differs by site. A trampoline is made for some of them together and saves what is live at any; another
 * site can use it if nothing more is live there (`mayServe`).
 *
 * Nothing of the text is displaced, so no position in a trampoline has a twin: a thread in it leaves by itself.
 *
 * A site that holds an `int3` for the time being, or the jump to a detour of another session, gets to its trampoline through an approach, which stands for the call:
 *
 *     push [rip + 5]; jmp trampoline; behind the call: .quad
 */
import { type CodeNote, CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import { emitEnter, emitLeave, emitOverride, emitPrograms } from "../gate/gate.ts";
import { type GateFrame, type GateProgram, planFrame, switchClobbers } from "../gate/gate-frame.ts";
import { emitTopWord } from "../gate/stack-switch.ts";
import { Assembler } from "../x86/assembler.ts";
import type { Liveness } from "../x86/liveness.ts";
import { PT_REGS_COOKIE, PT_REGS_IP, PT_REGS_SP, type RegSet, RSP } from "../x86/registers.ts";
import type { Twin } from "../x86/relocate.ts";
import type { PrivateStackHook } from "./detour.ts";
import type { SitePlan } from "./plan.ts";

/** The word that the call has pushed. */
const PUSHED_BYTES = 8;

export interface FunctionTrampolineSpec {
  /** Within 2 GiB of every site. */
  readonly at: bigint;
  readonly programs: readonly GateProgram[];
  /** From a function's first byte to behind the call; undefined: no program asks. */
  readonly entryDistance: number | undefined;
  /** Registers that are live at some of the sites. */
  readonly liveRegs: RegSet;
  /** Programs run on the thread's private stack; undefined: on its own. */
  readonly privateStack?: PrivateStackHook | undefined;
}

export interface FunctionTrampoline {
  readonly kind: "trampoline";
  readonly at: bigint;
  /** Where calls lead. */
  readonly entry: bigint;
  readonly bytes: Uint8Array;
  readonly frame: GateFrame;
  readonly twins: readonly Twin[];
  readonly notes: readonly CodeNote[];
  /** Registers that it changes between its two ends. */
  readonly changes: RegSet;
  /** Those of them that it puts back, and others that it does not touch. */
  readonly liveRegs: RegSet;
}

export function emitFunctionTrampoline(spec: FunctionTrampolineSpec): FunctionTrampoline {
  const { at, programs, entryDistance, liveRegs, privateStack } = spec;
  const frame = planFrame({
    programs,
    liveness: { regs: liveRegs, flagsLive: false },
    isEntry: true,
    otherClobbers: 0,
    otherClobbersFlags: false,
    stacks: privateStack?.stacks,
  });
  const writer = new CodeWriter(at);
  const { asm } = writer;
  const sides = emitEnter(writer, frame, {
    ip: undefined,
    spDelta: PUSHED_BYTES,
    isEntry: true,
    turnedAway: privateStack?.turnedAway,
  });
  if (frame.reads.has(PT_REGS_IP)) {
    if (entryDistance === undefined) throw new Error("emit trampoline: a program asks where its site is");
    writer.note("address of the function, read by a program");
    emitTopWord(writer, frame, frame.scratch!);
    asm.lea(frame.scratch!, { base: frame.scratch!, disp: -entryDistance });
    asm.mov({ base: RSP, disp: PT_REGS_IP }, frame.scratch!);
  }
  emitPrograms(writer, frame, programs);
  emitOverride(writer, frame, PUSHED_BYTES);
  emitLeave(writer, frame, sides);
  writer.note("back behind the call");
  asm.ret();
  sides?.emit(frame.totalBytes);
  const { bytes, notes } = writer.finish();
  const stackBytes = frame.stackBytes + PUSHED_BYTES;
  const usesScratch = [PT_REGS_IP, PT_REGS_SP, PT_REGS_COOKIE].some((slot) => frame.reads.has(slot));
  const scratch = usesScratch ? 1 << frame.scratch! : 0;
  return {
    kind: "trampoline",
    at,
    entry: at,
    bytes,
    frame: { ...frame, stackBytes },
    twins: [],
    notes,
    changes: programs.reduce(
      (changed, { clobbers }) => changed | clobbers,
      scratch | (privateStack === undefined ? 0 : switchClobbers(privateStack.stacks)),
    ),
    liveRegs,
  };
}

/** From the function's first byte to behind the call. */
export function entryDistanceOf({ at, region }: Pick<SitePlan, "at" | "region">): number {
  return Number(region.start - at) + region.lenBytes;
}

/** What sites must have in common to be served by one trampoline, beside what is live. */
export function trampolineKey(programs: readonly GateProgram[], entryDistance: number): string {
  const reads = (slot: number) => programs.some(({ ctxReads }) => ctxReads.has(slot));
  const list = programs.map(({ entry, ctxReads, cookie }) =>
    ctxReads.has(PT_REGS_COOKIE) ? `${entry.toString(16)} ${cookie}` : entry.toString(16),
  );
  return [reads(PT_REGS_IP) ? entryDistance : "any", ...list].join(", ");
}

/** Whether the trampoline leaves alone or puts back what is live at a site. */
export function mayServe({ changes, liveRegs }: FunctionTrampoline, { regs }: Liveness): boolean {
  return (regs & changes & ~liveRegs) === 0;
}

/** An approach that stands right before a detour begins so many bytes before it. */
export const APPROACH_SPACE_BYTES = 32;
/** Where in an approach the `e9 rel32` to the trampoline stands. */
export const APPROACH_JUMP_OFFSET = 6;

/** What an `int3`, or the detour of another session, leads to instead of the call. */
export function emitApproach(at: bigint, behindCall: bigint, trampoline: bigint): WrittenCode {
  const asm = new Assembler(at);
  const word = asm.label("behind the call");
  asm.push({ ripTo: word });
  asm.jmp32(trampoline);
  asm.bind(word);
  asm.data64(behindCall);
  return {
    at,
    bytes: asm.finish(),
    notes: [
      { offset: 0, text: "as the call does", isData: false },
      { offset: asm.offsetOf(word), text: "behind the call", isData: true },
    ],
  };
}
