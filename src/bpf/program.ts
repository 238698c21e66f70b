/**
 * Programs and maps as plain data, before anything is proved, compiled or placed in memory.
 *
 * A bundle is what one front end hands over: its maps, and programs that name those maps by index.
 */
import type { Insn } from "./insn.ts";

/** Kinds of map by their kernel name, without `BPF_MAP_TYPE_`. */
export type MapKind = "array" | "hash" | "ringbuf";

export interface MapSpec {
  readonly name: string;
  readonly kind: MapKind;
  /** 4 for an array, 0 for a ring buffer. */
  readonly keyBytes: number;
  /** For a ring buffer: the size of the largest record, in bytes. */
  readonly valueBytes: number;
  /** Entries; for a ring buffer the number of records it can hold (rounded up to a power of two). */
  readonly maxEntries: number;
  /** Programs read its values and never write them, as with BPF_F_RDONLY_PROG. */
  readonly isReadOnly?: boolean;
}

/** Where an instruction comes from in the user's text; lines and columns count from 1. */
export interface SourcePlace {
  readonly line: number;
  readonly column: number;
}

/**
 * One program. Map references are `ldimm64` with src 1 (BPF_PSEUDO_MAP_FD) or 2 (BPF_PSEUDO_MAP_VALUE, the
 * second slot's imm is the byte offset in the value of element 0), whose imm is an index into `Bundle.maps`.
 */
export interface ProgramSpec {
  readonly name: string;
  readonly insns: readonly Insn[];
  /** Place in the source by instruction index; sparse. */
  readonly places?: ReadonlyMap<number, SourcePlace>;
}

export interface Bundle {
  readonly maps: readonly MapSpec[];
  readonly programs: readonly ProgramSpec[];
}

/**
 * What the verifier proved about one program: the only way to the JIT leads through it.
 * Offsets and sizes are in bytes, keys of the maps are instruction indexes.
 */
export interface Proof {
  /** Deepest use of the stack below r10. */
  readonly stackBytes: number;
  /** Offsets of the 8-byte `struct pt_regs` slots that the program may read through its context. */
  readonly ctxReads: ReadonlySet<number>;
  /** Numbers of the helpers that reachable code may call. */
  readonly helpers: ReadonlySet<number>;
  /** For each call of a map helper, the index of the one map that is passed. */
  readonly mapAtCall: ReadonlyMap<number, number>;
  /** Instructions that no path reaches. */
  readonly deadInsns: ReadonlySet<number>;
  /** How many instructions the proof looked at. */
  readonly visited: number;
}
