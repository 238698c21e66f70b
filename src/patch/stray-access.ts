/**
 * Accesses of the application to memory under our key, in the fault handler (fault-handler.ts): they are posted, and the tracer
 * says what becomes of the instruction.
 *
 *     kill      as if nothing were mapped there: the application's signal, with SEGV_MAPERR
 *     skip      the instruction is not executed
 *     report    a copy of it is executed, with the key open for it alone
 *
 * The thread waits for the answer with all signals blocked, in slices, and not for ever: where the tracer's heartbeat stands
 * still it is taken for dead, and nobody waits again. Later accesses of the same instruction find the answer there.
 *
 * The copy is entered by the return from the signal: with the key open in the PKRU of the frame, and with all signals blocked that
 * no fault raises, so that nothing of the application runs before the key is closed behind the copy. The thread's own mask waits
 * below the head of its private stack, which nobody uses as long as the thread is in no gate. When the copy itself raises a
 * fault, since something else is not mapped that it needs, this is the fault of the original: place, mask and key are put back
 * before the application sees it.
 *
 * Facts: siginfo: SEGV_MAPERR 1, SEGV_PKUERR 4, si_pkey at +32. futex 202 (FUTEX_WAIT 0), rt_sigprocmask 14, getpid 39. Frames hold
 * the XSAVE area in its standard format: XSTATE_BV at +512, PKRU (component 9) where CPUID 0dh, 9 says in ebx (Intel SDM 1, 13.4).
 */
import { type CodeNote, CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import {
  DEFERRED_SIGNALS,
  emitDeliver,
  emitSetMask,
  SIG_BLOCK,
  SIG_SETMASK,
  signalMask,
} from "../gate/deferred-signals.ts";
import { closedBit, emitKeyClose, type GateKey, keyBits } from "../gate/gate-key.ts";
import { emitHash, HEAD_SP, type PrivateStacks, STACK_HEAD } from "../gate/private-stacks.ts";
import type { Label } from "../x86/assembler.ts";
import { R8, R10, R11, R12, R13, R14, RAX, RBX, RCX, RDI, RDX, RSI, RSP } from "../x86/registers.ts";
import { answers, ENTRY_BYTES, MAILBOX_ENTRIES, mailboxEntry, mailboxHead } from "./mailbox.ts";
import { SI_CODE, UC_FPSTATE, UC_RIP, UC_SIGMASK } from "./signal-action.ts";

const SEGV_MAPERR = 1;
const SEGV_PKUERR = 4;
const SI_PKEY = 32;
const SYS_GETPID = 39;
const SYS_FUTEX = 202;
const FUTEX_WAIT = 0;
const SLICE_NS = 100_000_000n;
const DEAD_AFTER_SLICES = 50;
const XSTATE_BV = 512;
const PKRU_COMPONENT = 9;
/** SIGKILL and SIGSTOP are in no mask that the kernel keeps. */
const UNBLOCKABLE = signalMask([9, 19]);
/** Where a thread's mask waits, from the head of its private stack. */
const KEPT_MASK = -8;

export interface StrayAccessSpec {
  readonly stacks: PrivateStacks;
  readonly key: GateKey;
  readonly mailbox: bigint;
  /** `emitPost`. */
  readonly post: Label;
  /** Where the application's signal is left to it. */
  readonly previous: Label;
  /** Returns from the signal; the stack pointer is as at the handler's beginning. */
  readonly leave: () => void;
}

/**
 * A thread of the application's stack may have the key open as well: on its way into a gate or out of it, or behind a copy. It has
 * signals deferred then. What somebody sends it waits (`defer`); a fault there is left to the application, which may go on
 * elsewhere: so the key is closed in what it returns to. Uses no stack.
 */
export function emitIsOpen(writer: CodeWriter, { key }: Pick<StrayAccessSpec, "key">, defer: Label): void {
  const { asm } = writer;
  const no = asm.label("not open");
  writer.note("interrupted where the key is open?");
  asm.mov(RAX, { ripTo: writer.literal(DEFERRED_SIGNALS & ~UNBLOCKABLE) });
  asm.cmp(RAX, { base: RDX, disp: UC_SIGMASK });
  asm.jcc("ne", no);
  asm.mov(R8, RDX);
  asm.mov(R10, RBX);
  asm.movImm(RAX, 0xd, 32);
  asm.movImm(RCX, PKRU_COMPONENT, 32);
  asm.cpuid();
  asm.mov(RAX, RBX);
  asm.mov(RBX, R10);
  asm.mov(RDX, R8);
  asm.add(RAX, { base: RDX, disp: UC_FPSTATE });
  asm.testImm({ base: RAX }, keyBits(key), 32);
  asm.jcc("ne", no);
  asm.cmpImm({ base: RSI, disp: SI_CODE }, 0, 32);
  asm.jcc("le", defer);
  asm.orImm({ base: RAX }, closedBit(key), 32);
  asm.bind(no);
}

/** Goes to `to` if the fault is an access that our key has stopped. Uses no stack. */
export function emitIsStray({ asm }: CodeWriter, { key }: Pick<StrayAccessSpec, "key">, to: Label): void {
  const no = asm.label("no stray access");
  asm.cmpImm(RDI, 11, 32);
  asm.jcc("ne", no);
  asm.cmpImm({ base: RSI, disp: SI_CODE }, SEGV_PKUERR, 32);
  asm.jcc("ne", no);
  asm.cmpImm({ base: RSI, disp: SI_PKEY }, key.number, 32);
  asm.jcc("e", to);
  asm.bind(no);
}

/** Goes to `to` with rbx = the entry if the fault is one of a copy. Uses no stack; rbx changes only then. */
export function emitIsCopy(
  writer: CodeWriter,
  { mailbox }: Pick<StrayAccessSpec, "mailbox">,
  to: Label,
): void {
  const { asm } = writer;
  const [look, next, no] = [asm.label("look"), asm.label("next"), asm.label("no copy")];
  writer.note("a fault of a copy?");
  asm.movabs(R8, mailbox);
  asm.cmpImm({ base: R8, disp: mailboxHead.copies }, 0, 32);
  asm.jcc("e", no);
  asm.cmpImm({ base: RSI, disp: SI_CODE }, 0, 32);
  asm.jcc("le", no);
  asm.mov(RAX, { base: RDX, disp: UC_RIP });
  asm.movImm(RCX, MAILBOX_ENTRIES, 32);
  asm.bind(look);
  asm.addImm(R8, ENTRY_BYTES);
  asm.cmpImm({ base: R8, disp: mailboxEntry.answer }, answers.report, 32);
  asm.jcc("ne", next);
  asm.cmp({ base: R8, disp: mailboxEntry.argument }, RAX);
  asm.jcc("e", to);
  asm.bind(next);
  asm.dec(RCX, 32);
  asm.jcc("ne", look);
  asm.bind(no);
}

/** The fault of a copy, whose entry is r8, becomes that of the original. */
export function emitBackFromCopy(writer: CodeWriter, spec: StrayAccessSpec): void {
  const { asm } = writer;
  writer.note("the original's place, key and mask");
  asm.mov(RAX, { base: R8, disp: mailboxEntry.rip });
  asm.mov({ base: RDX, disp: UC_RIP }, RAX);
  asm.push(RBX);
  emitPkruOfFrame(writer);
  asm.orImm({ base: RAX, index: RBX }, closedBit(spec.key), 32);
  asm.pop(RBX);
  emitHash(writer, { ...spec.stacks, thread: "fs base" });
  writer.call(spec.stacks.routines.find);
  asm.mov(RCX, { base: R10, disp: STACK_HEAD + KEPT_MASK });
  asm.mov({ base: RDX, disp: UC_SIGMASK }, RCX);
  asm.jmp(spec.previous);
}

/** What is done about a stray access. */
export function emitStrayAccess(writer: CodeWriter, spec: StrayAccessSpec): void {
  const { asm } = writer;
  const [kill, skip] = [asm.label("kill"), asm.label("skip")];
  const saved = [RBX, R12, R13, R14];
  writer.note("post the access, and wait for what the tracer says");
  for (const reg of saved) asm.push(reg);
  asm.mov(R12, { base: RDX, disp: UC_RIP });
  asm.zero(R13);
  asm.zero(R14);
  asm.call(spec.post);
  asm.test(RBX, RBX);
  asm.jcc("e", kill);
  emitAwait(writer, spec.mailbox, kill);
  asm.cmpImm(RAX, answers.skip, 32);
  asm.jcc("e", skip);
  asm.cmpImm(RAX, answers.report, 32);
  asm.jcc("ne", kill);

  writer.note("report: only in the process that the copy was made for");
  asm.movImm(RAX, SYS_GETPID, 32);
  asm.syscall();
  asm.movabs(RCX, spec.mailbox);
  asm.cmp(RAX, { base: RCX, disp: mailboxHead.pid }, 32);
  asm.jcc("ne", kill);
  asm.mov(RAX, { base: RDX, disp: UC_FPSTATE });
  asm.test(RAX, RAX);
  asm.jcc("e", kill);
  asm.testImm({ base: RAX, disp: XSTATE_BV }, 1 << PKRU_COMPONENT, 32);
  asm.jcc("e", kill);
  emitHash(writer, { ...spec.stacks, thread: "fs base" });
  writer.call(spec.stacks.routines.find);
  asm.test(R10, R10);
  asm.jcc("e", kill);
  asm.cmpImm({ base: R10, disp: STACK_HEAD + HEAD_SP }, 0);
  asm.jcc("ne", kill);
  writer.note("the copy runs with the key open, and signals wait");
  asm.mov(RAX, { base: RDX, disp: UC_SIGMASK });
  asm.mov({ base: R10, disp: STACK_HEAD + KEPT_MASK }, RAX);
  asm.mov(RAX, { ripTo: writer.literal(DEFERRED_SIGNALS) });
  asm.mov({ base: RDX, disp: UC_SIGMASK }, RAX);
  asm.mov(R12, RBX);
  emitPkruOfFrame(writer);
  asm.andImm({ base: RAX, index: RBX }, ~keyBits(spec.key), 32);
  asm.mov(RBX, R12);
  asm.bind(skip);
  asm.mov(RAX, { base: RBX, disp: mailboxEntry.argument });
  asm.mov({ base: RDX, disp: UC_RIP }, RAX);
  for (const reg of saved.toReversed()) asm.pop(reg);
  spec.leave();

  asm.bind(kill);
  writer.note("as if nothing were mapped there");
  for (const reg of saved.toReversed()) asm.pop(reg);
  asm.movImm({ base: RSI, disp: SI_CODE }, SEGV_MAPERR, 32);
  asm.jmp(spec.previous);
}

/** rax + rbx = the PKRU of the frame. Changes rcx. */
function emitPkruOfFrame({ asm }: CodeWriter): void {
  asm.push(RDX);
  asm.movImm(RAX, 0xd, 32);
  asm.movImm(RCX, PKRU_COMPONENT, 32);
  asm.cpuid();
  asm.pop(RDX);
  asm.mov(RAX, { base: RDX, disp: UC_FPSTATE });
}

/** eax = the answer in the entry rbx, once there is one; goes to `dead` where nobody gives any. */
function emitAwait(writer: CodeWriter, mailbox: bigint, dead: Label): void {
  const { asm } = writer;
  const [answered, wait, alive, out] = [
    asm.label("answered"),
    asm.label("wait"),
    asm.label("alive"),
    asm.label("out"),
  ];
  const answer = { base: RBX, disp: mailboxEntry.answer };
  const frame = (disp: number) => ({ base: RSP, disp });
  const [MASK, SECONDS, NANOSECONDS, BEAT, SLICES, FRAME_BYTES] = [0, 8, 16, 24, 28, 32];
  asm.mov(RAX, answer, 32);
  asm.test(RAX, RAX, 32);
  asm.jcc("ne", answered);
  asm.movabs(R8, mailbox);
  asm.cmpImm({ base: R8, disp: mailboxHead.waits }, 0, 32);
  asm.jcc("e", dead);
  for (const reg of [RDI, RSI, RDX]) asm.push(reg);
  asm.subImm(RSP, FRAME_BYTES!);
  setMask(writer, SIG_BLOCK, () => asm.lea(RSI, { ripTo: writer.literal(-1n) }), MASK);
  asm.movImm(frame(SECONDS!), 0);
  asm.movImm(frame(NANOSECONDS!), SLICE_NS);
  asm.movImm(frame(SLICES!), 0, 32);
  asm.mov(RAX, { base: R8, disp: mailboxHead.heartbeat }, 32);
  asm.mov(frame(BEAT!), RAX, 32);
  asm.bind(wait);
  asm.cmpImm(answer, 0, 32);
  asm.jcc("ne", out);
  asm.cmpImm({ base: R8, disp: mailboxHead.waits }, 0, 32);
  asm.jcc("e", out);
  asm.lea(RDI, answer);
  asm.movImm(RSI, FUTEX_WAIT, 32);
  asm.zero(RDX);
  asm.lea(R10, frame(SECONDS!));
  asm.movImm(RAX, SYS_FUTEX, 32);
  asm.syscall();
  asm.mov(RAX, { base: R8, disp: mailboxHead.heartbeat }, 32);
  asm.cmp(RAX, frame(BEAT!), 32);
  asm.jcc("ne", alive);
  asm.inc(frame(SLICES!), 32);
  asm.cmpImm(frame(SLICES!), DEAD_AFTER_SLICES, 32);
  asm.jcc("b", wait);
  asm.movImm({ base: R8, disp: mailboxHead.waits }, 0, 32);
  asm.jmp(out);
  asm.bind(alive);
  asm.mov(frame(BEAT!), RAX, 32);
  asm.movImm(frame(SLICES!), 0, 32);
  asm.jmp(wait);
  asm.bind(out);
  setMask(writer, SIG_SETMASK, () => asm.mov(RSI, RSP), undefined);
  asm.addImm(RSP, FRAME_BYTES!);
  for (const reg of [RDX, RSI, RDI]) asm.pop(reg);
  asm.mov(RAX, answer, 32);
  asm.bind(answered);
}

/** rt_sigprocmask with the mask that `load` makes rsi point to; the old one goes to `old`, from rsp. */
function setMask({ asm }: CodeWriter, how: number, load: () => void, old: number | undefined): void {
  load();
  if (old === undefined) asm.zero(RDX);
  else asm.lea(RDX, { base: RSP, disp: old });
  emitSetMask(asm, how);
}

export interface AccessCopySpec {
  readonly at: bigint;
  /** The instruction, for this place; it neither branches nor moves the stack pointer. */
  readonly insn: Uint8Array;
  /** Where the original goes on. */
  readonly next: bigint;
  readonly stacks: PrivateStacks;
  readonly key: GateKey;
}

export interface AccessCopy extends WrittenCode {
  readonly notes: readonly CodeNote[];
}

/** Over the red zone: where signals are delivered nothing of ours may lie below the stack pointer. */
const COPY_FRAME_BYTES = 128 + 72;

/** The copy of an instruction, entered with the key open and signals waiting; behind it both are as before. */
export function emitAccessCopy({ at, insn, next, stacks, key }: AccessCopySpec): AccessCopy {
  const writer = new CodeWriter(at);
  const { asm } = writer;
  const slot = (index: number) => ({ base: RSP, disp: 8 * index });
  const saved = [RAX, RCX, RDX, RSI, RDI, R10, R11];
  const FLAGS = 1 + saved.length;
  writer.note("copy of the access");
  asm.bytes(insn);
  writer.note("registers and flags that change");
  asm.lea(RSP, { base: RSP, disp: -COPY_FRAME_BYTES });
  for (const [index, reg] of saved.entries()) asm.mov(slot(1 + index), reg);
  asm.lahf();
  asm.set("o", RAX);
  asm.mov(slot(FLAGS), RAX, 32);
  writer.note("the thread's mask");
  emitHash(writer, { ...stacks, thread: "fs base" });
  writer.call(stacks.routines.find);
  asm.mov(RAX, { base: R10, disp: STACK_HEAD + KEPT_MASK });
  asm.mov(slot(0), RAX);
  emitKeyClose(writer, key);
  emitDeliver(writer, 0);
  asm.mov(RAX, slot(FLAGS), 32);
  asm.addImm(RAX, 0x7f, 8);
  asm.sahf();
  for (const [index, reg] of saved.entries()) asm.mov(reg, slot(1 + index));
  asm.lea(RSP, { base: RSP, disp: COPY_FRAME_BYTES });
  writer.note("behind the original");
  asm.jmpTo({ ripTo: writer.literal(next) });
  return writer.finish();
}
