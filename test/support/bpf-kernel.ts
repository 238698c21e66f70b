/**
 * The kernel's verifier, asked through bpf(2) for what it says of a program, which is never run. For tests.
 *
 * Needs permission to load programs (root, usually). Functions get names and types, without which the kernel refuses
 * callbacks.
 */
import { release } from "node:os";
import { encodeInsns, type Insn } from "../../src/bpf/insn.ts";
import { mapKindNumber } from "../../src/bpf/map-kinds.ts";
import { OP_LDIMM64, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE } from "../../src/bpf/opcodes.ts";
import type { MapSpec } from "../../src/bpf/program.ts";
import { checkStructure } from "../../src/bpf/verifier/structure.ts";
import { bpf, closeFd, fixedMemory } from "./bpf-syscall.ts";

const BPF_MAP_CREATE = 0;
const BPF_PROG_LOAD = 5;
const BPF_MAP_UPDATE_ELEM = 2;
const BPF_BTF_LOAD = 18;
const BPF_MAP_FREEZE = 22;
const BPF_F_RDONLY_PROG = 1 << 7;
const BPF_F_WRONLY_PROG = 1 << 8;
const BPF_PROG_TYPE_KPROBE = 2;
const LOG_BYTES = 1 << 20;

const kernelRelease = /^6\.18\./;

/** Whether this is the kernel that the cases are written for, and it lets this process ask. */
export function canAskKernel(): boolean {
  if (!kernelRelease.test(release())) return false;
  const [fd] = createKernelMaps([
    { name: "probe", kind: "array", keyBytes: 4, valueBytes: 8, maxEntries: 1 },
  ]);
  if (fd === undefined || fd < 0) return false;
  closeKernelMaps([fd]);
  return true;
}

/** Maps of the kernel that are like `maps`, as file descriptors. */
export function createKernelMaps(maps: readonly MapSpec[]): readonly number[] {
  return maps.map(createMap);
}

export function closeKernelMaps(fds: readonly number[]): void {
  for (const fd of fds) closeFd(fd);
}

function createMap(spec: MapSpec): number {
  const { kind, keyBytes, valueBytes, maxEntries, isReadOnly, isWriteOnly, inner, contents } = spec;
  const innerFd = inner ? createMap(inner) : 0;
  const fd = bpf(BPF_MAP_CREATE, (attr) => {
    attr.setUint32(0, mapKindNumber(kind), true);
    attr.setUint32(4, keyBytes, true);
    // Theirs hold file descriptors.
    attr.setUint32(8, kind === "ringbuf" ? 0 : kind === "perf_event_array" ? 4 : valueBytes, true);
    // A direct value needs an array of one; a ring buffer is measured in pages.
    attr.setUint32(12, kind === "ringbuf" ? 4096 : kind === "array" ? 1 : maxEntries, true);
    attr.setUint32(16, (isReadOnly ? BPF_F_RDONLY_PROG : 0) | (isWriteOnly ? BPF_F_WRONLY_PROG : 0), true);
    attr.setUint32(20, innerFd, true);
  });
  if (inner) closeFd(innerFd);
  if (contents) {
    const key = fixedMemory(4);
    const value = fixedMemory(valueBytes);
    key.bytes.fill(0);
    value.bytes.set(contents);
    bpf(BPF_MAP_UPDATE_ELEM, (attr) => {
      attr.setUint32(0, fd, true);
      attr.setBigUint64(8, key.address, true);
      attr.setBigUint64(16, value.address, true);
    });
    bpf(BPF_MAP_FREEZE, (attr) => {
      attr.setUint32(0, fd, true);
    });
  }
  return fd;
}

const isMap = ({ opcode, src }: Insn) =>
  opcode === OP_LDIMM64 && (src === PSEUDO_MAP_FD || src === PSEUDO_MAP_VALUE);

const code = fixedMemory(1 << 17);
const license = fixedMemory(4);
const log = fixedMemory(LOG_BYTES);
const types = fixedMemory(1 << 16);
const functionInfo = fixedMemory(1 << 12);

/** The kernel's log without its statistics; undefined if it accepts the program. */
export function askKernel(insns: readonly Insn[], fds: readonly number[]): string | undefined {
  const linked = insns.map((insn) => (isMap(insn) ? { ...insn, imm: fds[insn.imm] ?? -1 } : insn));
  code.bytes.set(encodeInsns(linked));
  license.bytes.set([0x47, 0x50, 0x4c, 0]);
  const structure = checkStructure(
    insns,
    fds.map(() => anyMap),
    "refuse",
  );
  const starts = structure.kind === "good" && structure.starts.length > 1 ? structure.starts : [];
  const typesFd = starts.length > 0 ? loadTypes(starts) : -1;
  const fd = bpf(BPF_PROG_LOAD, (attr) => {
    attr.setUint32(0, BPF_PROG_TYPE_KPROBE, true);
    attr.setUint32(4, insns.length, true);
    attr.setBigUint64(8, code.address, true);
    attr.setBigUint64(16, license.address, true);
    attr.setUint32(24, 1, true);
    attr.setUint32(28, LOG_BYTES, true);
    attr.setBigUint64(32, log.address, true);
    if (typesFd < 0) return;
    attr.setUint32(72, typesFd, true);
    attr.setUint32(76, 8, true);
    attr.setBigUint64(80, functionInfo.address, true);
    attr.setUint32(88, starts.length, true);
  });
  if (typesFd >= 0) closeFd(typesFd);
  if (fd >= 0) {
    closeFd(fd);
    return undefined;
  }
  const text = Buffer.from(log.bytes.subarray(0, log.bytes.indexOf(0))).toString();
  return text
    .split("\n")
    .filter((line) => line !== "" && !/^(processed|verification time)/.test(line))
    .join("\n");
}

/** Stands for any map where only the places of functions are asked for. */
const anyMap: MapSpec = { name: "any", kind: "array", keyBytes: 4, valueBytes: 1 << 20, maxEntries: 1 };

/** BTF that says of each function that it is static and returns an int, and where it starts; a file descriptor. */
function loadTypes(starts: readonly number[]): number {
  const INT = 1;
  const PROTO = 2;
  const names = ["", "int", ...starts.map((_, i) => `func${i}`)];
  const nameAt = names.map(
    (_, i) => Buffer.byteLength(`${names.slice(0, i).join("\0")}\0`) - (i === 0 ? 1 : 0),
  );
  const strings = Buffer.from(`${names.join("\0")}\0`);
  const words = [nameAt[1]!, 1 << 24, 4, (1 << 24) | 32, 0, 13 << 24, INT];
  for (let i = 0; i < starts.length; i++) words.push(nameAt[2 + i]!, 12 << 24, PROTO);
  const header = Buffer.alloc(24);
  header.writeUInt16LE(0xeb9f, 0);
  header.writeUInt8(1, 2);
  header.writeUInt32LE(24, 4);
  header.writeUInt32LE(words.length * 4, 12);
  header.writeUInt32LE(words.length * 4, 16);
  header.writeUInt32LE(strings.length, 20);
  const all = Buffer.concat([header, Buffer.from(Uint32Array.from(words).buffer), strings]);
  types.bytes.set(all);
  starts.forEach((start, i) => {
    functionInfo.bytes.set(new Uint8Array(Uint32Array.of(start, PROTO + 1 + i).buffer), i * 8);
  });
  return bpf(BPF_BTF_LOAD, (attr) => {
    attr.setBigUint64(0, types.address, true);
    attr.setUint32(16, all.length, true);
  });
}
