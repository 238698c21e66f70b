/**
 * Stacks of our own for threads that may have little room on theirs: one for each thread that comes by, found without a
 * system call and without a word of thread-local storage.
 *
 * Problem: a program's frame must not go where the application has no room (goroutines, coroutines, alternate signal
 * stacks), and later not where the application can reach it. Strategy: all stacks lie in one range of 2^COUNT_LOG2 slots. A
 * thread is known by its fs base, which no other living thread of the address space has; its hash says where to look, and the
 * following slots are its alternatives. A slot is claimed once by one exchange and stays its thread's: nobody else ever
 * writes to it, so a hit takes no atomic operation. A thread has one slot at most, also if a handler comes by here while it is claimed.
 *
 *     slot + 0              guard page, not accessible
 *     slot + 4096 ..        stack, growing down from `head`
 *     slot + STRIDE - 64    head: +0   fs base of the owner, 0: free
 *                                 +8   stack pointer that the owner left behind, 0: not in use
 *                                 +16  while in use: where the programs of this hit can be left at any instruction (`emitRecovery`)
 *                                 +24  a range of addresses (its length at +32) where the thread is not on its alternate stack
 *                                 +40  the thread's signal mask, while +48 is not 0: it is to be put back behind the gate
 *                                 +56  how many hits more that range is believed u32, +60 how many the next time u32
 *
 * A handler on an alternate stack must not leave it while another one for that stack may come: the kernel would begin the stack again at its
 * top. So a thread that is not where it is known to be on an ordinary stack asks the kernel (`settle`), and if it is on the alternate one
 * signals wait for this once. Since a thread may get its alternate stack at any time, mostly when it begins, it asks again: at the second hit,
 * then after twice as many each time, up to 1024. Not handled: an alternate stack within a megabyte of where the thread has been hit
 * before, whose handlers interrupt each other before it asks.
 *
 * Reading the fs base takes some 6 ns on processors where the instruction for that waits for everything before it (Zen). The C
 * libraries keep the same address in the word that it points to, as the psABI wants; where all threads of a process do so, it is
 * read from there. `find` compares the two before a thread gets a slot.
 *
 * Invariants: `sp` is 0 exactly while its thread may enter. A signal handler that comes by while it is not 0 is turned away
 * and counted, wherever it interrupted the way in or out. If a handler left by longjmp, `sp` stays: a thread that is at a
 * higher address of its own stack than what was left behind can have nothing below to return to, and takes the stack again.
 *
 * Not handled: more than 2^COUNT_LOG2 fs bases in one process's life: later threads are turned away and counted. Threads that
 * have ended leave their slot to whoever gets the same fs base, as threads of the C library do.
 *
 * Facts: sigaltstack is system call 131; its old stack_t has ss_flags at +8, SS_ONSTACK is 1, SS_DISABLE 2 (asm-generic/signal-defs.h).
 */
import type { Assembler, Label } from "../x86/assembler.ts";
import { R10, R11, RAX, RCX, RDI, RDX, type Reg, RSI, RSP } from "../x86/registers.ts";
import { CodeWriter, type WrittenCode } from "./code-writer.ts";
import { DEFERRED_SIGNALS, emitSetMask } from "./deferred-signals.ts";
import type { GateKey } from "./gate-key.ts";

const COUNT_LOG2 = 10;
const STRIDE_LOG2 = 16;
/** 2^64 divided by the golden ratio: neighbouring fs bases get far apart slots. */
const HASH = 0x9e37_79b9_7f4a_7c15n;
const GUARD_BYTES = 4096;

export const STACK_STRIDE = 1 << STRIDE_LOG2;
export const STACK_COUNT = 1 << COUNT_LOG2;
/** Bytes of address space that the stacks take; memory is used for those that threads have entered. */
export const PRIVATE_STACKS_BYTES = STACK_COUNT * STACK_STRIDE;
/** Offset of the head in its slot; the stack begins right below. */
export const STACK_HEAD = STACK_STRIDE - 64;
/** Offsets from the head. */
export const HEAD_OWNER = 0;
export const HEAD_SP = 8;
export const HEAD_RECOVER = 16;
export const HEAD_PLAIN_START = 24;
export const HEAD_PLAIN_BYTES = 32;
export const HEAD_MASK = 40;
export const HEAD_MASKED = 48;
export const HEAD_HITS_LEFT = 56;
const HEAD_HITS_NEXT = 60;
/** Stack that a thread has for the gate's frame, a program, and a signal frame with a handler on top. */
export const PRIVATE_STACK_BYTES = STACK_HEAD - GUARD_BYTES;

/** Parts of the range that nobody may touch. */
export function guardPages(base: bigint): { readonly at: bigint; readonly lenBytes: number }[] {
  return Array.from({ length: STACK_COUNT }, (_, i) => ({
    at: base + BigInt(i * STACK_STRIDE),
    lenBytes: GUARD_BYTES,
  }));
}

/** Where a thread's fs base is read: in the register itself, or in the word at fs:0. */
export type ThreadSource = "fs base" | "fs:0";

/** The stacks of one target, and the code that the ways in share. */
export interface PrivateStacks {
  /** A multiple of the stride. */
  readonly base: bigint;
  readonly routines: StackRoutines;
  /** The stacks, and everything that programs use, are under this key. */
  readonly key: GateKey | undefined;
}

/** The stacks as one gate goes to them. */
export interface GateStacks extends PrivateStacks {
  readonly thread: ThreadSource;
  /** Signals wait while a thread is in the gate; under a key they do in every gate. */
  readonly defersSignals: boolean;
  /** A thread that comes by may be on an alternate stack that another handler would begin again. */
  readonly findsAlternate: boolean;
}

export interface StackRoutines {
  /**
   * In: r11 = fs base as read, r10 = the slot that its hash says. Out: r10 = the thread's slot, 0: none is left, or what was read
   * is no fs base. Changes flags.
   */
  readonly find: bigint;
  /** In: r10 = a slot in use. Out: r11 = 0 if nobody will come back to what is there. Changes flags. */
  readonly isHeld: bigint;
  /**
   * The same for where a key is open: they return to the address in rdx instead of one on a stack that others can write, and
   * change rax, rcx, rsi, rdi as well.
   */
  readonly findWithKey: bigint;
  readonly isHeldWithKey: bigint;
  /**
   * In: r10 = the slot, rsp outside of what is known to be an ordinary stack. Either it is known from now on, or signals wait and
   * `HEAD_MASKED` says so. Changes r11 and flags.
   */
  readonly settle: bigint;
  /** In: r11 = the head of a slot with `HEAD_MASKED`. Puts the mask back. Changes flags. */
  readonly deliver: bigint;
}

/** r10 = the slot where the thread's hash leads, r11 = its fs base. */
export function emitHash(writer: CodeWriter, { base, thread }: Pick<GateStacks, "base" | "thread">): void {
  const { asm } = writer;
  if (thread === "fs:0") asm.mov(R11, { fs: 0 });
  else asm.rdfsbase(R11);
  asm.movabs(R10, HASH);
  asm.imul(R10, R11);
  asm.shr(R10, 64 - COUNT_LOG2 - STRIDE_LOG2);
  asm.andImm(R10, -STACK_STRIDE);
  asm.add(R10, { ripTo: writer.literal(base) });
}

export function emitStackRoutines(at: bigint, base: bigint): WrittenCode & StackRoutines {
  const writer = new CodeWriter(at);
  const { asm } = writer;
  writer.note("find the stack of a thread");
  const findWithKey = asm.here("find_with_key");
  emitFind(writer, base);
  const find = emitAsCall(asm, findWithKey, [RAX, RCX, RDX]);
  asm.align(16, "int3");
  writer.note("is a stack in use by somebody who comes back?");
  const isHeldWithKey = asm.here("is_held_with_key");
  emitIsHeld(asm);
  const isHeld = emitAsCall(asm, isHeldWithKey, [RAX, RCX, RDX, RSI, RDI]);
  asm.align(16, "int3");
  writer.note("is the thread on its alternate stack?");
  const settle = asm.here("settle");
  emitSettle(writer);
  asm.align(16, "int3");
  writer.note("signals as before");
  const deliver = asm.here("deliver");
  emitDeliverAll(asm);
  const addressOf = (label: Label) => asm.addressOf(label);
  return {
    ...writer.finish(),
    find: addressOf(find),
    isHeld: addressOf(isHeld),
    findWithKey: addressOf(findWithKey),
    isHeldWithKey: addressOf(isHeldWithKey),
    settle: addressOf(settle),
    deliver: addressOf(deliver),
  };
}

/** An entry for `call`, which keeps what the routine changes. */
function emitAsCall(asm: Assembler, routine: Label, changed: readonly Reg[]): Label {
  asm.align(16, "int3");
  const entry = asm.here("entry");
  const back = asm.label("back");
  for (const reg of changed) asm.push(reg);
  asm.lea(RDX, { ripTo: back });
  asm.jmp(routine);
  asm.bind(back);
  for (const reg of changed.toReversed()) asm.pop(reg);
  asm.ret();
  return entry;
}

function emitFind(writer: CodeWriter, base: bigint): void {
  const { asm } = writer;
  const look = asm.label("look");
  const seen = asm.label("seen");
  const next = asm.label("next");
  const inside = asm.label("inside");
  const done = asm.label("done");
  const none = asm.label("none");
  const owner = { base: R10, disp: STACK_HEAD + HEAD_OWNER };
  asm.rdfsbase(RAX);
  asm.cmp(RAX, R11);
  asm.jcc("ne", none);
  asm.movImm(RCX, STACK_COUNT, 32);
  asm.bind(look);
  asm.mov(RAX, owner);
  asm.bind(seen);
  asm.cmp(RAX, R11);
  asm.jcc("e", done);
  asm.test(RAX, RAX);
  asm.jcc("ne", next);
  asm.lock().cmpxchg(owner, R11);
  asm.jcc("e", done);
  // Claimed meanwhile: by another thread, or by a handler on this one, for it.
  asm.jmp(seen);
  asm.bind(next);
  asm.addImm(R10, STACK_STRIDE);
  asm.cmp(R10, { ripTo: writer.literal(base + BigInt(PRIVATE_STACKS_BYTES)) });
  asm.jcc("b", inside);
  asm.mov(R10, { ripTo: writer.literal(base) });
  asm.bind(inside);
  asm.dec(RCX, 32);
  asm.jcc("ne", look);
  asm.bind(none);
  asm.zero(R10);
  asm.bind(done);
  asm.jmpTo(RDX);
}

/** Stack of the thread's own that the routines use: a return address, registers, and a `stack_t`. */
export const SWITCH_STACK_BYTES = 8 + 6 * 8 + 24;

/** `struct stack_t`: pointer, flags, size. */
const STACK_T_BYTES = 24;
const STACK_T_FLAGS = 8;
const STACK_T_SIZE = 16;
const SS_ONSTACK = 1;
const SS_DISABLE = 2;
const SYS_SIGALTSTACK = 131;

/** Puts a `stack_t` on the stack: what the kernel knows of the thread's alternate stack. Changes rax, rcx, r11, rsi, rdi. */
function emitAskAlternate(asm: Assembler): void {
  asm.subImm(RSP, STACK_T_BYTES);
  asm.zero(RDI);
  asm.mov(RSI, RSP);
  asm.movImm(RAX, SYS_SIGALTSTACK, 32);
  asm.syscall();
}

function emitIsHeld(asm: Assembler): void {
  const held = asm.label("held");
  const elsewhere = asm.label("elsewhere");
  // A handler that runs on the private stack itself.
  asm.lea(R11, { base: R10, disp: STACK_STRIDE });
  asm.cmp(RSP, R11);
  asm.jcc("ae", elsewhere);
  asm.cmp(RSP, R10);
  asm.jcc("ae", held);
  asm.bind(elsewhere);
  // One that interrupted the way in or out runs below what was left behind. So may a later call after a longjmp, which is
  // turned away until the thread is above it.
  asm.cmp(RSP, { base: R10, disp: STACK_HEAD + HEAD_SP });
  asm.jcc("be", held);
  // One on an alternate stack may be anywhere: only the kernel knows.
  emitAskAlternate(asm);
  asm.mov(R11, { base: RSP, disp: STACK_T_FLAGS }, 32);
  asm.andImm(R11, SS_ONSTACK);
  asm.addImm(RSP, STACK_T_BYTES);
  asm.jmpTo(RDX);
  asm.bind(held);
  asm.movImm(R11, 1, 32);
  asm.jmpTo(RDX);
}

/** Ranges that are known to be ordinary stack are at most so long, and do not cross a multiple of it. */
const PLAIN_BYTES = 1 << 20;
/** A power of two: so many hits later at the latest the kernel is asked again. */
const MOST_HITS = 1024;

function emitSettle(writer: CodeWriter): void {
  const { asm } = writer;
  const [wait, known, below, done] = ["wait", "known", "below", "done"].map((name) => asm.label(name)) as [
    Label,
    Label,
    Label,
    Label,
  ];
  const saved = [RAX, RCX, RDX, RSI, RDI, R10];
  for (const reg of saved) asm.push(reg);
  emitAskAlternate(asm);
  asm.mov(RAX, { base: RSP, disp: STACK_T_FLAGS }, 32);
  asm.testImm(RAX, SS_ONSTACK, 8);
  asm.jcc("ne", wait);
  writer.note("no: nor anywhere near, up to an alternate stack of the thread");
  asm.mov(RCX, RSP);
  asm.andImm(RCX, -PLAIN_BYTES);
  asm.lea(RDX, { base: RCX, disp: PLAIN_BYTES });
  asm.testImm(RAX, SS_DISABLE, 8);
  asm.jcc("ne", known);
  asm.mov(RAX, { base: RSP, disp: 0 });
  asm.cmp(RAX, RSP);
  asm.jcc("b", below);
  asm.cmp(RAX, RDX);
  asm.cmov("b", RDX, RAX);
  asm.jmp(known);
  asm.bind(below);
  asm.add(RAX, { base: RSP, disp: STACK_T_SIZE });
  asm.cmp(RAX, RCX);
  asm.cmov("a", RCX, RAX);
  asm.bind(known);
  asm.mov(RAX, { base: R10, disp: STACK_HEAD + HEAD_HITS_NEXT }, 32);
  asm.mov({ base: R10, disp: STACK_HEAD + HEAD_HITS_LEFT }, RAX, 32);
  asm.lea(RAX, { base: RAX, index: RAX, scale: 1, disp: 1 }, 32);
  asm.andImm(RAX, MOST_HITS - 1, 32);
  asm.mov({ base: R10, disp: STACK_HEAD + HEAD_HITS_NEXT }, RAX, 32);
  asm.sub(RDX, RCX);
  asm.mov({ base: R10, disp: STACK_HEAD + HEAD_PLAIN_START }, RCX);
  asm.mov({ base: R10, disp: STACK_HEAD + HEAD_PLAIN_BYTES }, RDX);
  asm.jmp(done);
  asm.bind(wait);
  writer.note("yes: signals wait, now, and it is asked again");
  asm.movImm({ base: R10, disp: STACK_HEAD + HEAD_HITS_LEFT }, 0, 32);
  asm.movImm({ base: R10, disp: STACK_HEAD + HEAD_MASKED }, 1);
  asm.lea(RDX, { base: R10, disp: STACK_HEAD + HEAD_MASK });
  asm.lea(RSI, { ripTo: writer.literal(DEFERRED_SIGNALS) });
  emitSetMask(asm);
  asm.bind(done);
  asm.addImm(RSP, STACK_T_BYTES);
  for (const reg of saved.toReversed()) asm.pop(reg);
  asm.ret();
}

function emitDeliverAll(asm: Assembler): void {
  const saved = [RAX, RCX, RDX, RSI, RDI, R10, R11];
  for (const reg of saved) asm.push(reg);
  // What is delivered may come by here itself.
  asm.movImm({ base: R11, disp: HEAD_MASKED }, 0);
  asm.lea(RSI, { base: R11, disp: HEAD_MASK });
  asm.zero(RDX);
  emitSetMask(asm);
  for (const reg of saved.toReversed()) asm.pop(reg);
  asm.ret();
}
