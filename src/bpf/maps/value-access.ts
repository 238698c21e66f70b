/** Values in shared memory: copied word by word, so that each aligned 8 bytes are never half old and half new. */
import type { SharedMemory } from "./shared-memory.ts";

/** A copy of `lenBytes` bytes from a multiple of 8. */
export function readValue(memory: SharedMemory, byteOffset: number, lenBytes: number): Uint8Array {
  const copy = new BigInt64Array(Math.ceil(lenBytes / 8));
  const first = byteOffset / 8;
  for (let i = 0; i < copy.length; i++) copy[i] = Atomics.load(memory.words, first + i);
  return new Uint8Array(copy.buffer, 0, lenBytes);
}

/** Writes `lenBytes` bytes at a multiple of 8, and zeros up to the next multiple of 8. */
export function copyToWords(
  memory: SharedMemory,
  byteOffset: number,
  value: Uint8Array,
  lenBytes: number,
): void {
  const padded = wordsOf(value, lenBytes);
  const first = byteOffset / 8;
  for (let i = 0; i < padded.length; i++) Atomics.store(memory.words, first + i, padded[i]!);
}

/** The first `lenBytes` bytes as words, padded with zeros. */
export function wordsOf(value: Uint8Array, lenBytes: number): BigInt64Array {
  const words = new BigInt64Array(Math.ceil(lenBytes / 8));
  new Uint8Array(words.buffer).set(value.subarray(0, lenBytes));
  return words;
}
