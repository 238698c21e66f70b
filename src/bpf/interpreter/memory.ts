/**
 * The address space of an interpreted program: regions at made-up addresses, and nothing in between.
 *
 * Every stack, context, map value and record is a region of its own, so an access that leaves one by a byte is found
 * even if there is memory behind it. Addresses are far apart per kind and only mean something to one run.
 *
 * Aligned 4- and 8-byte accesses are single machine accesses (`Atomics` on the words): memory may be shared with
 * running threads, and DataView reads byte by byte. Other accesses may be torn, as they may be in compiled code.
 */
import type { SharedWords } from "./host.ts";

/** A block of memory with views for atomic access. */
export interface Block extends SharedWords {
  readonly ints: Int32Array;
}

export interface Region {
  readonly name: string;
  readonly base: bigint;
  readonly lenBytes: number;
  readonly writable: boolean;
  readonly block: Block;
  /** Where the region begins in the block. */
  readonly offset: number;
}

/** Where an address lies: `at` is the byte offset in the block. */
export interface Spot {
  readonly region: Region;
  readonly at: number;
}

/** An access outside every region, or one that its region does not allow. */
export class MemoryFault extends Error {
  readonly code = "bpf-memory-fault";
}

/** A block over shared memory. */
export function blockOf(memory: SharedWords): Block {
  const { words } = memory;
  return { ...memory, words, ints: new Int32Array(words.buffer, words.byteOffset, words.length * 2) };
}

/** A zeroed block of at least `lenBytes`. */
export function newBlock(lenBytes: number): Block {
  const buffer = new ArrayBuffer(Math.max(8, Math.ceil(lenBytes / 8) * 8));
  return {
    bytes: new Uint8Array(buffer),
    view: new DataView(buffer),
    words: new BigInt64Array(buffer),
    ints: new Int32Array(buffer),
  };
}

export class AddressSpace {
  /** Sorted by base; regions never overlap. */
  readonly #regions: Region[] = [];
  #last: Region | undefined;

  /** Adds a region; the same base again is the same region. */
  add(region: Region): void {
    const index = this.#after(region.base);
    if (this.#regions[index - 1]?.base === region.base) return;
    this.#regions.splice(index, 0, region);
  }

  /** Whether a region begins here. */
  has(base: bigint): boolean {
    return this.#regions[this.#after(base) - 1]?.base === base;
  }

  remove(base: bigint): void {
    const index = this.#after(base) - 1;
    if (this.#regions[index]?.base === base) this.#regions.splice(index, 1);
    this.#last = undefined;
  }

  /** The region that holds all `lenBytes` from `addr`; throws MemoryFault. */
  getSpot(addr: bigint, lenBytes: number, write: boolean): Spot {
    let region = this.#last;
    if (!region || !holds(region, addr, lenBytes)) {
      region = this.#regions[this.#after(addr) - 1];
      if (!region || !holds(region, addr, lenBytes)) {
        const near = region ? `; the nearest region below is ${describe(region)}` : "";
        throw new MemoryFault(
          `${write ? "write" : "read"} of ${lenBytes} bytes at 0x${addr.toString(16)}${near}`,
        );
      }
      this.#last = region;
    }
    if (write && !region.writable) {
      throw new MemoryFault(
        `write of ${lenBytes} bytes at 0x${addr.toString(16)}: ${region.name} is read only`,
      );
    }
    return { region, at: region.offset + Number(addr - region.base) };
  }

  /** The bytes of a region from `addr` on, `atMost` of them; undefined: no region holds that address. */
  findBytes(addr: bigint, atMost: number): Uint8Array | undefined {
    const region = this.#regions[this.#after(addr) - 1];
    if (region === undefined || !holds(region, addr, 1)) return undefined;
    const from = Number(addr - region.base);
    const to = Math.min(region.lenBytes, from + atMost);
    return region.block.bytes.subarray(region.offset + from, region.offset + to);
  }

  /** Index of the first region with a base above `addr`. */
  #after(addr: bigint): number {
    let low = 0;
    let high = this.#regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#regions[middle]!.base <= addr) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Reads an unsigned number at a spot. */
export function loadAt(block: Block, at: number, lenBytes: number): bigint {
  switch (lenBytes) {
    case 1:
      return BigInt(block.view.getUint8(at));
    case 2:
      return BigInt(block.view.getUint16(at, true));
    case 4:
      if (at % 4 === 0) return BigInt(Atomics.load(block.ints, at / 4) >>> 0);
      return BigInt(block.view.getUint32(at, true));
    default:
      if (at % 8 === 0) return BigInt.asUintN(64, Atomics.load(block.words, at / 8));
      return block.view.getBigUint64(at, true);
  }
}

/** Writes the low bytes of `value` at a spot. */
export function storeAt(block: Block, at: number, lenBytes: number, value: bigint): void {
  switch (lenBytes) {
    case 1:
      block.view.setUint8(at, Number(value & 0xffn));
      return;
    case 2:
      block.view.setUint16(at, Number(value & 0xffffn), true);
      return;
    case 4:
      if (at % 4 === 0) Atomics.store(block.ints, at / 4, Number(BigInt.asIntN(32, value)));
      else block.view.setInt32(at, Number(BigInt.asIntN(32, value)), true);
      return;
    default:
      if (at % 8 === 0) Atomics.store(block.words, at / 8, BigInt.asIntN(64, value));
      else block.view.setBigInt64(at, BigInt.asIntN(64, value), true);
  }
}

function holds(region: Region, addr: bigint, lenBytes: number): boolean {
  return addr >= region.base && addr + BigInt(lenBytes) <= region.base + BigInt(region.lenBytes);
}

function describe(region: Region): string {
  return `${region.name}, ${region.lenBytes} bytes at 0x${region.base.toString(16)}`;
}
