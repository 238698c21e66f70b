/**
 * The context of a probe program as programs see it: Linux's `struct pt_regs` for x86-64, read only.
 *
 * Two slots that the kernel fills with something a probe does not need carry what helpers return.
 */

/** Size of the context in bytes. */
export const CTX_BYTES = 168;
/** Offset of the attach cookie, in the place of `orig_rax`. */
export const CTX_COOKIE = 120;
/** Offset of the probed address; in a return probe of the address that is returned to. */
export const CTX_IP = 128;
