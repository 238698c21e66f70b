/** Programs of several functions, callbacks and tail calls with their verdicts; see verify-cases.ts. */
import type { VerifyCase } from "./verify-cases.ts";

/** Calls `cb` with a number on the stack as its context. */
const loop = (times: string) => `
  *(u64 *)(r10 -8) = 0
  r1 = ${times}
  r2 = &cb
  r3 = r10
  r3 += -8
  r4 = 0
  call bpf_loop`;
const forEach = (map: number) => `
  r1 = map[${map}]
  r2 = &cb
  r3 = 0
  r4 = 0
  call bpf_for_each_map_elem
  r0 = 0
  exit`;
const tailCall = `
  r2 = map[9]
  r3 = 1
  call bpf_tail_call`;
const reserve = `
  r1 = map[2]
  r2 = 16
  r3 = 0
  call bpf_ringbuf_reserve`;
const chain = (count: number) =>
  Array.from({ length: count }, (_, i) => `f${i}: call &f${i + 1}\nr0 = 0\nexit`).join("\n");

export const acceptedFunctionCases: readonly Omit<VerifyCase, "message">[] = [
  {
    name: "a function that gives its argument back",
    text: "r1 = 5\ncall &f\nr0 += r0\nexit\nf: r0 = r1\nexit",
  },
  {
    name: "registers that a function may use and its caller keeps",
    text: "r6 = r1\nr9 = 7\ncall &f\nr0 = *(u64 *)(r6 +0)\nr0 += r9\nexit\nf: r6 = 1\nr9 = 2\nr0 = 0\nexit",
  },
  {
    name: "a function that fills its caller's stack",
    text: "r1 = r10\nr1 += -8\ncall &f\nr1 = *(u64 *)(r10 -8)\nr2 = map[0][0]+0\nr2 += r1\nr0 = *(u8 *)(r2 +0)\nexit\nf: *(u64 *)(r1 +0) = 63\nr0 = 0\nexit",
  },
  {
    name: "a function that looks a value up for its caller",
    text: "call &f\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +0)\nout: r0 = 0\nexit\nf: *(u64 *)(r10 -8) = 1\nr1 = map[1]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nexit",
  },
  {
    name: "a check in a function of what its caller holds as well",
    text: "*(u64 *)(r10 -8) = 1\nr1 = map[1]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nr6 = r0\nr1 = r0\ncall &f\nif r0 == 0 goto out\nr0 = *(u64 *)(r6 +0)\nout: r0 = 0\nexit\nf: r0 = 0\nif r1 == 0 goto +1\nr0 = 1\nexit",
  },
  {
    name: "a bound in a function on a number that its caller keeps",
    text: "r6 = *(u64 *)(r1 +0)\nr1 = r6\ncall &f\nif r0 == 0 goto out\nr1 = map[0][0]+0\nr1 += r6\nr0 = *(u8 *)(r1 +0)\nout: r0 = 0\nexit\nf: r0 = 0\nif r1 > 63 goto +1\nr0 = 1\nexit",
  },
  {
    name: "a record that one function reserves and another submits",
    text: `call &take\nif r0 == 0 goto out\nr1 = r0\ncall &give\nout: r0 = 0\nexit\ntake: ${reserve}\nexit\ngive: r2 = 0\ncall bpf_ringbuf_submit\nr0 = 0\nexit`,
  },
  { name: "a function without a result", text: "call &f\nr0 = 0\nexit\nf: exit" },
  { name: "eight functions", text: `${chain(7)}\nf7: r0 = 0\nexit` },
  {
    name: "a function called before and after itself in the text",
    text: "call &g\ncall &f\nexit\nf: r0 = 1\nexit\ng: call &f\nexit",
  },
  {
    name: "a loop in a function that is called twice",
    text: "call &f\ncall &f\nexit\nf: r1 = 0\ntop: r1 += 1\nif r1 < 100 goto top\nr0 = r1\nexit",
  },

  { name: "a callback", text: `${loop("5")}\nr0 = 0\nexit\ncb: r0 = 0\nexit` },
  {
    name: "a callback without a context",
    text: "r1 = 5\nr2 = &cb\nr3 = 0\nr4 = 0\ncall bpf_loop\nexit\ncb: r0 = 1\nexit",
  },
  {
    name: "a callback that runs any number of times",
    text: `r6 = *(u64 *)(r1 +0)\n${loop("r6")}\nr0 = *(u64 *)(r10 -8)\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr3 += r1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
  },
  {
    name: "a callback that counts to a bound of its own",
    text: `${loop("1000000")}\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr0 = 1\nif r3 > 63 goto out\nr4 = map[0][0]+0\nr4 += r3\n*(u8 *)(r4 +0) = 1\nr3 += 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nout: exit`,
  },
  {
    name: "a number that is bounded by how often a callback runs",
    text: `${loop("5")}\nr1 = *(u64 *)(r10 -8)\nr0 = 0\nif r1 <= 5 goto out\nr0 = *(u64 *)(r1 +0)\nout: exit\ncb: r3 = *(u64 *)(r2 +0)\nr3 += 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
  },
  {
    name: "a callback with many branches that change a number each",
    text: `r6 = *(u64 *)(r1 +0)\n${loop("r6")}\nr0 = *(u64 *)(r10 -8)\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr6 = r1\n${Array.from({ length: 20 }, (_, i) => `if r6 & ${2 ** i} goto +1\nr3 += ${i}\nr3 ^= ${i}`).join("\n")}\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
  },
  {
    name: "a callback in a callback",
    text: `${loop("1000")}\nr0 = 0\nexit\ncb: r3 = r2\nr1 = 1000\nr2 = &in\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit\nin: r3 = *(u64 *)(r2 +0)\nr3 += 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
  },
  {
    name: "the index of a callback, which is bounded",
    kernel: "rejects",
    text: `${loop("100")}\nr0 = 0\nexit\ncb: r0 = 0\nif r1 < 8388608 goto +1\nr0 = 2\nexit`,
  },
  {
    name: "a callback that is called from two places",
    text: `${loop("10")}\nr1 = 20\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr3 += 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
  },
  {
    name: "a callback in a counted loop",
    text: "*(u64 *)(r10 -8) = 0\nr6 = 0\ntop: r1 = 10\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr6 += 1\nif r6 < 20 goto top\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr3 += 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit",
  },
  {
    name: "a record reserved and submitted in a callback",
    text: `${loop("10")}\nr0 = 0\nexit\ncb: ${reserve}\nif r0 == 0 goto out\nr1 = r0\nr2 = 0\ncall bpf_ringbuf_submit\nout: r0 = 0\nexit`,
  },
  {
    name: "each element of a hash",
    text: `${forEach(1)}\ncb: r0 = *(u64 *)(r2 +0)\n*(u64 *)(r3 +0) = r0\nr0 = 0\nexit`,
  },
  {
    name: "each element of a per-CPU array",
    text: `${forEach(4)}\ncb: r0 = *(u32 *)(r2 +0)\nr0 = *(u64 *)(r3 +8)\nr0 &= 1\nexit`,
  },
  {
    name: "an element deleted while all are looked at",
    text: `${forEach(1)}\ncb: call bpf_map_delete_elem\nr0 = 0\nexit`,
  },

  { name: "a tail call", text: `${tailCall}\nr0 = 0\nexit` },
  { name: "a tail call from a function", text: `call &f\nexit\nf: ${tailCall}\nr0 = 0\nexit` },
];

export const rejectedFunctionCases: readonly VerifyCase[] = [
  {
    name: "a function that calls itself",
    kernel: { says: "the call stack of 9 frames is too deep" },
    text: "call &f\nexit\nf: call &f\nr0 = 0\nexit",
    message: "recursive call from func#1 to func#1: the call stack of 9 frames is too deep",
  },
  {
    name: "functions that call each other",
    kernel: { says: "the call stack of 9 frames is too deep" },
    text: "call &f\nexit\nf: call &g\nr0 = 0\nexit\ng: call &f\nexit",
    message: "recursive call from func#2 to func#1: the call stack of 9 frames is too deep",
  },
  {
    name: "a callback that passes itself as a callback",
    kernel: { says: "missing btf func_info" },
    text: "call &cb\nr0 = 0\nexit\ncb: r1 = 5\nr2 = &cb\nr3 = 0\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit",
    message: "recursive call from func#1 to func#1: the call stack of 9 frames is too deep",
  },
  {
    name: "nine functions",
    text: `${chain(8)}\nf8: r0 = 0\nexit`,
    message: "the call stack of 9 frames is too deep",
  },
  {
    name: "frames that are too large together",
    // It gives each function a stack of its own here.
    kernel: "accepts",
    text: "*(u64 *)(r10 -512) = 0\ncall &f\nexit\nf: r0 = 0\nexit",
    message: "combined stack size of 2 calls is 544. Too large",
  },
  {
    name: "a tail call with much stack below it",

    text: `*(u64 *)(r10 -256) = 0\ncall &f\nexit\nf: ${tailCall}\nr0 = 0\nexit`,
    message: "tail_calls are not allowed when call stack of previous frames is 256 bytes. Too large",
  },
  {
    name: "a call of no function",
    kernel: { says: "call to invalid destination" },
    text: "call pc+9\nexit",
    message: "call to invalid destination",
  },
  {
    name: "the address of no function",
    text: "r1 = subprog[-9]\nr0 = 0\nexit",
    message: "call to invalid destination",
  },
  {
    name: "a call into ldimm64",
    kernel: { says: "last insn is not an exit or jmp" },
    text: "call pc+1\nr1 = 5 ll\nr0 = 0\nexit",
    message: "jump into the middle of ldimm64 insn 1",
  },
  {
    name: "a jump out of a function",
    text: "r0 = 0\nif r0 == 0 goto +3\ncall &f\nexit\nf: r0 = 0\nexit",
    message: "jump out of range from insn 1 to 5",
  },
  {
    name: "a jump into the calling function",
    text: "top: call &f\nexit\nf: r0 = 0\nif r0 == 0 goto top\nexit",
    message: "jump out of range from insn 3 to 0",
  },
  {
    name: "a function that runs on into the next",
    text: "call &f\ncall &g\nexit\nf: r0 = 0\ng: r0 = 1\nexit",
    message: "last insn is not an exit or jmp",
  },
  {
    name: "a function that nothing calls",
    text: "r0 = 0\nexit\nf: r0 = 0\nexit",
    message: "unreachable insn 2",
  },
  {
    name: "a caller's register in a function",
    text: "r6 = 1\ncall &f\nexit\nf: r0 = r6\nexit",
    message: "R6 !read_ok",
  },
  {
    name: "an argument after the call",
    text: "r1 = 1\ncall &f\nr0 = r1\nexit\nf: r0 = 0\nexit",
    message: "R1 !read_ok",
  },
  {
    name: "an argument that was not passed",
    text: "call &f\nexit\nf: r0 = r2\nexit",
    message: "R2 !read_ok",
  },
  { name: "the result of a function without one", text: "call &f\nexit\nf: exit", message: "R0 !read_ok" },
  {
    name: "a stack address returned",
    text: "call &f\nexit\nf: r0 = r10\nexit",
    message: "cannot return stack pointer to the caller",
  },
  {
    name: "a stack address left in the caller's stack",
    text: "r1 = r10\nr1 += -8\ncall &f\nexit\nf: *(u64 *)(r1 +0) = r10\nr0 = 0\nexit",
    message: "cannot spill pointers to stack into stack frame of the caller",
  },
  {
    name: "a number from a function as an index",
    text: "r6 = r1\nr1 = *(u64 *)(r1 +0)\ncall &f\nr1 = map[0][0]+0\nr1 += r0\nr0 = *(u8 *)(r1 +0)\nexit\nf: r0 = 0\nif r1 > 64 goto +1\nr0 = r1\nexit",
    message:
      "invalid access to map value, value_size=64 off=64 size=1: R1 max value is outside of the allowed memory range",
  },
  {
    name: "a write past the caller's stack",
    text: "r1 = r10\ncall &f\nexit\nf: *(u64 *)(r1 +0) = 0\nr0 = 0\nexit",
    message: "invalid write to stack R1 off=0 size=8",
  },
  {
    name: "a pointer that a function overwrites",
    text: "*(u64 *)(r10 -8) = r1\nr1 = r10\nr1 += -8\ncall &f\nr1 = *(u64 *)(r10 -8)\nr0 = *(u64 *)(r1 +0)\nexit\nf: *(u64 *)(r1 +0) = 1\nr0 = 0\nexit",
    message: "R1 invalid mem access 'scalar'",
  },
  {
    name: "a record that a function leaks",
    kernel: { says: "Unreleased reference id=2 alloc_insn=7" },
    text: `call &f\nr0 = 0\nexit\nf: ${reserve}\nr0 = 0\nexit`,
    message: "Unreleased reference id=2 alloc_insn=7",
  },
  {
    name: "a record that a function has submitted",
    text: `${reserve}\nif r0 == 0 goto out\nr6 = r0\nr1 = r0\ncall &give\nr0 = *(u64 *)(r6 +0)\nout: r0 = 0\nexit\ngive: r2 = 0\ncall bpf_ringbuf_submit\nr0 = 0\nexit`,
    message: "R6 invalid mem access 'scalar'",
  },

  {
    name: "a callback that returns any number",
    kernel: {
      says: "At callback return the register R0 has unknown scalar value should have been in [0, 1]",
    },
    text: `${loop("5")}\nr0 = 0\nexit\ncb: r0 = r1\nexit`,
    message: "At callback return the register R0 has smin=0 smax=8388607 should have been in [0, 1]",
  },
  {
    name: "a callback that returns 2",
    text: `${loop("5")}\nr0 = 0\nexit\ncb: r0 = 2\nexit`,
    message: "At callback return the register R0 has smin=2 smax=2 should have been in [0, 1]",
  },
  {
    name: "a callback without a result",
    text: `${loop("5")}\nr0 = 0\nexit\ncb: exit`,
    message: "R0 not a scalar value",
  },
  {
    name: "a callback that returns its stack",
    text: `${loop("5")}\nr0 = 0\nexit\ncb: r0 = r10\nexit`,
    message: "cannot return stack pointer to the caller",
  },
  {
    name: "a number as a callback",
    text: "r1 = 5\nr2 = 0\nr3 = 0\nr4 = 0\ncall bpf_loop\nexit",
    message: "R2 type=scalar expected=func",
  },
  {
    name: "a number as the context of a callback",
    text: "r1 = 5\nr2 = &cb\nr3 = 7\nr4 = 0\ncall bpf_loop\nexit\ncb: r0 = 0\nexit",
    message: "R3 type=scalar expected=fp",
  },
  {
    name: "a function as memory",
    text: "r1 = &f\nr0 = *(u64 *)(r1 +0)\nexit\nf: r0 = 0\nexit",
    message: "R1 invalid mem access 'func'",
  },
  {
    name: "a number that only the first run of a callback bounds",
    text: `${loop("1000")}\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr4 = map[0][0]+0\nr4 += r3\nr0 = *(u8 *)(r4 +0)\nr3 += 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit`,
    message: "invalid access to map value, value_size=64 off=64 size=1",
  },
  {
    name: "a number that one run of a callback leaves for another way of the next",
    text: `${loop("1000")}\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nif r1 & 1 goto use\nr3 += 64\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit\nuse: r4 = map[0][0]+0\nr4 += r3\nr0 = *(u8 *)(r4 +0)\nr0 = 0\nexit`,
    message: "math between map_value pointer and register with unbounded min value is not allowed",
  },
  {
    name: "a number that is in bounds unless a callback ran",
    text: `${loop("1000")}\nr1 = *(u64 *)(r10 -8)\nr2 = map[0][0]+0\nr2 += r1\nr0 = *(u8 *)(r2 +0)\nexit\ncb: *(u64 *)(r2 +0) = 64\nr0 = 0\nexit`,
    message: "invalid access to map value, value_size=64 off=64 size=1",
  },
  {
    name: "a pointer that a callback overwrites",
    text: "*(u64 *)(r10 -8) = r1\nr1 = 3\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr1 = *(u64 *)(r10 -8)\nr0 = *(u64 *)(r1 +0)\nexit\ncb: *(u64 *)(r2 +0) = 1\nr0 = 0\nexit",
    message: "R1 invalid mem access 'scalar'",
  },
  {
    name: "a pointer that the second run of a callback misuses",
    text: "*(u64 *)(r10 -8) = r1\nr1 = 3\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr0 = *(u64 *)(r3 +0)\n*(u64 *)(r2 +0) = 1\nr0 = 0\nexit",
    message: "R3 invalid mem access 'scalar'",
  },
  {
    name: "a record that a callback leaks",
    kernel: { says: "Unreleased reference id=2 alloc_insn=14" },
    text: `${loop("5")}\nr0 = 0\nexit\ncb: ${reserve}\nr0 = 0\nexit`,
    message: "Unreleased reference id=3 alloc_insn=14",
  },
  {
    name: "a record of the caller that a callback submits",
    kernel: { says: "expected" },
    text: `${reserve}\nif r0 == 0 goto out\n*(u64 *)(r10 -8) = r0\nr1 = 5\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr1 = *(u64 *)(r10 -8)\nr2 = 0\ncall bpf_ringbuf_submit\nout: r0 = 0\nexit\ncb: r1 = *(u64 *)(r2 +0)\nr2 = 0\ncall bpf_ringbuf_submit\nr0 = 0\nexit`,
    message: "R1 type=scalar expected=ringbuf_mem",
  },
  {
    name: "a loop without an end in a callback",
    text: `${loop("5")}\nr0 = 0\nexit\ncb: goto cb`,
    message: "infinite loop detected at insn 10",
  },
  {
    name: "a loop without an end around a callback",
    kernel: "too slow",
    text: "top: r1 = 5\nr2 = &cb\nr3 = 0\nr4 = 0\ncall bpf_loop\ngoto top\ncb: r0 = 0\nexit",
    message: "infinite loop detected at insn 5",
  },
  {
    name: "a loop that a callback keeps going",
    kernel: "too slow",
    text: "r6 = *(u64 *)(r1 +0)\n*(u64 *)(r10 -8) = r6\ntop: r1 = 5\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr6 = *(u64 *)(r10 -8)\nif r6 != 0 goto top\nr0 = 0\nexit\ncb: r3 = *(u64 *)(r2 +0)\nr3 -= 1\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit",
    message: "infinite loop detected at insn 8",
  },
  {
    name: "a write to a key",
    text: `${forEach(1)}\ncb: *(u64 *)(r2 +0) = 1\nr0 = 0\nexit`,
    message: "write to change key R2 not allowed",
  },
  {
    name: "a read past a key",
    text: `${forEach(1)}\ncb: r0 = *(u64 *)(r2 +8)\nr0 = 0\nexit`,
    message: "invalid access to map key, key_size=8 off=8 size=8",
  },
  {
    name: "each element of a queue",
    kernel: { says: "callback function not allowed for map" },
    text: `${forEach(7)}\ncb: r0 = 0\nexit`,
    message: "cannot pass map_type 22 into func bpf_for_each_map_elem#164",
  },
  {
    name: "another callback at the same call",
    kernel: "accepts",
    text: "r6 = *(u64 *)(r1 +0)\nr1 = 5\nr2 = &cb\nif r6 == 0 goto +2\nr2 = &other\nr3 = 0\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit\ncb: r0 = 0\nexit\nother: r0 = 1\nexit",
    message: "call bpf_loop#181 is reached with different functions: at insn 14 and 12",
  },

  { name: "nothing returned after a tail call", text: `${tailCall}\nexit`, message: "R0 !read_ok" },
  {
    name: "a tail call over a hash",
    text: "r2 = map[1]\nr3 = 0\ncall bpf_tail_call\nr0 = 0\nexit",
    message: "expected prog array map for tail call",
  },
  {
    name: "a tail call without a context",
    text: `r1 = 0\n${tailCall}\nr0 = 0\nexit`,
    message: "R1 type=scalar expected=ctx",
  },
  {
    name: "a tail call with a record held",
    kernel: { says: "tail_call would lead to reference leak" },
    text: `r6 = r1\n${reserve}\nif r0 == 0 goto out\nr7 = r0\nr1 = r6\n${tailCall}\nr1 = r7\nr2 = 0\ncall bpf_ringbuf_submit\nout: r0 = 0\nexit`,
    message: "Unreleased reference id=1 alloc_insn=5: tail_call would lead to reference leak",
  },
  {
    name: "a tail call in a callback",
    kernel: { says: "callback unexpected regs" },
    text: `*(u64 *)(r10 -8) = r1\nr1 = 5\nr2 = &cb\nr3 = r10\nr3 += -8\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit\ncb: r1 = *(u64 *)(r2 +0)\n${tailCall}\nr0 = 0\nexit`,
    message: "tail_call is not allowed in a callback",
  },
  {
    name: "the result of a function that another program may replace",
    text: `call &f\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +0)\nout: r0 = 0\nexit\nf: ${tailCall}\nr0 = 0\nexit`,
    message: "R0 invalid mem access 'scalar'",
  },
];
