/**
 * One eBPF instruction slot (RFC 9669, section 3), the opcode tables, and their binary form.
 *
 *      63            32 31      16 15   12 11    8 7        0
 *     +----------------+----------+-------+-------+----------+
 *     |      imm       |   off    |  src  |  dst  |  opcode  |
 *     +----------------+----------+-------+-------+----------+
 *
 * A program is a list of slots. `ldimm64` takes two: the second has opcode 0 and holds the high half in `imm`.
 * Jump offsets count slots, as in the kernel.
 */

/** One 8-byte slot. `off` is a signed 16-bit number, `imm` a signed 32-bit number. */
export interface Insn {
  readonly opcode: number;
  readonly dst: number;
  readonly src: number;
  readonly off: number;
  readonly imm: number;
}
