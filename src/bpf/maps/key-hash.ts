/**
 * The hash of keys, values of bloom filters and stacks: `h = word * M` for the first word, then
 * `h = (rol(h, R) ^ word) * M` for each further one. The good bits are the high ones.
 */
export const HASH_MULTIPLIER = 0x9e3779b97f4a7c15n;
export const HASH_ROTATE = 29;

/** The hash of words, unsigned. */
export function hashOf(words: Iterable<bigint>): bigint {
  let hash = 0n;
  let isFirst = true;
  for (const word of words) {
    const unsigned = BigInt.asUintN(64, word);
    const rotated = (hash << BigInt(HASH_ROTATE)) | (hash >> BigInt(64 - HASH_ROTATE));
    hash = BigInt.asUintN(
      64,
      (isFirst ? unsigned : BigInt.asUintN(64, rotated) ^ unsigned) * HASH_MULTIPLIER,
    );
    isFirst = false;
  }
  return hash;
}
