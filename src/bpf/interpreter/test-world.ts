/** A small world for tests of programs: maps in plain memory, a host with fixed answers. No concurrency. */
import type { HelperHost, LookupMapAccess, ProgramMapAccess, RingMapAccess, SharedWords } from "./host.ts";

function words(lenBytes: number): SharedWords {
  const buffer = new ArrayBuffer(Math.ceil(lenBytes / 8) * 8);
  return { bytes: new Uint8Array(buffer), view: new DataView(buffer), words: new BigInt64Array(buffer) };
}

function stride(valueBytes: number): number {
  return Math.ceil(valueBytes / 8) * 8;
}

/** An array map without gaps other than rounding to 8. */
export function fakeArray(maxEntries: number, valueBytes: number): LookupMapAccess {
  const memory = words(maxEntries * stride(valueBytes));
  const lookup = (key: Uint8Array) => {
    const index = new DataView(key.buffer, key.byteOffset).getUint32(0, true);
    return index < maxEntries ? index * stride(valueBytes) : undefined;
  };
  return {
    spec: { name: "array", kind: "array", keyBytes: 4, valueBytes, maxEntries },
    memory,
    lookup,
    update(key, value, flags) {
      const at = lookup(key);
      if (at === undefined) return -7;
      if (flags === 1n) return -17;
      memory.bytes.set(value, at);
      return 0;
    },
    delete: () => -22,
    *entries() {
      for (let index = 0; index < maxEntries; index++) {
        const key = new Uint8Array(4);
        new DataView(key.buffer).setUint32(0, index, true);
        yield { key, offset: index * stride(valueBytes) };
      }
    },
  };
}

/** A program array with these slots: indexes of programs. */
export function fakePrograms(slots: readonly (number | undefined)[]): ProgramMapAccess {
  return {
    spec: { name: "programs", kind: "prog_array", keyBytes: 4, valueBytes: 4, maxEntries: slots.length },
    memory: words(slots.length * 8),
    programAt: (index) => slots[index],
  };
}

/** A hash map of a few entries. */
export function fakeHash(maxEntries: number, keyBytes: number, valueBytes: number): LookupMapAccess {
  const memory = words(maxEntries * stride(valueBytes));
  const slots = new Map<string, number>();
  const free = Array.from({ length: maxEntries }, (_, i) => (maxEntries - 1 - i) * stride(valueBytes));
  return {
    spec: { name: "hash", kind: "hash", keyBytes, valueBytes, maxEntries },
    memory,
    lookup: (key) => slots.get(key.join(",")),
    update(key, value) {
      const at = slots.get(key.join(",")) ?? free.pop();
      if (at === undefined) return -7;
      slots.set(key.join(","), at);
      memory.bytes.set(value, at);
      return 0;
    },
    delete(key) {
      const at = slots.get(key.join(","));
      if (at === undefined) return -2;
      slots.delete(key.join(","));
      free.push(at);
      return 0;
    },
    *entries() {
      for (const [key, offset] of slots) yield { key: Uint8Array.from(key.split(","), Number), offset };
    },
  };
}

/** A ring buffer that keeps what was submitted, as words. */
export function fakeRing(
  valueBytes: number,
  maxEntries: number,
): RingMapAccess & { readonly submitted: bigint[][] } {
  const memory = words(maxEntries * stride(valueBytes));
  const submitted: bigint[][] = [];
  const free = Array.from({ length: maxEntries }, (_, i) => i * stride(valueBytes));
  return {
    spec: { name: "ring", kind: "ringbuf", keyBytes: 0, valueBytes, maxEntries },
    memory,
    submitted,
    reserve: (recordBytes) => (recordBytes <= valueBytes ? free.shift() : undefined),
    submit(offset) {
      submitted.push(Array.from(memory.words.subarray(offset / 8, (offset + stride(valueBytes)) / 8)));
      free.push(offset);
    },
    discard(offset) {
      free.push(offset);
    },
  };
}

/** Fixed answers; user memory is made of the given pieces. */
export function fakeHost(user: ReadonlyMap<bigint, Uint8Array> = new Map()): HelperHost {
  return {
    ktimeGetNs: () => 123n,
    clockNs: (clock) => ({ boot: 124n, coarse: 125n, tai: 126n })[clock],
    jiffies: () => 127n,
    numaNode: () => 1,
    prandomU32: () => 0xffff_ffff,
    cpu: () => 3,
    pidTgid: () => 0x1_0000_0002n,
    uidGid: () => 0x3_0000_0004n,
    comm: () => Uint8Array.from([0x6d, 0x61, 0x69, 0x6e]),
    readUser(addr, into) {
      for (const [base, bytes] of user) {
        const at = addr - base;
        if (at >= 0n && at + BigInt(into.length) <= BigInt(bytes.length)) {
          into.set(bytes.subarray(Number(at), Number(at) + into.length));
          return true;
        }
      }
      return false;
    },
  };
}
