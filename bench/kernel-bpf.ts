/**
 * Programs in the kernel, through the bpf system call: loaded, compiled by its JIT, and run repeatedly by
 * BPF_PROG_TEST_RUN. Layouts of the attributes: include/uapi/linux/bpf.h, `union bpf_attr`, `struct bpf_prog_info`.
 */
import koffi from "koffi";

const SYS_BPF = 321;
const MAP_CREATE = 0;
const PROG_LOAD = 5;
const PROG_TEST_RUN = 10;
const OBJ_GET_INFO_BY_FD = 15;
const PROG_TYPE_SOCKET_FILTER = 1;
const ATTR_BYTES = 120;
const INFO_BYTES = 128;
/** The smallest frame that a socket filter is tried on: an Ethernet header. */
const FRAME_BYTES = 64;
const LOG_BYTES = 1 << 16;

/** The kernel's numbers of the kinds of map that programs here use. */
const mapTypes = { array: 2, hash: 1 } as const;

export interface KernelMapSpec {
  readonly kind: keyof typeof mapTypes;
  readonly keyBytes: number;
  readonly valueBytes: number;
  readonly maxEntries: number;
}

const libc = koffi.load("libc.so.6");
const syscall = libc.func("long syscall(long number, long command, void *attr, long size)") as (
  number: number,
  command: number,
  attr: Uint8Array,
  size: number,
) => number | bigint;
const closeRaw = libc.func("int close(int fd)") as (fd: number) => number;

function bpf(
  command: number,
  fill: (view: DataView) => void,
): { readonly result: number; readonly view: DataView } {
  const attr = new Uint8Array(ATTR_BYTES);
  const view = new DataView(attr.buffer);
  fill(view);
  const result = Number(syscall(SYS_BPF, command, attr, ATTR_BYTES));
  return { result, view };
}

const mmap = libc.func("void *mmap(void *addr, size_t len, int prot, int flags, int fd, long off)") as (
  addr: null,
  lenBytes: number,
  prot: number,
  flags: number,
  fd: number,
  off: number,
) => unknown;
const PROT_READ_WRITE = 3;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const ARENA_BYTES = 1 << 20;

/** Memory whose address the kernel can be told. One call's arguments at a time are in it. */
class Arena {
  readonly #at: bigint;
  readonly #bytes: Uint8Array;
  #used = 0;

  constructor() {
    const pointer = mmap(null, ARENA_BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
    this.#at = koffi.address(pointer as never);
    this.#bytes = new Uint8Array(koffi.view(pointer as never, ARENA_BYTES));
  }

  clear(): void {
    this.#bytes.fill(0, 0, this.#used);
    this.#used = 0;
  }

  /** Zeroed bytes, and where they are. */
  take(lenBytes: number): { readonly at: bigint; readonly bytes: Uint8Array } {
    const offset = this.#used;
    this.#used += Math.ceil(lenBytes / 8) * 8;
    return { at: this.#at + BigInt(offset), bytes: this.#bytes.subarray(offset, offset + lenBytes) };
  }

  copy(from: Uint8Array): bigint {
    const { at, bytes } = this.take(from.length);
    bytes.set(from);
    return at;
  }
}

const arena = new Arena();

export class KernelProgram implements Disposable {
  readonly #fd: number;
  readonly #maps: readonly number[];

  /** `encode` gives the bytecode with these numbers in place of the indexes of maps. */
  constructor(maps: readonly KernelMapSpec[], encode: (fds: readonly number[]) => Uint8Array) {
    this.#maps = maps.map((spec) => {
      const { result } = bpf(MAP_CREATE, (view) => {
        view.setUint32(0, mapTypes[spec.kind], true);
        view.setUint32(4, spec.keyBytes, true);
        view.setUint32(8, spec.valueBytes, true);
        view.setUint32(12, spec.maxEntries, true);
      });
      if (result < 0) throw new Error(`bpf(BPF_MAP_CREATE): errno ${koffi.errno()}`);
      return result;
    });
    const insns = encode(this.#maps);
    const load = (logLevel: number) => {
      arena.clear();
      const log = arena.take(logLevel > 0 ? LOG_BYTES : 0);
      const { result } = bpf(PROG_LOAD, (view) => {
        view.setUint32(0, PROG_TYPE_SOCKET_FILTER, true);
        view.setUint32(4, insns.length / 8, true);
        view.setBigUint64(8, arena.copy(insns), true);
        view.setBigUint64(16, arena.copy(Buffer.from("GPL\0")), true);
        view.setUint32(24, logLevel, true);
        view.setUint32(28, log.bytes.length, true);
        view.setBigUint64(32, logLevel > 0 ? log.at : 0n, true);
      });
      return { result, text: Buffer.from(log.bytes).toString("utf8").replace(/\0.*$/s, "").trim() };
    };
    const { result } = load(0);
    if (result < 0) {
      const errno = koffi.errno();
      // The log of a long loop is longer than any buffer: it is only asked for where something is wrong.
      const lines = load(1).text.split("\n").slice(-3);
      throw new Error(`bpf(BPF_PROG_LOAD): errno ${errno}: ${lines.join("; ")}`);
    }
    this.#fd = result;
  }

  /** Bytes of machine code, all functions of the program together. */
  codeBytes(): number {
    arena.clear();
    const info = arena.take(INFO_BYTES);
    const { result } = bpf(OBJ_GET_INFO_BY_FD, (view) => {
      view.setUint32(0, this.#fd, true);
      view.setUint32(4, INFO_BYTES, true);
      view.setBigUint64(8, info.at, true);
    });
    if (result < 0) throw new Error(`bpf(BPF_OBJ_GET_INFO_BY_FD): errno ${koffi.errno()}`);
    return Buffer.from(info.bytes).readUInt32LE(16);
  }

  /** Runs it that often; returns the low half of r0, and nanoseconds of one run as the kernel measures them. */
  run(times: number): { readonly result: number; readonly ns: number } {
    arena.clear();
    const frame = arena.take(FRAME_BYTES);
    const out = arena.take(FRAME_BYTES);
    const started = process.hrtime.bigint();
    const { result, view } = bpf(PROG_TEST_RUN, (attr) => {
      attr.setUint32(0, this.#fd, true);
      attr.setUint32(8, FRAME_BYTES, true);
      attr.setUint32(12, FRAME_BYTES, true);
      attr.setBigUint64(16, frame.at, true);
      attr.setBigUint64(24, out.at, true);
      attr.setUint32(32, times, true);
    });
    const elapsed = Number(process.hrtime.bigint() - started);
    if (result < 0) throw new Error(`bpf(BPF_PROG_TEST_RUN): errno ${koffi.errno()}`);
    // The kernel's own figure is whole nanoseconds.
    return { result: view.getUint32(4, true), ns: elapsed / times };
  }

  [Symbol.dispose](): void {
    for (const fd of [this.#fd, ...this.#maps]) closeRaw(fd);
  }
}

/** Why nothing can be loaded; undefined: it can. */
export function whyNoKernelBpf(): string | undefined {
  try {
    // r0 = 0; exit
    using program = new KernelProgram([], () =>
      Uint8Array.of(0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0),
    );
    return program.codeBytes() > 0 ? undefined : "the kernel's JIT is off";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
