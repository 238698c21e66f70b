/**
 * Generated code that the tracer runs in itself, to try a program out.
 *
 * Code is written while its pages are writable and called when they are executable: never both at once. A machine
 * that forbids executable memory altogether (SELinux, a seccomp filter) shows as a `SystemError` of mprotect.
 */
import koffi from "koffi";
import { errno, SystemError } from "./libc.ts";

const PROT_READ_WRITE = 3;
const PROT_READ_EXEC = 5;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

const lib = koffi.load("libc.so.6");
const mmapRaw = lib.func("void *mmap(void *addr, size_t len, int prot, int flags, int fd, long off)") as (
  addr: null,
  len: number,
  prot: number,
  flags: number,
  fd: number,
  off: number,
) => unknown;
const munmapRaw = lib.func("int munmap(void *addr, size_t len)") as (addr: unknown, len: number) => number;
const mprotectRaw = lib.func("int mprotect(void *addr, size_t len, int prot)") as (
  addr: unknown,
  len: number,
  prot: number,
) => number;
/** Without a name: this module may be loaded twice, built and not, and koffi has one list of names. */
const codeProto = koffi.proto("uint64_t (uint64_t first, uint64_t second)");

/** Private zeroed memory of the tracer itself, at an address that generated code can use. */
export class NativeMemory implements Disposable {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly #pointer: unknown;

  constructor(lenBytes: number) {
    this.#pointer = mmapRaw(null, lenBytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
    this.at = koffi.address(this.#pointer as never);
    if (this.at === MAP_FAILED) throw new SystemError("mmap", errno());
    this.bytes = new Uint8Array(koffi.view(this.#pointer as never, lenBytes));
  }

  /** From here on the bytes can be executed and read, and no longer written. */
  makeExecutable(): void {
    if (mprotectRaw(this.#pointer, this.bytes.length, PROT_READ_EXEC) !== 0)
      throw new SystemError("mprotect", errno());
  }

  /** Unmaps it: `bytes` must not be touched any more. */
  [Symbol.dispose](): void {
    munmapRaw(this.#pointer, this.bytes.length);
  }
}

/** Calls code at an address with two integers, by the C calling convention. */
export function callNativeCode(at: bigint, first: bigint, second: bigint): bigint {
  return BigInt(koffi.call(at, codeProto, first, second) as number | bigint);
}
