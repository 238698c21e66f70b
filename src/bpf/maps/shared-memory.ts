/**
 * Memory that programs and the tracer work on at the same time.
 *
 * The tracer uses `Atomics` on `words` for everything that a program may be changing: an 8-byte element of a
 * BigInt64Array is read and written in one access.
 */

/** Three views of the same bytes, from the same first byte; `words[i]` is at byte offset `8 * i`. */
export interface SharedMemory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly words: BigInt64Array;
}

/** Views over all of `buffer`, or over a part of it that begins at a multiple of 8. */
export function sharedMemoryOf(
  buffer: ArrayBufferLike,
  byteOffset = 0,
  lenBytes = buffer.byteLength - byteOffset,
): SharedMemory {
  return {
    bytes: new Uint8Array(buffer, byteOffset, lenBytes),
    view: new DataView(buffer, byteOffset, lenBytes),
    words: new BigInt64Array(buffer, byteOffset, lenBytes >> 3),
  };
}
