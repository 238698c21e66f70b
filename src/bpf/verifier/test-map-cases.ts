/** Programs that use maps of all kinds and the helpers for them, with their verdicts; see verify-cases.ts. */
import type { VerifyCase } from "./verify-cases.ts";

const outer = `
  *(u32 *)(r10 -4) = 0
  r1 = map[10]
  r2 = r10
  r2 += -4
  call bpf_map_lookup_elem`;
const inInner = `
  *(u64 *)(r10 -16) = 0
  r1 = r0
  r2 = r10
  r2 += -16
  call bpf_map_lookup_elem`;
const snprintf = (format: string, data: string) => `
  *(u64 *)(r10 -16) = 1
  *(u64 *)(r10 -24) = 2
  r1 = r10
  r1 += -8
  r2 = 8
  r3 = ${format}
  r4 = r10
  r4 += -24
  r5 = ${data}
  call bpf_snprintf
  r0 = 0
  exit`;
const memoryKinds = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_";

export const acceptedMapCases: readonly Omit<VerifyCase, "message">[] = [
  {
    name: "a value of an inner map",
    text: `${outer}\nif r0 == 0 goto out\n${inInner}\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +8)\nout: r0 = 0\nexit`,
  },
  {
    name: "this CPU's copy of a value",
    text: "*(u32 *)(r10 -4) = 0\nr1 = map[4]\nr2 = r10\nr2 += -4\ncall bpf_map_lookup_elem\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +8)\nout: r0 = 0\nexit",
  },
  {
    name: "another CPU's copy of a value",
    text: "*(u64 *)(r10 -8) = 0\nr1 = map[5]\nr2 = r10\nr2 += -8\nr3 = 7\ncall bpf_map_lookup_percpu_elem\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +8)\nout: r0 = 0\nexit",
  },
  {
    name: "a queue",
    text: "*(u64 *)(r10 -8) = 0\nr1 = map[7]\nr2 = r10\nr2 += -8\nr3 = 0\ncall bpf_map_push_elem\nr1 = map[7]\nr2 = r10\nr2 += -8\ncall bpf_map_pop_elem\nr1 = map[7]\nr2 = r10\nr2 += -16\ncall bpf_map_peek_elem\nr0 = *(u64 *)(r10 -16)\nexit",
  },
  {
    name: "a bloom filter",
    text: "*(u64 *)(r10 -8) = 0\nr1 = map[8]\nr2 = r10\nr2 += -8\nr3 = 0\ncall bpf_map_push_elem\nr1 = map[8]\nr2 = r10\nr2 += -8\ncall bpf_map_peek_elem\nexit",
  },
  {
    name: "memory sent to user space",
    text: "*(u64 *)(r10 -8) = 1\nr4 = r10\nr4 += -8\nr2 = map[11]\nr3 = 0\nr5 = 8\ncall bpf_perf_event_output\nr0 = 0\nexit",
  },
  {
    name: "memory sent through a ring",
    text: "*(u64 *)(r10 -8) = 1\nr1 = map[2]\nr2 = r10\nr2 += -8\nr3 = 8\nr4 = 0\ncall bpf_ringbuf_output\nr0 = 0\nexit",
  },
  { name: "a stack as an id", text: "r2 = map[12]\nr3 = 0\ncall bpf_get_stackid\nexit" },
  { name: "a stack as addresses", text: "r2 = r10\nr2 += -80\nr3 = 80\nr4 = 0\ncall bpf_get_stack\nexit" },
  {
    name: "a constant of a map as an index",
    text: "r1 = map[13][0]+8\nr0 = *(u32 *)(r1 +0)\nr2 = map[0][0]+0\nr2 += r0\nr0 = *(u8 *)(r2 +23)\nexit",
  },
  {
    name: "a negative constant of a map",
    text: "r1 = map[13][0]+0\nr0 = *(s16 *)(r1 +12)\nr2 = map[0][0]+3\nr2 += r0\nr0 = *(u8 *)(r2 +0)\nexit",
  },
  {
    name: "a branch that a constant of a map decides",
    text: "r1 = map[13][0]+0\nr0 = *(u8 *)(r1 +8)\nif r0 == 40 goto +1\nr0 = *(u64 *)(r0 +0)\nexit",
  },
  {
    name: "a store into a map that is not read",
    text: "r1 = map[14][0]+4\n*(u64 *)(r1 +0) = 1\nr0 = 0\nexit",
  },
  { name: "text made of two numbers", text: snprintf("map[13][0]+0", "16") },
  {
    name: "the length of text without arguments",
    text: "r1 = 0\nr2 = 0\nr3 = map[13][0]+8\nr4 = 0\nr5 = 0\ncall bpf_snprintf\nr0 = 0\nexit",
  },
  {
    name: "a comparison with a constant string",
    text: "*(u64 *)(r10 -8) = 0\nr1 = r10\nr1 += -8\nr2 = 8\nr3 = map[13][0]+0\ncall bpf_strncmp\nexit",
  },
  {
    name: "a number read from text",
    text: "*(u64 *)(r10 -8) = 0\nr1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += -16\ncall bpf_strtol\nr0 = *(u64 *)(r10 -16)\nexit",
  },
  {
    name: "a printed line",
    text: "*(u64 *)(r10 -8) = 0\nr1 = r10\nr1 += -8\nr2 = 8\nr3 = 1\nr4 = 2\nr5 = 3\ncall bpf_trace_printk\nr0 = 0\nexit",
  },
  {
    name: "a printed line with an array of arguments",
    text: "*(u64 *)(r10 -8) = 0\nr1 = r10\nr1 += -8\nr2 = 8\nr3 = r1\nr4 = 8\ncall bpf_trace_vprintk\nr0 = 0\nexit",
  },
  {
    name: "another result for the probed function",
    kernel: "rejects",
    text: "r2 = 7\ncall bpf_override_return\nr0 = 0\nexit",
  },
  {
    name: "an argument of the probed function",
    kernel: "rejects",
    text: "r2 = 0\nr3 = r10\nr3 += -8\ncall bpf_get_func_arg\nr0 = *(u64 *)(r10 -8)\nexit",
  },
];

export const rejectedMapCases: readonly VerifyCase[] = [
  {
    name: "an inner map without a null check",
    text: `${outer}\n${inInner}\nr0 = 0\nexit`,
    message: "R1 type=map_value_or_null expected=map_ptr",
  },
  {
    name: "a read past a value of an inner map",
    text: `${outer}\nif r0 == 0 goto out\n${inInner}\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +16)\nout: r0 = 0\nexit`,
    message: "invalid access to map value, value_size=16 off=16 size=8",
  },
  {
    name: "an inner map as memory",
    kernel: "accepts",
    text: `${outer}\nif r0 == 0 goto out\nr0 = *(u64 *)(r0 +0)\nout: r0 = 0\nexit`,
    message: "R0 invalid mem access 'map_ptr'",
  },
  {
    name: "an update of a map of maps",
    text: `${outer}\nr1 = map[10]\nr2 = r10\nr2 += -4\nr3 = r2\nr4 = 0\ncall bpf_map_update_elem\nr0 = 0\nexit`,
    message: "cannot pass map_type 12 into func bpf_map_update_elem#2",
  },
  {
    name: "a CPU's copy of what has one copy",
    text: "*(u64 *)(r10 -8) = 0\nr1 = map[6]\nr2 = r10\nr2 += -8\nr3 = 7\ncall bpf_map_lookup_percpu_elem\nr0 = 0\nexit",
    message: "cannot pass map_type 9 into func bpf_map_lookup_percpu_elem#195",
  },
  {
    name: "a value taken out of a bloom filter",
    text: "r1 = map[8]\nr2 = r10\nr2 += -8\ncall bpf_map_pop_elem\nr0 = 0\nexit",
    message: "cannot pass map_type 30 into func bpf_map_pop_elem#88",
  },
  {
    name: "a question to a bloom filter that was never written",
    kernel: "accepts",
    text: "r1 = map[8]\nr2 = r10\nr2 += -8\ncall bpf_map_peek_elem\nr0 = 0\nexit",
    message: "invalid read from stack R2 off -8+0 size 8",
  },
  {
    name: "a value popped past the stack",
    text: "r1 = map[7]\nr2 = r10\nr2 += -4\ncall bpf_map_pop_elem\nr0 = 0\nexit",
    message: "invalid write to stack R2 off=-4 size=8",
  },
  {
    name: "a record larger than the ring's cells",
    kernel: "accepts",
    text: "r1 = map[2]\nr2 = map[0][0]+0\nr3 = 33\nr4 = 0\ncall bpf_ringbuf_output\nr0 = 0\nexit",
    message: "R3 record of up to 33 bytes: events has records of up to 32 bytes",
  },
  {
    name: "a read past a constant of a map",
    text: "r1 = map[13][0]+8\nr0 = *(u32 *)(r1 +0)\nr2 = map[0][0]+0\nr2 += r0\nr0 = *(u8 *)(r2 +24)\nexit",
    message: "invalid access to map value, value_size=64 off=64 size=1",
  },
  {
    name: "a store into constants",
    text: "r1 = map[13][0]+0\n*(u8 *)(r1 +0) = 1\nr0 = 0\nexit",
    message: "write into map forbidden, value_size=16 off=0 size=1",
  },
  {
    name: "a load from a map that is only written",
    text: "r1 = map[14][0]+0\nr0 = *(u8 *)(r1 +0)\nexit",
    message: "read from map forbidden, value_size=16 off=0 size=1",
  },
  {
    name: "an atomic on a map that is only written",
    text: "r1 = map[14][0]+4\nr2 = 1\nlock *(u64 *)(r1 +4) += r2\nr0 = 0\nexit",
    message: "read from map forbidden, value_size=16 off=8 size=8",
  },
  {
    name: "a helper that reads a map that is only written",
    text: "r1 = map[14][0]+0\nr2 = 4\nr3 = 0\nr4 = 0\nr5 = 0\ncall bpf_trace_printk\nr0 = 0\nexit",
    message: "read from map forbidden, value_size=16 off=0 size=4",
  },
  {
    name: "a format with too few arguments",
    text: snprintf("map[13][0]+0", "8"),
    message: "Invalid format string",
  },
  {
    name: "half an argument of a format",
    kernel: { says: "call bpf_snprintf#165" },
    text: snprintf("map[13][0]+0", "12"),
    message: "R5 is not a multiple of 8: data is an array of u64",
  },
  {
    name: "a format without an end",
    text: snprintf("map[13][0]+14", "16"),
    message: "string is not zero-terminated",
  },
  {
    name: "a format that may change",
    text: snprintf("map[0][0]+0", "16"),
    message: "R3 does not point to a readonly map'",
  },
  { name: "a format on the stack", text: snprintf("r10", "16"), message: "R3 type=fp expected=map_value" },
  {
    name: "no memory for text of some length",
    text: "r1 = 0\nr2 = 8\nr3 = map[13][0]+8\nr4 = 0\nr5 = 0\ncall bpf_snprintf\nr0 = 0\nexit",
    message: "R1 type=scalar expected=fp",
  },
  {
    name: "no memory to print",
    text: "r1 = 0\nr2 = 0\nr3 = 0\nr4 = 0\nr5 = 0\ncall bpf_trace_printk\nexit",
    message: `R1 type=scalar expected=${memoryKinds}`,
  },
  {
    name: "a number read from text into half a slot",
    text: "*(u64 *)(r10 -8) = 0\nr1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += -12\ncall bpf_strtol\nr0 = 0\nexit",
    message: "misaligned stack access off 0+-12+0 size 8",
  },
];
