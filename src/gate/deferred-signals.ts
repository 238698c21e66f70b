/**
 * Signals wait while a thread is in the gate: no handler of the application runs on a private stack, or finds anything half done.
 *
 * What a fault raises is let through, because the kernel ends a process whose fault meets a blocked signal; there is a handler of
 * ours for those (patch/fault-handler.ts). SIGTRAP waits as well: nothing in our code raises it.
 *
 * The thread's own mask is kept on its own stack, where it belongs to it. What has come meanwhile is delivered by the system call that
 * puts the mask back, with nothing of ours in use any more but the sill.
 *
 * Facts: rt_sigprocmask is system call 14, SIG_BLOCK 0, SIG_SETMASK 2, a mask has 8 bytes; a system call changes rax, rcx and r11 (psABI A.2.1).
 * Signals by number: ILL 4, BUS 7, FPE 8, SEGV 11, SYS 31.
 */
import type { Assembler } from "../x86/assembler.ts";
import { R10, R11, RAX, RCX, RDI, RDX, type RegSet, RSI, RSP, regSet } from "../x86/registers.ts";
import type { CodeWriter } from "./code-writer.ts";

const SYS_RT_SIGPROCMASK = 14;
export const SIG_BLOCK = 0;
export const SIG_SETMASK = 2;
const MASK_BYTES = 8;
const faults = [4, 7, 8, 11, 31];

/** These signals as the kernel's mask has them. */
export const signalMask = (signals: readonly number[]): bigint =>
  signals.reduce((mask, signal) => mask | (1n << BigInt(signal - 1)), 0n);

/** Signals that wait, as a mask. */
export const DEFERRED_SIGNALS = 0xffff_ffff_ffff_ffffn & ~signalMask(faults);

/** What both ways change. */
export const DEFER_CLOBBERS: RegSet = regSet(RAX, RCX, RDX, RSI, RDI, R10, R11);

/** `maskSlot`: where the thread's mask is kept, from rsp. */
export function emitDefer(writer: CodeWriter, maskSlot: number): void {
  const { asm } = writer;
  writer.note("signals wait");
  asm.lea(RSI, { ripTo: writer.literal(DEFERRED_SIGNALS) });
  asm.lea(RDX, { base: RSP, disp: maskSlot });
  emitSetMask(asm);
}

export function emitDeliver(writer: CodeWriter, maskSlot: number): void {
  const { asm } = writer;
  writer.note("signals as before");
  asm.lea(RSI, { base: RSP, disp: maskSlot });
  asm.zero(RDX);
  emitSetMask(asm);
}

/** rsi = the new mask, rdx = where the old one goes, or 0. */
export function emitSetMask(asm: Assembler, how = SIG_SETMASK): void {
  asm.movImm(RDI, how, 32);
  asm.movImm(R10, MASK_BYTES, 32);
  asm.movImm(RAX, SYS_RT_SIGPROCMASK, 32);
  asm.syscall();
}
