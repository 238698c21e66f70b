/**
 * The maps of one session in the memory that its targets share with the tracer: where each lies, and access to them.
 *
 *     0    the maps, one after another, each at a multiple of 64
 *          the accounts of probes (bpf/accounts.ts)
 */

import { ACCOUNT_BYTES, countFaulted, type HitCounts, type MapSpec, readAccount } from "../../bpf/index.ts";
import {
  findMapDamage,
  layoutMap,
  type OpenedMap,
  openMap,
  RingConsumer,
  type SharedMemory,
  sharedMemoryOf,
} from "../../bpf/maps/index.ts";

/** Room for accounts of probes that are added while the session runs: memory that is never touched costs nothing. */
const LATER_ACCOUNTS = 4096;

export interface SharedMapsLayout {
  readonly offsets: readonly number[];
  readonly accounts: { readonly offset: number; readonly capacity: number };
  readonly totalBytes: number;
}

/** `accounts`: how many are needed from the beginning. */
export function layoutSharedMaps(
  specs: readonly MapSpec[],
  accounts = 0,
  laterAccounts = LATER_ACCOUNTS,
): SharedMapsLayout {
  let at = 0;
  const offsets = specs.map((spec) => {
    const offset = at;
    at += layoutMap(spec).totalBytes;
    return offset;
  });
  const PAGE = 4096;
  const offset = Math.ceil(at / ACCOUNT_BYTES) * ACCOUNT_BYTES;
  const capacity = accounts + laterAccounts;
  const totalBytes = Math.max(PAGE, Math.ceil((offset + capacity * ACCOUNT_BYTES) / PAGE) * PAGE);
  return { offsets, accounts: { offset, capacity }, totalBytes };
}

export class SharedMaps {
  readonly maps: readonly OpenedMap[];
  /** Readers of ring buffers, by index of the map. */
  readonly rings: ReadonlyMap<number, RingConsumer>;
  readonly #memory: SharedMemory;
  readonly #layout: SharedMapsLayout;

  constructor(specs: readonly MapSpec[], layout: SharedMapsLayout, buffer: ArrayBuffer) {
    const memory = sharedMemoryOf(buffer);
    this.#memory = memory;
    this.#layout = layout;
    this.maps = specs.map((spec, index) => openMap(spec, memory, layout.offsets[index]!));
    const nowMs = () => performance.now();
    this.rings = new Map(
      specs.flatMap((spec, index) => {
        const ring = layoutMap(spec);
        if (ring.kind !== "ringbuf") return [];
        return [[index, new RingConsumer(ring, memory, layout.offsets[index]!, { nowMs })]];
      }),
    );
  }

  /** Reader of the first ring buffer, if there is one. */
  get ring(): RingConsumer | undefined {
    return this.rings.values().next().value;
  }

  /**
   * What a process has written over, for people: one line for each map of which that can be seen. To be asked when no program
   * runs any more, and before anything is printed by it.
   */
  findDamage(): string[] {
    const found: string[] = [];
    for (const [index, map] of this.maps.entries()) {
      const corrupt = this.rings.get(index)?.corrupt ?? 0;
      const damage = corrupt > 0 ? `${corrupt} records or numbers in it made no sense` : findMapDamage(map);
      if (damage !== undefined)
        found.push(
          `${this.rings.has(index) ? "ring buffer" : "map"} ${map.spec.name}: a process has written over its memory: ${damage}`,
        );
    }
    return found;
  }

  /** What is counted in an account. */
  account(index: number): HitCounts {
    return readAccount(this.#memory, this.#accountAt(index));
  }

  /** Counts hits in an account whose program was abandoned. */
  countFaulted(index: number, hits: bigint, isEarly: boolean): void {
    countFaulted(this.#memory, this.#accountAt(index), hits, isEarly);
  }

  /** The bytes of an account. */
  accountBytes(index: number): Uint8Array {
    const at = this.#accountAt(index);
    return this.#memory.bytes.slice(at, at + ACCOUNT_BYTES);
  }

  #accountAt(index: number): number {
    return this.#layout.accounts.offset + index * ACCOUNT_BYTES;
  }
}
