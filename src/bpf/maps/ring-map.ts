/**
 * A ring buffer in shared memory from the writers' side, for programs that run in the tracer itself: the same
 * steps as the routine of the JIT (ring-layout.ts has the states).
 */
import {
  CELL_DISCARDED,
  CELL_FLAGS,
  CELL_LENGTH,
  CELL_RECORD,
  RING_CELLS,
  RING_DROPPED,
  RING_HEAD,
  RING_QUERY_AVAILABLE,
  RING_QUERY_HEAD,
  RING_QUERY_SIZE,
  RING_QUERY_TAIL,
  RING_TAIL,
  type RingLayout,
} from "./ring-layout.ts";
import { SharedMap } from "./shared-map.ts";

/** Attempts at a cell; only memory that makes no sense needs so many. */
const MAX_TRIES = 20_000;

export class RingMap extends SharedMap<RingLayout> {
  readonly kind = "ringbuf";

  /** Records that found the ring full, by anyone. */
  get dropped(): bigint {
    return BigInt.asUintN(64, Atomics.load(this.memory.words, (this.byteOffset + RING_DROPPED) / 8));
  }

  /** Byte offset in `memory` of a new record; undefined: the ring is full (counted) or the record too long. */
  reserve(recordBytes: number): number | undefined {
    const { words, view } = this.memory;
    const base = this.byteOffset / 8;
    const { cells, cellBytes } = this.layout;
    if (recordBytes > this.spec.valueBytes) return undefined;
    for (let tries = 0; tries < MAX_TRIES + 2 * cells; tries++) {
      const tail = Atomics.load(words, base + RING_TAIL / 8);
      const index = Number(tail & BigInt(cells - 1));
      const cell = this.byteOffset + RING_CELLS + index * cellBytes;
      const free = tail - BigInt(index);
      // The head is read before the state: if the ring is not full then, the state is already the new one.
      const head = Atomics.load(words, base + RING_HEAD / 8);
      if (Atomics.load(words, cell / 8) === free) {
        if (Atomics.compareExchange(words, base + RING_TAIL / 8, tail, tail + 1n) !== tail) continue;
        view.setUint32(cell + CELL_LENGTH, recordBytes, true);
        view.setUint32(cell + CELL_FLAGS, 0, true);
        return cell + CELL_RECORD;
      }
      // A head above the tail is no head.
      if (BigInt.asUintN(64, tail - head) >= BigInt(cells)) {
        if (Atomics.load(words, base + RING_TAIL / 8) !== tail) continue;
        Atomics.add(words, base + RING_DROPPED / 8, 1n);
        return undefined;
      }
      // A retired cell, or the tail has moved: then this fails.
      Atomics.compareExchange(words, base + RING_TAIL / 8, tail, tail + 1n);
    }
    return undefined;
  }

  /** Sends a copy of `record`; false if the ring is full (counted) or the record too long. */
  output(record: Uint8Array): boolean {
    const offset = this.reserve(record.length);
    if (offset === undefined) return false;
    this.memory.bytes.set(record, offset);
    this.submit(offset);
    return true;
  }

  /** What bpf_ringbuf_query returns, in bytes of cells. */
  query(what: bigint): bigint {
    const { cells, cellBytes } = this.layout;
    const at = (offset: number) =>
      BigInt.asUintN(64, Atomics.load(this.memory.words, (this.byteOffset + offset) / 8) * BigInt(cellBytes));
    switch (what) {
      case RING_QUERY_AVAILABLE:
        return BigInt.asUintN(64, at(RING_TAIL) - at(RING_HEAD));
      case RING_QUERY_SIZE:
        return BigInt(cells * cellBytes);
      case RING_QUERY_HEAD:
        return at(RING_HEAD);
      case RING_QUERY_TAIL:
        return at(RING_TAIL);
      default:
        return 0n;
    }
  }

  /** Hands the record over to the reader. */
  submit(offset: number, _flags = 0n): void {
    Atomics.add(this.memory.words, (offset - CELL_RECORD) / 8, 1n);
  }

  /** Gives the record up; the reader skips it. */
  discard(offset: number, flags = 0n): void {
    this.memory.view.setUint32(offset - CELL_RECORD + CELL_FLAGS, CELL_DISCARDED, true);
    this.submit(offset, flags);
  }
}
