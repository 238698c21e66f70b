/**
 * A hash map of a gigabyte in pages of each size that the machine grants: lookups and updates by compiled programs, of keys at
 * random, each of which depends on the value before. The programs run in this process.
 *
 * What is granted is found out by asking for it; nothing of the machine is changed. Misses of the data TLB are counted where the machine
 * has such a counter (perf_event_open(2)); what a protection key costs is measured where the processor has keys.
 */
import { closeSync } from "node:fs";
import koffi from "koffi";
import {
  compileNative,
  layoutMaps,
  loadBuilt,
  loadModules,
  type Modules,
  type NativeProgram,
  parseInsns,
} from "./native-program.ts";
import { median } from "./statistics.ts";

export const arenaPages = ["4k", "thp", "2m", "1g"] as const;
export type ArenaPages = (typeof arenaPages)[number];

export interface ArenaResult {
  readonly pages: ArenaPages;
  /** Why there are no figures. */
  readonly refused?: string;
  readonly figures?: {
    /** Making the memory, and filling the map. */
    readonly makeMs: number;
    readonly fillMs: number;
    readonly lookupNs: number;
    readonly updateNs: number;
    /** Misses of the data TLB for each lookup and update; undefined: they cannot be counted. */
    readonly lookupMisses: number | undefined;
    readonly updateMisses: number | undefined;
    /** pkey_mprotect of all of it, and a lookup behind the key; undefined: no keys. */
    readonly keyMs: number | undefined;
    readonly keyedLookupNs: number | undefined;
  };
}

export interface ArenaResults {
  readonly mapBytes: number;
  readonly entries: number;
  readonly results: readonly ArenaResult[];
  /** Why nothing is known of TLB misses, or of keys. */
  readonly noCounter: string | undefined;
  readonly noKeys: string | undefined;
}

const VALUE_BYTES = 112;
/** With 64 MiB of buckets this is a bit less than a gigabyte. */
const ENTRIES = 7_300_000;
const RUNS = 1_000_000;

const map = { name: "entries", kind: "hash", keyBytes: 8, valueBytes: VALUE_BYTES, maxEntries: ENTRIES };
/** A random state, a counter of the keys that were filled in, and a value. */
const state = { name: "state", kind: "array", keyBytes: 4, valueBytes: 256, maxEntries: 1 };
const maps = [state, map] as const;

/** r1 = the next state; the key, below ENTRIES, at r10 - 8. */
const RANDOM_KEY = `
  r6 = map[0][0]+0
  r1 = *(u64 *)(r6 +0)
  r2 = r1
  r2 <<= 13
  r1 ^= r2
  r2 = r1
  r2 >>= 7
  r1 ^= r2
  r2 = r1
  r2 <<= 17
  r1 ^= r2
  *(u64 *)(r6 +0) = r1
  r2 = r1
  r2 >>= 32
  r2 *= ${ENTRIES}
  r2 >>= 32
  *(u64 *)(r10 -8) = r2`;

const UPDATE = `
  r1 = map[1]
  r2 = r10
  r2 += -8
  r3 = r6
  r3 += 64
  r4 = 0
  call bpf_map_update_elem
  r0 = 0
  exit`;

const programs = {
  empty: `${RANDOM_KEY}
  r0 = 0
  exit`,
  fill: `
  r6 = map[0][0]+0
  r2 = *(u64 *)(r6 +8)
  *(u64 *)(r10 -8) = r2
  r2 += 1
  *(u64 *)(r6 +8) = r2
  ${UPDATE}`,
  // The values are zeroes: the next key is no other, but has to wait.
  lookup: `${RANDOM_KEY}
  r1 = map[1]
  r2 = r10
  r2 += -8
  call bpf_map_lookup_elem
  if r0 == 0 goto missing
  r1 = *(u64 *)(r0 +0)
  r2 = *(u64 *)(r6 +0)
  r2 ^= r1
  *(u64 *)(r6 +0) = r2
  r0 = 0
  exit
  missing: r1 = *(u64 *)(r6 +16)
  r1 += 1
  *(u64 *)(r6 +16) = r1
  r0 = 0
  exit`,
  update: `${RANDOM_KEY}${UPDATE}`,
} as const;

const lib = koffi.load("libc.so.6");
const syscall = lib.func("long syscall(long number, long a, long b, long c, long d, long e)") as (
  number: number,
  a: number | bigint,
  b: number | bigint,
  c: number | bigint,
  d: number | bigint,
  e: number | bigint,
) => number;
const perfEventOpen = lib.func(
  "long syscall(long number, void *attr, long pid, long cpu, long group, long flags)",
) as (number: number, attr: Uint8Array, pid: number, cpu: number, group: number, flags: number) => number;
const readCounter = lib.func("long read(int fd, void *into, size_t len)") as (
  fd: number,
  into: BigUint64Array,
  len: number,
) => number;
const close = lib.func("int close(int fd)") as (fd: number) => number;

const errnoName = (): string =>
  Object.entries(koffi.os.errno).find(([, value]) => value === koffi.errno())?.[0] ??
  `errno ${koffi.errno()}`;

interface Memory {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  unmap(): void;
}

const SYS_MUNMAP = 11;
const SYS_MADVISE = 28;
const PROT_READ_WRITE = 3;
const MADV_NOHUGEPAGE = 15;
const MAP_SHARED_ANONYMOUS = 0x21;
const mmap = lib.func("void *mmap(uintptr_t addr, size_t len, int prot, int flags, int fd, long off)") as (
  addr: bigint,
  len: number,
  prot: number,
  flags: number,
  fd: number,
  off: number,
) => unknown;

/** Shared memory in 4 KiB pages, whatever the machine would like. */
function smallPages(lenBytes: number): Memory {
  const pointer = mmap(0n, lenBytes, PROT_READ_WRITE, MAP_SHARED_ANONYMOUS, -1, 0);
  const at = koffi.address(pointer as never);
  syscall(SYS_MADVISE, at, lenBytes, MADV_NOHUGEPAGE, 0, 0);
  return {
    at,
    bytes: new Uint8Array(koffi.view(pointer as never, lenBytes)),
    unmap: () => {
      syscall(SYS_MUNMAP, at, lenBytes, 0, 0, 0);
    },
  };
}

/** The product's own way to huge pages. */
interface HugeModule {
  createHugeMemory(
    name: string,
    pages: string,
    lenBytes: number,
  ):
    | {
        readonly kind: "huge";
        readonly at: bigint;
        readonly fd: number;
        readonly mapping: { readonly buffer: ArrayBuffer; unmap(): void };
      }
    | { readonly kind: "refused"; readonly call: string; readonly code: string };
}

function makeMemory(huge: HugeModule, pages: ArenaPages, lenBytes: number): Memory | string {
  if (pages === "4k") return smallPages(lenBytes);
  const made = huge.createHugeMemory("trapline-bench", pages, lenBytes);
  if (made.kind === "refused") return `not granted (${made.call}: ${made.code})`;
  const { at, fd, mapping } = made;
  closeSync(fd);
  return { at, bytes: new Uint8Array(mapping.buffer), unmap: () => mapping.unmap() };
}

const SYS_PERF_EVENT_OPEN = 298;
/** PERF_TYPE_HW_CACHE: the data TLB, reads (0) or writes (1), misses (include/uapi/linux/perf_event.h). */
const DTLB_MISSES = [0x1_0003, 0x1_0103];

/** Counts misses of this thread in user mode. */
class MissCounter {
  readonly #fds: readonly number[];

  private constructor(fds: readonly number[]) {
    this.#fds = fds;
  }

  /** Or why there is none. */
  static open(): MissCounter | string {
    const fds: number[] = [];
    for (const config of DTLB_MISSES) {
      const attr = new Uint8Array(120);
      const view = new DataView(attr.buffer);
      view.setUint32(0, 3, true);
      view.setUint32(4, attr.length, true);
      view.setBigUint64(8, BigInt(config), true);
      // exclude_kernel, exclude_hv
      view.setBigUint64(40, 0x60n, true);
      const fd = perfEventOpen(SYS_PERF_EVENT_OPEN, attr, 0, -1, -1, 0);
      // Some processors count reads only.
      if (fd >= 0) fds.push(fd);
      else if (fds.length === 0)
        return `misses of the data TLB are not counted here (perf_event_open: ${errnoName()})`;
    }
    return new MissCounter(fds);
  }

  read(): bigint {
    return this.#fds.reduce((sum, fd) => {
      const word = new BigUint64Array(1);
      readCounter(fd, word, 8);
      return sum + word[0]!;
    }, 0n);
  }

  close(): void {
    for (const fd of this.#fds) close(fd);
  }
}

const SYS_PKEY_MPROTECT = 329;
const SYS_PKEY_ALLOC = 330;
const SYS_PKEY_FREE = 331;

/** Gives the memory a key that is open, for the time of `use`. */
function withKey<Result>(
  { at, bytes }: Memory,
  use: () => Result,
): { readonly keyMs: number; readonly result: Result } | undefined {
  const key = syscall(SYS_PKEY_ALLOC, 0, 0, 0, 0, 0);
  if (key < 0) return undefined;
  const started = performance.now();
  const code = syscall(SYS_PKEY_MPROTECT, at, bytes.length, PROT_READ_WRITE, key, 0);
  const keyMs = performance.now() - started;
  if (code !== 0) throw new Error(`pkey_mprotect: ${errnoName()}`);
  const result = use();
  syscall(SYS_PKEY_MPROTECT, at, bytes.length, PROT_READ_WRITE, 0, 0);
  syscall(SYS_PKEY_FREE, key, 0, 0, 0, 0);
  return { keyMs, result };
}

interface Measured {
  readonly ns: number;
  readonly misses: number | undefined;
}

/** A filled map, and its programs. */
interface Prepared {
  readonly pages: ArenaPages;
  readonly memory: Memory;
  readonly makeMs: number;
  readonly fillMs: number;
  readonly programs: Readonly<Record<"empty" | "lookup" | "update", NativeProgram>>;
  readonly runs: Readonly<Record<"empty" | "lookup" | "update", Measured[]>>;
  /** A random state, and a count of keys that were not found. */
  readonly words: BigUint64Array;
}

/** Processor time in milliseconds: the machine is shared, and the map is large enough to be interrupted in. */
function cpuMs(run: () => void): number {
  const before = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

function prepare(modules: Modules, huge: HugeModule, pages: ArenaPages): Prepared | ArenaResult {
  const { offsets, lenBytes } = layoutMaps(modules, maps);
  let memory: Memory | string = "";
  const makeMs = cpuMs(() => {
    memory = makeMemory(huge, pages, lenBytes);
  });
  if (typeof memory === "string") return { pages, refused: memory };
  const { at, bytes } = memory as Memory;
  const words = new BigUint64Array(bytes.buffer, offsets[0]!, 8);
  words[0] = 0x9e37_79b9_7f4a_7c15n;
  const compile = (text: string) => compileNative(modules, maps, parseInsns(modules, text), at);
  const fill = compile(programs.fill);
  return {
    pages,
    memory,
    makeMs,
    fillMs: cpuMs(() => fill.run(ENTRIES)),
    programs: {
      empty: compile(programs.empty),
      lookup: compile(programs.lookup),
      update: compile(programs.update),
    },
    runs: { empty: [], lookup: [], update: [] },
    words,
  };
}

function measure(program: NativeProgram, counter: MissCounter | undefined): Measured {
  const before = counter?.read();
  const ns = (cpuMs(() => program.run(RUNS)) * 1e6) / RUNS;
  return { ns, misses: before === undefined ? undefined : Number(counter!.read() - before) / RUNS };
}

const nsOf = (all: readonly Measured[]): number => median(all.map(({ ns }) => ns));
const missesOf = (all: readonly Measured[]): number | undefined =>
  all.some(({ misses }) => misses === undefined) ? undefined : median(all.map(({ misses }) => misses!));

function evaluate({ pages, memory, makeMs, fillMs, programs: code, runs, words }: Prepared): ArenaResult {
  if (words[2] !== 0n) throw new Error(`${words[2]} of the keys were not found`);
  const emptyNs = nsOf(runs.empty);
  const keyed = withKey(memory, () => nsOf(runs.lookup.map(() => measure(code.lookup, undefined))) - emptyNs);
  return {
    pages,
    figures: {
      makeMs,
      fillMs,
      lookupNs: nsOf(runs.lookup) - emptyNs,
      updateNs: nsOf(runs.update) - emptyNs,
      lookupMisses: missesOf(runs.lookup),
      updateMisses: missesOf(runs.update),
      keyMs: keyed?.keyMs,
      keyedLookupNs: keyed?.result,
    },
  };
}

/** All maps are there at the same time, so that rounds alternate. */
export async function measureArena(rounds: number, progress: (what: string) => void): Promise<ArenaResults> {
  const modules = await loadModules();
  const huge = (await loadBuilt("target/process/huge-memory.js")) as HugeModule;
  const keys = (await loadBuilt("target/process/protection-keys.js")) as {
    findKeyObstacle(): unknown;
    describeKeyRefusal(refusal: unknown): string;
  };
  const opened = MissCounter.open();
  const counter = typeof opened === "string" ? undefined : opened;
  const obstacle = keys.findKeyObstacle();
  try {
    const made = arenaPages.map((pages) => {
      progress(`a map of a gigabyte in pages of ${pages}: filling`);
      return prepare(modules, huge, pages);
    });
    const prepared = made.filter((each): each is Prepared => "memory" in each);
    for (let round = 0; round < rounds; round++)
      for (const { pages, programs: code, runs } of prepared) {
        progress(`a map of a gigabyte in pages of ${pages}`);
        for (const name of ["empty", "lookup", "update"] as const)
          runs[name].push(measure(code[name], counter));
      }
    const results = made.map((each) => ("memory" in each ? evaluate(each) : each));
    for (const { memory } of prepared) memory.unmap();
    return {
      mapBytes: layoutMaps(modules, maps).lenBytes,
      entries: ENTRIES,
      results,
      noCounter: typeof opened === "string" ? opened : undefined,
      noKeys: obstacle === undefined ? undefined : keys.describeKeyRefusal(obstacle),
    };
  } finally {
    counter?.close();
  }
}
