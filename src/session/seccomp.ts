/** Which programs make system calls inside the target. */
import {
  findHelperName,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  type Proof,
} from "../bpf/index.ts";

const callers = [
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_UID_GID,
];

/** The name of a helper in use whose code makes a system call; undefined if there is none. */
export function findSyscallHelper(proofs: readonly Proof[]): string | undefined {
  const used = callers.find((helper) => proofs.some((proof) => proof.helpers.has(helper)));
  return used === undefined ? undefined : findHelperName(used);
}
