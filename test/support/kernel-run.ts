/**
 * Programs run by the kernel itself, as socket filters on a packet of zeros (BPF_PROG_TEST_RUN): the oracle for helpers.
 * Needs permission to load programs (root, usually).
 */
import koffi from "koffi";
import { encodeInsns, type Insn } from "../../src/bpf/insn.ts";
import { OP_LDIMM64, PSEUDO_NONE } from "../../src/bpf/opcodes.ts";
import type { MapSpec } from "../../src/bpf/program.ts";
import { closeKernelMaps, createKernelMaps } from "./bpf-kernel.ts";

const SYS_BPF = 321;
const BPF_MAP_LOOKUP_ELEM = 1;
const BPF_MAP_UPDATE_ELEM = 2;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TEST_RUN = 10;
const BPF_PROG_TYPE_SOCKET_FILTER = 1;
const ATTR_BYTES = 144;
const LOG_BYTES = 1 << 16;
const PACKET_BYTES = 64;

const libc = koffi.load("libc.so.6");
const syscall = libc.func("long syscall(long number, long command, void *attr, long lenBytes)");
const close = libc.func("int close(int fd)");

/** Memory that keeps its address. */
function memory(lenBytes: number): { readonly address: bigint; readonly bytes: Uint8Array } {
  const pointer = koffi.alloc("uint8_t", lenBytes);
  const bytes = new Uint8Array(koffi.view(pointer, lenBytes));
  bytes.fill(0);
  return { address: koffi.address(pointer), bytes };
}

function bpf(command: number, fill: (attr: DataView) => void): number {
  const attr = new Uint8Array(ATTR_BYTES);
  fill(new DataView(attr.buffer));
  return Number(syscall(SYS_BPF, command, attr, ATTR_BYTES));
}

const license = memory(4);
license.bytes.set([0x47, 0x50, 0x4c, 0]);
const log = memory(LOG_BYTES);
const packet = memory(PACKET_BYTES);
const key = memory(4);

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
    const value = memory(maps[0]!.valueBytes);
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
  const code = memory(insns.length * 8);
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
  close(fd);
  if (result !== 0) throw new Error("run a program in the kernel: failed");
}
