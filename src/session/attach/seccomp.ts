/** What makes system calls inside the target, which a seccomp filter may forbid. */
import {
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_STACK,
  HELPER_GET_STACKID,
  HELPER_PROBE_READ,
  HELPER_PROBE_READ_KERNEL,
  HELPER_PROBE_READ_KERNEL_STR,
  HELPER_PROBE_READ_STR,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_SNPRINTF,
  HELPER_TRACE_PRINTK,
  HELPER_TRACE_VPRINTK,
} from "../../bpf/helpers.ts";
import { findHelperName, type Proof } from "../../bpf/index.ts";
import type { ProcessImages } from "../../target/process/images.ts";
import { readStatus } from "../../target/process/proc-fs.ts";
import type { GateLevel, MechanismChoice } from "../options.ts";
import { SessionError } from "../session-error.ts";
import { isGoProgram } from "./return-ways.ts";

const callers = [
  // These read memory that may not be there, or that an argument names.
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_PROBE_READ,
  HELPER_PROBE_READ_STR,
  HELPER_PROBE_READ_KERNEL,
  HELPER_PROBE_READ_KERNEL_STR,
  HELPER_GET_STACKID,
  HELPER_GET_STACK,
  HELPER_SNPRINTF,
  HELPER_TRACE_PRINTK,
  HELPER_TRACE_VPRINTK,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_UID_GID,
];

/** The name of a helper in use whose code makes a system call; undefined if there is none. */
export function findSyscallHelper(proofs: readonly Proof[]): string | undefined {
  const used = callers.find((helper) => proofs.some((proof) => proof.helpers.has(helper)));
  return used === undefined ? undefined : findHelperName(used);
}

export const isUnderSeccomp = (pid: number): boolean => readStatus(pid).seccomp !== "none";

/** Programs that make system calls inside the target could get it killed by its own filter. Throws SessionError. */
export function checkSeccomp(
  pid: number,
  { proofs, mechanism }: { readonly proofs: readonly Proof[]; readonly mechanism: MechanismChoice },
): void {
  if (!isUnderSeccomp(pid)) return;
  const helper = findSyscallHelper(proofs);
  if (helper === undefined && mechanism !== "int3") return;
  throw new SessionError(
    "seccomp",
    {
      operation: "attach",
      object: `process ${pid}`,
      reason:
        helper === undefined
          ? "it runs under seccomp, and the trap handler of int3 makes a system call that its filter may forbid"
          : `it runs under seccomp, and ${helper} makes system calls that its filter may forbid`,
    },
    "use probes that take a jump and programs that do not read user memory, strings, stacks or comm, and print nothing",
  );
}

/**
 * Throws SessionError if a process under seccomp cannot have one of these levels. Go itself makes the calls by which a private stack
 * finds out where a thread is.
 */
export function checkGateLevels(
  { pid, program }: Pick<ProcessImages, "pid" | "program">,
  levels: readonly GateLevel[],
): void {
  const isGo = program !== undefined && isGoProgram(program);
  const level = levels.find((each) => each !== "none" && !(each === "stack" && isGo));
  if (level === undefined || !isUnderSeccomp(pid)) return;
  throw new SessionError(
    "seccomp",
    {
      operation: "attach",
      object: `process ${pid}`,
      reason:
        level === "strict"
          ? "it runs under seccomp, and --gate strict makes two system calls a hit that its filter may forbid"
          : "it runs under seccomp, and --gate stack asks the kernel where alternate stacks are, which its filter may forbid",
    },
    `use --gate ${isGo ? "stack" : "none"}`,
  );
}
