/**
 * Programs with their verdicts, for the verifier and for the kernel's where it can be asked.
 *
 * The kernel must agree, with the same words, unless a case says how it differs: it lets privileged programs read stack
 * that was never written, refuses division and shifts that RFC 9669 defines, and knows more kinds of everything.
 */
import type { MapSpec } from "../program.ts";

const inner: MapSpec = { name: "inner", kind: "hash", keyBytes: 8, valueBytes: 16, maxEntries: 10 };

/** The string "%d %s" at 0, the numbers 40 at 8 and -3 (16 bits) at 12, and at 14 bytes without a NUL. */
const contents = Uint8Array.of(0x25, 0x64, 0x20, 0x25, 0x73, 0, 0, 0, 40, 0, 0, 0, 0xfd, 0xff, 1, 1);

/** What the programs call map[0], map[1], ... */
export const caseMaps: readonly MapSpec[] = [
  { name: "counts", kind: "array", keyBytes: 4, valueBytes: 64, maxEntries: 1 },
  { name: "by_key", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 100 },
  { name: "events", kind: "ringbuf", keyBytes: 0, valueBytes: 32, maxEntries: 64 },
  { name: "other", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 100 },
  { name: "per_cpu", kind: "percpu_array", keyBytes: 4, valueBytes: 16, maxEntries: 4, cpus: 4 },
  { name: "per_cpu_hash", kind: "lru_percpu_hash", keyBytes: 8, valueBytes: 16, maxEntries: 100, cpus: 4 },
  { name: "recent", kind: "lru_hash", keyBytes: 8, valueBytes: 8, maxEntries: 100 },
  { name: "queue", kind: "queue", keyBytes: 0, valueBytes: 8, maxEntries: 10 },
  { name: "bloom", kind: "bloom_filter", keyBytes: 0, valueBytes: 8, maxEntries: 10 },
  { name: "programs", kind: "prog_array", keyBytes: 4, valueBytes: 4, maxEntries: 4 },
  { name: "tables", kind: "array_of_maps", keyBytes: 4, valueBytes: 4, maxEntries: 4, inner },
  { name: "samples", kind: "perf_event_array", keyBytes: 4, valueBytes: 0, maxEntries: 4 },
  { name: "stacks", kind: "stack_trace", keyBytes: 4, valueBytes: 80, maxEntries: 16 },
  {
    name: "fixed",
    kind: "array",
    keyBytes: 4,
    valueBytes: 16,
    maxEntries: 1,
    isReadOnly: true,
    contents,
  },
  { name: "written", kind: "array", keyBytes: 4, valueBytes: 16, maxEntries: 1, isWriteOnly: true },
];

export interface VerifyCase {
  readonly name: string;
  /** In text form. */
  readonly text: string;
  /** Of a rejected program. */
  readonly message: string;
  /** How the kernel differs: its own message, the other verdict, or not asked because it would take too long. */
  readonly kernel?: { readonly says: string } | "accepts" | "rejects" | "too slow";
}

/** Looks up a key that may not be there: r0. */
export const lookup = `
  *(u64 *)(r10 -8) = 1
  r1 = map[1]
  r2 = r10
  r2 += -8
  call bpf_map_lookup_elem`;
const reserve = `
  r1 = map[2]
  r2 = 16
  r3 = 0
  call bpf_ringbuf_reserve`;
const submit = `
  r2 = 0
  call bpf_ringbuf_submit`;
const leave = `
  out: r0 = 0
  exit`;

export const acceptedCases: readonly Omit<VerifyCase, "message">[] = [
  { name: "a constant", text: "r0 = 0\nexit" },
  { name: "a context read", text: `r0 = *(u64 *)(r1 +112)\nexit` },
  { name: "a context read of one byte", text: `r0 = *(u8 *)(r1 +113)\nexit` },
  { name: "a context read of the low half", text: `r0 = *(u32 *)(r1 +112)\nexit` },
  {
    name: "a sharded counter",
    text: `call bpf_get_smp_processor_id\nr0 &= 7\nr0 <<= 3\nr1 = map[0][0]+0\nr1 += r0\nr2 = 1\nlock *(u64 *)(r1 +0) += r2\n${leave}`,
  },
  {
    name: "a value after its null check",
    text: `${lookup}\nif r0 == 0 goto out\nr1 = *(u64 *)(r0 +0)\n${leave}`,
  },
  {
    name: "a copy of a checked value",
    text: `${lookup}\nr6 = r0\nif r0 == 0 goto out\nr1 = *(u64 *)(r6 +0)\n${leave}`,
  },
  {
    name: "a spilled copy of a checked value",
    text: `${lookup}\n*(u64 *)(r10 -16) = r0\nif r0 == 0 goto out\nr6 = *(u64 *)(r10 -16)\nr1 = *(u64 *)(r6 +0)\n${leave}`,
  },
  {
    name: "a null check by !=",
    text: `${lookup}\nif r0 != 0 goto +1\ngoto out\n*(u64 *)(r0 +0) = 5\n${leave}`,
  },
  {
    name: "an index bounded by a mask",
    text: `r2 = *(u64 *)(r1 +0)\nr2 &= 63\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit`,
  },
  {
    name: "an index bounded by a comparison",
    text: `r2 = *(u64 *)(r1 +0)\nr0 = 0\nif r2 > 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
  },
  {
    name: "an index bounded by signed comparisons",
    text: `r2 = *(u64 *)(r1 +0)\nr0 = 0\nif r2 s< 0 goto out\nif r2 s> 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
  },
  {
    name: "an index bounded on 32 bits",
    text: `r2 = *(u64 *)(r1 +0)\nw2 = w2\nr0 = 0\nif w2 > 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
  },
  {
    name: "a bound on a copy of the index",
    text: `r2 = *(u64 *)(r1 +0)\nr3 = r2\nr0 = 0\nif r3 > 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
  },
  {
    name: "a bound on a register that was spilled",
    text: `r2 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = r2\nr0 = 0\nif r2 > 56 goto out\nr3 = *(u64 *)(r10 -8)\nr1 = map[0][0]+0\nr1 += r3\nr0 = *(u64 *)(r1 +0)\nout: exit`,
  },
  {
    name: "a bound by another bounded register",
    text: `r2 = *(u64 *)(r1 +0)\nr3 = *(u64 *)(r1 +8)\nr3 &= 31\nr0 = 0\nif r2 >= r3 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +32)\nout: exit`,
  },
  {
    name: "a negative fixed offset that a variable part makes good",
    text: `r2 = *(u64 *)(r1 +0)\nr2 &= 7\nr2 += 8\nr1 = map[0][0]+0\nr1 += -8\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit`,
  },
  {
    name: "a number added from the left",
    text: `r2 = *(u64 *)(r1 +0)\nr2 &= 7\nr1 = map[0][0]+0\nr2 += r1\nr0 = *(u8 *)(r2 +0)\nexit`,
  },
  {
    name: "a record reserved and submitted",
    text: `${reserve}\nif r0 == 0 goto out\n*(u64 *)(r0 +8) = 7\nr1 = r0\n${submit}\n${leave}`,
  },
  {
    name: "a record discarded on one path and submitted on another",
    text: `r6 = r1\n${reserve}\nif r0 == 0 goto out\nr6 = *(u64 *)(r6 +0)\nr1 = r0\nr2 = 0\nif r6 == 0 goto drop\ncall bpf_ringbuf_submit\ngoto out\ndrop: call bpf_ringbuf_discard\n${leave}`,
  },
  {
    name: "a record spilled over a call",
    text: `${reserve}\nif r0 == 0 goto out\n*(u64 *)(r10 -8) = r0\ncall bpf_ktime_get_ns\nr1 = *(u64 *)(r10 -8)\n*(u64 *)(r1 +0) = r0\n${submit}\n${leave}`,
  },
  {
    name: "user memory into the stack",
    text: `r3 = *(u64 *)(r1 +112)\nr1 = r10\nr1 += -16\nr2 = 16\ncall bpf_probe_read_user\nr0 = *(u64 *)(r10 -16)\nexit`,
  },
  {
    name: "user memory of a bounded size into a value",
    text: `r3 = *(u64 *)(r1 +112)\nr2 = *(u64 *)(r1 +104)\nr2 &= 63\nr1 = map[0][0]+0\ncall bpf_probe_read_user\n${leave}`,
  },
  {
    name: "the length that a string read returns as an index",
    text: `r3 = *(u64 *)(r1 +112)\nr1 = map[0][0]+0\nr2 = 32\ncall bpf_probe_read_user_str\nr6 = 0\nif r0 s< 0 goto out\nr1 = map[0][0]+0\nr1 += r0\n*(u8 *)(r1 +31) = 0\n${leave}`,
  },
  {
    name: "division by a register that may be 0",
    text: "r2 = *(u64 *)(r1 +0)\nr0 = 7\nr0 /= r2\nr0 %= r2\nexit",
  },
  { name: "division by the immediate 0", kernel: "rejects", text: "r0 = 7\nr0 /= 0\nexit" },
  { name: "a shift by more than the width", kernel: "rejects", text: "r0 = 7\nr0 <<= 70\nexit" },
  {
    name: "a pointer stored in a map value",
    text: `${lookup}\nif r0 == 0 goto out\n*(u64 *)(r0 +0) = r10\n${leave}`,
  },
  { name: "a pointer minus a pointer", text: "r0 = r10\nr0 -= r10\nexit" },
  { name: "a counted loop", text: "r0 = 0\nr1 = 0\ntop: r0 += 3\nr1 += 1\nif r1 < 1000 goto top\nexit" },
  {
    name: "a counted loop whose counter lives on the stack",
    text: "*(u64 *)(r10 -8) = 0\ntop: r1 = *(u64 *)(r10 -8)\nif r1 >= 100 goto out\nr1 += 1\n*(u64 *)(r10 -8) = r1\ngoto top\nout: r0 = 0\nexit",
  },
  {
    name: "a loop over a value",
    text: "r1 = map[0][0]+0\nr2 = 0\nr0 = 0\ntop: r3 = r1\nr3 += r2\nr4 = *(u8 *)(r3 +0)\nr0 += r4\nr2 += 1\nif r2 != 64 goto top\nexit",
  },
  {
    name: "a loop that an unknown number may leave early",
    text: "r6 = r1\nr7 = 0\ntop: r1 = *(u64 *)(r6 +0)\nif r1 == 5 goto out\nr7 += 1\nif r7 < 50 goto top\nout: r0 = 0\nexit",
  },
  {
    name: "a stack read at a variable offset",
    text: "*(u64 *)(r10 -8) = 0\n*(u64 *)(r10 -16) = 1\nr2 = *(u64 *)(r1 +0)\nr2 &= 8\nr3 = r10\nr3 += -16\nr3 += r2\nr0 = *(u64 *)(r3 +0)\nexit",
  },
  {
    name: "parts of a stored number",
    text: "r2 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = r2\nr3 = *(u8 *)(r10 -8)\nr3 &= 63\nr1 = map[0][0]+0\nr1 += r3\nr0 = *(u8 *)(r1 +0)\nexit",
  },
  {
    name: "a constant read back in pieces",
    kernel: "rejects",
    text: "r2 = 0x0000003800000000 ll\n*(u64 *)(r10 -8) = r2\nr3 = *(u32 *)(r10 -4)\nr1 = map[0][0]+0\nr1 += r3\nr0 = *(u64 *)(r1 +0)\nexit",
  },
  {
    name: "a 32-bit number spilled and filled",
    kernel: "rejects",
    text: "r2 = *(u32 *)(r1 +0)\nw2 &= 31\n*(u32 *)(r10 -4) = r2\nr3 = *(u32 *)(r10 -4)\nr1 = map[0][0]+0\nr1 += r3\nr0 = *(u8 *)(r1 +0)\nexit",
  },
  {
    name: "atomics on the stack",
    text: "*(u64 *)(r10 -8) = 0\nr1 = 1\nr1 = atomic64_fetch_add((u64 *)(r10 -8), r1)\nr0 = r1\nexit",
  },
  {
    name: "compare-and-exchange",
    text: `${lookup}\nif r0 == 0 goto out\nr6 = r0\nr0 = 0\nr1 = 1\nr0 = atomic64_cmpxchg((u64 *)(r6 +0), r0, r1)\n${leave}`,
  },
  {
    name: "a comparison of pointers",
    text: "r2 = r10\nr2 += -8\nr0 = 0\nif r2 == r10 goto +1\nr0 = 1\nexit",
  },
  { name: "gotol", text: "r0 = 0\ngotol +0\nexit" },
  {
    name: "the cookie and the address",
    text: "r6 = r1\ncall bpf_get_attach_cookie\nr1 = r6\ncall bpf_get_func_ip\nexit",
  },
];

export const rejectedCases: readonly VerifyCase[] = [
  { name: "a register that was never written", text: "r0 = r2\nexit", message: "R2 !read_ok" },
  { name: "r0 missing at exit", text: "exit", message: "R0 !read_ok" },
  { name: "r1 after a call", text: "call bpf_ktime_get_ns\nr0 = r1\nexit", message: "R1 !read_ok" },
  {
    name: "r0 after a call without a result",
    text: `${reserve}\nif r0 == 0 goto out\nr1 = r0\nr2 = 0\ncall bpf_ringbuf_submit\nexit\n${leave}`,
    message: "R0 !read_ok",
  },
  { name: "a write to r10", text: "r10 = 0\nexit", message: "frame pointer is read only" },
  { name: "a load into r10", text: "r10 = *(u64 *)(r1 +0)\nexit", message: "frame pointer is read only" },
  {
    name: "a number as an address",
    text: "r1 = 5\nr0 = *(u64 *)(r1 +0)\nexit",
    message: "R1 invalid mem access 'scalar'",
  },
  {
    name: "a value without a null check",
    text: `${lookup}\nr0 = *(u64 *)(r0 +0)\nexit`,
    message: "R0 invalid mem access 'map_value_or_null'",
  },
  {
    name: "a value on the null side",
    text: `${lookup}\nif r0 != 0 goto out\nr0 = *(u64 *)(r0 +0)\nexit\n${leave}`,
    message: "R0 invalid mem access 'scalar'",
  },
  {
    name: "a value checked on 32 bits only",
    text: `${lookup}\nif w0 == 0 goto out\nr0 = *(u64 *)(r0 +0)\nexit\n${leave}`,
    message: "R0 invalid mem access 'map_value_or_null'",
  },
  {
    name: "a map as memory",
    kernel: "accepts",
    text: "r1 = map[0]\nr0 = *(u64 *)(r1 +0)\nexit",
    message: "R1 invalid mem access 'map_ptr'",
  },
  {
    name: "a read past a value",
    text: `${lookup}\nif r0 == 0 goto out\nr1 = *(u8 *)(r0 +8)\n${leave}`,
    message: "invalid access to map value, value_size=8 off=8 size=1",
  },
  {
    name: "a read before a value",
    text: `${lookup}\nif r0 == 0 goto out\nr1 = *(u8 *)(r0 -1)\n${leave}`,
    message: "invalid access to map value, value_size=8 off=-1 size=1",
  },
  {
    name: "a read that ends past a value",
    text: `${lookup}\nif r0 == 0 goto out\nr1 = *(u64 *)(r0 +4)\n${leave}`,
    message: "invalid access to map value, value_size=8 off=4 size=8",
  },
  {
    name: "an unbounded index",
    text: "r2 = *(u64 *)(r1 +0)\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit",
    message: "math between map_value pointer and register with unbounded min value is not allowed",
  },
  {
    name: "an index without an upper bound",
    text: "r2 = *(u32 *)(r1 +0)\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nexit",
    message: "R1 unbounded memory access, make sure to bounds check any such access",
  },
  {
    name: "an index that may be negative",
    text: `r2 = *(u64 *)(r1 +0)\nr0 = 0\nif r2 s> 7 goto out\nif r2 s< -7 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u8 *)(r1 +0)\nout: exit`,
    message: "R1 min value is negative, either use unsigned index or do a if (index >=0) check.",
  },
  {
    name: "a bound that is one too large",
    text: `r2 = *(u64 *)(r1 +0)\nr0 = 0\nif r2 > 57 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
    message:
      "invalid access to map value, value_size=64 off=57 size=8: R1 max value is outside of the allowed memory range",
  },
  {
    name: "a bound on 32 bits of a 64-bit index",
    text: `r2 = *(u64 *)(r1 +0)\nr0 = 0\nif w2 > 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
    message: "math between map_value pointer and register with unbounded min value is not allowed",
  },
  {
    name: "a bound on a copy that changed since",
    kernel: { says: "R1 max value is outside of the allowed memory range" },
    text: `r2 = *(u64 *)(r1 +0)\nr2 &= 0xff\nr3 = r2\nr2 += 1\nr0 = 0\nif r3 > 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
    message:
      "invalid access to map value, value_size=64 off=256 size=8: R1 max value is outside of the allowed memory range",
  },
  {
    name: "a bound on 32 bits of a copy",
    text: `r2 = *(u64 *)(r1 +0)\nw3 = w2\nr0 = 0\nif r3 > 56 goto out\nr1 = map[0][0]+0\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nout: exit`,
    message: "math between map_value pointer and register with unbounded min value is not allowed",
  },
  {
    name: "an address beyond the direct value",
    text: "r1 = map[0][0]+64\nr0 = 0\nexit",
    message: "invalid access to map value pointer, value_size=64 off=64",
  },
  {
    name: "a direct value of a hash",
    text: "r1 = map[1][0]+0\nr0 = 0\nexit",
    message: "no direct value access support for this map type",
  },
  {
    name: "a map that does not exist",
    kernel: { says: "not pointing to valid bpf_map" },
    text: "r1 = map[99]\nr0 = 0\nexit",
    message: "map 99 does not exist: there are 15",
  },

  {
    name: "a context write",
    text: "r2 = 0\n*(u64 *)(r1 +0) = r2\nr0 = 0\nexit",
    message: "invalid bpf_context access off=0 size=8",
  },
  {
    name: "a context read past the end",
    text: "r0 = *(u64 *)(r1 +168)\nexit",
    message: "invalid bpf_context access off=168 size=8",
  },
  {
    name: "a negative context read",
    text: "r0 = *(u64 *)(r1 -8)\nexit",
    message: "invalid bpf_context access off=-8 size=8",
  },
  {
    name: "a misaligned context read",
    text: "r0 = *(u64 *)(r1 +4)\nexit",
    message: "invalid bpf_context access off=4 size=8",
  },
  {
    name: "a context read across slots",
    text: "r0 = *(u64 *)(r1 +164)\nexit",
    message: "invalid bpf_context access off=164 size=8",
  },
  {
    name: "a moved context",
    text: "r1 += 8\nr0 = *(u64 *)(r1 +0)\nexit",
    message: "dereference of modified ctx ptr R1 off=8 disallowed",
  },
  {
    name: "a context moved by a variable",
    text: "r2 = *(u64 *)(r1 +0)\nr2 &= 8\nr1 += r2\nr0 = *(u64 *)(r1 +0)\nexit",
    message: "variable ctx access var_off=(0x0; 0x8) disallowed",
  },
  {
    name: "an atomic on the context",
    text: "r2 = 1\nlock *(u64 *)(r1 +0) += r2\nr0 = 0\nexit",
    message: "BPF_ATOMIC stores into R1 ctx is not allowed",
  },

  {
    name: "a stack read that was never written",
    kernel: "accepts",
    text: "r0 = *(u64 *)(r10 -8)\nexit",
    message: "invalid read from stack off -8+0 size 8",
  },
  {
    name: "a stack read that was half written",
    kernel: "accepts",
    text: "*(u32 *)(r10 -8) = 0\nr0 = *(u64 *)(r10 -8)\nexit",
    message: "invalid read from stack off -8+4 size 8",
  },
  {
    name: "a stack write above r10",
    text: "*(u64 *)(r10 +0) = 0\nr0 = 0\nexit",
    message: "invalid write to stack R10 off=0 size=8",
  },
  {
    name: "a stack write below 512 bytes",
    text: "*(u64 *)(r10 -520) = 0\nr0 = 0\nexit",
    message: "invalid write to stack R10 off=-520 size=8",
  },
  {
    name: "a misaligned stack write",
    text: "*(u64 *)(r10 -12) = 0\nr0 = 0\nexit",
    message: "misaligned stack access off 0+0+-12 size 8",
  },
  {
    name: "a part of a spilled pointer",
    text: "*(u64 *)(r10 -8) = r1\nr0 = *(u32 *)(r10 -8)\nexit",
    message: "invalid size of register fill",
  },
  {
    name: "a pointer spilled in part",
    text: "*(u32 *)(r10 -8) = r1\nr0 = 0\nexit",
    message: "invalid size of register spill",
  },
  {
    name: "a spilled pointer that was overwritten in part",
    text: "*(u64 *)(r10 -8) = r1\n*(u8 *)(r10 -8) = 0\nr1 = *(u64 *)(r10 -8)\nr0 = *(u64 *)(r1 +0)\nexit",
    message: "R1 invalid mem access 'scalar'",
  },
  {
    name: "a variable stack read over unwritten bytes",
    kernel: "accepts",
    text: "*(u64 *)(r10 -8) = 0\nr2 = *(u64 *)(r1 +0)\nr2 &= 8\nr3 = r10\nr3 += -16\nr3 += r2\nr0 = *(u64 *)(r3 +0)\nexit",
    message: "invalid read from stack off -16+0 size 8",
  },
  {
    name: "a variable stack write out of bounds",
    text: "r2 = *(u64 *)(r1 +0)\nr2 &= 16\nr3 = r10\nr3 += -16\nr3 += r2\n*(u64 *)(r3 +0) = 0\nr0 = 0\nexit",
    message: "invalid variable-offset write to stack R3 var_off=(0x0; 0x10) off=-16 size=8",
  },
  {
    name: "a pointer under a variable stack write",
    text: "*(u64 *)(r10 -8) = r1\n*(u64 *)(r10 -16) = 0\nr2 = *(u64 *)(r1 +0)\nr2 &= 8\nr3 = r10\nr3 += -16\nr3 += r2\n*(u64 *)(r3 +0) = 0\nr1 = *(u64 *)(r10 -8)\nr0 = *(u64 *)(r1 +0)\nexit",
    message: "R1 invalid mem access 'scalar'",
  },

  {
    name: "bit operations on a pointer",
    text: "r1 &= 7\nr0 = 0\nexit",
    message: "R1 bitwise operator &= on pointer prohibited",
  },
  {
    name: "multiplication of a pointer",
    text: "r1 *= 2\nr0 = 0\nexit",
    message: "R1 pointer arithmetic with *= operator prohibited",
  },
  {
    name: "32-bit arithmetic on a pointer",
    text: "w1 += 2\nr0 = 0\nexit",
    message: "R1 32-bit pointer arithmetic prohibited",
  },
  {
    name: "the sum of two pointers",
    text: "r1 += r10\nr0 = 0\nexit",
    message: "R1 pointer += pointer prohibited",
  },
  {
    name: "a number minus a pointer",
    text: "r2 = 0\nr2 -= r1\nr0 = 0\nexit",
    message: "R2 tried to subtract pointer from scalar",
  },
  {
    name: "arithmetic on a map",
    text: "r1 = map[0]\nr1 += 8\nr0 = 0\nexit",
    message: "R1 pointer arithmetic on map_ptr prohibited",
  },
  {
    name: "arithmetic on what may be null",
    text: `${lookup}\nr0 += 4\nexit`,
    message: "R0 pointer arithmetic on map_value_or_null prohibited, null-check it first",
  },
  {
    name: "a huge constant offset",
    text: "r2 = 0x40000000 ll\nr1 += r2\nr0 = 0\nexit",
    message: "math between ctx pointer and 1073741824 is not allowed",
  },

  {
    name: "a helper's map argument that is no map",
    text: "r1 = 0\nr2 = r10\ncall bpf_map_lookup_elem\nexit",
    message: "R1 type=scalar expected=map_ptr",
  },
  {
    name: "a lookup in a ring buffer",
    kernel: { says: "invalid zero-sized read" },
    text: "r1 = map[2]\nr2 = r10\ncall bpf_map_lookup_elem\nexit",
    message: "cannot pass map_type 27 into func bpf_map_lookup_elem#1",
  },
  {
    name: "a reservation in a hash",
    text: "r1 = map[1]\nr2 = 8\nr3 = 0\ncall bpf_ringbuf_reserve\nexit",
    message: "cannot pass map_type 1 into func bpf_ringbuf_reserve#131",
  },
  {
    name: "a key that was never written",
    kernel: "accepts",
    text: "r1 = map[1]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nexit",
    message: "invalid read from stack R2 off -8+0 size 8",
  },
  {
    name: "a key past the stack",
    text: "*(u64 *)(r10 -8) = 0\nr1 = map[1]\nr2 = r10\nr2 += -4\ncall bpf_map_lookup_elem\nexit",
    message: "invalid read from stack R2 off=-4 size=8",
  },
  {
    name: "the context as a key",
    text: "r2 = r1\nr1 = map[1]\ncall bpf_map_lookup_elem\nexit",
    message:
      "R2 type=ctx expected=fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_",
  },
  {
    name: "a value too small to be a key",
    text: `${lookup}\nif r0 == 0 goto out\nr2 = r0\nr2 += 4\nr1 = map[1]\ncall bpf_map_lookup_elem\n${leave}`,
    message: "invalid access to map value, value_size=8 off=4 size=8",
  },
  {
    name: "a read of no bytes",
    text: "r6 = r1\nr1 = r10\nr1 += -8\nr2 = *(u64 *)(r6 +0)\nr2 &= 7\ncall bpf_get_current_comm\nexit",
    message: "R2 invalid zero-sized read: u64=[0,7]",
  },
  {
    name: "a size that may be negative",
    text: "r2 = *(u64 *)(r1 +0)\nr1 = r10\nr1 += -8\nr3 = 0\ncall bpf_probe_read_user\nexit",
    message: "R2 min value is negative, either use unsigned or 'var &= const'",
  },
  {
    name: "a size without bound",
    text: "r2 = *(u32 *)(r1 +0)\nr1 = r10\nr1 += -8\nr3 = 0\ncall bpf_probe_read_user\nexit",
    message: "R2 unbounded memory access, use 'var &= const' or 'if (var < const)'",
  },
  {
    name: "a size larger than the memory",
    text: "r1 = r10\nr1 += -8\nr2 = 16\nr3 = 0\ncall bpf_probe_read_user\nexit",
    message: "invalid write to stack R1 off=-8 size=16",
  },
  {
    name: "a variable size over unwritten stack",
    kernel: "accepts",
    text: "r2 = *(u64 *)(r1 +0)\nr2 &= 7\nr1 = r10\nr1 += -8\nr3 = 0\ncall bpf_probe_read_user\nexit",
    message: "invalid read from stack R1 off -8+0 size 7",
  },
  { name: "a missing argument", text: "r1 = map[1]\ncall bpf_map_lookup_elem\nexit", message: "R2 !read_ok" },
  {
    name: "another map at the same call",
    kernel: "accepts",
    text: `*(u64 *)(r10 -8) = 0\nr3 = *(u64 *)(r1 +0)\nr1 = map[1]\nif r3 == 0 goto +2\nr1 = map[3]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\n${leave}`,
    message: "call bpf_map_lookup_elem#1 is reached with different maps: other and by_key",
  },
  {
    name: "a moved context as an argument",
    text: "r1 += 8\ncall bpf_get_func_ip\nexit",
    message: "dereference of modified ctx ptr R1 off=8 disallowed",
  },
  {
    name: "a helper of the kernel that is not supported",
    kernel: { says: "program of this type cannot use helper bpf_skb_store_bytes#9" },
    text: "call 9\nexit",
    message: "program of this type cannot use helper bpf_skb_store_bytes#9",
  },
  { name: "a helper that nobody has", text: "call 9999\nexit", message: "invalid func unknown#9999" },
  {
    name: "a helper that is refused for a reason",
    kernel: { says: "R1 type=scalar" },
    text: "r1 = 0\ncall bpf_spin_lock\nexit",
    message:
      "program of this type cannot use helper bpf_spin_lock#93: a thread may stop or die inside the lock, " +
      "and all others would wait for it; use atomic instructions",
  },

  {
    name: "a record that is never released",
    kernel: { says: "Unreleased reference id=2 alloc_insn=4" },
    text: `${reserve}\nr0 = 0\nexit`,
    message: "Unreleased reference id=1 alloc_insn=4",
  },
  {
    name: "a record released on one path only",
    kernel: { says: "Unreleased reference id=2 alloc_insn=4" },
    text: `${reserve}\nif r0 == 0 goto out\nr1 = *(u64 *)(r0 +0)\nif r1 == 0 goto out\nr1 = r0\n${submit}\n${leave}`,
    message: "Unreleased reference id=1 alloc_insn=4",
  },
  {
    name: "a record released twice",
    text: `${reserve}\nif r0 == 0 goto out\nr6 = r0\nr1 = r6\n${submit}\nr1 = r6\n${submit}\n${leave}`,
    message: "R1 type=scalar expected=ringbuf_mem",
  },
  {
    name: "a record used after release",
    text: `${reserve}\nif r0 == 0 goto out\nr6 = r0\nr1 = r0\n${submit}\nr0 = *(u64 *)(r6 +0)\n${leave}`,
    message: "R6 invalid mem access 'scalar'",
  },
  {
    name: "a record released before its null check",
    text: `${reserve}\nr1 = r0\n${submit}\n${leave}`,
    message: "R1 type=ringbuf_mem_or_null expected=ringbuf_mem",
  },
  {
    name: "the middle of a record released",
    text: `${reserve}\nif r0 == 0 goto out\nr1 = r0\nr1 += 8\n${submit}\n${leave}`,
    message: "R1 must have zero offset when passed to release func",
  },
  {
    name: "a value released as a record",
    text: `${lookup}\nif r0 == 0 goto out\nr1 = r0\n${submit}\n${leave}`,
    message: "R1 type=map_value expected=ringbuf_mem",
  },
  {
    name: "a write past a record",
    text: `${reserve}\nif r0 == 0 goto out\n*(u64 *)(r0 +16) = 0\nr1 = r0\n${submit}\n${leave}`,
    message: "invalid access to memory, mem_size=16 off=16 size=8",
  },
  {
    name: "a record of unknown size",
    text: "r2 = *(u64 *)(r1 +0)\nr2 &= 31\nr1 = map[2]\nr3 = 0\ncall bpf_ringbuf_reserve\nexit",
    message: "R2 is not a known constant",
  },
  {
    name: "a record larger than the ring's",
    kernel: { says: "Unreleased reference" },
    text: "r1 = map[2]\nr2 = 40\nr3 = 0\ncall bpf_ringbuf_reserve\nexit",
    message: "R2 record of 40 bytes: ring buffer events has records of 1 to 32 bytes",
  },
  {
    name: "records reserved without end",
    kernel: "too slow",
    text: `top: ${reserve}\nr0 = 0\ngoto top\nexit`.replace("\nexit", ""),
    message: "more than 64 records are reserved at once",
  },

  {
    name: "a misaligned atomic",
    text: `r1 = map[0][0]+0\nr2 = 1\nlock *(u64 *)(r1 +4) += r2\n${leave}`,
    message: "misaligned value access off 0+0+4 size 8",
  },
  {
    name: "an atomic on an unwritten stack slot",
    kernel: "accepts",
    text: "r2 = 1\nlock *(u64 *)(r10 -8) += r2\nr0 = 0\nexit",
    message: "invalid read from stack off -8+0 size 8",
  },
  {
    name: "compare-and-exchange without r0",
    text: "*(u64 *)(r10 -8) = 0\nr2 = 1\nr0 = atomic64_cmpxchg((u64 *)(r10 -8), r0, r2)\nexit",
    message: "R0 !read_ok",
  },

  {
    name: "a loop without an end",
    text: "r0 = 0\ntop: goto top",
    message: "infinite loop detected at insn 1",
  },
  {
    name: "a loop that an unknown number may keep going",
    text: "r6 = r1\ntop: r1 = *(u64 *)(r6 +0)\nif r1 != 0 goto top\nr0 = 0\nexit",
    message: "infinite loop detected at insn 1",
  },
  {
    name: "a loop that only counts",
    kernel: "too slow",
    text: "r0 = 0\ntop: r0 += 1\ngoto top",
    message: "BPF program is too large. Processed 1000001 insn",
  },

  { name: "running off the end", text: "r0 = 0", message: "last insn is not an exit or jmp" },
  {
    name: "a branch off the end",
    text: "r0 = 0\nif r1 == 0 goto +1\nexit",
    message: "jump out of range from insn 1 to 3",
  },
  {
    name: "a branch before the start",
    text: "r0 = 0\ngoto -3",
    message: "jump out of range from insn 1 to -1",
  },
  { name: "unreachable code", text: "r0 = 0\nexit\nr0 = 1\nexit", message: "unreachable insn 2" },
  {
    name: "a jump into ldimm64",
    text: "r0 = 0\nif r0 == 1 goto +1\nr1 = 5 ll\nexit",
    message: "jump into the middle of ldimm64 insn 2",
  },
  {
    name: "half an ldimm64",
    kernel: { says: "last insn is not an exit or jmp" },
    text: "r0 = 0\n.8byte 0x18",
    message: "invalid bpf_ld_imm64 insn",
  },
  {
    name: "an ldimm64 of another source",
    kernel: { says: "pseudo btf_id 0" },
    text: ".8byte 0x3018\n.8byte 0\nexit",
    message: "pseudo btf_id 0 is refused: a process has no variables for programs",
  },
  {
    name: "a legacy packet load",
    text: "r0 = *(u8 *)skb[0]\nexit",
    message: "BPF_LD_[ABS|IND] instructions not allowed for this program type",
  },
  { name: "an unknown opcode", text: ".8byte 0xff\nexit", message: "unknown opcode ff" },
  { name: "register 11", text: ".8byte 0x0bb7\nexit", message: "R11 is invalid" },
  {
    name: "an offset in an addition",
    text: ".8byte 0x10007\nexit",
    message: "BPF_ALU uses reserved fields",
  },
  {
    name: "an immediate in a register move",
    text: ".8byte 0x1000010bf\nexit",
    message: "BPF_MOV uses reserved fields",
  },
  {
    name: "an atomic operation that does not exist",
    text: ".8byte 0x2000001adb\nexit",
    message: "BPF_ATOMIC uses invalid atomic opcode 20",
  },
  { name: "an empty program", text: "", message: "the program is empty" },
];
