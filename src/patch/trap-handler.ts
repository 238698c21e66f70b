/**
 * The SIGTRAP handler that runs in the target for sites armed with `int3`.
 *
 * The kernel calls it with edi = signal, rsi = siginfo, rdx = ucontext. For a site of ours it only changes the saved
 * instruction pointer to the detour and returns; the thread goes on as if the text had jumped there. All registers
 * may be used: the kernel restores them from the ucontext.
 *
 *     not from an instruction (si_code)     → the application's trap
 *     site in the table                     → rip = detour
 *     not in the table, and the byte there is no int3 (any more)
 *                                           → rip = site: it was disarmed after the thread had trapped
 *     else                                  → the application's trap
 *
 * The application's trap goes to the handler that was there before, called exactly as the kernel would have: perhaps the
 * handler of another session. What was there before is looked up beside the code, where whoever leaves takes itself out. Where
 * the action was the default one (or to ignore, which the kernel does not do for a real breakpoint), the default
 * is set again and the signal sent to the thread itself, so that the process dies of SIGTRAP.
 *
 * Everything here is read-only to the target. With SA_RESETHAND one word of private memory tells whether the
 * application's handler had its one call.
 *
 * Facts: psABI figure 3.36 and Linux arch/x86/include/uapi/asm/sigcontext.h: gregs at ucontext + 40, in the order
 * r8 .. r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip (+168), eflags, cs/gs/fs/ss, err, trapno (+200). siginfo:
 * si_code at +8. System calls: rt_sigaction 13, rt_sigreturn 15, getpid 39, gettid 186, tgkill 234.
 */
import { CodeWriter, type WrittenCode } from "../gate/code-writer.ts";
import { signalMask } from "../gate/deferred-signals.ts";
import { R8, R9, R10, R11, RAX, RCX, RDX, RSI } from "../x86/registers.ts";
import {
  chainedAction,
  emitPreviousAction,
  encodeSignalAction,
  RESTORER_BYTES,
  SA_NODEFER,
  SA_ONSTACK,
  SA_RESTART,
  SI_CODE,
  type SignalAction,
  UC_RIP,
  UC_TRAPNO,
} from "./signal-action.ts";
import { type TrapTable, trapTableHash } from "./trap-table.ts";

export const SIGTRAP = 5;

export interface TrapHandlerSpec {
  readonly at: bigint;
  readonly table: TrapTable;
  /** What the application had set for SIGTRAP. */
  readonly previous: SignalAction;
  /** Zeroed private word, needed only if the previous action has SA_RESETHAND. */
  readonly resetWord?: bigint | undefined;
}

export interface TrapHandler extends WrittenCode {
  /** To be set for SIGTRAP while any site is armed with int3. */
  readonly action: SignalAction;
  /** Where in `bytes` the previous action is kept. */
  readonly previousOffset: number;
  /** Where the copy of the table begins in `bytes`; `TableWrite` offsets count from here. */
  readonly tableOffset: number;
}

const SI_KERNEL = 0x80;
const TRAP_BRKPT = 1;
const TRAPNO_BREAKPOINT = 3;

export function emitTrapHandler(spec: TrapHandlerSpec): TrapHandler {
  const { previous, table } = spec;
  const writer = new CodeWriter(spec.at);
  const { asm } = writer;
  const tableLabel = asm.label("table");
  const foreign = asm.label("foreign");
  const absent = asm.label("absent");
  const found = asm.label("found");
  const retry = asm.label("retry");
  const search = asm.label("search");
  const previousLabel = asm.label("previous action");
  const isBreakpoint = asm.label("breakpoint");

  const entry = asm.here("handler");
  writer.note("a breakpoint instruction? kill(), a debugger's step and the like are not ours");
  asm.mov(RAX, { base: RSI, disp: SI_CODE }, 32);
  asm.cmpImm(RAX, SI_KERNEL, 32);
  asm.jcc("e", isBreakpoint);
  asm.cmpImm(RAX, TRAP_BRKPT, 32);
  asm.jcc("ne", foreign);
  asm.bind(isBreakpoint);
  writer.note("site = saved rip - 1; look it up");
  asm.mov(RCX, { base: RDX, disp: UC_RIP });
  asm.dec(RCX);
  asm.mov(RAX, RCX);
  asm.imul(RAX, { ripTo: writer.literal(trapTableHash.factor) });
  asm.shr(RAX, table.hashShift);
  asm.lea(R8, { ripTo: tableLabel });
  asm.bind(search);
  asm.mov(R9, RAX, 32);
  asm.shl(R9, Math.log2(trapTableHash.entryBytes));
  asm.mov(R10, { base: R8, index: R9 });
  asm.cmp(R10, RCX);
  asm.jcc("e", found);
  asm.test(R10, R10);
  asm.jcc("e", absent);
  asm.inc(RAX, 32);
  asm.andImm(RAX, table.capacity - 1, 32);
  asm.jmp(search);
  asm.bind(found);
  asm.mov(R10, { base: R8, index: R9, disp: 8 });
  asm.test(R10, R10);
  asm.jcc("e", absent);
  writer.note("ours: go on in the detour");
  asm.mov({ base: RDX, disp: UC_RIP }, R10);
  asm.ret();

  asm.bind(absent);
  writer.note("not ours: is there a breakpoint at all?");
  asm.cmpImm({ base: RDX, disp: UC_TRAPNO }, TRAPNO_BREAKPOINT);
  asm.jcc("ne", foreign);
  asm.cmpImm({ base: RCX }, 0xcc, 8);
  asm.jcc("e", foreign);
  asm.cmpImm({ base: RCX }, 0x03, 8); // int 3 in its long form, cd 03
  asm.jcc("ne", retry);
  asm.cmpImm({ base: RCX, disp: -1 }, 0xcd, 8);
  asm.jcc("e", foreign);
  asm.bind(retry);
  writer.note("disarmed meanwhile: execute the instruction that is there now");
  asm.mov({ base: RDX, disp: UC_RIP }, RCX);
  asm.ret();

  asm.bind(foreign);
  emitPreviousAction(writer, {
    find: () => {
      asm.lea(R10, { ripTo: previousLabel });
      asm.movImm(R11, spec.resetWord ?? 0n);
    },
    leave: () => asm.ret(),
    // The saved position is behind the breakpoint.
    repeats: false,
  });

  asm.align(16, "int3");
  writer.note("return from the signal; unwinders know these bytes");
  const restorer = asm.here("restorer");
  asm.bytes(RESTORER_BYTES);
  asm.align(8, "int3");
  writer.note("the previous action", true);
  asm.bind(previousLabel);
  asm.bytes(encodeSignalAction(previous));
  asm.align(64, "int3");
  writer.note("sites and their detours", true);
  asm.bind(tableLabel);
  asm.bytes(table.bytes);
  const written = writer.finish();

  const action = chainedAction(
    { handler: asm.addressOf(entry), restorer: asm.addressOf(restorer) },
    previous,
    SA_ONSTACK | SA_RESTART,
  );
  return {
    ...written,
    previousOffset: asm.offsetOf(previousLabel),
    tableOffset: asm.offsetOf(tableLabel),
    action: {
      ...action,
      // NODEFER: a handler of the application may come to another site; a blocked SIGTRAP would be fatal there.
      flags: action.flags | SA_NODEFER,
      mask: action.mask & ~signalMask([SIGTRAP]),
    },
  };
}
