/**
 * What the interpreter needs from outside: memory that may be shared with running threads, maps, and the world that
 * helpers ask about.
 *
 * Maps say where their values lie instead of copying them, because a program works on map values in place and its
 * atomic instructions must meet those of other threads.
 */
import type { MapSpec } from "../program.ts";

/** Memory that other threads may be writing. All three name the same bytes; `words[i]` is at byte offset `8 * i`. */
export interface SharedWords {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly words: BigInt64Array;
}

/**
 * An array or hash map as a program sees it. Of a per-CPU map it sees the copies of one `slot`. Results of
 * `update` and `delete` are 0 or a negative error number.
 */
export interface LookupMapAccess {
  readonly spec: MapSpec;
  readonly memory: SharedWords;
  /** Byte offset of the value in `memory`, a multiple of 8; undefined: no such key. `key` has the map's key size. */
  lookup(key: Uint8Array, slot?: number): number | undefined;
  update(key: Uint8Array, value: Uint8Array, flags: bigint, slot?: number): number;
  delete(key: Uint8Array): number;
  /**
   * The elements that are there, for bpf_for_each_map_elem: each key, and the offset of its value as `lookup` gives it.
   * The map may change meanwhile.
   */
  entries?(slot?: number): Iterable<{ readonly key: Uint8Array; readonly offset: number }>;
}

/** A queue, a stack or a bloom filter as a program sees it. */
export interface PushMapAccess {
  readonly spec: MapSpec;
  readonly memory: SharedWords;
  push(value: Uint8Array, flags: bigint): number;
  /** The value that comes out next, which `pop` takes out. Not of a bloom filter. */
  peek?(): Uint8Array | undefined;
  pop?(): Uint8Array | undefined;
  /** Of a bloom filter: 0 if the value may be there. */
  test?(value: Uint8Array): number;
}

/** A map of maps as a program sees it: the byte offset in `memory` where the inner map begins. */
export interface OuterMapAccess {
  readonly spec: MapSpec;
  readonly memory: SharedWords;
  innerAt(key: Uint8Array): number | undefined;
}

/** A map of stack traces as a program sees it. */
export interface StackMapAccess {
  readonly spec: MapSpec;
  readonly memory: SharedWords;
  /** The id of these addresses, or a negative error number. */
  insert(addresses: readonly bigint[], flags: bigint): number;
}

/** A program array as a program sees it. */
export interface ProgramMapAccess {
  readonly spec: MapSpec;
  readonly memory: SharedWords;
  /** Index of the program in slot `index`; undefined: there is none. */
  programAt(index: number): number | undefined;
}

/** A ring buffer as a program sees it. */
export interface RingMapAccess {
  readonly spec: MapSpec;
  readonly memory: SharedWords;
  /** Byte offset in `memory` of a new record of this size, a multiple of 8; undefined: full, and the drop is counted. */
  reserve(recordBytes: number): number | undefined;
  /** What bpf_ringbuf_query returns. */
  query?(what: bigint): bigint;
  /** Hands the record over to the reader; `offset` is what `reserve` returned. */
  submit(offset: number, flags: bigint): void;
  /** Gives the record up. */
  discard(offset: number, flags: bigint): void;
}

/** `byteOffset`: where the map begins in `memory`, by which a map of maps names it. */
export type MapAccess = (
  | LookupMapAccess
  | RingMapAccess
  | ProgramMapAccess
  | PushMapAccess
  | OuterMapAccess
  | StackMapAccess
) & { readonly byteOffset?: number };

/** The world that helpers ask about. Addresses and 64-bit values are unsigned. */
export interface HelperHost {
  /** Nanoseconds of CLOCK_MONOTONIC. */
  ktimeGetNs(): bigint;
  /** Nanoseconds of CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE or CLOCK_TAI. */
  clockNs(clock: "boot" | "coarse" | "tai"): bigint;
  /** The kernel's count of timer ticks. */
  jiffies(): bigint;
  /** The memory node of the processor. */
  numaNode(): number;
  /** 0 to 2^32-1. */
  prandomU32(): number;
  /** 0 to 4095. */
  cpu(): number;
  /** Process id in the high half, thread id in the low half. */
  pidTgid(): bigint;
  /** Group id in the high half, user id in the low half. */
  uidGid(): bigint;
  /** The thread's name; the interpreter cuts it to size and adds the NUL. */
  comm(): Uint8Array;
  /** Fills all of `into` from user memory at `addr`, or returns false; then `into` need not be as before. */
  readUser(addr: bigint, into: Uint8Array): boolean;
}
