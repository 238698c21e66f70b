/** The ring buffer that takes what programs print. */
import { HELPER_TRACE_PRINTK, HELPER_TRACE_VPRINTK } from "../../bpf/helpers.ts";
import type { Insn, MapSpec } from "../../bpf/index.ts";
import { CALL_HELPER, OP_CALL } from "../../bpf/opcodes.ts";
import { PRINTK_RECORD_BYTES } from "../../bpf/printk.ts";

export const printkRing: MapSpec = {
  name: "trace_printk",
  kind: "ringbuf",
  keyBytes: 0,
  valueBytes: PRINTK_RECORD_BYTES,
  maxEntries: 4096,
};

/** Whether the program calls bpf_trace_printk or bpf_trace_vprintk anywhere. */
export function printsSomething(insns: readonly Insn[]): boolean {
  return insns.some(
    ({ opcode, src, imm }) =>
      opcode === OP_CALL &&
      src === CALL_HELPER &&
      (imm === HELPER_TRACE_PRINTK || imm === HELPER_TRACE_VPRINTK),
  );
}
