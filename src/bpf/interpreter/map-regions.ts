/**
 * Maps in an interpreted program's address space.
 *
 * A map itself is a handle: an address where nothing lies. A value or record becomes a region when the program gets
 * a pointer to it. A value's region stays: its memory belongs to the map for as long as the map lives. A record's
 * region goes with its submit or discard.
 */
import { isAlike } from "../map-kinds.ts";
import type {
  LookupMapAccess,
  MapAccess,
  OuterMapAccess,
  PushMapAccess,
  RingMapAccess,
  StackMapAccess,
} from "./host.ts";
import { type AddressSpace, type Block, blockOf, MemoryFault } from "./memory.ts";

const HANDLE_BASE = 0x10_0000_0000n;
const HANDLE_STEP = 0x1000n;
/** Storage of map i begins here plus i steps; no map is that large. */
const STORAGE_BASE = 0x1000_0000_0000n;
const STORAGE_STEP = 0x100_0000_0000n;

export class InterpreterMaps {
  readonly #maps: readonly MapAccess[];
  readonly #space: AddressSpace;
  readonly #blocks = new Map<number, Block>();
  /** Record address to the index of its ring buffer and its offset. */
  readonly #records = new Map<bigint, { readonly map: number; readonly offset: number }>();

  constructor(maps: readonly MapAccess[], space: AddressSpace) {
    this.#maps = maps;
    this.#space = space;
  }

  handleOf(index: number): bigint {
    return HANDLE_BASE + BigInt(index) * HANDLE_STEP;
  }

  getLookupMap(handle: bigint): LookupMapAccess {
    const map = this.#get(handle);
    if (!("lookup" in map))
      throw new MemoryFault(`map helper on map ${map.spec.name} of kind ${map.spec.kind}`);
    return map;
  }

  getOuterMap(handle: bigint): OuterMapAccess | undefined {
    const map = this.#get(handle);
    return "innerAt" in map ? map : undefined;
  }

  getPushMap(handle: bigint): PushMapAccess {
    const map = this.#get(handle);
    if (!("push" in map))
      throw new MemoryFault(`map helper on map ${map.spec.name} of kind ${map.spec.kind}`);
    return map;
  }

  getStackMap(handle: bigint): StackMapAccess {
    const map = this.#get(handle);
    if (!("insert" in map))
      throw new MemoryFault(`stack helper on map ${map.spec.name} of kind ${map.spec.kind}`);
    return map;
  }

  getRingMap(handle: bigint): RingMapAccess {
    return this.#getRing(this.#indexOf(handle));
  }

  /** The inner map in a slot of a map of maps, or 0. Only a map that is as the outer one says is handed on. */
  innerMap(outer: OuterMapAccess, key: Uint8Array): bigint {
    const at = outer.innerAt(key);
    const { inner } = outer.spec;
    if (at === undefined || inner === undefined) return 0n;
    const index = this.#maps.findIndex((map) => map.byteOffset === at && isAlike(map.spec, inner));
    return index < 0 ? 0n : this.handleOf(index);
  }

  /** Index of the program in a slot of a program array. */
  programAt(handle: bigint, index: number): number | undefined {
    const map = this.#get(handle);
    if (!("programAt" in map))
      throw new MemoryFault(`tail call through map ${map.spec.name} of kind ${map.spec.kind}`);
    return map.programAt(index);
  }

  /** The address of the value at `offset` in the storage of the map, 0 for undefined. */
  addressOfValue(handle: bigint, offset: number | undefined): bigint {
    if (offset === undefined) return 0n;
    const index = this.#indexOf(handle);
    return this.#addRegion(index, offset, this.#get(handle).spec.valueBytes, "value");
  }

  /** The address of byte `offset` in element 0 of an array. */
  addressInFirstValue(index: number, offset: number): bigint {
    const handle = this.handleOf(index);
    const map = this.getLookupMap(handle);
    const first = map.lookup(new Uint8Array(map.spec.keyBytes));
    if (first === undefined)
      throw new MemoryFault(`address of a value: map ${map.spec.name} has no element 0`);
    return this.addressOfValue(handle, first) + BigInt(offset);
  }

  reserveRecord(handle: bigint, lenBytes: number): bigint {
    const index = this.#indexOf(handle);
    const offset = this.#getRing(index).reserve(lenBytes);
    if (offset === undefined) return 0n;
    const addr = this.#addRegion(index, offset, lenBytes, "record");
    this.#records.set(addr, { map: index, offset });
    return addr;
  }

  releaseRecord(addr: bigint, how: "submit" | "discard", flags: bigint): void {
    const record = this.#records.get(addr);
    if (!record) throw new MemoryFault(`${how} of 0x${addr.toString(16)}: no reserved record begins there`);
    this.#records.delete(addr);
    this.#space.remove(addr);
    this.#getRing(record.map)[how](record.offset, flags);
  }

  /** How many records are reserved and neither submitted nor discarded. */
  get openRecords(): number {
    return this.#records.size;
  }

  #addRegion(index: number, offset: number, lenBytes: number, what: string): bigint {
    let block = this.#blocks.get(index);
    if (!block) {
      block = blockOf(this.#maps[index]!.memory);
      this.#blocks.set(index, block);
    }
    const base = STORAGE_BASE + BigInt(index) * STORAGE_STEP + BigInt(offset);
    const name = `${what} of map ${this.#maps[index]!.spec.name}`;
    this.#space.add({ name, base, lenBytes, writable: true, block, offset });
    return base;
  }

  #indexOf(handle: bigint): number {
    const index = Number((handle - HANDLE_BASE) / HANDLE_STEP);
    if (handle < HANDLE_BASE || index >= this.#maps.length || this.handleOf(index) !== handle) {
      throw new MemoryFault(`map helper on 0x${handle.toString(16)}, which is no map`);
    }
    return index;
  }

  #get(handle: bigint): MapAccess {
    return this.#maps[this.#indexOf(handle)]!;
  }

  #getRing(index: number): RingMapAccess {
    const map = this.#maps[index]!;
    if (!("reserve" in map))
      throw new MemoryFault(`record helper on map ${map.spec.name} of kind ${map.spec.kind}`);
    return map;
  }
}
