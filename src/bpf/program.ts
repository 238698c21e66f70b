/**
 * Programs and maps as plain data, before anything is proved, compiled or placed in memory.
 *
 * A bundle is what one front end hands over: its maps, and programs that name those maps by index.
 */
import type { Insn } from "./insn.ts";

/** Kinds of map by their kernel name, without `BPF_MAP_TYPE_`. */
export type MapKind =
  | "array"
  | "hash"
  | "lru_hash"
  | "percpu_array"
  | "percpu_hash"
  | "lru_percpu_hash"
  | "ringbuf"
  | "perf_event_array"
  | "stack_trace"
  | "queue"
  | "stack"
  | "prog_array"
  | "array_of_maps"
  | "hash_of_maps"
  | "bloom_filter";

export interface MapSpec {
  readonly name: string;
  readonly kind: MapKind;
  /** 4 for arrays of all kinds and for stack traces; 0 for a ring buffer, a queue, a stack and a bloom filter. */
  readonly keyBytes: number;
  /**
   * For a ring buffer or perf event array: the size of the largest record, in bytes; 0: what the proofs say
   * (`Proof.recordBytes`), which must be put here before the map is laid out. For a stack trace: 8 times the most
   * frames. 4 for a program array and maps of maps.
   */
  readonly valueBytes: number;
  /** Entries; for a ring buffer the number of records it can hold (rounded up to a power of two). */
  readonly maxEntries: number;
  /** Programs read its values and never write them, as with BPF_F_RDONLY_PROG. */
  readonly isReadOnly?: boolean;
  /** Programs write its values and never read them, as with BPF_F_WRONLY_PROG. */
  readonly isWriteOnly?: boolean;
  /** For a read-only array of one element: what the element always holds (`valueBytes` bytes). */
  readonly contents?: Uint8Array;
  /** For per-CPU kinds: how many copies every value has. */
  readonly cpus?: number;
  /** For maps of maps: what each inner map is like; never one with inner maps itself. */
  readonly inner?: MapSpec;
  /** For a bloom filter: hash functions per element, 1 to 15; 5 unless told. */
  readonly hashFunctions?: number;
}

/** Where an instruction comes from in the user's text; lines and columns count from 1. */
export interface SourcePlace {
  readonly line: number;
  readonly column: number;
}

/**
 * One program: its main function first, then the functions that it calls or passes as callbacks. Map references are
 * `ldimm64` with src 1 or 5 (BPF_PSEUDO_MAP_FD, _MAP_IDX) or with src 2 or 6 (BPF_PSEUDO_MAP_VALUE, _MAP_IDX_VALUE;
 * the second slot's imm is the byte offset in the value of element 0), whose imm is an index into `Bundle.maps`.
 * `ldimm64` with src 4 (BPF_PSEUDO_FUNC) is a callback: like that of a local call, its imm is the distance to the
 * function in slots, counted from the next slot.
 */
export interface ProgramSpec {
  readonly name: string;
  readonly insns: readonly Insn[];
  /** Place in the source by instruction index; sparse. */
  readonly places?: ReadonlyMap<number, SourcePlace>;
}

export interface Bundle {
  readonly maps: readonly MapSpec[];
  /** A program array holds indexes into this list. */
  readonly programs: readonly ProgramSpec[];
  /** Index of the ring buffer that takes what bpf_trace_printk prints; undefined: programs do not print. */
  readonly printk?: number;
}

/** One function of a program: slots `start` up to, not including, `end`. */
export interface Subprogram {
  readonly start: number;
  readonly end: number;
  /** Deepest use of its own stack frame below r10, in bytes. */
  readonly stackBytes: number;
  /** Whether a helper calls it (BPF_PSEUDO_FUNC), with the arguments of that helper's callback. */
  readonly isCallback: boolean;
}

/**
 * What the verifier proved about one program: the only way to the JIT leads through it.
 * Offsets and sizes are in bytes, keys of the maps are instruction indexes.
 */
export interface Proof {
  /** Deepest use of the main function's stack frame below r10. */
  readonly stackBytes: number;
  /** The main function, which starts at slot 0, and all others that a path reaches, in order of their slots. */
  readonly subprograms: readonly Subprogram[];
  /**
   * Offsets of the 8-byte `struct pt_regs` slots that the program may read through its context, and of the words behind
   * them that its helpers use (context.ts).
   */
  readonly ctxReads: ReadonlySet<number>;
  /** Numbers of the helpers that reachable code may call. */
  readonly helpers: ReadonlySet<number>;
  /** For each call of a map helper, the index of the one map that is passed. */
  readonly mapAtCall: ReadonlyMap<number, number>;
  /** For each call of a map helper on an inner map, the index of the map of maps that it comes from. */
  readonly outerMapAtCall: ReadonlyMap<number, number>;
  /** For each call with a constant string (bpf_snprintf's format): its bytes, without the NUL. */
  readonly stringAtCall: ReadonlyMap<number, Uint8Array>;
  /** For each call that takes a callback: the slot where the function starts. */
  readonly callbackAtCall: ReadonlyMap<number, number>;
  /** Largest record that is sent to a ring buffer or perf event array, by the index of the map. */
  readonly recordBytes: ReadonlyMap<number, number>;
  /** Instructions that no path reaches. */
  readonly deadInsns: ReadonlySet<number>;
  /** How many instructions the proof looked at. */
  readonly visited: number;
}
