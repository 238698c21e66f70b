/**
 * The calls that led to a point, by the chain of frame pointers: `[rbp]` is the caller's rbp, `[rbp + 8]` where it goes
 * on.
 *
 * Problem: in code without frame pointers rbp is just a number, so nothing may be loaded from it; and a system call
 * for each frame would be slow.
 *
 * Strategy: frames are looked for in a window of memory. The first window is the rest of the stack's page that the
 * context is in: this thread has just written there, so it can be loaded from. Behind it a window is a copy made by
 * process_vm_readv, large enough for several frames.
 *
 *     window    real address   lo ............ hi
 *               loaded from    lo + delta .... hi + delta
 *
 * The walk ends where a frame cannot be read, is not aligned, or does not lie above the one before it, so it always
 * ends. At a function's entry rbp still is the caller's: the caller's place is on top of the stack then. Where a return probe has put an address of its own, the one that was
 * there counts.
 */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import {
  PT_REGS_IP,
  PT_REGS_SP,
  ptRegsOffset,
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
  RSP,
} from "../../../x86/registers.ts";
import { CTX_SITE, SITE_IS_ENTRY } from "../../context.ts";
import { EFAULT, EINVAL } from "../../error-numbers.ts";
import {
  MAX_STACK_FRAMES,
  STACK_FAST_COMPARE,
  STACK_REUSE_ID,
  STACK_SKIP_MASK,
  STACK_USER,
} from "../../stack-flags.ts";
import type { LinkEnv } from "../link-env.ts";
import { emitFrame, emitZeroBytes } from "../memory-moves.ts";
import { emitOriginalReturn } from "./return-lookup.ts";
import type { Routine, RoutineSet } from "./routine.ts";
import { fillPidCache } from "./task-routines.ts";
import { emitReadv, PAGE_BYTES, READ_CLOBBERS } from "./user-read-routines.ts";

/** Saved rbp and return address. */
const FRAME_RECORD_BYTES = 16;
/** Enough for a dozen frames: what a read costs hardly depends on its size. */
const WINDOW_BYTES = 2048;

const [FP, DELTA, LO, HI, OUT, LEFT] = [RBX, RBP, R12, R13, R14, R15];
const state = [FP, DELTA, LO, HI, OUT, LEFT];

/** The frame of the walk: iovec structures (one local, two remote) as `emitReadv` wants them, and variables. */
const local = {
  localBase: 0,
  localLen: 8,
  headBase: 16,
  headLen: 24,
  tailBase: 32,
  tailLen: 40,
  start: 48,
  skip: 56,
  next: 64,
  window: 72,
};
const FRAME_BYTES = local.window + WINDOW_BYTES;

/**
 * rdi = context, rsi = where addresses go, rdx = how many at most, rcx = how many to leave out first;
 * rax = how many there are now, or -EFAULT if there are not even as many as are left out.
 */
export function walkStack(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("walk stack", () => {
    const fill = fillPidCache(routines, env);
    return {
      args: [1, 2, 3, 4],
      clobbers: READ_CLOBBERS,
      stackBytes: state.length * 8 + FRAME_BYTES,
      calls: [fill],
      emit: (a) => {
        const [done, notEntry, leave] = [a.label("done"), a.label("not at entry"), a.label("leave")];
        for (const reg of state) a.push(reg);
        a.subImm(RSP, FRAME_BYTES);
        a.mov(OUT, RSI);
        a.mov(at("start"), RSI);
        a.mov(LEFT, RDX);
        a.mov(at("skip"), RCX);
        a.zero(DELTA);
        a.lea(LO, { base: RDI, disp: PT_REGS_SP });
        a.mov(HI, LO);
        a.orImm(HI, PAGE_BYTES - 1);
        a.inc(HI);
        a.mov(RAX, { base: RDI, disp: PT_REGS_IP });
        emitFound(a, done);
        a.mov(FP, { base: RDI, disp: ptRegsOffset[RBP]! });
        a.testImm({ base: RDI, disp: CTX_SITE }, SITE_IS_ENTRY, 8);
        a.jcc("e", notEntry);
        a.mov(at("next"), FP);
        a.mov(FP, { base: RDI, disp: PT_REGS_SP });
        emitToWindow(a, env, fill, done);
        a.mov(RAX, { base: FP, index: DELTA });
        emitOriginalReturn(a, env, { base: FP, disp: 0 });
        a.mov(FP, at("next"));
        emitFound(a, done);
        a.bind(notEntry);

        const next = a.here("frame");
        a.test(FP, FP);
        a.jcc("e", done);
        a.testImm(FP, 7, 8);
        a.jcc("ne", done);
        emitToWindow(a, env, fill, done);
        a.mov(RAX, { base: FP, index: DELTA, disp: 8 });
        emitOriginalReturn(a, env, { base: FP, disp: 8 });
        emitFound(a, done);
        a.mov(RAX, { base: FP, index: DELTA });
        a.cmp(RAX, FP);
        a.mov(FP, RAX);
        a.jcc("a", next);

        a.bind(done);
        a.mov(RAX, OUT);
        a.sub(RAX, at("start"));
        a.shr(RAX, 3);
        a.cmpImm(at("skip"), 0);
        a.jcc("e", leave);
        a.movImm(RAX, EFAULT);
        a.bind(leave);
        a.addImm(RSP, FRAME_BYTES);
        for (const reg of state.toReversed()) a.pop(reg);
        a.ret();
      },
    };
  });
}

const at = (name: keyof typeof local) => ({ base: RSP, disp: local[name] });

/** rax is the address of another frame: it is left out, or kept if there is room, or this goes to `full`. */
function emitFound(a: Assembler, full: Label): void {
  const [keep, kept] = [a.label("keep"), a.label("kept")];
  a.cmpImm(at("skip"), 0);
  a.jcc("e", keep);
  a.dec(at("skip"));
  a.jmp(kept);
  a.bind(keep);
  a.test(LEFT, LEFT);
  a.jcc("e", full);
  a.dec(LEFT);
  a.mov({ base: OUT }, RAX);
  a.addImm(OUT, 8);
  a.bind(kept);
}

/** Makes the window one that holds the frame at FP; goes to `unreadable` if there is none. */
function emitToWindow(a: Assembler, env: LinkEnv, fill: Routine, unreadable: Label): void {
  const [move, inside] = [a.label("move window"), a.label("in window")];
  a.mov(RAX, FP);
  a.sub(RAX, LO);
  a.jcc("b", move);
  a.addImm(RAX, FRAME_RECORD_BYTES);
  a.mov(RCX, HI);
  a.sub(RCX, LO);
  a.cmp(RAX, RCX);
  a.jcc("be", inside);
  a.bind(move);
  a.lea(RAX, at("window"));
  a.mov(at("localBase"), RAX);
  a.movImm(at("localLen"), WINDOW_BYTES);
  // Two pieces, so that a hole behind the first page does not hide what is in it.
  a.mov(RAX, FP, 32);
  a.andImm(RAX, PAGE_BYTES - 1, 32);
  a.movImm(RCX, PAGE_BYTES);
  a.sub(RCX, RAX, 32);
  a.movImm(RAX, WINDOW_BYTES);
  a.cmp(RCX, RAX);
  a.cmov("a", RCX, RAX);
  a.sub(RAX, RCX);
  a.mov(at("headBase"), FP);
  a.mov(at("headLen"), RCX);
  a.add(RCX, FP);
  a.mov(at("tailBase"), RCX);
  a.mov(at("tailLen"), RAX);
  emitReadv(a, env, fill, 2);
  a.cmpImm(RAX, FRAME_RECORD_BYTES);
  a.jcc("l", unreadable);
  a.mov(LO, FP);
  a.lea(HI, { base: FP, index: RAX });
  a.lea(DELTA, at("window"));
  a.sub(DELTA, FP);
  a.bind(inside);
}

/**
 * rdi = context, rsi = memory, rdx = its size, rcx = flags; rax = bytes of addresses in the memory, the rest of which is
 * zeroed, or an error and all is.
 */
export function getStack(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("get stack", () => {
    const walk = walkStack(routines, env);
    const [memory, size] = [0, 8];
    return {
      args: [1, 2, 3, 4],
      clobbers: READ_CLOBBERS,
      stackBytes: 16,
      calls: [walk],
      emit: (a) =>
        emitFrame(a, 16, (leave) => {
          const [invalid, fault, failed] = [a.label("invalid"), a.label("fault"), a.label("failed")];
          a.mov({ base: RSP, disp: memory }, RSI);
          a.mov({ base: RSP, disp: size }, RDX);
          a.testImm(RCX, ~Number(STACK_SKIP_MASK | STACK_USER));
          a.jcc("ne", invalid);
          a.testImm(RDX, 7, 8);
          a.jcc("ne", invalid);
          emitFrameCounts(a, fault);
          a.call(walk.label);
          a.test(RAX, RAX);
          a.jcc("s", failed);
          a.mov(RDI, { base: RSP, disp: memory });
          a.mov(RCX, { base: RSP, disp: size });
          a.shl(RAX, 3);
          emitZeroWords(a, RDI, RAX, RCX);
          leave();
          a.bind(fault);
          a.movImm(RAX, EFAULT);
          a.jmp(failed);
          a.bind(invalid);
          a.movImm(RAX, EINVAL);
          a.bind(failed);
          a.mov(RDI, { base: RSP, disp: memory });
          a.mov(RCX, { base: RSP, disp: size });
          emitZeroBytes(a, RDI, RCX);
          leave();
        }),
    };
  });
}

/**
 * rdi = context, rdx = flags; rsi = the map, where it is not known. rax = id of the stack in the map, -EINVAL, -EFAULT
 * where no frame is left, or what the map says.
 */
export function getStackId(
  routines: RoutineSet,
  env: LinkEnv,
  map: { readonly name: string; readonly valueBytes: number; readonly insert: Routine },
): Routine {
  return routines.get(`get stack id ${map.name}`, () => {
    const walk = walkStack(routines, env);
    const takesMap = map.insert.args.includes(1);
    const words = Math.min(MAX_STACK_FRAMES, Math.floor(map.valueBytes / 8));
    const [flags, mapAt, addresses] = [0, 8, 16];
    const frameBytes = addresses + words * 8;
    return {
      args: takesMap ? [1, 2, 3] : [1, 3],
      clobbers: READ_CLOBBERS,
      stackBytes: frameBytes,
      calls: [walk, map.insert],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [invalid, fault] = [a.label("invalid"), a.label("fault")];
          a.testImm(RDX, ~Number(STACK_SKIP_MASK | STACK_USER | STACK_FAST_COMPARE | STACK_REUSE_ID));
          a.jcc("ne", invalid);
          a.mov({ base: RSP, disp: flags }, RDX);
          if (takesMap) a.mov({ base: RSP, disp: mapAt }, RSI);
          a.mov(RCX, RDX);
          a.movImm(RDX, words * 8);
          emitFrameCounts(a, fault);
          a.lea(RSI, { base: RSP, disp: addresses });
          a.call(walk.label);
          a.test(RAX, RAX);
          a.jcc("le", fault);
          if (takesMap) a.mov(RDI, { base: RSP, disp: mapAt });
          a.lea(RSI, { base: RSP, disp: addresses });
          a.mov(RDX, RAX);
          a.mov(RCX, { base: RSP, disp: flags });
          a.call(map.insert.label);
          leave();
          a.bind(invalid);
          a.movImm(RAX, EINVAL);
          leave();
          a.bind(fault);
          a.movImm(RAX, EFAULT);
          leave();
        }),
    };
  });
}

/** From flags in rcx and bytes in rdx: frames to leave out in rcx, frames to keep in rdx; or this goes to `fault`. */
function emitFrameCounts(a: Assembler, fault: Label): void {
  a.movzx(RCX, RCX, 8);
  a.movImm(RAX, MAX_STACK_FRAMES);
  a.sub(RAX, RCX);
  a.jcc("b", fault);
  a.shr(RDX, 3);
  a.cmp(RDX, RAX);
  a.cmov("a", RDX, RAX);
}

/** Zeroes `[base + from, base + end)`; both are multiples of 8 and `from` is not above `end`, which changes. */
function emitZeroWords(a: Assembler, base: number, from: number, end: number): void {
  const [next, done] = [a.here("zero"), a.label("zeroed")];
  a.cmp(end, from);
  a.jcc("e", done);
  a.subImm(end, 8);
  a.movImm({ base, index: end }, 0);
  a.jmp(next);
  a.bind(done);
}
