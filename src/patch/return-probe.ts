/**
 * Where a function returns to while its return is probed: the stubs and the trampoline of one point.
 *
 *     -8:        address of the point's nmissed counter
 *     stubs:     push depth; jmp trampoline        eight times, 16 bytes apart, 128-byte aligned
 *     trampoline:
 *                gate enter                        the pushed depth lies in the slot itself
 *                find the original return address, put it into the slot
 *                program 1 .. n                    ip = the address returned to, rax = the return value
 *                gate leave
 *                lea rsp, [rsp + 8]; jmp [rsp - 8]   signals leave the red zone alone
 *
 * At a return rax and rdx carry values, the callee-saved registers are the caller's, and the caller may rely on
 * more (gcc -fipa-ra); so everything that is changed is restored. Flags are dead. Nothing below the caller's rsp is
 * in use, so there is no red zone to step over: but the slot itself lies there, and the frame is below it.
 *
 * With private stacks the address is found before the gate, in a frame on the thread's own stack: it is needed also where a thread
 * is turned away.
 */
import { CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import { emitEnter, emitLeave, emitPrograms, type GatePlace } from "../gate/gate.ts";
import { type GateFrame, type GateProgram, planFrame } from "../gate/gate-frame.ts";
import type { GateStacks } from "../gate/private-stacks.ts";
import { emitTopWord } from "../gate/stack-switch.ts";
import { ALL_REGS } from "../x86/liveness.ts";
import { PT_REGS_IP, R10, R11, type RegSet, RSP } from "../x86/registers.ts";
import type { PrivateStackHook } from "./detour.ts";
import { FIND_CLOBBERS, MAX_RETURN_DEPTH, type ReturnRuntime, STUBS_BYTES } from "./return-table.ts";

export interface ReturnTrampolineSpec {
  /** In the table's range of trampolines. */
  readonly at: bigint;
  readonly programs: readonly GateProgram[];
  readonly runtime: ReturnRuntime;
  /** Counter of returns that were not probed, 8 bytes of shared memory. */
  readonly nmissed: bigint;
  /** Programs run on the thread's private stack; undefined: on its own. */
  readonly privateStack?: PrivateStackHook | undefined;
}

export interface ReturnTrampoline extends WrittenCode {
  /** What the detour at the function's entry puts into the slot; 128-byte aligned. */
  readonly stubs: bigint;
  readonly frame: GateFrame;
}

export function emitReturnTrampoline(spec: ReturnTrampolineSpec): ReturnTrampoline {
  const { runtime, programs, privateStack } = spec;
  const { start, end } = runtime.table.trampolines;
  const frameFor = (
    inside: readonly GateProgram[],
    otherClobbers: RegSet,
    stacks: GateStacks | undefined,
  ): GateFrame =>
    planFrame({
      programs: inside,
      liveness: { regs: ALL_REGS, flagsLive: false },
      isEntry: true,
      otherClobbers,
      otherClobbersFlags: false,
      stacks,
    });
  const frame = frameFor(programs, privateStack === undefined ? FIND_CLOBBERS : 0, privateStack?.stacks);
  const writer = new CodeWriter(spec.at);
  const { asm } = writer;
  const body = asm.label("trampoline");

  // The word before the stubs is the address of the counter.
  writer.note("counter of missed returns", true);
  const headBytes = Number(
    (BigInt(STUBS_BYTES) - ((spec.at + 8n) % BigInt(STUBS_BYTES))) % BigInt(STUBS_BYTES),
  );
  asm.bytes(new Uint8Array(headBytes).fill(0xcc));
  asm.data64(spec.nmissed);
  const stubs = asm.here("stubs");
  for (let depth = 0; depth <= MAX_RETURN_DEPTH; depth++) {
    writer.note(depth === 0 ? "returned here" : `returned here through ${depth} tail calls`);
    asm.pushImm(depth);
    asm.jmp32(body);
    asm.nop(9);
  }
  asm.bind(body);
  if (privateStack !== undefined) {
    const finding = frameFor([], FIND_CLOBBERS, undefined);
    emitEnter(writer, finding, place);
    emitFind(writer, finding, runtime);
    emitLeave(writer, finding);
  }
  const sides = emitEnter(writer, frame, { ...place, turnedAway: privateStack?.turnedAway });
  if (privateStack === undefined) emitFind(writer, frame, runtime);
  if (frame.reads.has(PT_REGS_IP)) {
    writer.note("the address returned to, read by a program");
    if (privateStack !== undefined) emitTopWord(writer, frame, R11);
    asm.mov({ base: RSP, disp: PT_REGS_IP }, R11);
  }
  emitPrograms(writer, frame, programs);
  emitLeave(writer, frame, sides);
  writer.note("return; a jump, because the processor's stack of return addresses has used up this call");
  asm.lea(RSP, { base: RSP, disp: 8 });
  asm.jmpTo({ base: RSP, disp: -8 });
  sides?.emit(frame.totalBytes);
  const written = writer.finish();
  const stubsAt = asm.addressOf(stubs);
  if (stubsAt < start || stubsAt + BigInt(STUBS_BYTES) > end || stubsAt % BigInt(STUBS_BYTES) !== 0n)
    throw new Error(`emit trampoline at 0x${spec.at.toString(16)}: outside the range of trampolines`);
  return { ...written, stubs: stubsAt, frame };
}

const place: GatePlace = { ip: undefined, spDelta: 8, isEntry: false };

/** Puts the address that belongs there into the slot, the word above the frame; it had the depth. */
function emitFind(writer: CodeWriter, frame: GateFrame, runtime: ReturnRuntime): void {
  const { asm } = writer;
  writer.note("key: slot and depth");
  asm.lea(R10, { base: RSP, disp: frame.totalBytes });
  asm.or(R10, { base: R10 });
  writer.note("find the return address");
  writer.call(runtime.find);
  asm.mov({ base: RSP, disp: frame.totalBytes }, R11);
}
