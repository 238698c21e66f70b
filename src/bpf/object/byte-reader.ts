/** Little-endian numbers and strings in a part of a file that may be cut short or wrong. */
import { fail } from "./object-error.ts";

const latin1 = new TextDecoder("latin1");

export class ByteReader {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  /** How messages call it: `section .BTF`. */
  readonly #what: string;

  constructor(bytes: Uint8Array, what: string) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#what = what;
  }

  get length(): number {
    return this.bytes.length;
  }

  u8(at: number): number {
    return this.#view.getUint8(this.#checked(at, 1));
  }

  u16(at: number): number {
    return this.#view.getUint16(this.#checked(at, 2), true);
  }

  u32(at: number): number {
    return this.#view.getUint32(this.#checked(at, 4), true);
  }

  i32(at: number): number {
    return this.#view.getInt32(this.#checked(at, 4), true);
  }

  /** A 64-bit size or offset, which no file of ours reaches 2^53 with. */
  u64(at: number): number {
    const value = this.#view.getBigUint64(this.#checked(at, 8), true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER))
      fail(`${this.#what}: 0x${value.toString(16)} at ${at} is no size`);
    return Number(value);
  }

  /** The bytes up to the next NUL. */
  string(at: number): string {
    this.#checked(at, 1);
    const end = this.bytes.indexOf(0, at);
    if (end < 0) fail(`${this.#what}: the string at ${at} has no end`);
    return latin1.decode(this.bytes.subarray(at, end));
  }

  part(at: number, lenBytes: number, what: string): ByteReader {
    return new ByteReader(this.bytes.subarray(this.#checked(at, lenBytes), at + lenBytes), what);
  }

  #checked(at: number, lenBytes: number): number {
    if (at < 0 || at + lenBytes > this.bytes.length)
      fail(`${this.#what}: ${lenBytes} bytes at ${at} lie outside of its ${this.bytes.length}`);
    return at;
  }
}
