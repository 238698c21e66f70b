/**
 * What a process does with a signal, as the kernel keeps it, and code of ours that leaves a signal to it: handlers of ours
 * stand in front of the application's, or of another session's, and everything that is not ours goes on there.
 *
 * A handler is entered as the kernel would have entered it: with its three arguments, the stack pointer at the return address that
 * leads to rt_sigreturn, and the mask and stack that its own action asks for, which is why our action is made from it
 * (`chainedAction`). Where there was none, the default action is set again. The signal is then raised once more, or, if an
 * instruction has raised it, that instruction is executed again, so that the process ends by it and at its address.
 *
 * Facts: `struct sigaction` is four 64-bit words: handler, flags, restorer, mask (arch/x86/include/uapi/asm/signal.h). siginfo:
 * si_code at +8, positive if the kernel has raised the signal. With SA_RESETHAND the kernel calls a handler once and sets the
 * default action. System calls: rt_sigaction 13, getpid 39, gettid 186, tgkill 234.
 */
import type { CodeWriter } from "../gate/code-writer.ts";
import type { Label } from "../x86/assembler.ts";
import { R10, R11, RAX, RCX, RDI, RDX, type Reg, RSI } from "../x86/registers.ts";

export const SA_SIGINFO = 0x4n;
export const SA_RESTORER = 0x0400_0000n;
export const SA_ONSTACK = 0x0800_0000n;
export const SA_RESTART = 0x1000_0000n;
export const SA_NODEFER = 0x4000_0000n;
export const SA_RESETHAND = 0x8000_0000n;

/** The kernel's `struct sigaction`: four 64-bit words in this order. */
export interface SignalAction {
  /** 0: default, 1: ignore, else the handler's address. */
  readonly handler: bigint;
  readonly flags: bigint;
  readonly restorer: bigint;
  readonly mask: bigint;
}

export const SIGNAL_ACTION_BYTES = 32;
export const ACTION_FLAGS = 8;
export const ACTION_MASK = 24;

/** Offset of si_code in a siginfo. */
export const SI_CODE = 8;

export function encodeSignalAction(action: SignalAction): Uint8Array {
  const words = BigUint64Array.of(action.handler, action.flags, action.restorer, action.mask);
  return new Uint8Array(words.buffer);
}

export function decodeSignalAction(bytes: Uint8Array): SignalAction {
  const view = new DataView(bytes.buffer, bytes.byteOffset, SIGNAL_ACTION_BYTES);
  const word = (offset: number) => view.getBigUint64(offset, true);
  return { handler: word(0), flags: word(8), restorer: word(16), mask: word(24) };
}

/** Whether the signal goes to code: not to the default action, and not nowhere. */
export const isHandler = ({ handler }: SignalAction): boolean => handler > 1n;

/**
 * The action for a handler of ours that may leave the signal to `previous`: of its flags it has those of `kept`, and it blocks
 * `blocked` besides.
 */
export function chainedAction(
  ours: { readonly handler: bigint; readonly restorer: bigint },
  previous: SignalAction,
  kept: bigint,
  blocked = 0n,
): SignalAction {
  return {
    ...ours,
    flags: SA_SIGINFO | SA_RESTORER | (previous.flags & kept),
    mask: (isHandler(previous) ? previous.mask : 0n) | blocked,
  };
}

/** `mov rax, 15; syscall`: the return from a signal, in the bytes by which unwinders know it. */
export const RESTORER_BYTES: Uint8Array = Uint8Array.of(0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05);

export interface PreviousActionSpec {
  /**
   * Emits code that puts the address of the previous action into r10, and that of a word that is 0 until the application's
   * handler has had its one call into r11; 0: nobody keeps account of that. May change rax and rcx.
   */
  readonly find: () => void;
  /**
   * Emits what comes before the application's handler is entered. r10 = the previous action, r11 = the handler. Changes rax, rcx, r8,
   * r9 and r10.
   */
  readonly handOver?: () => void;
  /** Emits the return from the signal. */
  readonly leave: () => void;
  /** What an instruction has raised comes again when it is executed again. */
  readonly repeats: boolean;
}

/** With rdi, rsi, rdx and the stack pointer as the kernel has handed them over: leaves the signal to the previous action. */
export function emitPreviousAction(writer: CodeWriter, spec: PreviousActionSpec): void {
  const { asm } = writer;
  const [isDefault, isIgnored, enter] = [asm.label("default"), asm.label("ignored"), asm.label("enter")];
  writer.note("the handler that was there before: 0 is the default action, 1 to ignore");
  spec.find();
  asm.mov(RAX, { base: R10 });
  asm.cmpImm(RAX, 1);
  asm.jcc("b", isDefault);
  asm.jcc("e", isIgnored);
  writer.note("does it want to be called once?");
  asm.testImm({ base: R10, disp: ACTION_FLAGS }, Number(SA_RESETHAND), 32);
  asm.jcc("e", enter);
  asm.test(R11, R11);
  asm.jcc("e", enter);
  asm.movImm(RCX, 1, 32);
  asm.xchg({ base: R11 }, RCX, 32);
  asm.test(RCX, RCX, 32);
  asm.jcc("ne", isDefault);
  asm.bind(enter);
  asm.mov(R11, RAX);
  spec.handOver?.();
  asm.zero(RAX);
  asm.jmpTo(R11);
  asm.bind(isIgnored);
  writer.note("ignored, unless an instruction raised it");
  asm.cmpImm({ base: RSI, disp: SI_CODE }, 0, 32);
  asm.jcc("g", isDefault);
  spec.leave();
  asm.bind(isDefault);
  emitDefault(writer, spec);
}

/** rt_sigaction(signal, { SIG_DFL }, 0, 8); tgkill(getpid(), gettid(), signal) */
function emitDefault(writer: CodeWriter, spec: PreviousActionSpec): void {
  const { asm } = writer;
  const noAction: Label = asm.label("default action");
  const out = asm.label("out");
  writer.note("default action: set it again, then raise the signal");
  asm.push(RSI);
  asm.movImm(RAX, 13, 32);
  asm.lea(RSI, { ripTo: noAction });
  asm.zero(RDX);
  asm.movImm(R10, 8, 32);
  asm.syscall();
  asm.pop(RSI);
  if (spec.repeats) {
    asm.cmpImm({ base: RSI, disp: SI_CODE }, 0, 32);
    asm.jcc("g", out);
  }
  asm.mov(RDX, RDI);
  call(39);
  asm.mov(RDI, RAX);
  call(186);
  asm.mov(RSI, RAX);
  call(234);
  asm.bind(out);
  spec.leave();
  asm.align(8, "int3");
  writer.note("default action", true);
  asm.bind(noAction);
  asm.bytes(new Uint8Array(SIGNAL_ACTION_BYTES));

  function call(number: number): void {
    asm.movImm(RAX, number, 32);
    asm.syscall();
  }
}

/** Where in `rdx`, a ucontext, the kernel keeps a register; and what else a handler looks at there. */
const gregs: readonly number[] = [
  // By encoding number; psABI figure 3.36 has r8 .. r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp from +40 on.
  13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7,
];
export const ucReg = (reg: Reg): number => 40 + 8 * gregs[reg]!;
export const UC_RIP = 168;
export const UC_ERR = 192;
export const UC_TRAPNO = 200;
export const UC_FPSTATE = 224;
export const UC_SIGMASK = 296;
