/**
 * Memory of the tracer in huge pages, to be shared with targets: nothing of it is left to be found later, when a program of a
 * target touches it.
 *
 * Two ways (Documentation/admin-guide/mm: hugetlbpage.rst, transhuge.rst; memfd_create(2), madvise(2)):
 *
 *     hugetlb       a memfd of pages of this size, out of what the machine has set aside. fallocate takes all of them at once: a page that
 *                   is not to be had shows here, and not as SIGBUS in a target.
 *     transparent   an ordinary memfd whose pages MADV_COLLAPSE joins, 2 MiB each. It ignores the settings of the machine but for
 *                   shmem_enabled=deny; each 2 MiB need a page that is there already. Shared memory since Linux 6.1.
 *
 * A target maps a huge page as one only if it lies at a multiple of its size there, too.
 */
import { closeSync, ftruncateSync } from "node:fs";
import koffi from "koffi";
import { errno, errnoName, type Mapping } from "./libc.ts";

export type HugePages = "1g" | "2m" | "thp";

const MIB = 1 << 20;

/** Size of the pages. */
export const hugePageBytes = { "1g": 1024 * MIB, "2m": 2 * MIB, thp: 2 * MIB } as const;

export interface HugeMemory {
  readonly kind: "huge";
  readonly pages: HugePages;
  readonly fd: number;
  /** Where it lies in the tracer. */
  readonly at: bigint;
  /** Whole pages. */
  readonly lenBytes: number;
  readonly mapping: Mapping;
}

/** Why there is none: the call that failed, and the errno's name. */
export interface HugeRefusal {
  readonly kind: "refused";
  readonly pages: HugePages;
  readonly call: "memfd_create" | "fallocate" | "mmap" | "madvise";
  readonly code: string;
  readonly lenBytes: number;
}

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
/** The exponent of the page size (MFD_HUGE_2MB and so on). */
const MFD_HUGE_SHIFT = 26;
const PROT_NONE = 0;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;
const MADV_COLLAPSE = 25;

const lib = koffi.load("libc.so.6");
const memfdCreate = lib.func("int memfd_create(const char *name, unsigned int flags)") as (
  name: string,
  flags: number,
) => number;
const fallocate = lib.func("int fallocate(int fd, int mode, long offset, long len)") as (
  fd: number,
  mode: number,
  offset: number,
  len: number,
) => number;
const mmap = lib.func("void *mmap(uintptr_t addr, size_t len, int prot, int flags, int fd, long off)") as (
  addr: bigint,
  len: number,
  prot: number,
  flags: number,
  fd: number,
  off: number,
) => unknown;
const munmap = lib.func("int munmap(uintptr_t addr, size_t len)") as (addr: bigint, len: number) => number;
const madvise = lib.func("int madvise(uintptr_t addr, size_t len, int advice)") as (
  addr: bigint,
  len: number,
  advice: number,
) => number;

/** Makes shared memory of at least `lenBytes` in pages of this kind, all of them taken. */
export function createHugeMemory(name: string, pages: HugePages, lenBytes: number): HugeMemory | HugeRefusal {
  const size = hugePageBytes[pages];
  const len = Math.ceil(lenBytes / size) * size;
  const refused = (call: HugeRefusal["call"]): HugeRefusal => ({
    kind: "refused",
    pages,
    call,
    code: errnoName(errno()),
    lenBytes: len,
  });
  const flags = pages === "thp" ? 0 : MFD_HUGETLB | (Math.log2(size) << MFD_HUGE_SHIFT);
  const fd = memfdCreate(name, MFD_CLOEXEC | flags);
  if (fd < 0) return refused("memfd_create");
  let failed: HugeRefusal | undefined;
  let mapping: Mapping | undefined;
  let at = 0n;
  ftruncateSync(fd, len);
  if (pages !== "thp" && fallocate(fd, 0, 0, len) !== 0) failed = refused("fallocate");
  if (failed === undefined) {
    const mapped = mapAligned(fd, len, size);
    if (mapped === undefined) failed = refused("mmap");
    else {
      ({ at, mapping } = mapped);
      if (pages === "thp" && !collapse(at, mapping, size)) failed = refused("madvise");
    }
  }
  if (failed === undefined) return { kind: "huge", pages, fd, at, lenBytes: len, mapping: mapping! };
  mapping?.unmap();
  closeSync(fd);
  return failed;
}

/** Each huge page needs a page that is there, which is a zero. */
function collapse(at: bigint, { buffer }: Mapping, size: number): boolean {
  const bytes = new Uint8Array(buffer);
  for (let offset = 0; offset < bytes.length; offset += size) bytes[offset] = 0;
  return madvise(at, bytes.length, MADV_COLLAPSE) === 0;
}

/** Maps a file at a multiple of `align`, over a part of what is reserved for that. */
function mapAligned(
  fd: number,
  len: number,
  align: number,
): { readonly at: bigint; readonly mapping: Mapping } | undefined {
  const reservedBytes = len + align;
  const reserved = koffi.address(
    mmap(0n, reservedBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) as never,
  );
  if (reserved === MAP_FAILED) return undefined;
  const at = ((reserved + BigInt(align) - 1n) / BigInt(align)) * BigInt(align);
  const pointer = mmap(at, len, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  if (koffi.address(pointer as never) === MAP_FAILED) {
    munmap(reserved, reservedBytes);
    return undefined;
  }
  const unmap = () => {
    munmap(reserved, reservedBytes);
  };
  return { at, mapping: { buffer: koffi.view(pointer as never, len), unmap } };
}
