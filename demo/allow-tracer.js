/**
 * Lets processes that are not ancestors attach to this one, where the Yama security module would refuse it: prctl
 * PR_SET_PTRACER (Linux Documentation/admin-guide/LSM/Yama.rst). A process that you trace by its number needs no such
 * thing when you are root or kernel.yama.ptrace_scope is 0.
 */
import koffi from "koffi";

const PR_SET_PTRACER = 0x59616d61n;
const PR_SET_PTRACER_ANY = 0xffff_ffff_ffff_ffffn;

const prctl = koffi
  .load("libc.so.6")
  .func("int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)");
// Fails without Yama, and then nothing needs to be allowed.
prctl(Number(PR_SET_PTRACER), PR_SET_PTRACER_ANY, 0, 0, 0);
