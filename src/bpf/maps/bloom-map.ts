/** A bloom filter in shared memory, as the tracer sees it (bloom-layout.ts). */
import { BPF_ANY, EINVAL, ENOENT } from "../error-numbers.ts";
import type { BloomLayout } from "./bloom-layout.ts";
import { hashOf } from "./key-hash.ts";
import { SharedMap } from "./shared-map.ts";
import { wordsOf } from "./value-access.ts";

export class BloomMap extends SharedMap<BloomLayout> {
  readonly kind = "bloom_filter";

  /** Puts a value in. */
  push(value: Uint8Array, flags: bigint = BPF_ANY): number {
    if (flags !== BPF_ANY) return EINVAL;
    for (const { place, mask } of this.#bits(value)) Atomics.or(this.memory.words, place, mask);
    return 0;
  }

  /** 0 if the value may be there, -ENOENT if it is not. */
  test(value: Uint8Array): number {
    const isThere = this.#bits(value).every(
      ({ place, mask }) => (Atomics.load(this.memory.words, place) & mask) !== 0n,
    );
    return isThere ? 0 : ENOENT;
  }

  clear(): void {
    const first = this.byteOffset / 8;
    const { words } = this.memory;
    for (let i = 0; i < this.layout.totalBytes / 8; i++)
      if (Atomics.load(words, first + i) !== 0n) Atomics.store(words, first + i, 0n);
  }

  #bits(value: Uint8Array): { readonly place: number; readonly mask: bigint }[] {
    const { hashFunctions, bitShift } = this.layout;
    let hash = hashOf(wordsOf(value, this.spec.valueBytes));
    const distance = BigInt.asUintN(64, (hash << 32n) | (hash >> 32n)) | 1n;
    return Array.from({ length: hashFunctions }, () => {
      const bit = hash >> BigInt(bitShift);
      hash = BigInt.asUintN(64, hash + distance);
      return {
        place: this.byteOffset / 8 + Number(bit >> 6n),
        mask: BigInt.asIntN(64, 1n << (bit & 63n)),
      };
    });
  }
}
