/**
 * The handler of SIGSEGV, SIGBUS, SIGILL and SIGFPE that runs in a target whose programs have private stacks: a fault in a program
 * ends that program, not the process.
 *
 *     private stack of the thread in use, and the interrupted rsp on it
 *        sent by somebody                  → waits until the gate is left (signals deferred), else the application's signal
 *        in a program                      → posted; go on at the way out of the gate (`HEAD_RECOVER`)
 *     access to memory under our key       → stray-access.ts
 *     else                                 → the application's signal (signal-action.ts)
 *
 * Where signals are deferred nothing of the application runs on a private stack, so whatever faults there is ours. Where they
 * are not, handlers of the application may run there, below what they have interrupted: so the faulting instruction must be in a
 * program (the table behind the code has all of the session), or the stack too short for a handler to be on it. Gates of both
 * kinds may be in one session; the gate that the thread is in says which it is.
 *
 * With a protection key the kernel enters the handler with all keys closed, maybe on a stack that is under ours, or under that of
 * another session whose program has faulted: the first instructions open all without touching the stack. They are as they were
 * when the application's handler, or the other session's, is entered. Until Linux 6.12 the kernel writes a frame with the keys
 * that the thread has open: a second signal at the handler's beginning could not be delivered on a stack under a key, so all four
 * are blocked till then. The return from the signal is made with all open, since it reads the frame; it restores the PKRU of the
 * interrupted code. Who has called the handler like a function (an application's handler that was installed later and passes on
 * what is not its own) gets its own PKRU back.
 *
 * Facts: as signal-action.ts. siginfo: rt_tgsigqueueinfo 297. The kernel sets PKRU to its initial value for handlers, and saves
 * the thread's in the frame (arch/x86/kernel/fpu/signal.c).
 */
import { CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import { emitSetMask, SIG_BLOCK, signalMask } from "../gate/deferred-signals.ts";
import { emitAllKeysOpen, emitKeysBack, type GateKey } from "../gate/gate-key.ts";
import {
  emitHash,
  HEAD_OWNER,
  HEAD_RECOVER,
  HEAD_SP,
  PRIVATE_STACKS_BYTES,
  type PrivateStacks,
  STACK_COUNT,
  STACK_HEAD,
  STACK_STRIDE,
} from "../gate/private-stacks.ts";
import { DEFERS_BEFORE_RECOVERY, FRAME_SIZE_BEFORE_RECOVERY } from "../gate/stack-switch.ts";
import type { Assembler, Label } from "../x86/assembler.ts";
import { R8, R10, R11, R12, R13, R14, RAX, RBX, RCX, RDI, RDX, RSI, RSP } from "../x86/registers.ts";
import { emitPost, mailboxHead } from "./mailbox.ts";
import {
  ACTION_FLAGS,
  ACTION_MASK,
  chainedAction,
  emitPreviousAction,
  encodeSignalAction,
  RESTORER_BYTES,
  SA_NODEFER,
  SA_ONSTACK,
  SA_RESTART,
  SI_CODE,
  SIGNAL_ACTION_BYTES,
  type SignalAction,
  UC_RIP,
  UC_SIGMASK,
  ucReg,
} from "./signal-action.ts";
import { emitBackFromCopy, emitIsCopy, emitIsOpen, emitIsStray, emitStrayAccess } from "./stray-access.ts";

export const SIGILL = 4;
export const SIGBUS = 7;
export const SIGFPE = 8;
export const SIGSEGV = 11;
/** What the handler is for, in the order of its actions. */
export const FAULT_SIGNALS: readonly number[] = [SIGSEGV, SIGBUS, SIGILL, SIGFPE];

/** Half-open. */
export interface CodeRange {
  readonly start: bigint;
  readonly end: bigint;
}

export interface FaultHandlerSpec {
  readonly at: bigint;
  readonly stacks: PrivateStacks;
  /** Address of the memory that is shared with the tracer. */
  readonly mailbox: bigint;
  /** What the process had set for each signal. */
  readonly previous: ReadonlyMap<number, SignalAction>;
  /** Code of the session's programs, and for how many ranges there is to be room. */
  readonly programs: readonly CodeRange[];
  readonly capacity: number;
}

export interface FaultHandler extends WrittenCode {
  /** To be set for each signal. */
  readonly actions: ReadonlyMap<number, SignalAction>;
  /** Where in `bytes` the previous action of a signal is kept. */
  previousOffset(signal: number): number;
  /** Where in `bytes` the table of programs begins. */
  readonly tableOffset: number;
}

const SYS_GETPID = 39;
const SYS_GETTID = 186;
const SYS_RT_TGSIGQUEUEINFO = 297;
const FAULT_MASK = signalMask(FAULT_SIGNALS);
/** The first eight bytes of a restorer. */
const RESTORER_WORD = new DataView(RESTORER_BYTES.buffer).getBigUint64(0, true);
/** Least that the kernel puts between interrupted code and a handler: red zone, floating point state, ucontext, siginfo. */
const LEAST_SIGNAL_FRAME = 128 + 512 + 304 + 128;
/** Lowest signal of ours: the previous actions, and the words of the mailbox for them, are found by what the signal is more. */
const FIRST_SIGNAL = SIGILL;
const SIGNALS = SIGSEGV - FIRST_SIGNAL + 1;
/** Words of a program's stack in which its main function's call is looked for. */
const MOST_WORDS = 160;
/** Bytes of an entry. */
export const RANGE_BYTES = 16;

/** Entries of the table of programs: pairs of addresses. */
export function encodeRanges(ranges: readonly CodeRange[]): Uint8Array {
  const words = new BigUint64Array(2 * ranges.length);
  for (const [index, { start, end }] of ranges.entries()) words.set([start, end], 2 * index);
  return new Uint8Array(words.buffer);
}

export function emitFaultHandler(spec: FaultHandlerSpec): FaultHandler {
  const { stacks, mailbox, previous } = spec;
  const writer = new CodeWriter(spec.at);
  const { asm } = writer;
  const [previousLabel, tableLabel, restorer] = [
    asm.label("previous actions"),
    asm.label("programs"),
    asm.label("restorer"),
  ];
  const [inside, outside, abandon] = [asm.label("inside"), asm.label("outside"), asm.label("abandon")];

  const { key } = stacks;
  const [stray, copy, defer] = [asm.label("stray"), asm.label("copy"), asm.label("defer")];

  const entry = asm.here("handler");
  if (key !== undefined) {
    asm.mov(R8, RDX);
    emitAllKeysOpen(writer);
    asm.mov(RDX, R8);
  }
  writer.note("is the thread's private stack in use, and the interrupted code on it?");
  emitFindSlot(writer, stacks, outside);
  asm.cmpImm({ base: R10, disp: STACK_HEAD + HEAD_SP }, 0);
  asm.jcc("e", outside);
  asm.mov(RAX, { base: RDX, disp: ucReg(RSP) });
  asm.sub(RAX, R10);
  asm.cmpImm(RAX, STACK_STRIDE);
  asm.jcc("b", inside);
  asm.bind(outside);
  if (key !== undefined) {
    emitIsCopy(writer, spec, copy);
    emitIsOpen(writer, { key }, defer);
    emitIsStray(writer, { key }, stray);
  }
  const previousAction = asm.here("previous");
  emitPreviousAction(writer, {
    find: () => {
      asm.lea(RAX, { base: RDI, disp: -FIRST_SIGNAL });
      asm.lea(R10, { ripTo: previousLabel });
      asm.shl(RAX, Math.log2(SIGNAL_ACTION_BYTES));
      asm.add(R10, RAX);
      asm.movabs(R11, mailbox + BigInt(mailboxHead.resets - 4 * FIRST_SIGNAL));
      asm.lea(R11, { base: R11, index: RDI, scale: 4 });
    },
    ...(key === undefined ? {} : { handOver: () => emitHandOver(writer, key) }),
    leave: () => emitReturn(writer, key),
    repeats: true,
  });

  const post = emitPost(writer, mailbox);
  const isProgram = emitIsProgram(writer, tableLabel);

  asm.bind(inside);
  const isSent = asm.label("sent");
  writer.note("sent by somebody?");
  asm.mov(R11, { base: R10, disp: STACK_HEAD + HEAD_RECOVER });
  asm.cmpImm({ base: RSI, disp: SI_CODE }, 0, 32);
  asm.jcc("le", isSent);
  asm.lea(R8, { base: R10, disp: STACK_HEAD - 8 });
  asm.sub(R8, { base: R11, disp: -FRAME_SIZE_BEFORE_RECOVERY });
  asm.cmpImm({ base: R11, disp: -DEFERS_BEFORE_RECOVERY }, 0);
  asm.jcc("ne", abandon);
  writer.note("in a program? or so near to its call that no handler's frame can lie between?");
  asm.mov(RAX, R8);
  asm.sub(RAX, { base: RDX, disp: ucReg(RSP) });
  asm.cmpImm(RAX, LEAST_SIGNAL_FRAME);
  asm.jcc("l", abandon);
  asm.mov(RAX, { base: RDX, disp: UC_RIP });
  asm.call(isProgram);
  asm.jcc("ne", previousAction);
  asm.bind(abandon);
  emitAbandon(writer, { post, isProgram });
  emitReturn(writer, key);
  asm.bind(isSent);
  asm.cmpImm({ base: R11, disp: -DEFERS_BEFORE_RECOVERY }, 0);
  asm.jcc("e", previousAction);
  asm.bind(defer);
  emitDeferSent(writer);
  emitReturn(writer, key);
  if (key !== undefined) {
    const access = {
      ...spec,
      key,
      post,
      previous: previousAction,
      leave: () => emitReturn(writer, key),
    };
    asm.bind(stray);
    emitStrayAccess(writer, access);
    asm.bind(copy);
    emitBackFromCopy(writer, access);
  }

  asm.align(16, "int3");
  writer.note("return from the signal; unwinders know these bytes");
  asm.bind(restorer);
  asm.bytes(RESTORER_BYTES);
  asm.align(8, "int3");
  writer.note("previous actions, by signal", true);
  asm.bind(previousLabel);
  const noAction: SignalAction = { handler: 0n, flags: 0n, restorer: 0n, mask: 0n };
  for (let signal = FIRST_SIGNAL; signal < FIRST_SIGNAL + SIGNALS; signal++)
    asm.bytes(encodeSignalAction(previous.get(signal) ?? noAction));
  writer.note("programs", true);
  asm.bind(tableLabel);
  asm.bytes(encodeRanges(spec.programs));
  // A zero behind the last one that there is room for.
  asm.bytes(new Uint8Array((spec.capacity - spec.programs.length) * RANGE_BYTES + 8));
  const written = writer.finish();

  const ours = { handler: asm.addressOf(entry), restorer: asm.addressOf(restorer) };
  const kept = SA_ONSTACK | SA_RESTART | SA_NODEFER;
  return {
    ...written,
    actions: new Map(
      FAULT_SIGNALS.map((signal) => [
        signal,
        chainedAction(ours, previous.get(signal) ?? noAction, kept, key === undefined ? 0n : FAULT_MASK),
      ]),
    ),
    previousOffset: (signal) => asm.offsetOf(previousLabel) + (signal - FIRST_SIGNAL) * SIGNAL_ACTION_BYTES,
    tableOffset: asm.offsetOf(tableLabel),
  };
}

/** rax = the bit of the signal rdi in a mask. Changes rcx. */
function emitSignalBit(asm: Assembler): void {
  asm.lea(RCX, { base: RDI, disp: -1 });
  asm.movImm(RAX, 1, 32);
  asm.shiftCl("shl", RAX);
}

/**
 * To the application's handler, or another session's, from where all keys are open and the four signals blocked: with the mask that
 * its own action asks for.
 */
function emitHandOver(writer: CodeWriter, key: GateKey): void {
  const { asm } = writer;
  const set = asm.label("set");
  writer.note("the mask that its action asks for");
  asm.mov(R8, { base: RDX, disp: UC_SIGMASK });
  asm.or(R8, { base: R10, disp: ACTION_MASK });
  asm.testImm({ base: R10, disp: ACTION_FLAGS }, Number(SA_NODEFER), 32);
  asm.jcc("ne", set);
  emitSignalBit(asm);
  asm.or(R8, RAX);
  asm.bind(set);
  const kept = [R11, RDI, RSI, RDX, R8];
  for (const reg of kept) asm.push(reg);
  asm.mov(RSI, RSP);
  asm.zero(RDX);
  emitSetMask(asm);
  for (const reg of kept.toReversed()) asm.pop(reg);
  asm.mov(R10, RDX);
  emitKeysBack(writer, key);
  asm.mov(RDX, R10);
}

/**
 * Return from the signal. With the keys open only where a frame of the kernel's is: to `mov rax, 15; syscall`, whoever has set it.
 * Who has called the handler as a function gets PKRU as it was.
 */
function emitReturn(writer: CodeWriter, key: GateKey | undefined): void {
  const { asm } = writer;
  if (key === undefined) {
    asm.ret();
    return;
  }
  const called = asm.label("called");
  asm.mov(RAX, { base: RSP });
  asm.movabs(RCX, RESTORER_WORD);
  asm.cmp({ base: RAX }, RCX);
  asm.jcc("ne", called);
  asm.cmpImm({ base: RAX, disp: 8 }, RESTORER_BYTES[8]!, 8);
  asm.jcc("ne", called);
  asm.ret();
  asm.bind(called);
  emitKeysBack(writer, key);
  asm.ret();
}

/** A signal that somebody has sent comes again when the gate puts the thread's mask back. */
function emitDeferSent(writer: CodeWriter): void {
  const { asm } = writer;
  const call = (number: number) => {
    asm.movImm(RAX, number, 32);
    asm.syscall();
  };
  writer.note("sent by somebody: blocked until the gate is left, and sent again");
  asm.mov(R12, RDI);
  asm.mov(R13, RSI);
  emitSignalBit(asm);
  asm.or({ base: RDX, disp: UC_SIGMASK }, RAX);
  asm.push(RAX);
  asm.mov(RSI, RSP);
  asm.zero(RDX);
  emitSetMask(asm, SIG_BLOCK);
  asm.pop(RAX);
  call(SYS_GETPID);
  asm.mov(RDI, RAX);
  call(SYS_GETTID);
  asm.mov(RSI, RAX);
  asm.mov(RDX, R12);
  asm.mov(R10, R13);
  call(SYS_RT_TGSIGQUEUEINFO);
}

/** r10 = the slot of the thread, which is not claimed for it if it has none. */
function emitFindSlot(writer: CodeWriter, stacks: PrivateStacks, none: Label): void {
  const { asm } = writer;
  const [look, found] = [asm.label("look"), asm.label("found")];
  // What another word than the fs base says may be anything.
  emitHash(writer, { ...stacks, thread: "fs base" });
  asm.movImm(RCX, STACK_COUNT, 32);
  asm.bind(look);
  asm.dec(RCX, 32);
  asm.jcc("s", none);
  asm.mov(RAX, { base: R10, disp: STACK_HEAD + HEAD_OWNER });
  asm.cmp(RAX, R11);
  asm.jcc("e", found);
  asm.test(RAX, RAX);
  asm.jcc("e", none);
  asm.addImm(R10, STACK_STRIDE);
  asm.cmp(R10, { ripTo: writer.literal(stacks.base + BigInt(PRIVATE_STACKS_BYTES)) });
  asm.jcc("b", look);
  asm.mov(R10, { ripTo: writer.literal(stacks.base) });
  asm.jmp(look);
  asm.bind(found);
}

/** A routine: is rax an address in a program, or right behind one? Equal if so. Changes rcx. */
function emitIsProgram(writer: CodeWriter, table: Label): Label {
  const { asm } = writer;
  const [look, next, done] = [asm.label("look"), asm.label("next"), asm.label("done")];
  writer.note("is an address in a program?");
  const routine = asm.here("is_program");
  asm.lea(RCX, { ripTo: table });
  asm.bind(look);
  asm.cmpImm({ base: RCX }, 0);
  const none = asm.label("none");
  asm.jcc("e", none);
  asm.cmp(RAX, { base: RCX });
  asm.jcc("b", next);
  asm.cmp(RAX, { base: RCX, disp: 8 });
  asm.jcc("be", done);
  asm.bind(next);
  asm.addImm(RCX, RANGE_BYTES);
  asm.jmp(look);
  asm.bind(none);
  asm.testImm(RSP, -1);
  asm.ret();
  asm.bind(done);
  asm.cmp(RAX, RAX);
  asm.ret();
  return routine;
}

/**
 * Posts the fault of a program, and makes the thread go on at the way out of its gate. r10 = its slot, r8 = where the return
 * address of the program's call lies.
 */
function emitAbandon(
  writer: CodeWriter,
  { post, isProgram }: { readonly post: Label; readonly isProgram: Label },
): void {
  const { asm } = writer;
  const [look, found, none] = [asm.label("look"), asm.label("found"), asm.label("none")];
  writer.note("the call of the program, and where its main function was");
  asm.mov(R12, { base: RDX, disp: UC_RIP });
  asm.mov(R13, { base: R8 });
  asm.movImm(RBX, MOST_WORDS, 32);
  asm.bind(look);
  asm.subImm(R8, 8);
  asm.cmp(R8, { base: RDX, disp: ucReg(RSP) });
  asm.jcc("b", none);
  asm.mov(RAX, { base: R8 });
  asm.call(isProgram);
  asm.jcc("e", found);
  asm.dec(RBX, 32);
  asm.jcc("ne", look);
  asm.bind(none);
  asm.zero(RAX);
  asm.bind(found);
  asm.mov(R14, RAX);
  asm.call(post);
  writer.note("go on at the way out of the gate");
  asm.mov({ base: RDX, disp: ucReg(R10) }, R10);
  asm.mov(RAX, { base: R10, disp: STACK_HEAD + HEAD_RECOVER });
  asm.mov({ base: RDX, disp: UC_RIP }, RAX);
}
