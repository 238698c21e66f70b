/** An array in shared memory, as the tracer sees it. */
import { BPF_EXIST, BPF_NOEXIST, E2BIG, EEXIST, EINVAL } from "../error-numbers.ts";
import type { ArrayLayout } from "./array-layout.ts";
import { SharedMap } from "./shared-map.ts";
import { copyToWords, readValue } from "./value-access.ts";

export class ArrayMap extends SharedMap<ArrayLayout> {
  readonly kind = "array";

  /** Byte offset of element `index` in `memory`; undefined beyond the end. */
  valueOffset(index: number): number | undefined {
    return index < this.spec.maxEntries ? this.byteOffset + index * this.layout.stride : undefined;
  }

  /** Byte offset of the value in `memory`. The key is an index, 4 bytes, little endian. */
  lookup(key: Uint8Array): number | undefined {
    return this.valueOffset(indexOfKey(key));
  }

  update(key: Uint8Array, value: Uint8Array, flags: bigint): number {
    if (BigInt.asUintN(64, flags) > BPF_EXIST) return EINVAL;
    const offset = this.lookup(key);
    if (offset === undefined) return E2BIG;
    if (flags === BPF_NOEXIST) return EEXIST;
    copyToWords(this.memory, offset, value, this.spec.valueBytes);
    return 0;
  }

  /** Elements of an array cannot be deleted. */
  delete(_key: Uint8Array): number {
    return EINVAL;
  }

  /** A copy of element `index`. */
  read(index: number): Uint8Array | undefined {
    const offset = this.valueOffset(index);
    return offset === undefined ? undefined : readValue(this.memory, offset, this.spec.valueBytes);
  }

  /** All elements, as copies, in order. */
  *entries(): Generator<{ readonly key: Uint8Array; readonly value: Uint8Array; readonly offset: number }> {
    for (let index = 0; index < this.spec.maxEntries; index++) {
      const key = keyOfIndex(index);
      const offset = this.valueOffset(index)!;
      yield { key, value: readValue(this.memory, offset, this.spec.valueBytes), offset };
    }
  }

  /** Makes every value zero. Additions by programs meanwhile are either kept or cleared. */
  clear(): void {
    const { words } = this.memory;
    const first = this.byteOffset / 8;
    const end = first + (this.layout.stride * this.spec.maxEntries) / 8;
    for (let i = first; i < end; i++) if (Atomics.load(words, i) !== 0n) Atomics.store(words, i, 0n);
  }
}

/** The index that a 4-byte key is. */
export function indexOfKey(key: Uint8Array): number {
  return new DataView(key.buffer, key.byteOffset, key.byteLength).getUint32(0, true);
}

export function keyOfIndex(index: number): Uint8Array {
  const key = new Uint8Array(4);
  new DataView(key.buffer).setUint32(0, index, true);
  return key;
}
