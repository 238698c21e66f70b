/** Program arrays and maps of maps in shared memory, as the tracer sees them: words that name programs and maps. */
import { E2BIG } from "../error-numbers.ts";
import type { MapSpec } from "../program.ts";
import type { SlotsLayout } from "./array-layout.ts";
import { indexOfKey } from "./array-map.ts";
import type { HashLayout } from "./hash-layout.ts";
import { HashMap } from "./hash-map.ts";
import { SharedMap } from "./shared-map.ts";
import type { SharedMemory } from "./shared-memory.ts";

/** Which program a tail call with an index goes to. */
export class ProgArrayMap extends SharedMap<SlotsLayout> {
  readonly kind = "prog_array";

  /** Index in the bundle's programs; undefined: none, or nothing sensible. */
  programAt(index: number): number | undefined {
    if (!(index >= 0 && index < this.spec.maxEntries)) return undefined;
    const word = Atomics.load(this.memory.words, this.byteOffset / 8 + index);
    return word > 0n && word <= 0xffff_ffffn ? Number(word) - 1 : undefined;
  }

  /** 0, or -E2BIG beyond the end. */
  set(index: number, program: number | undefined): number {
    if (!(index >= 0 && index < this.spec.maxEntries)) return E2BIG;
    const word = program === undefined ? 0n : BigInt(program + 1);
    Atomics.store(this.memory.words, this.byteOffset / 8 + index, word);
    return 0;
  }
}

/** An array of maps. Maps are named by where their storage begins in `memory`. */
export class ArrayOfMaps extends SharedMap<SlotsLayout> {
  readonly kind = "array_of_maps";

  /** Byte offset in `memory` of the inner map; whether one is there the caller must know. */
  innerAt(key: Uint8Array): number | undefined {
    const index = indexOfKey(key);
    if (index >= this.spec.maxEntries) return undefined;
    return innerOffset(this.byteOffset, Atomics.load(this.memory.words, this.byteOffset / 8 + index));
  }

  /** `inner` is the byte offset in `memory` of the inner map's storage; undefined empties the slot. */
  set(key: Uint8Array, inner: number | undefined): number {
    const index = indexOfKey(key);
    if (index >= this.spec.maxEntries) return E2BIG;
    const distance = inner === undefined ? 0n : BigInt(inner - this.byteOffset);
    Atomics.store(this.memory.words, this.byteOffset / 8 + index, distance);
    return 0;
  }
}

/** A hash of maps. */
export class HashOfMaps extends SharedMap<HashLayout> {
  readonly kind = "hash_of_maps";
  readonly #map: HashMap;

  constructor(spec: MapSpec, layout: HashLayout, memory: SharedMemory, byteOffset: number) {
    super(spec, layout, memory, byteOffset);
    this.#map = new HashMap(spec, layout, memory, byteOffset);
  }

  /** Byte offset in `memory` of the inner map; whether one is there the caller must know. */
  innerAt(key: Uint8Array): number | undefined {
    const at = this.#map.lookup(key);
    return at === undefined
      ? undefined
      : innerOffset(this.byteOffset, Atomics.load(this.memory.words, at / 8));
  }

  /** `inner` is the byte offset in `memory` of the inner map's storage; undefined deletes the key. */
  set(key: Uint8Array, inner: number | undefined): number {
    if (inner === undefined) return this.#map.delete(key);
    const value = new Uint8Array(8);
    new DataView(value.buffer).setBigInt64(0, BigInt(inner - this.byteOffset), true);
    return this.#map.update(key, value);
  }
}

function innerOffset(outer: number, distance: bigint): number | undefined {
  if (distance === 0n || distance !== BigInt.asIntN(53, distance)) return undefined;
  return outer + Number(distance);
}
