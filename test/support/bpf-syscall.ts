/** bpf(2), for tests and benchmarks that ask the kernel what it makes of a program. */
import koffi from "koffi";

const SYS_BPF = 321;
/** The largest `union bpf_attr` that we use. */
const ATTR_BYTES = 144;

const libc = koffi.load("libc.so.6");
const syscall = libc.func("long syscall(long number, long command, void *attr, long lenBytes)");

/** Closes a descriptor that `bpf` gave. */
export const closeFd = libc.func("int close(int fd)") as (fd: number) => number;

/** Zeroed memory that keeps its address, as the kernel is given pointers inside structures. */
export function fixedMemory(lenBytes: number): { readonly address: bigint; readonly bytes: Uint8Array } {
  const pointer = koffi.alloc("uint8_t", lenBytes);
  const bytes = new Uint8Array(koffi.view(pointer, lenBytes));
  bytes.fill(0);
  return { address: koffi.address(pointer), bytes };
}

/** What the command returns: a descriptor, 0, or -1. `fill` writes what is not 0 in its attributes. */
export function bpf(command: number, fill: (attr: DataView) => void): number {
  const attr = new Uint8Array(ATTR_BYTES);
  fill(new DataView(attr.buffer));
  return Number(syscall(SYS_BPF, command, attr, ATTR_BYTES));
}
