/**
 * `struct user_regs_struct` as PTRACE_GETREGS fills it (arch/x86/include/asm/user_64.h): 27 words of 8 bytes.
 */

export const USER_REGS_BYTES = 216;

/** Word index by register name. */
export const userReg = {
  r15: 0,
  r14: 1,
  r13: 2,
  r12: 3,
  rbp: 4,
  rbx: 5,
  r11: 6,
  r10: 7,
  r9: 8,
  r8: 9,
  rax: 10,
  rcx: 11,
  rdx: 12,
  rsi: 13,
  rdi: 14,
  origRax: 15,
  rip: 16,
  cs: 17,
  eflags: 18,
  rsp: 19,
  ss: 20,
  fsBase: 21,
  gsBase: 22,
} as const;

export type UserRegName = keyof typeof userReg;

/** The registers of one stopped thread. */
export class UserRegs {
  readonly words: BigUint64Array;
  readonly bytes: Uint8Array;

  constructor() {
    this.words = new BigUint64Array(USER_REGS_BYTES / 8);
    this.bytes = new Uint8Array(this.words.buffer);
  }

  get(name: UserRegName): bigint {
    return this.words[userReg[name]]!;
  }

  /** As a signed 64-bit number: system call results and `orig_rax` are negative at times. */
  getSigned(name: UserRegName): bigint {
    return BigInt.asIntN(64, this.words[userReg[name]]!);
  }

  set(name: UserRegName, value: bigint): void {
    this.words[userReg[name]] = BigInt.asUintN(64, value);
  }

  copy(): UserRegs {
    const copy = new UserRegs();
    copy.words.set(this.words);
    return copy;
  }
}

// What the kernel leaves in rax of a system call that a signal or a stop has interrupted (include/linux/errno.h).
const ERESTARTSYS = -512n;
const ERESTARTNOINTR = -513n;
const ERESTARTNOHAND = -514n;
const ERESTART_RESTARTBLOCK = -516n;
const SYS_RESTART_SYSCALL = 219n;
const SYSCALL_INSN_BYTES = 2n;

/**
 * The registers with which a thread would go on after its interrupted system call is set up to be made again, which
 * is what the kernel does on its own when the thread is resumed from a stop. Needed where the thread goes on
 * by other means. A thread that was not in a system call is returned as it is.
 */
export function withRestartApplied(regs: UserRegs): UserRegs {
  const restarted = regs.copy();
  if (regs.getSigned("origRax") < 0n) return restarted;
  switch (regs.getSigned("rax")) {
    case ERESTARTSYS:
    case ERESTARTNOINTR:
    case ERESTARTNOHAND:
      restarted.set("rax", regs.get("origRax"));
      restarted.set("rip", regs.get("rip") - SYSCALL_INSN_BYTES);
      break;
    case ERESTART_RESTARTBLOCK:
      restarted.set("rax", SYS_RESTART_SYSCALL);
      restarted.set("rip", regs.get("rip") - SYSCALL_INSN_BYTES);
      break;
    default:
      break;
  }
  restarted.set("origRax", -1n);
  return restarted;
}
