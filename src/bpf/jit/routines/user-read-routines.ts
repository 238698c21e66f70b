/**
 * Reads of the traced program's memory, which may not be there: process_vm_readv on the own process reports what a
 * load would die of.
 */
import type { Assembler } from "../../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { EFAULT } from "../../error-numbers.ts";
import type { LinkEnv } from "../link-env.ts";
import { emitAddress, emitFrame, emitZeroBytes } from "../memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";
import { fillPidCache } from "./task-routines.ts";

const SYS_PROCESS_VM_READV = 310;
export const PAGE_BYTES = 4096;
const PAGE_BITS = 12;
/** Bytes of a string that are read at once: most strings are short, and the copy lies on the stack. */
const STRING_PART_BYTES = 256;
/** The two iovec structures, local and remote, at the bottom of the frame. */
const IOVEC_BYTES = 32;
/** What a read with `emitReadv` may change. */
export const READ_CLOBBERS = regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11);

/** rdi = memory, rsi = bytes, rdx = source; rax = 0, or -EFAULT and the memory is zeroed. */
export function probeReadUser(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("probe read user", () => {
    const fill = fillPidCache(routines, env);
    return {
      args: [1, 2, 3],
      clobbers: READ_CLOBBERS,
      stackBytes: IOVEC_BYTES,
      calls: [fill],
      emit: (a) =>
        emitFrame(a, IOVEC_BYTES, (leave) => {
          const [failed, nothing] = [a.label("failed"), a.label("nothing")];
          a.test(RSI, RSI);
          a.jcc("e", nothing);
          a.mov({ base: RSP, disp: 0 }, RDI);
          a.mov({ base: RSP, disp: 8 }, RSI);
          a.mov({ base: RSP, disp: 16 }, RDX);
          a.mov({ base: RSP, disp: 24 }, RSI);
          emitReadv(a, env, fill);
          a.cmp(RAX, { base: RSP, disp: 8 });
          a.jcc("ne", failed);
          a.bind(nothing);
          a.zero(RAX);
          leave();
          a.bind(failed);
          a.mov(RDI, { base: RSP, disp: 0 });
          a.mov(RCX, { base: RSP, disp: 8 });
          emitZeroBytes(a, RDI, RCX);
          a.movImm(RAX, EFAULT);
          leave();
        }),
    };
  });
}

/**
 * rdi = memory, rsi = its size, rdx = source; rax = length with the NUL, cut to the size, or -EFAULT and the memory is
 * zeroed. What lies behind the NUL stays as it was. No read crosses a page, so a string that ends before a hole is
 * read.
 */
export function probeReadUserStr(routines: RoutineSet, env: LinkEnv): Routine {
  return routines.get("probe read user str", () => {
    const fill = fillPidCache(routines, env);
    const [localBase, localLen, remoteBase, remoteLen, dst, end, start, part] = [
      0, 8, 16, 24, 32, 40, 48, 56,
    ];
    const frameBytes = part + STRING_PART_BYTES;
    return {
      args: [1, 2, 3],
      clobbers: READ_CLOBBERS,
      stackBytes: frameBytes,
      calls: [fill],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [nothing, failed, found, full] = [
            a.label("nothing"),
            a.label("failed"),
            a.label("found"),
            a.label("full"),
          ];
          a.test(RSI, RSI);
          a.jcc("e", nothing);
          emitReadOwnString(a, leave);
          a.add(RSI, RDI);
          a.mov(local(dst), RDI);
          a.mov(local(start), RDI);
          a.mov(local(end), RSI);
          a.mov(local(remoteBase), RDX);
          a.lea(RAX, local(part));
          a.mov(local(localBase), RAX);

          const nextPart = a.here("part");
          // rcx = the least of: to the end of the page, to the end of the memory, a part
          a.mov(RAX, local(remoteBase), 32);
          a.andImm(RAX, PAGE_BYTES - 1, 32);
          a.movImm(RCX, PAGE_BYTES);
          a.sub(RCX, RAX, 32);
          a.mov(RAX, local(end));
          a.sub(RAX, local(dst));
          a.cmp(RCX, RAX);
          a.cmov("a", RCX, RAX);
          a.movImm(RAX, STRING_PART_BYTES);
          a.cmp(RCX, RAX);
          a.cmov("a", RCX, RAX);
          a.mov(local(localLen), RCX);
          a.mov(local(remoteLen), RCX);
          emitReadv(a, env, fill);
          a.cmp(RAX, local(localLen));
          a.jcc("ne", failed);

          a.mov(RDI, local(dst));
          a.mov(RCX, RAX);
          a.zero(RSI);
          const nextByte = a.here("byte");
          a.movzx(RAX, { base: RSP, index: RSI, disp: part }, 8);
          a.mov({ base: RDI, index: RSI }, RAX, 8);
          a.inc(RSI);
          a.test(RAX, RAX, 32);
          a.jcc("e", found);
          a.cmp(RSI, RCX);
          a.jcc("ne", nextByte);

          a.add(local(remoteBase), RSI);
          a.add(RDI, RSI);
          a.mov(local(dst), RDI);
          a.cmp(RDI, local(end));
          a.jcc("ne", nextPart);
          a.movImm({ base: RDI, disp: -1 }, 0, 8);
          a.jmp(full);
          a.bind(found);
          a.add(RDI, RSI);
          a.bind(full);
          a.mov(RAX, RDI);
          a.sub(RAX, local(start));
          leave();

          a.bind(failed);
          a.mov(RDI, local(start));
          a.mov(RCX, local(end));
          a.sub(RCX, RDI);
          emitZeroBytes(a, RDI, RCX);
          a.movImm(RAX, EFAULT);
          leave();
          a.bind(nothing);
          a.zero(RAX);
          leave();
        }),
    };
  });
}

/**
 * A string in the program's own stack needs no system call: from rsp to the end of its page there certainly is memory. One
 * that goes on behind it, or lies elsewhere, is left to what follows; rdi, rsi and rdx are as they were then.
 */
function emitReadOwnString(a: Assembler, leave: () => void): void {
  const [elsewhere, next, full] = [a.label("elsewhere"), a.label("own byte"), a.label("own full")];
  a.cmp(RDX, RSP);
  a.jcc("b", elsewhere);
  a.mov(RAX, RDX);
  a.xor(RAX, RSP);
  a.shr(RAX, PAGE_BITS);
  a.jcc("ne", elsewhere);
  a.mov(RAX, RDX, 32);
  a.andImm(RAX, PAGE_BYTES - 1, 32);
  a.movImm(R9, PAGE_BYTES);
  a.sub(R9, RAX);
  a.zero(RCX);
  a.bind(next);
  a.cmp(RCX, RSI);
  a.jcc("e", full);
  a.cmp(RCX, R9);
  a.jcc("e", elsewhere);
  a.movzx(RAX, { base: RDX, index: RCX }, 8);
  a.mov({ base: RDI, index: RCX }, RAX, 8);
  a.inc(RCX);
  a.test(RAX, RAX, 32);
  a.jcc("ne", next);
  a.mov(RAX, RCX);
  leave();
  a.bind(full);
  a.movImm({ base: RDI, index: RCX, disp: -1 }, 0, 8);
  a.mov(RAX, RCX);
  leave();
  a.bind(elsewhere);
}

/** A variable in the frame. */
const local = (disp: number) => ({ base: RSP, disp });

/** process_vm_readv with the iovec structures at rsp, one local and `remotes` others; rax = bytes read. */
export function emitReadv(a: Assembler, env: LinkEnv, fill: Routine, remotes = 1): void {
  const [retry, known] = [a.here("readv"), a.label("pid known")];
  emitAddress(a, RAX, env.pidCache);
  a.mov(RDI, { base: RAX, disp: 4 }, 32);
  a.test(RDI, RDI, 32);
  a.jcc("ne", known);
  a.call(fill.label);
  a.jmp(retry);
  a.bind(known);
  a.mov(RSI, RSP);
  a.movImm(RDX, 1);
  a.lea(R10, { base: RSP, disp: 16 });
  a.movImm(R8, remotes);
  a.zero(R9);
  a.movImm(RAX, SYS_PROCESS_VM_READV);
  a.syscall();
}
