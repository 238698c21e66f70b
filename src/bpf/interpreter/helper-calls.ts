/** The helpers as the interpreter does them, with the kernel's return values. */
import { s64, u64 } from "../alu.ts";
import { CTX_COOKIE, CTX_IP } from "../context.ts";
import {
  findHelperName,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_FUNC_IP,
  HELPER_GET_PRANDOM_U32,
  HELPER_GET_SMP_PROCESSOR_ID,
  HELPER_KTIME_GET_NS,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_RINGBUF_DISCARD,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
  MAX_CPU,
} from "../helpers.ts";
import type { HelperHost } from "./host.ts";
import type { InterpreterMaps } from "./map-regions.ts";
import { type AddressSpace, loadAt, MemoryFault } from "./memory.ts";

const EFAULT = 14;
/** No access to user memory crosses a page, so that what lies before a hole can be read. */
const PAGE_BYTES = 4096n;

/** What one run has for its helpers. `noteWritten` is told which memory a helper filled. */
export interface HelperWorld {
  readonly host: HelperHost;
  readonly maps: InterpreterMaps;
  readonly space: AddressSpace;
  noteWritten(addr: bigint, lenBytes: number): void;
  noteRead(addr: bigint, lenBytes: number): void;
}

/** Calls helper `number` with the registers r1 to r5; returns r0. Throws MemoryFault on a bad argument. */
export function callHelper(world: HelperWorld, number: number, args: readonly bigint[]): bigint {
  const { host, maps } = world;
  const [a1 = 0n, a2 = 0n, a3 = 0n, a4 = 0n] = args;
  switch (number) {
    case HELPER_MAP_LOOKUP_ELEM: {
      const map = maps.getLookupMap(a1);
      return maps.addressOfValue(a1, map.lookup(copyIn(world, a2, map.spec.keyBytes)));
    }
    case HELPER_MAP_UPDATE_ELEM: {
      const map = maps.getLookupMap(a1);
      const key = copyIn(world, a2, map.spec.keyBytes);
      return u64(BigInt(map.update(key, copyIn(world, a3, map.spec.valueBytes), a4)));
    }
    case HELPER_MAP_DELETE_ELEM: {
      const map = maps.getLookupMap(a1);
      return u64(BigInt(map.delete(copyIn(world, a2, map.spec.keyBytes))));
    }
    case HELPER_KTIME_GET_NS:
      return u64(host.ktimeGetNs());
    case HELPER_GET_PRANDOM_U32:
      return BigInt(host.prandomU32() >>> 0);
    case HELPER_GET_SMP_PROCESSOR_ID:
      return BigInt(host.cpu() & MAX_CPU);
    case HELPER_GET_CURRENT_PID_TGID:
      return u64(host.pidTgid());
    case HELPER_GET_CURRENT_UID_GID:
      return u64(host.uidGid());
    case HELPER_GET_CURRENT_COMM: {
      const into = bytesAt(world, a1, a2);
      into.fill(0);
      if (into.length > 0) into.set(host.comm().subarray(0, into.length - 1));
      return 0n;
    }
    case HELPER_PROBE_READ_USER: {
      const into = bytesAt(world, a1, a2);
      if (readUser(host, a3, into)) return 0n;
      into.fill(0);
      return u64(BigInt(-EFAULT));
    }
    case HELPER_PROBE_READ_USER_STR:
      return u64(BigInt(readUserString(host, a3, bytesAt(world, a1, a2))));
    case HELPER_RINGBUF_RESERVE:
      return maps.reserveRecord(a1, Number(a2));
    case HELPER_RINGBUF_SUBMIT:
      maps.releaseRecord(a1, "submit", a2);
      return 0n;
    case HELPER_RINGBUF_DISCARD:
      maps.releaseRecord(a1, "discard", a2);
      return 0n;
    case HELPER_GET_FUNC_IP:
      return loadCtx(world, a1 + BigInt(CTX_IP));
    case HELPER_GET_ATTACH_COOKIE:
      return loadCtx(world, a1 + BigInt(CTX_COOKIE));
    default:
      throw new MemoryFault(`call of ${findHelperName(number) ?? "unknown helper"}#${number}: not supported`);
  }
}

/** The memory of an argument that a helper fills. */
function bytesAt(world: HelperWorld, addr: bigint, lenBytes: bigint): Uint8Array {
  if (lenBytes === 0n) return new Uint8Array(0);
  if (s64(lenBytes) < 0n || lenBytes > 0x7fffffffn)
    throw new MemoryFault(`helper argument of ${s64(lenBytes)} bytes`);
  const len = Number(lenBytes);
  const { region, at } = world.space.getSpot(addr, len, true);
  world.noteWritten(addr, len);
  return region.block.bytes.subarray(at, at + len);
}

function copyIn(world: HelperWorld, addr: bigint, lenBytes: number): Uint8Array {
  const { region, at } = world.space.getSpot(addr, lenBytes, false);
  world.noteRead(addr, lenBytes);
  return region.block.bytes.slice(at, at + lenBytes);
}

function loadCtx(world: HelperWorld, addr: bigint): bigint {
  const { region, at } = world.space.getSpot(addr, 8, false);
  return loadAt(region.block, at, 8);
}

function readUser(host: HelperHost, addr: bigint, into: Uint8Array): boolean {
  for (let done = 0; done < into.length; ) {
    const from = u64(addr + BigInt(done));
    const part = into.subarray(done, done + bytesToPageEnd(from, into.length - done));
    if (!host.readUser(from, part)) return false;
    done += part.length;
  }
  return true;
}

/** Length with the NUL, or -EFAULT and a zeroed destination. A string that is too long is cut. */
function readUserString(host: HelperHost, addr: bigint, into: Uint8Array): number {
  for (let done = 0; done < into.length; ) {
    const from = u64(addr + BigInt(done));
    const part = new Uint8Array(bytesToPageEnd(from, into.length - done));
    if (!host.readUser(from, part)) {
      into.fill(0);
      return -EFAULT;
    }
    const nul = part.indexOf(0);
    if (nul >= 0) {
      into.set(part.subarray(0, nul + 1), done);
      return done + nul + 1;
    }
    into.set(part, done);
    done += part.length;
  }
  if (into.length > 0) into[into.length - 1] = 0;
  return into.length;
}

function bytesToPageEnd(addr: bigint, atMost: number): number {
  return Math.min(Number(PAGE_BYTES - (addr % PAGE_BYTES)), atMost);
}
