/** What helpers return when they fail, as the kernel defines it (include/uapi/asm-generic/errno-base.h). */

export const ENOENT = -2;
export const E2BIG = -7;
export const EAGAIN = -11;
export const ENOMEM = -12;
export const EFAULT = -14;
/** The memory is corrupt or changes faster than it can be read. */
export const EBUSY = -16;
export const EEXIST = -17;
export const EINVAL = -22;
export const ENOSPC = -28;
export const ERANGE = -34;

export const BPF_ANY = 0n;
export const BPF_NOEXIST = 1n;
export const BPF_EXIST = 2n;
