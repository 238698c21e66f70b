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
import { SessionError } from "../session-error.ts";
import type { GateLevel } from "./gate-level.ts";

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

/**
 * Throws SessionError for a level that a process under seccomp cannot have. Go itself makes the calls by which a private stack finds
 * out where a thread is.
 */
export function checkGateUnderSeccomp(pid: number, level: GateLevel, isGo: boolean): void {
  if (level === "none" || (level === "stack" && isGo)) return;
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
