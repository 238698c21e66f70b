/**
 * The names that the language knows: builtins, functions, registers; and those of bpftrace that it does not have
 * yet, so that they can be refused by name.
 */

/** Which probes a builtin needs. */
export type BuiltinPlace = "any" | "entry" | "return" | "user";

interface BuiltinSpec {
  readonly place: BuiltinPlace;
  /** Offset in `struct pt_regs` for those that are registers. */
  readonly ctxOffset?: number;
}

/** Offsets in `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h) by the names that bpftrace gives to registers. */
export const registerOffsets: Readonly<Record<string, number>> = {
  r15: 0,
  r14: 8,
  r13: 16,
  r12: 24,
  bp: 32,
  bx: 40,
  r11: 48,
  r10: 56,
  r9: 64,
  r8: 72,
  ax: 80,
  cx: 88,
  dx: 96,
  si: 104,
  di: 112,
  ip: 128,
  cs: 136,
  flags: 144,
  sp: 152,
  ss: 160,
};

/** Registers of the first six integer arguments (psABI 3.2.3) and of the return value. */
const argumentOffsets = ["di", "si", "dx", "cx", "r8", "r9"].map((name) => registerOffsets[name]!);

/** Builtins without arguments. */
export const builtins: ReadonlyMap<string, BuiltinSpec> = new Map<string, BuiltinSpec>([
  ["pid", { place: "any" }],
  ["tid", { place: "any" }],
  ["uid", { place: "any" }],
  ["gid", { place: "any" }],
  ["comm", { place: "any" }],
  ["nsecs", { place: "any" }],
  ["elapsed", { place: "any" }],
  ["cpu", { place: "any" }],
  ["rand", { place: "any" }],
  ["probe", { place: "any" }],
  ["func", { place: "user" }],
  ["retval", { place: "return", ctxOffset: registerOffsets.ax! }],
  ...argumentOffsets.map((ctxOffset, i): [string, BuiltinSpec] => [`arg${i}`, { place: "entry", ctxOffset }]),
]);

/** `sarg0`, `sarg1`, ...: words on the stack above the return address. */
export const stackArgumentPattern = /^sarg([0-9]{1,2})$/;

export const unsupportedBuiltins: ReadonlySet<string> = new Set(
  `kstack ustack args ctx curtask cgroup numaid cpid ppid jiffies username usermode ncpus __builtin_probe`.split(
    " ",
  ),
);

export const functionNames: readonly string[] = (
  "avg buf clear count delete exit hist join lhist max min print printf reg stats str strftime " +
  "strlen strncmp sum sym time uptr usym zero bswap"
).split(" ");

export const aggregateNames: ReadonlySet<string> = new Set(
  "count sum avg min max stats hist lhist".split(" "),
);

export const unsupportedFunctions: ReadonlySet<string> = new Set(
  (
    "kstack ustack ksym kaddr uaddr kptr ntop pton macaddr cat system signal override cgroupid cgroup_path " +
    "offsetof path unwatch skboutput strerror strcontains strcap strstr has_key len tseries llhist nsecs pid tid " +
    "percpu_kaddr socket_cookie errorf warnf debugf fail assert memcmp getopt is_str is_ptr is_array " +
    "is_integer ppid stack_len symbol_name static_assert find default kfunc_exist kfunc_allowed"
  ).split(" "),
);
