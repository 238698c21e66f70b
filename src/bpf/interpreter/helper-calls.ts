/** The helpers as the interpreter does them, with the kernel's return values. */
import { u64 } from "../alu.ts";
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
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  MAX_CPU,
} from "../helpers.ts";
import { bytesAt, type HelperWorld } from "./helper-world.ts";
import type { HelperHost } from "./host.ts";
import { callMapHelper } from "./map-calls.ts";
import { loadAt, MemoryFault } from "./memory.ts";

const EFAULT = 14;
/** No access to user memory crosses a page, so that what lies before a hole can be read. */
const PAGE_BYTES = 4096n;

/** Calls helper `number` with the registers r1 to r5; returns r0. Throws MemoryFault on a bad argument. */
export function callHelper(world: HelperWorld, number: number, args: readonly bigint[]): bigint {
  const { host } = world;
  const [a1 = 0n, a2 = 0n, a3 = 0n] = args;
  switch (number) {
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
    case HELPER_GET_FUNC_IP:
      return loadCtx(world, a1 + BigInt(CTX_IP));
    case HELPER_GET_ATTACH_COOKIE:
      return loadCtx(world, a1 + BigInt(CTX_COOKIE));
    default: {
      const result = callMapHelper(world, number, args);
      if (result !== undefined) return result;
      throw new MemoryFault(`call of ${findHelperName(number) ?? "unknown helper"}#${number}: not supported`);
    }
  }
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
