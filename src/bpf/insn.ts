/**
 * One eBPF instruction slot (RFC 9669, section 3) and its binary form, little endian.
 *
 *      63            32 31      16 15   12 11    8 7        0
 *     +----------------+----------+-------+-------+----------+
 *     |      imm       |   off    |  src  |  dst  |  opcode  |
 *     +----------------+----------+-------+-------+----------+
 *
 * A program is a list of slots. `ldimm64` takes two: the second has opcode 0 and holds the high half in `imm`.
 * Jump offsets count slots, as in the kernel. Decoding only splits fields and takes any bytes: whether an
 * instruction is legal is the verifier's question.
 */
import { isConditionalJump, OP_JA, OP_JA32 } from "./opcodes.ts";

/** One 8-byte slot. `off` is a signed 16-bit number, `imm` a signed 32-bit number. */
export interface Insn {
  readonly opcode: number;
  readonly dst: number;
  readonly src: number;
  readonly off: number;
  readonly imm: number;
}

/** Size of a slot in bytes. */
export const INSN_BYTES = 8;

/** The bytes of a program, little endian. Asserts that every field fits. */
export function encodeInsns(insns: readonly Insn[]): Uint8Array {
  const bytes = new Uint8Array(insns.length * INSN_BYTES);
  const view = new DataView(bytes.buffer);
  insns.forEach((insn, i) => {
    checkFields(insn, i);
    const at = i * INSN_BYTES;
    view.setUint8(at, insn.opcode);
    view.setUint8(at + 1, (insn.src << 4) | insn.dst);
    view.setInt16(at + 2, insn.off, true);
    view.setInt32(at + 4, insn.imm, true);
  });
  return bytes;
}

/** The slots in `bytes`, or a message if its length is not a multiple of 8. */
export function decodeInsns(
  bytes: Uint8Array,
): { readonly kind: "decoded"; readonly insns: Insn[] } | { readonly kind: "bad"; readonly message: string } {
  if (bytes.length % INSN_BYTES !== 0) {
    return {
      kind: "bad",
      message: `decode bpf program: ${bytes.length} bytes are not a multiple of ${INSN_BYTES}`,
    };
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const insns: Insn[] = [];
  for (let at = 0; at < bytes.length; at += INSN_BYTES) {
    const regs = view.getUint8(at + 1);
    insns.push({
      opcode: view.getUint8(at),
      dst: regs & 15,
      src: regs >> 4,
      off: view.getInt16(at + 2, true),
      imm: view.getInt32(at + 4, true),
    });
  }
  return { kind: "decoded", insns };
}

/** The 64-bit number in the two slots of an `ldimm64`, unsigned. */
export function imm64Of(low: Insn, high: Insn): bigint {
  return (BigInt(high.imm >>> 0) << 32n) | BigInt(low.imm >>> 0);
}

/** The slot a jump at slot `at` goes to; undefined if the instruction is not a jump with a target. */
export function jumpTarget(insn: Insn, at: number): number | undefined {
  if (insn.opcode === OP_JA32) return at + 1 + insn.imm;
  if (insn.opcode === OP_JA || isConditionalJump(insn.opcode)) return at + 1 + insn.off;
  return undefined;
}

function checkFields(insn: Insn, at: number): void {
  const ok =
    inRange(insn.opcode, 0, 0xff) &&
    inRange(insn.dst, 0, 15) &&
    inRange(insn.src, 0, 15) &&
    inRange(insn.off, -0x8000, 0x7fff) &&
    inRange(insn.imm, -0x80000000, 0x7fffffff);
  if (!ok)
    throw new RangeError(`encode bpf insn ${at}: a field does not fit its width: ${JSON.stringify(insn)}`);
}

function inRange(value: number, min: number, max: number): boolean {
  return Number.isInteger(value) && value >= min && value <= max;
}
