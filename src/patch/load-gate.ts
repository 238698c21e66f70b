/**
 * Code that stands at the dynamic loader's `_dl_debug_state`, which the loader calls whenever its list of images has changed
 * (and, for a new image, before any constructor of it runs): it announces the change and waits until the tracer has
 * armed what is new.
 *
 * The words that both sides share:
 *
 *     0 announced u32    4 acknowledged u32    8 heartbeat u32 (the tracer counts it up)    12 abandoned u32
 *
 * Invariant: the thread is not held for ever. It waits in slices; when the heartbeat stands still for fifty slices, the
 * tracer is taken for dead, and nobody waits again.
 */
import type { Assembler, Label } from "../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, type RegSet, RSI, RSP, regSet } from "../x86/registers.ts";

/**
 * Called by glibc's and musl's loaders whenever the list of loaded images has changed, for debuggers to stop at; for a new
 * image before its constructors run.
 */
export const LOAD_GATE_FUNCTION = "_dl_debug_state";

export const loadGateWords = { announced: 0, acknowledged: 4, heartbeat: 8, abandoned: 12 } as const;
export const LOAD_GATE_BYTES = 16;

/** What the gate changes; to be saved around it like around any program. */
export const loadGateClobbers: RegSet = regSet(RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11);

const SLICE_NS = 100_000_000n;
const DEAD_AFTER_SLICES = 50;
const SYS_FUTEX = 202;
const FUTEX_WAIT = 0;
/** A shared word, by its offset. */
const word = (offset: number) => ({ base: R8, disp: offset });
const ETIMEDOUT = 110;

/** Frame: a timespec, the heartbeat last seen, and the number of slices since it changed. */
const TIMESPEC_NSEC = 8;
const LAST_BEAT = 16;
const SLICES = 20;
const FRAME_BYTES = 24;
export const LOAD_GATE_STACK_BYTES = FRAME_BYTES + 8;

/** Emits the gate as something to be called from a detour; `words` is the address of the shared words. */
export function emitLoadGate(a: Assembler, words: bigint): Label {
  const entry = a.here("load_gate");
  const wait = a.label("wait");
  const alive = a.label("alive");
  const done = a.label("done");

  a.subImm(RSP, FRAME_BYTES);
  a.movabs(R8, words);
  a.cmpImm(word(loadGateWords.abandoned), 0, 32);
  a.jcc("ne", done);
  a.movImm({ base: RSP, disp: 0 }, 0);
  a.movImm({ base: RSP, disp: TIMESPEC_NSEC }, SLICE_NS);
  a.movImm({ base: RSP, disp: SLICES }, 0, 32);
  a.mov(RAX, word(loadGateWords.heartbeat), 32);
  a.mov({ base: RSP, disp: LAST_BEAT }, RAX, 32);
  a.movImm(R9, 1, 32);
  a.lock().xadd(word(loadGateWords.announced), R9, 32);
  a.inc(R9, 32); // the number of this announcement

  a.bind(wait);
  a.mov(RDX, word(loadGateWords.acknowledged), 32);
  a.mov(RAX, RDX, 32);
  a.sub(RAX, R9, 32); // both wrap around: their difference tells which is ahead
  a.jcc("ns", done);
  a.lea(RDI, word(loadGateWords.acknowledged));
  a.movImm(RSI, FUTEX_WAIT, 32);
  a.lea(R10, { base: RSP, disp: 0 });
  a.movImm(RAX, SYS_FUTEX, 32);
  a.syscall();
  a.cmpImm(RAX, -ETIMEDOUT, 32);
  a.jcc("ne", wait); // woken, or interrupted by a signal: look again
  a.mov(RAX, word(loadGateWords.heartbeat), 32);
  a.cmp(RAX, { base: RSP, disp: LAST_BEAT }, 32);
  a.jcc("ne", alive);
  a.inc({ base: RSP, disp: SLICES }, 32);
  a.cmpImm({ base: RSP, disp: SLICES }, DEAD_AFTER_SLICES, 32);
  a.jcc("b", wait);
  a.movImm(word(loadGateWords.abandoned), 1, 32);
  a.jmp(done);
  a.bind(alive);
  a.mov({ base: RSP, disp: LAST_BEAT }, RAX, 32);
  a.movImm({ base: RSP, disp: SLICES }, 0, 32);
  a.jmp(wait);

  a.bind(done);
  a.addImm(RSP, FRAME_BYTES);
  a.ret();
  return entry;
}
