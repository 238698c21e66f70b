/**
 * Where probed code lives, as the rest of the engine sees it: memory to read, code memory near an image, shared
 * memory, and one operation that changes text, a transaction. A live process is one implementation; nothing here
 * assumes a process, so that a live kernel behind the GDB remote protocol can be another.
 *
 * A transaction is plain data. The target stops everything that can execute the text, checks what the transaction
 * expects, applies it, and lets everything go on. It is all or nothing for its checks: when a site does not hold the
 * expected bytes, nothing is written.
 */

/** An address in the target. */
export type Addr = bigint & { readonly __addr: unique symbol };

export const addr = (value: bigint): Addr => value as Addr;

/** Half-open range of target addresses. */
export interface AddrRange {
  readonly start: bigint;
  readonly end: bigint;
}

/** `from` is a position in one copy of an instruction, `to` the same position in the other copy. */
export interface Move {
  readonly from: bigint;
  readonly to: bigint;
}

/** Bytes to write at one probe point. */
export interface SitePoke {
  readonly at: bigint;
  /** What must be there now: the whole region, and what behind it the written bytes depend on. */
  readonly expect: Uint8Array;
  /** What is written: the region. */
  readonly write: Uint8Array;
  /**
   * What is written instead when an execution context that cannot be moved stands behind the first byte of the region;
   * absent: the site is then left as it is.
   */
  readonly fallback: Uint8Array | undefined;
  /** Where a thread that stands inside the region (behind its first byte) goes on. */
  readonly moves: readonly Move[];
  /**
   * Earlier sites of the transaction, by index, that this one makes sense with only: when one of them is left as it is,
   * this one gets its fallback.
   */
  readonly requires?: readonly number[];
  /** It is left as it is while somebody may unwind through replaced return addresses, now or after leaving the code. */
  readonly awaitsUnwinders?: boolean;
  /** It is no text, but a word of data. */
  readonly isData?: boolean;
  /** It is text beside a site, changed for the site's sake. */
  readonly isSide?: boolean;
  /** Nothing could stand at the first byte before it was changed: who does stands inside. */
  readonly hasNoStart?: boolean;
  /** The region is one instruction now and has been for as long as it is ours: nobody stands inside, whatever old frames say. */
  readonly hasNoInside?: boolean;
}

/**
 * The table of hijacked return addresses in the target's private memory: `entries` records of `entryBytes`,
 * each with the address of the return slot (its low three bits are a chain depth) and the return address that belongs there.
 */
export interface ReturnTable {
  readonly at: bigint;
  readonly entries: number;
  readonly entryBytes: number;
  readonly slotOffset: number;
  readonly returnAddressOffset: number;
  /** Where the code lies that return addresses of this table were replaced by: 128 bytes for each, 16 for each depth. */
  readonly stubs?: readonly AddrRange[];
  /** It belongs to somebody who stays: only others are taken out from between its return addresses. */
  readonly stays?: boolean;
}

/**
 * A system call to be made by the target itself; arguments as in the psABI's kernel convention. An argument of
 * bytes is put into the target's memory for the call, and passed as its address.
 */
export interface RemoteCall {
  readonly name: string;
  readonly number: number;
  readonly args: readonly (bigint | Uint8Array)[];
}

/** Code that nothing leads to any more: may its memory be used for something else? */
export interface Retirement {
  readonly ranges: readonly AddrRange[];
  /** All code from which a thread can come back into one of the ranges: what runs there is called from somewhere. */
  readonly callees: readonly AddrRange[];
  /** How far above the stack pointer of such code the return address lies, at most. */
  readonly stackBytes: number;
}

export interface Transaction {
  readonly sites: readonly SitePoke[];
  /** Threads at `from` are moved to `to` (disarming: from the copies in a detour back to the text). */
  readonly moves: readonly Move[];
  /** Addresses that hold an `int3` of ours, or held one: a trap from there that is still pending is taken back. */
  readonly trapSites: readonly bigint[];
  /** Tables whose return addresses are put back on the stacks. */
  readonly returnTables: readonly ReturnTable[];
  /** Code that nobody may use any more before `finalCalls` are made. */
  readonly vacate: readonly AddrRange[];
  /** Whether some site gets an `int3`: then no thread may block SIGTRAP. */
  readonly usesTraps: boolean;
  /** Made by a thread of the target in the same stop, only if nobody uses the code in `vacate`. */
  readonly finalCalls: readonly RemoteCall[];
  /** Unwind information of ours, in code of `vacate`: an unwinder that is at work may have pointers to it. */
  readonly unwindInfo?: readonly AddrRange[];
  /** Memory whose addresses are looked for in all threads and stacks, after everything is written; absent: no look. */
  readonly inspect?: readonly AddrRange[];
  /** Why text is changed, for a log of the writes. */
  readonly why?: PokeReason;
  /** To be looked at in the same stop, when everything is written. */
  readonly retire?: Retirement | undefined;
}

/** `arm` and `disarm` are changes of a running session, `restore` is the way out. */
export type PokeReason = "arm" | "optimize" | "disarm" | "restore";

/** Where the threads of a target stood in the stop of a transaction. */
export interface Inspection {
  readonly threads: readonly InspectedThread[];
  /** Words of live stacks that were looked at. */
  readonly stackWords: number;
  /** How many of them look like an address in what was asked for. */
  readonly lookAlikes: number;
  /** The first of them. */
  readonly shown: readonly { readonly tid: number; readonly at: bigint; readonly value: bigint }[];
}

export interface InspectedThread {
  readonly tid: number;
  readonly ip: bigint;
  /** Where its signal handlers may return to. */
  readonly savedIps: readonly bigint[];
}

/** What one site got. */
export type SiteOutcome = "written" | "fallback" | "left";

/** Who still uses code that is to be vacated. */
export interface Occupant {
  readonly tid: number;
  readonly ip: bigint;
  /** `running` there, `unwinding` through return addresses of ours, or interrupted there by a signal whose handler is not done. */
  readonly how: "running" | "interrupted" | "unwinding";
}

export type CommitReport =
  | {
      readonly kind: "committed";
      readonly outcomes: readonly SiteOutcome[];
      readonly occupants: readonly Occupant[];
      /** Results of `finalCalls`; empty when there were occupants. */
      readonly callResults: readonly bigint[];
      /** How long threads stood: from the first interrupt to the last resume. */
      readonly stoppedNs: bigint;
      readonly threads: number;
      /** Return addresses that were put back. */
      readonly returnsRestored: number;
      /** Present if the transaction asked for it. */
      readonly inspection?: Inspection | undefined;
      /** When each site was written, in nanoseconds of CLOCK_MONOTONIC; 0 where it was left. */
      readonly writtenNs: readonly bigint[];
      /** For each range of `retire`: is nobody in it, and comes nobody back into it? Absent: nothing was to be retired. */
      readonly retired?: readonly boolean[];
    }
  | {
      readonly kind: "refused";
      readonly reason: CommitRefusal;
    };

export type CommitRefusal =
  | {
      readonly kind: "text-differs";
      readonly at: bigint;
      readonly expected: Uint8Array;
      readonly found: Uint8Array;
      /** The process id of another tracer that has changed it, where that is known. */
      readonly tracer?: number;
    }
  | { readonly kind: "sigtrap-blocked"; readonly tid: number }
  /** Another process that shares the memory would die of an `int3`. */
  | { readonly kind: "sigtrap-unhandled"; readonly pid: number }
  | { readonly kind: "target-gone" };
