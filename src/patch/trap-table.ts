/**
 * From the address of an `int3` to its detour: the table that the trap handler reads.
 *
 * Open addressing with linear probing; entries of 16 bytes, `{ site, detour }`, in memory that the target can only
 * read. The tracer extends it by single writes; nothing ever moves while a handler may look, and an entry that is no
 * longer armed keeps its place with detour 0. At least one entry in four stays empty, so every search ends.
 */
const ENTRY_BYTES = 16;
const HASH_FACTOR = 0x9e37_79b9_7f4a_7c15n;

/** What to write where, to bring the target's copy up to date. */
export interface TableWrite {
  /** Offset from the table's beginning. */
  readonly offset: number;
  readonly bytes: Uint8Array;
}

export class TrapTable {
  /** A power of two. */
  readonly capacity: number;
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  #used = 0;

  constructor(capacity: number) {
    if (capacity < 4 || (capacity & (capacity - 1)) !== 0)
      throw new Error(`make trap table: ${capacity} entries are no power of two`);
    this.capacity = capacity;
    this.bytes = new Uint8Array(capacity * ENTRY_BYTES);
    this.#view = new DataView(this.bytes.buffer);
  }

  /** Smallest capacity for a number of sites, with room for as many again. */
  static capacityFor(sites: number): number {
    let capacity = 64;
    while (capacity * 3 < sites * 8) capacity *= 2;
    return capacity;
  }

  /** How far the product is shifted right to give an entry's number. */
  get hashShift(): number {
    return 64 - Math.log2(this.capacity);
  }

  /** Is there room for so many sites that were never in the table? */
  hasRoomFor(sites: number): boolean {
    return (this.#used + sites) * 4 <= this.capacity * 3;
  }

  /** Arms or re-arms a site. Throws if the table is full: ask `hasRoomFor` first. */
  set(site: bigint, detour: bigint): TableWrite {
    const offset = this.#find(site);
    if (this.#view.getBigUint64(offset, true) === 0n) {
      if (!this.hasRoomFor(1)) throw new Error("extend trap table: full");
      this.#used++;
    }
    this.#view.setBigUint64(offset, site, true);
    this.#view.setBigUint64(offset + 8, detour, true);
    return { offset, bytes: this.bytes.slice(offset, offset + ENTRY_BYTES) };
  }

  /** Disarms a site: a thread that has trapped there already is sent back to it. */
  clear(site: bigint): TableWrite {
    return this.set(site, 0n);
  }

  get(site: bigint): bigint | undefined {
    const offset = this.#find(site);
    if (this.#view.getBigUint64(offset, true) !== site) return undefined;
    const detour = this.#view.getBigUint64(offset + 8, true);
    return detour === 0n ? undefined : detour;
  }

  /** Offset of the site's entry, or of the free one where it would go. */
  #find(site: bigint): number {
    let index = Number(BigInt.asUintN(64, site * HASH_FACTOR) >> BigInt(this.hashShift));
    for (;;) {
      const offset = index * ENTRY_BYTES;
      const key = this.#view.getBigUint64(offset, true);
      if (key === site || key === 0n) return offset;
      index = (index + 1) & (this.capacity - 1);
    }
  }
}

export const trapTableHash = { factor: HASH_FACTOR, entryBytes: ENTRY_BYTES } as const;
