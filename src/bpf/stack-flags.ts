/** Flags of bpf_get_stack and bpf_get_stackid (include/uapi/linux/bpf.h). */

/** The innermost frames that are left out. */
export const STACK_SKIP_MASK = 0xffn;
/** The user's stack, which here is the one there is: without the flag it is the same. */
export const STACK_USER = 1n << 8n;
/** A stack trace map takes stacks of one hash for the same, without comparing them. */
export const STACK_FAST_COMPARE = 1n << 9n;
/** A stack trace map replaces another stack of the same hash. */
export const STACK_REUSE_ID = 1n << 10n;

/** Frames that are looked at, with those left out (kernel.perf_event_max_stack). */
export const MAX_STACK_FRAMES = 127;
