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
/**
 * Behind what programs can read: what only helpers use. The gate fills or reads these for programs whose `ctxReads` name
 * them.
 */
/** Bit 0: the point is a function's entry, so that the return address is on top of the stack. */
export const CTX_SITE = 168;
export const SITE_IS_ENTRY = 1;
/** Not 0: the function is to be left with the value in the next slot. */
export const CTX_OVERRIDES = 176;
export const CTX_OVERRIDE_VALUE = 184;
