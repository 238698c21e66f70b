/**
 * Where the bytes of an image come from.
 *
 * A program can be hundreds of megabytes of which a probe needs a few, so nothing is read before it is asked
 * for. This folder does no input or output: a caller with a file or a process passes its own source.
 */

/** Random access to the bytes of an image. What `read` returns must not be written to: it may be shared. */
export interface ByteSource {
  readonly sizeBytes: number;
  /** Exactly `lenBytes` bytes from `offset`, or undefined when they are not all there. */
  read(offset: number, lenBytes: number): Uint8Array | undefined;
}

/** A source over bytes that are already in memory; reads are views, nothing is copied. */
export function byteSourceOf(bytes: Uint8Array): ByteSource {
  return {
    sizeBytes: bytes.length,
    read: (offset, lenBytes) =>
      offset >= 0 && lenBytes >= 0 && offset + lenBytes <= bytes.length
        ? bytes.subarray(offset, offset + lenBytes)
        : undefined,
  };
}

/** The bytes as 32-bit little-endian words (x86-64 hosts only); a view where alignment allows, else a copy. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  const words = bytes.length >>> 2;
  if (bytes.byteOffset % 4 === 0) return new Uint32Array(bytes.buffer, bytes.byteOffset, words);
  const aligned = bytes.slice();
  return new Uint32Array(aligned.buffer, 0, words);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The NUL-terminated string at `offset`; to the end of the bytes when the NUL is missing. */
export function stringAt(bytes: Uint8Array, offset: number): string {
  let end = offset;
  while (end < bytes.length && bytes[end] !== 0) end++;
  return textBetween(bytes, offset, end);
}

const utf8 = new TextDecoder();

export function textBetween(bytes: Uint8Array, start: number, end: number): string {
  return utf8.decode(bytes.subarray(start, end));
}
