/**
 * Function ranges and exception landing pads from .eh_frame.
 *
 * Compilers describe every function there, exported or not, so this is where the bounds of functions in stripped
 * images come from. `.eh_frame_hdr` holds a table sorted by start; one question costs one binary search and the
 * decoding of one entry. Without it .eh_frame is read once from start to end.
 *
 * Landing pads are gathered for the whole image at once: with split functions (`f.cold`, basic-block sections) the
 * pads of one function lie in the range of another, so only the pad's own address tells where it belongs.
 *
 * Garbage in these tables gives fewer ranges, never an endless loop. Source: LSB 5.0 Core chapter 10.6 (eh_frame,
 * eh_frame_hdr), Itanium C++ ABI exception tables as GCC emits them.
 */
import { viewOf, wordsOf } from "./byte-source.ts";
import { type ImageReader, PF_X, PT_GNU_EH_FRAME, PT_LOAD, type RelRange } from "./elf-format.ts";
import { lastAtOrBelow } from "./symbol-table.ts";

/** How a CIE says that its FDEs are encoded. */
interface CommonEntry {
  readonly addrEncoding: number;
  readonly lsdaEncoding: number;
  readonly hasAugmentation: boolean;
}

interface FrameEntry extends RelRange {
  /** Relative address of the language-specific data (call sites and landing pads). */
  readonly lsda: number | undefined;
}

const OMITTED = 0xff;
const PC_RELATIVE = 0x10;
const DATA_RELATIVE = 0x30;
const INDIRECT = 0x80;

/** Reads forward through encoded values; `base` is the relative address of the first byte. */
class FrameCursor {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  readonly #base: number;
  readonly #origin: bigint;
  at: number;

  constructor(bytes: Uint8Array, base: number, origin: bigint, at = 0) {
    this.bytes = bytes;
    this.#view = viewOf(bytes);
    this.#base = base;
    this.#origin = origin;
    this.at = at;
  }

  u8(): number {
    return this.bytes[this.at++] ?? 0;
  }

  u32(): number {
    this.at += 4;
    return this.#view.getUint32(this.at - 4, true);
  }

  u64(): bigint {
    this.at += 8;
    return this.#view.getBigUint64(this.at - 8, true);
  }

  uleb(): number {
    let value = 0;
    for (let scale = 1; this.at < this.bytes.length; scale *= 128) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) break;
    }
    return value;
  }

  sleb(): number {
    let value = 0;
    for (let scale = 1; this.at < this.bytes.length; scale *= 128) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return byte & 0x40 ? value - scale * 128 : value;
    }
    return value;
  }

  /** A value in the low four bits' format of a DW_EH_PE encoding. */
  value(encoding: number): number {
    switch (encoding & 0xf) {
      case 1:
        return this.uleb();
      case 2:
        this.at += 2;
        return this.#view.getUint16(this.at - 2, true);
      case 3:
        return this.u32();
      case 9:
        return this.sleb();
      case 10:
        this.at += 2;
        return this.#view.getInt16(this.at - 2, true);
      case 11:
        this.at += 4;
        return this.#view.getInt32(this.at - 4, true);
      case 12:
        return Number(BigInt.asIntN(64, this.u64()));
      default:
        return Number(this.u64());
    }
  }

  /** An address as a relative address; undefined for a null pointer and for what cannot be known statically. */
  address(encoding: number, dataBase: number): number | undefined {
    if (encoding === OMITTED) return undefined;
    const place = this.#base + this.at;
    if ((encoding & 0x70) === 0) {
      if ((encoding & 0xf) === 0 || (encoding & 0xf) === 4) {
        const absolute = this.u64();
        return absolute === 0n ? undefined : Number(absolute - this.#origin);
      }
      const absolute = this.value(encoding);
      return absolute === 0 ? undefined : Number(BigInt(absolute) - this.#origin);
    }
    const distance = this.value(encoding);
    if (distance === 0 || (encoding & INDIRECT) !== 0) return undefined;
    switch (encoding & 0x70) {
      case PC_RELATIVE:
        return place + distance;
      case DATA_RELATIVE:
        return dataBase + distance;
      default:
        return undefined;
    }
  }
}

export class UnwindTable {
  readonly #reader: ImageReader;
  readonly #commonEntries = new Map<number, CommonEntry | undefined>();
  /** .eh_frame from its start to the end of its section or segment. */
  #frames: { start: number; bytes: Uint8Array } | undefined;
  /** The binary search table: 32-bit pairs (start, entry), both relative to the header. */
  #search: { headerStart: number; pairs: Int32Array; count: number } | undefined;
  #entries: { list: readonly FrameEntry[]; starts: Float64Array } | undefined;
  #pads: Float64Array | undefined;

  constructor(reader: ImageReader) {
    this.#reader = reader;
    this.#locate();
  }

  #locate(): void {
    const reader = this.#reader;
    const section = reader.findSection(".eh_frame");
    let framesStart = section && section.addr !== 0n ? reader.rel(section.addr) : undefined;
    const headerSegment = reader.segments.find((s) => s.type === PT_GNU_EH_FRAME);
    const headerStart = headerSegment && reader.rel(headerSegment.addr);
    const header = headerSegment && reader.readRel(headerStart!, headerSegment.fileBytes);
    if (header && header.length >= 8 && header[0] === 1) {
      // Version 1, then the encodings of: pointer to .eh_frame, entry count, table.
      const cursor = new FrameCursor(header, headerStart!, reader.origin, 4);
      try {
        framesStart ??= cursor.address(header[1]!, headerStart!);
        if (cursor.at === 4) cursor.address(header[1]!, headerStart!);
        const count = header[2] === OMITTED ? 0 : cursor.value(header[2]!);
        // Every linker writes datarel sdata4 here; anything else is read the slow way.
        if (header[3] === 0x3b && count > 0 && cursor.at + count * 8 <= header.length) {
          const words = wordsOf(header.subarray(cursor.at, cursor.at + count * 8));
          const pairs = new Int32Array(words.buffer, words.byteOffset, words.length);
          this.#search = { headerStart: headerStart!, pairs, count };
        }
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
    const bytes = framesStart === undefined ? undefined : reader.readRelToEnd(framesStart);
    if (bytes) this.#frames = { start: framesStart!, bytes };
  }

  #cursor(at: number): FrameCursor {
    return new FrameCursor(this.#frames!.bytes, this.#frames!.start, this.#reader.origin, at);
  }

  /** The common entry at an offset in .eh_frame; undefined when it is not one that can be understood. */
  #commonEntry(offset: number): CommonEntry | undefined {
    if (this.#commonEntries.has(offset)) return this.#commonEntries.get(offset);
    let entry: CommonEntry | undefined;
    try {
      entry = this.#parseCommonEntry(offset);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
    }
    this.#commonEntries.set(offset, entry);
    return entry;
  }

  #parseCommonEntry(offset: number): CommonEntry | undefined {
    if (offset < 0 || offset >= this.#frames!.bytes.length) return undefined;
    const cursor = this.#cursor(offset);
    const lenBytes = cursor.u32();
    if (lenBytes === 0 || lenBytes === 0xffff_ffff || cursor.u32() !== 0) return undefined;
    const version = cursor.u8();
    let augmentation = "";
    for (let byte = cursor.u8(); byte !== 0 && augmentation.length < 16; byte = cursor.u8()) {
      augmentation += String.fromCharCode(byte);
    }
    if (version >= 4) cursor.at += 2;
    cursor.uleb();
    cursor.sleb();
    if (version === 1) cursor.u8();
    else cursor.uleb();
    let addrEncoding = 0;
    let lsdaEncoding = OMITTED;
    if (augmentation.startsWith("z")) {
      cursor.uleb();
      for (const letter of augmentation.slice(1)) {
        if (letter === "R") addrEncoding = cursor.u8();
        else if (letter === "L") lsdaEncoding = cursor.u8();
        else if (letter === "P") cursor.value(cursor.u8());
        else if (letter !== "S" && letter !== "B") break;
      }
    } else if (augmentation !== "") {
      return undefined;
    }
    return { addrEncoding, lsdaEncoding, hasAugmentation: augmentation.startsWith("z") };
  }

  /** The frame entry at an offset in .eh_frame; undefined for common entries, dropped functions and garbage. */
  #frameEntry(offset: number): FrameEntry | undefined {
    if (!this.#frames || offset < 0 || offset + 12 > this.#frames.bytes.length) return undefined;
    try {
      const cursor = this.#cursor(offset);
      const lenBytes = cursor.u32();
      if (lenBytes === 0 || lenBytes === 0xffff_ffff) return undefined;
      const commonPlace = cursor.at;
      const commonDistance = cursor.u32();
      if (commonDistance === 0) return undefined;
      const common = this.#commonEntry(commonPlace - commonDistance);
      if (!common) return undefined;
      const start = cursor.address(common.addrEncoding, this.#search?.headerStart ?? 0);
      const sizeBytes = cursor.value(common.addrEncoding);
      if (start === undefined || !(sizeBytes > 0)) return undefined;
      let lsda: number | undefined;
      if (common.hasAugmentation && cursor.uleb() > 0) lsda = cursor.address(common.lsdaEncoding, 0);
      return { start, end: start + sizeBytes, lsda };
    } catch (error) {
      if (error instanceof RangeError) return undefined;
      throw error;
    }
  }

  /** The range of the function that contains a relative address. */
  findRange(rel: number): RelRange | undefined {
    if (!this.#search) return this.#findInList(rel);
    const { headerStart, pairs, count } = this.#search;
    const wanted = rel - headerStart;
    let low = 0;
    let high = count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (pairs[middle * 2]! <= wanted) low = middle + 1;
      else high = middle;
    }
    if (low === 0 || !this.#frames) return undefined;
    const entry = this.#frameEntry(headerStart + pairs[low * 2 - 1]! - this.#frames.start);
    return entry && rel >= entry.start && rel < entry.end ? entry : undefined;
  }

  #findInList(rel: number): RelRange | undefined {
    const { list, starts } = this.#all();
    const entry = list[lastAtOrBelow(starts, rel)];
    return entry && rel < entry.end ? entry : undefined;
  }

  /** Calls back with the offset in .eh_frame of every entry that is not a common one, and its common entry. */
  #forEachFrame(visit: (offset: number, common: CommonEntry) => void): void {
    const bytes = this.#frames?.bytes ?? new Uint8Array(0);
    const view = viewOf(bytes);
    for (let at = 0; at + 8 <= bytes.length; ) {
      const lenBytes = view.getUint32(at, true);
      if (lenBytes === 0 || lenBytes === 0xffff_ffff) {
        // A terminator can stand between the tables of two objects in a section; behind a segment it ends them.
        if (lenBytes !== 0 || !this.#reader.findSection(".eh_frame")) break;
        at += 4;
        continue;
      }
      const commonDistance = view.getUint32(at + 4, true);
      const common = commonDistance === 0 ? undefined : this.#commonEntry(at + 4 - commonDistance);
      if (common) visit(at, common);
      at += 4 + lenBytes;
    }
  }

  #all(): { list: readonly FrameEntry[]; starts: Float64Array } {
    if (this.#entries) return this.#entries;
    const list: FrameEntry[] = [];
    this.#forEachFrame((offset) => {
      const entry = this.#frameEntry(offset);
      if (entry && this.#reader.isExecutable(entry.start)) list.push(entry);
    });
    list.sort((a, b) => a.start - b.start);
    this.#entries = { list, starts: Float64Array.from(list, (entry) => entry.start) };
    return this.#entries;
  }

  /** All function ranges, ascending. */
  get ranges(): readonly RelRange[] {
    return this.#all().list;
  }

  /** Relative addresses of all exception landing pads, ascending without duplicates. */
  get landingPads(): Float64Array {
    if (this.#pads) return this.#pads;
    const pads = new Set<number>();
    this.#forEachFrame((offset, common) => {
      if (common.lsdaEncoding === OMITTED) return;
      const entry = this.#frameEntry(offset);
      if (entry?.lsda === undefined || !this.#reader.isExecutable(entry.start)) return;
      try {
        this.#collectPads(entry, entry.lsda, pads);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    });
    this.#pads = Float64Array.from(pads).sort();
    return this.#pads;
  }

  #collectPads(entry: FrameEntry, lsda: number, pads: Set<number>): void {
    const bytes = this.#reader.readRelToEnd(lsda);
    if (!bytes) return;
    // LPStart encoding [LPStart], TType encoding [uleb TType offset], call-site encoding, uleb table length,
    // then call sites: start, length, landing pad (0: none), uleb action.
    const cursor = new FrameCursor(bytes, lsda, this.#reader.origin);
    const padBase = cursor.address(cursor.u8(), 0) ?? entry.start;
    if (cursor.u8() !== OMITTED) cursor.uleb();
    const encoding = cursor.u8();
    const lenBytes = cursor.uleb();
    const end = Math.min(cursor.at + lenBytes, bytes.length);
    while (cursor.at < end) {
      cursor.value(encoding);
      cursor.value(encoding);
      const pad = cursor.value(encoding);
      cursor.uleb();
      if (pad !== 0) pads.add(padBase + pad);
    }
  }
}

/** The memory ranges of executable segments as stored, for those who scan code. */
export function readExecSegments(reader: ImageReader): Array<{ start: number; bytes: Uint8Array }> {
  return reader.segments.flatMap((segment) => {
    if (segment.type !== PT_LOAD || (segment.flags & PF_X) === 0) return [];
    const start = reader.rel(segment.addr);
    const bytes = reader.readRel(start, segment.fileBytes);
    return bytes && bytes.length > 0 ? [{ start, bytes }] : [];
  });
}
