/**
 * Per-CPU arrays and hash maps in shared memory, as the tracer sees them: every value is as many copies as there are
 * slots. A slot's copy is written by the program that owns the slot, and read here at any time.
 */
import { BPF_ANY, BPF_EXIST, BPF_NOEXIST, E2BIG, EEXIST, EINVAL } from "../error-numbers.ts";
import type { MapSpec } from "../program.ts";
import type { PerCpuArrayLayout } from "./array-layout.ts";
import { indexOfKey, keyOfIndex } from "./array-map.ts";
import type { HashLayout } from "./hash-layout.ts";
import { HashMap } from "./hash-map.ts";
import { SharedMap } from "./shared-map.ts";
import type { SharedMemory } from "./shared-memory.ts";
import { copyToWords, readValue } from "./value-access.ts";

/** A key and its value in every slot, as copies. */
export interface PerCpuEntry {
  readonly key: Uint8Array;
  readonly values: readonly Uint8Array[];
  /** Byte offset in `memory` of the copy of the slot that was asked for. */
  readonly offset: number;
}

export class PerCpuArrayMap extends SharedMap<PerCpuArrayLayout> {
  readonly kind = "percpu_array";

  get cpus(): number {
    return this.layout.cpus;
  }

  /** Byte offset in `memory` of the copy of one slot. */
  lookup(key: Uint8Array, slot = 0): number | undefined {
    const index = indexOfKey(key);
    const { copiesOffset, copyBytes, stride, cpus } = this.layout;
    if (index >= this.spec.maxEntries) return undefined;
    return this.byteOffset + copiesOffset + (slot % cpus) * copyBytes + index * stride;
  }

  /** Writes the copy of one slot. */
  update(key: Uint8Array, value: Uint8Array, flags: bigint = BPF_ANY, slot = 0): number {
    return this.#update(key, flags, () => this.#write(key, slot, value));
  }

  /** Writes all copies. */
  updateCopies(key: Uint8Array, values: readonly Uint8Array[], flags: bigint = BPF_ANY): number {
    return this.#update(key, flags, () => {
      for (let slot = 0; slot < this.cpus; slot++) this.#write(key, slot, values[slot] ?? new Uint8Array(0));
    });
  }

  #update(key: Uint8Array, flags: bigint, write: () => void): number {
    if (BigInt.asUintN(64, flags) > BPF_EXIST) return EINVAL;
    if (indexOfKey(key) >= this.spec.maxEntries) return E2BIG;
    if (flags === BPF_NOEXIST) return EEXIST;
    write();
    return 0;
  }

  #write(key: Uint8Array, slot: number, value: Uint8Array): void {
    copyToWords(this.memory, this.lookup(key, slot)!, value, this.spec.valueBytes);
  }

  /** Elements of an array cannot be deleted. */
  delete(_key: Uint8Array): number {
    return EINVAL;
  }

  /** A copy of the value in every slot. */
  read(key: Uint8Array): Uint8Array[] | undefined {
    if (indexOfKey(key) >= this.spec.maxEntries) return undefined;
    return Array.from({ length: this.cpus }, (_, slot) =>
      readValue(this.memory, this.lookup(key, slot)!, this.spec.valueBytes),
    );
  }

  *entries(slot = 0): Generator<PerCpuEntry> {
    for (let index = 0; index < this.spec.maxEntries; index++) {
      const key = keyOfIndex(index);
      yield { key, values: this.read(key)!, offset: this.lookup(key, slot)! };
    }
  }

  /** Makes every value zero. */
  clear(): void {
    const { words } = this.memory;
    const first = (this.byteOffset + this.layout.copiesOffset) / 8;
    const end = (this.byteOffset + this.layout.totalBytes) / 8;
    for (let i = first; i < end; i++) if (Atomics.load(words, i) !== 0n) Atomics.store(words, i, 0n);
  }
}

export class PerCpuHashMap extends SharedMap<HashLayout> {
  readonly kind = "percpu_hash";
  readonly #map: HashMap;

  constructor(spec: MapSpec, layout: HashLayout, memory: SharedMemory, byteOffset: number) {
    super(spec, layout, memory, byteOffset);
    this.#map = new HashMap(spec, layout, memory, byteOffset);
  }

  get cpus(): number {
    return this.layout.copies?.cpus ?? 1;
  }

  /** How many updates found the map full, by anyone. */
  get refused(): bigint {
    return this.#map.refused;
  }

  /** Byte offset in `memory` of the copy of one slot. */
  lookup(key: Uint8Array, slot = 0): number | undefined {
    return this.#map.lookup(key, slot);
  }

  /** Writes the copy of one slot; the others of a new key are zeros. */
  update(key: Uint8Array, value: Uint8Array, flags: bigint = BPF_ANY, slot = 0): number {
    return this.#map.update(key, value, flags, slot);
  }

  /** Writes all copies. */
  updateCopies(key: Uint8Array, values: readonly Uint8Array[], flags: bigint = BPF_ANY): number {
    return this.#map.updateCopies(key, values, flags);
  }

  delete(key: Uint8Array): number {
    return this.#map.delete(key);
  }

  /** A copy of the value in every slot. */
  read(key: Uint8Array): Uint8Array[] | undefined {
    const first = this.#map.find(key);
    return first === undefined ? undefined : this.#copies(first.offset);
  }

  *entries(slot = 0): Generator<PerCpuEntry> {
    const { slotBytes } = this.layout.copies!;
    for (const { key, offset } of this.#map.entries())
      yield { key, values: this.#copies(offset), offset: offset + (slot % this.cpus) * slotBytes };
  }

  clear(): void {
    this.#map.clear();
  }

  /** From the offset of slot 0's copy. */
  #copies(offset: number): Uint8Array[] {
    const { slotBytes } = this.layout.copies!;
    return Array.from({ length: this.cpus }, (_, slot) =>
      readValue(this.memory, offset + slot * slotBytes, this.layout.valueBytes),
    );
  }
}
