/**
 * Who runs: process and thread ids, user ids, the thread's name; and random numbers.
 *
 * System calls change rax, rcx and r11 and keep every other register (psABI, section A.2.1).
 */
import { R8, R9, R11, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import type { LinkEnv } from "../link-env.ts";
import { emitAddress, emitFrame, emitZeroBytes } from "../memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";

/** Both libraries whose offset is known keep the id nearer to the fs base than this; what lies further may not be mapped. */
const MAX_TID_OFFSET = 1024;
const SYS_GETPID = 39;
const SYS_GETUID = 102;
const SYS_GETGID = 104;
const SYS_PRCTL = 157;
const SYS_GETTID = 186;
const PR_GET_NAME = 16;
/** Size of a thread's name with its NUL. */
const COMM_BYTES = 16;

/** Both cached process ids, where they are not known yet. Changes only flags. */
export function fillPidCache(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("fill pid cache", () => ({
    args: [],
    clobbers: 0,
    stackBytes: 32,
    emit: (a) => {
      for (const reg of [RAX, RCX, RDX, R11]) a.push(reg);
      a.movImm(RAX, SYS_GETPID);
      a.syscall();
      emitAddress(a, RDX, env.pidCache);
      for (const disp of [0, 4]) {
        const known = a.label("known");
        a.cmpImm({ base: RDX, disp }, 0, 32);
        a.jcc("ne", known);
        a.mov({ base: RDX, disp }, RAX, 32);
        a.bind(known);
      }
      for (const reg of [R11, RDX, RCX, RAX]) a.pop(reg);
      a.ret();
    },
  }));
}

/** Where the offset of the thread id lies beside the pid cache; see `LinkEnv.pidCache`. */
export const PID_CACHE_TID_OFFSET = 8;

/** rax = process id << 32 | thread id, where no offset of the thread id is known yet. */
export function pidTgid(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("pid tgid", () => {
    const fill = fillPidCache(routines, env);
    return {
      args: [],
      clobbers: regSet(RAX, RCX, RDX, R11),
      stackBytes: 0,
      calls: [fill],
      emit: (a) => {
        const [retry, empty, ask] = [a.label("retry"), a.label("empty"), a.label("ask")];
        a.bind(retry);
        emitAddress(a, RDX, env.pidCache);
        a.mov(RCX, { base: RDX, disp: PID_CACHE_TID_OFFSET }, 32);
        a.mov(RDX, { base: RDX }, 32);
        a.test(RDX, RDX, 32);
        a.jcc("e", empty);
        a.shl(RDX, 32);
        // 0: not known. The process can write there, and nothing lies far behind the fs base.
        a.lea(RAX, { base: RCX, disp: -1 }, 32);
        a.cmpImm(RAX, MAX_TID_OFFSET, 32);
        a.jcc("ae", ask);
        a.rdfsbase(RAX);
        a.mov(RAX, { base: RAX, index: RCX }, 32);
        a.or(RAX, RDX);
        a.ret();
        a.bind(ask);
        a.movImm(RAX, SYS_GETTID);
        a.syscall();
        a.or(RAX, RDX);
        a.ret();
        a.bind(empty);
        a.call(fill.label);
        a.jmp(retry);
      },
    };
  });
}

/** rax = group id << 32 | user id. */
export function uidGid(routines: RoutineSet): Routine {
  return routines.get("uid gid", () => ({
    args: [],
    clobbers: regSet(RAX, RCX, RDX, R11),
    stackBytes: 0,
    emit: (a) => {
      a.movImm(RAX, SYS_GETGID);
      a.syscall();
      a.mov(RDX, RAX, 32);
      a.shl(RDX, 32);
      a.movImm(RAX, SYS_GETUID);
      a.syscall();
      a.mov(RAX, RAX, 32);
      a.or(RAX, RDX);
      a.ret();
    },
  }));
}

/** rdi = memory, rsi = its size: the thread's name, cut to the size, with a NUL, padded with zeros. rax = 0. */
export function currentComm(routines: RoutineSet): Routine {
  return routines.get("comm", () => ({
    args: [1, 2],
    clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R11),
    stackBytes: COMM_BYTES,
    emit: (a) =>
      emitFrame(a, COMM_BYTES, (leave) => {
        const [copied, done] = [a.label("copied"), a.label("done")];
        a.test(RSI, RSI);
        a.jcc("e", done);
        a.mov(R8, RDI);
        a.mov(R9, RSI);
        a.movImm(RDI, PR_GET_NAME);
        a.mov(RSI, RSP);
        a.movImm(RAX, SYS_PRCTL);
        a.syscall();
        // r9 - 1 bytes at most, 15 at most; the name itself is padded with zeros.
        a.dec(R9);
        a.zero(RCX);
        const next = a.here("copy");
        a.cmp(RCX, R9);
        a.jcc("e", copied);
        a.cmpImm(RCX, COMM_BYTES - 1, 32);
        a.jcc("e", copied);
        a.movzx(RAX, { base: RSP, index: RCX }, 8);
        a.mov({ base: R8, index: RCX }, RAX, 8);
        a.inc(RCX);
        a.jmp(next);
        a.bind(copied);
        a.lea(RDI, { base: R8, index: RCX });
        a.sub(R9, RCX);
        a.inc(R9);
        emitZeroBytes(a, RDI, R9);
        a.bind(done);
        a.zero(RAX);
        leave();
      }),
  }));
}

/** rax = 32 random bits: the time stamp counter, mixed (the finaliser of MurmurHash3). Not for secrets. */
export function prandomU32(routines: RoutineSet): Routine {
  return routines.get("prandom", () => ({
    args: [],
    clobbers: regSet(RAX, RDX),
    stackBytes: 0,
    emit: (a) => {
      a.rdtsc();
      a.shl(RDX, 32);
      a.or(RAX, RDX);
      for (const multiplier of [0xff51afd7ed558ccdn, 0xc4ceb9fe1a85ec53n]) {
        a.mov(RDX, RAX);
        a.shr(RDX, 33);
        a.xor(RAX, RDX);
        a.movImm(RDX, multiplier);
        a.imul(RAX, RDX);
      }
      a.shr(RAX, 32);
      a.ret();
    },
  }));
}
