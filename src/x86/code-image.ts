/**
 * What code analysis needs to know about an image: its executable bytes, its functions, and which addresses its
 * data may lead to. All addresses are run-time addresses in the target.
 */
export interface CodeRange {
  readonly start: bigint;
  readonly bytes: Uint8Array;
}

export interface FunctionRange {
  readonly start: bigint;
  readonly end: bigint;
  readonly name: string | undefined;
}

export interface CodeImage {
  readonly name: string;
  /** Executable ranges: bytes of the file as mapped. */
  readonly text: readonly CodeRange[];
  /** The function that contains the address. */
  findFunction(addr: bigint): FunctionRange | undefined;
  /**
   * Addresses in [from, to) that static data may lead to: relocated pointers, entry points, dynamic symbols; in
   * an image without relocations every pointer-sized value in its data.
   */
  pointersInto(from: bigint, to: bigint): readonly bigint[];
  /** Where exceptions that pass through the function may land. */
  landingPads(fn: { readonly start: bigint; readonly end: bigint }): readonly bigint[];
  /** File-backed data at an address, for jump tables. */
  readData(addr: bigint, lenBytes: number): Uint8Array | undefined;
}

/** Bytes [start, end) of the text, or undefined where they are not all in one executable range. */
export function textBytes(image: CodeImage, start: bigint, end: bigint): Uint8Array | undefined {
  for (const range of image.text) {
    const from = Number(start - range.start);
    const to = Number(end - range.start);
    if (from >= 0 && to <= range.bytes.length && from <= to) return range.bytes.subarray(from, to);
  }
  return undefined;
}

export function inText(image: CodeImage, addr: bigint): boolean {
  return image.text.some((range) => addr >= range.start && addr < range.start + BigInt(range.bytes.length));
}
