/**
 * Programs run by the kernel itself, as socket filters on a packet of zeros (BPF_PROG_TEST_RUN): the oracle for helpers.
 * Needs permission to load programs (root, usually).
 */
import { encodeInsns, type Insn } from "../../src/bpf/insn.ts";
import { OP_LDIMM64, PSEUDO_NONE } from "../../src/bpf/opcodes.ts";
import type { MapSpec } from "../../src/bpf/program.ts";
import { closeKernelMaps, createKernelMaps } from "./bpf-kernel.ts";
import { bpf, closeFd, fixedMemory } from "./bpf-syscall.ts";

const BPF_MAP_LOOKUP_ELEM = 1;
const BPF_MAP_UPDATE_ELEM = 2;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TEST_RUN = 10;
const BPF_PROG_TYPE_SOCKET_FILTER = 1;
const LOG_BYTES = 1 << 16;
const PACKET_BYTES = 64;

const license = fixedMemory(4);
license.bytes.set([0x47, 0x50, 0x4c, 0]);
const log = fixedMemory(LOG_BYTES);
const packet = fixedMemory(PACKET_BYTES);
const key = fixedMemory(4);

/**
 * Runs a program on maps of its own; returns what the first one, an array of one element, holds afterwards. `before` is
 * what it holds at first.
 */
export function runInKernel(
  insns: readonly Insn[],
  maps: readonly MapSpec[],
  before: Uint8Array,
): Uint8Array {
  const fds = createKernelMaps(maps);
  try {
    const value = fixedMemory(maps[0]!.valueBytes);
    value.bytes.set(before);
    const element = (attr: DataView) => {
      attr.setUint32(0, fds[0]!, true);
      attr.setBigUint64(8, key.address, true);
      attr.setBigUint64(16, value.address, true);
    };
    bpf(BPF_MAP_UPDATE_ELEM, element);
    run(insns, fds);
    if (bpf(BPF_MAP_LOOKUP_ELEM, element) !== 0) throw new Error("read the map of the kernel: failed");
    return value.bytes.slice();
  } finally {
    closeKernelMaps(fds);
  }
}

function run(insns: readonly Insn[], fds: readonly number[]): void {
  const linked = insns.map((insn) =>
    insn.opcode === OP_LDIMM64 && insn.src !== PSEUDO_NONE ? { ...insn, imm: fds[insn.imm]! } : insn,
  );
  const code = fixedMemory(insns.length * 8);
  code.bytes.set(encodeInsns(linked));
  const fd = bpf(BPF_PROG_LOAD, (attr) => {
    attr.setUint32(0, BPF_PROG_TYPE_SOCKET_FILTER, true);
    attr.setUint32(4, insns.length, true);
    attr.setBigUint64(8, code.address, true);
    attr.setBigUint64(16, license.address, true);
    attr.setUint32(24, 1, true);
    attr.setUint32(28, LOG_BYTES, true);
    attr.setBigUint64(32, log.address, true);
  });
  if (fd < 0)
    throw new Error(`kernel: ${Buffer.from(log.bytes.subarray(0, log.bytes.indexOf(0))).toString()}`);
  const result = bpf(BPF_PROG_TEST_RUN, (attr) => {
    attr.setUint32(0, fd, true);
    attr.setUint32(8, PACKET_BYTES, true);
    attr.setBigUint64(16, packet.address, true);
  });
  closeFd(fd);
  if (result !== 0) throw new Error("run a program in the kernel: failed");
}
