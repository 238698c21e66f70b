/**
 * The one reader of a ring buffer.
 *
 * Records come out in the order in which they were reserved. A record that stays reserved because its thread died
 * (or sleeps) would hold up everything behind it, so it is retired after a while: the reader steps over its cell.
 * If it is committed after all, it is delivered then, out of order, and its cell comes back into use when the
 * reader passes it next time. Nothing is delivered twice, nothing that was committed is lost.
 *
 * The memory belongs to a traced process: what makes no sense is skipped and counted, and every loop is bounded. How far the
 * reader is it knows itself. A tail that no writer can have reached is put back to there; what writers find in the cells then
 * is older than their lap, and they step over it, and it is read.
 */
import {
  CELL_DISCARDED,
  CELL_FLAGS,
  CELL_LENGTH,
  CELL_RECORD,
  RING_CELLS,
  RING_DROPPED,
  RING_HEAD,
  RING_TAIL,
  type RingLayout,
} from "./ring-layout.ts";
import type { SharedMemory } from "./shared-memory.ts";

export interface RingConsumerOptions {
  /** A clock that never goes back, in milliseconds. */
  readonly nowMs: () => number;
  /** How long a record may stay reserved before the reader steps over it. */
  readonly retireAfterMs?: number;
}

const DEFAULT_RETIRE_AFTER_MS = 250;

/** A cell that was stepped over, by the state that its writer found. */
interface RetiredCell {
  readonly state: bigint;
  isDelivered: boolean;
}

export class RingConsumer {
  readonly #layout: RingLayout;
  readonly #memory: SharedMemory;
  readonly #byteOffset: number;
  readonly #nowMs: () => number;
  readonly #retireAfterMs: number;
  readonly #retired = new Map<number, RetiredCell>();
  #head: bigint;
  /** When the reader first waited for a record below `tail`: those are at least that old. */
  #waiting: { readonly tail: bigint; readonly sinceMs: number } | undefined;
  #retiredCount = 0;
  #discardedCount = 0;
  #corruptCount = 0;

  constructor(layout: RingLayout, memory: SharedMemory, byteOffset: number, options: RingConsumerOptions) {
    this.#layout = layout;
    this.#memory = memory;
    this.#byteOffset = byteOffset;
    this.#nowMs = options.nowMs;
    this.#retireAfterMs = options.retireAfterMs ?? DEFAULT_RETIRE_AFTER_MS;
    this.#head = this.#load(RING_HEAD);
  }

  /** Records that found the ring full. */
  get dropped(): bigint {
    return BigInt.asUintN(64, this.#load(RING_DROPPED));
  }

  /** Records that were stepped over because they were not committed in time, late ones included. */
  get retired(): number {
    return this.#retiredCount;
  }

  /** Records that their program gave up. */
  get discarded(): number {
    return this.#discardedCount;
  }

  /** Cells, and numbers of readers and writers, that held something impossible. */
  get corrupt(): number {
    return this.#corruptCount;
  }

  /** Delivers up to `max` committed records, as copies; returns how many. */
  poll(max: number, onRecord: (record: Uint8Array) => void): number {
    return this.#deliver(max, onRecord, false);
  }

  /** Delivers all committed records and waits for none: for the end, when no program runs any more. */
  drain(onRecord: (record: Uint8Array) => void): number {
    return this.#deliver(Number.POSITIVE_INFINITY, onRecord, true);
  }

  #deliver(max: number, onRecord: (record: Uint8Array) => void, isFinal: boolean): number {
    let delivered = 0;
    for (const record of this.#lateRecords()) {
      onRecord(record);
      delivered++;
    }
    const { cells } = this.#layout;
    this.#repair();
    // Bounded also when writers are faster than this loop.
    for (let visited = 0; visited < 2 * cells && delivered < max; visited++) {
      const tail = this.#load(RING_TAIL);
      if (tail <= this.#head) break;
      const index = Number(this.#head & BigInt(cells - 1));
      const cell = this.#byteOffset + RING_CELLS + index * this.#layout.cellBytes;
      const free = this.#head - BigInt(index);
      const state = Atomics.load(this.#memory.words, cell / 8);
      if (state === free && !isFinal && !this.#isOverdue(tail)) break;
      const record = this.#passCell(index, cell, state, free);
      this.#advance();
      if (record !== undefined) {
        onRecord(record);
        delivered++;
      }
    }
    return delivered;
  }

  /** Puts right what nobody but the process can have made wrong. */
  #repair(): void {
    const { words } = this.#memory;
    const tail = this.#load(RING_TAIL);
    if (tail < this.#head || tail > this.#head + BigInt(this.#layout.cells)) {
      this.#corruptCount++;
      Atomics.store(words, (this.#byteOffset + RING_TAIL) / 8, this.#head);
    }
    if (this.#load(RING_HEAD) === this.#head) return;
    this.#corruptCount++;
    Atomics.store(words, (this.#byteOffset + RING_HEAD) / 8, this.#head);
  }

  /** Decides about the cell at the head and, unless a writer may still commit it, frees it for the next lap. */
  #passCell(index: number, cell: number, state: bigint, free: bigint): Uint8Array | undefined {
    const { cells } = this.#layout;
    if (state === free) {
      this.#retired.set(index, { state, isDelivered: false });
      this.#retiredCount++;
      return undefined;
    }
    // Otherwise than committed: writers stepped over this cell, because it was retired in an earlier lap.
    const phase = state & BigInt(cells - 1);
    const isOlder = state >= 0n && state < free;
    if (isOlder && phase === 0n) return undefined;
    const isCommitted = state === free + 1n || (isOlder && phase === 1n);
    if (!isCommitted) this.#corruptCount++;
    const wasDelivered = this.#retired.get(index)?.isDelivered === true;
    this.#retired.delete(index);
    const record = isCommitted && !wasDelivered ? this.#copyRecord(cell) : undefined;
    Atomics.store(this.#memory.words, cell / 8, free + BigInt(cells));
    return record;
  }

  #lateRecords(): Uint8Array[] {
    const records: Uint8Array[] = [];
    for (const [index, retired] of this.#retired) {
      const cell = this.#byteOffset + RING_CELLS + index * this.#layout.cellBytes;
      if (retired.isDelivered || Atomics.load(this.#memory.words, cell / 8) !== retired.state + 1n) continue;
      retired.isDelivered = true;
      const record = this.#copyRecord(cell);
      if (record !== undefined) records.push(record);
    }
    return records;
  }

  /** Whether the record at the head has been waited for long enough. */
  #isOverdue(tail: bigint): boolean {
    const nowMs = this.#nowMs();
    if (this.#waiting === undefined || this.#waiting.tail <= this.#head) {
      this.#waiting = { tail, sinceMs: nowMs };
    }
    return nowMs - this.#waiting.sinceMs >= this.#retireAfterMs;
  }

  #advance(): void {
    this.#head++;
    Atomics.store(this.#memory.words, (this.#byteOffset + RING_HEAD) / 8, this.#head);
  }

  #copyRecord(cell: number): Uint8Array | undefined {
    const { view, bytes } = this.#memory;
    if ((view.getUint32(cell + CELL_FLAGS, true) & CELL_DISCARDED) !== 0) {
      this.#discardedCount++;
      return undefined;
    }
    const lenBytes = view.getUint32(cell + CELL_LENGTH, true);
    if (lenBytes > this.#layout.cellBytes - CELL_RECORD) {
      this.#corruptCount++;
      return undefined;
    }
    return bytes.slice(cell + CELL_RECORD, cell + CELL_RECORD + lenBytes);
  }

  #load(offset: number): bigint {
    return Atomics.load(this.#memory.words, (this.#byteOffset + offset) / 8);
  }
}
