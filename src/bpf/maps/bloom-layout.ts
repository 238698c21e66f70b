/**
 * Bloom filters: bits only. A value's hash h (as for the key of a hash map) gives `hashFunctions` bit numbers,
 * `(h + i * d) >> shift` with an odd d made of h.
 */
import type { MapSpec } from "../program.ts";
import { powerOfTwo } from "./layout-sizes.ts";

export interface BloomLayout {
  readonly kind: "bloom_filter";
  readonly totalBytes: number;
  readonly hashFunctions: number;
  /** Value size in 8-byte words. */
  readonly valueWords: number;
  /** A bit's number is a hash shifted right by this. */
  readonly bitShift: number;
}

const DEFAULT_HASH_FUNCTIONS = 5;
const MOST_HASH_FUNCTIONS = 15;
const LEAST_BITS = 512;

export function layoutBloom(spec: MapSpec): BloomLayout {
  const hashFunctions = spec.hashFunctions ?? DEFAULT_HASH_FUNCTIONS;
  if (!Number.isInteger(hashFunctions) || hashFunctions < 1 || hashFunctions > MOST_HASH_FUNCTIONS)
    throw new RangeError(`lay out map ${spec.name}: ${hashFunctions} hash functions`);
  // k hash functions are best with k / ln 2 bits per entry.
  const bits = powerOfTwo(Math.max(LEAST_BITS, Math.ceil((spec.maxEntries * hashFunctions) / Math.LN2)));
  return {
    kind: "bloom_filter",
    totalBytes: bits / 8,
    hashFunctions,
    valueWords: Math.ceil(spec.valueBytes / 8),
    bitShift: 64 - Math.log2(bits),
  };
}
