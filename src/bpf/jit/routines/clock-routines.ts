/**
 * When, in the clocks of the kernel's helpers, and on which memory node.
 *
 * System calls change rax, rcx and r11 and keep every other register (psABI, section A.2.1).
 */
import { R8, R9, R10, R11, RAX, RBP, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { CPU_BITS, emitCpuWord } from "../cpu-number.ts";
import type { LinkEnv } from "../link-env.ts";
import { emitFrame } from "../memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";

const SYS_CLOCK_GETTIME = 228;
const SYS_CLOCK_GETRES = 229;
const NS_PER_SECOND = 1_000_000_000;
/** What the vDSO may use of the stack; its clock_gettime uses less than a quarter of it. */
const VDSO_STACK_BYTES = 1024;
const VDSO_CLOBBERS = regSet(RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11);
/** A tick where the kernel does not say how long one is: 250 a second. */
const USUAL_TICK_NS = 4_000_000;
/** The kernel lets its count of ticks begin this long before 2^32, so that an overflow is met early. */
const SECONDS_BEFORE_OVERFLOW = 300;

/** The clock of each helper (uapi/linux/time.h). */
const clockIds = { monotonic: 1, coarse: 6, boot: 7, tai: 11 } as const;

export type ClockName = keyof typeof clockIds;

/** rax = nanoseconds of a clock. */
export function clockNs(routines: RoutineSet, env: LinkEnv, clock: ClockName): Routine {
  return routines.get(`${clock} clock`, () => ({
    args: [],
    clobbers: env.clockGettime === undefined ? regSet(RAX, RCX, RSI, RDI, R11) : VDSO_CLOBBERS,
    stackBytes: env.clockGettime === undefined ? 16 : VDSO_STACK_BYTES,
    emit: (a) => {
      if (env.clockGettime === undefined) a.subImm(RSP, 16);
      else {
        // A C function wants rsp to be a multiple of 16.
        a.push(RBP);
        a.mov(RBP, RSP);
        a.subImm(RSP, 16);
        a.andImm(RSP, -16);
      }
      a.movImm(RDI, clockIds[clock]);
      a.mov(RSI, RSP);
      if (env.clockGettime === undefined) {
        a.movImm(RAX, SYS_CLOCK_GETTIME);
        a.syscall();
      } else {
        a.movImm(RAX, env.clockGettime);
        a.callTo(RAX);
      }
      a.imulImm(RAX, { base: RSP }, NS_PER_SECOND);
      a.add(RAX, { base: RSP, disp: 8 });
      if (env.clockGettime === undefined) a.addImm(RSP, 16);
      else {
        a.mov(RSP, RBP);
        a.pop(RBP);
      }
      a.ret();
    },
  }));
}

/**
 * rax = the kernel's count of timer ticks. A process cannot read it, but knows what makes it: the coarse clock moves by
 * one tick at a time, and its resolution is the length of a tick.
 */
export function jiffies(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("jiffies", () => {
    const coarse = clockNs(routines, env, "coarse");
    const [seconds, ns, now, frameBytes] = [0, 8, 16, 24];
    return {
      args: [],
      clobbers: regSet(RAX, RCX, RDX, RSI, RDI, R11),
      stackBytes: frameBytes,
      calls: [coarse],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const isKnown = a.label("known");
          a.call(coarse.label);
          a.mov({ base: RSP, disp: now }, RAX);
          a.movImm({ base: RSP, disp: seconds }, 0);
          a.movImm({ base: RSP, disp: ns }, 0);
          a.movImm(RDI, clockIds.coarse);
          a.mov(RSI, RSP);
          a.movImm(RAX, SYS_CLOCK_GETRES);
          a.syscall();
          a.mov(RSI, { base: RSP, disp: ns });
          a.test(RSI, RSI);
          a.jcc("ne", isKnown);
          a.movImm(RSI, USUAL_TICK_NS);
          a.bind(isKnown);
          // ecx = where the count began: -300 seconds in ticks, as 32 bits
          a.movImm(RAX, NS_PER_SECOND);
          a.zero(RDX);
          a.div(RSI);
          a.imulImm(RCX, RAX, -SECONDS_BEFORE_OVERFLOW, 32);
          a.mov(RAX, { base: RSP, disp: now });
          a.zero(RDX);
          a.div(RSI);
          a.add(RAX, RCX);
          leave();
        }),
    };
  });
}

/** rax = the memory node of the processor that this runs on. */
export function numaNodeId(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("numa node", () => ({
    args: [],
    clobbers: regSet(RAX),
    stackBytes: 0,
    emit: (a) => {
      emitCpuWord(a, RAX, env.cpu);
      a.shr(RAX, CPU_BITS, 32);
      a.ret();
    },
  }));
}
