/** The helpers as the interpreter does them, with the kernel's return values. */
import { u64 } from "../alu.ts";
import { CTX_COOKIE, CTX_IP } from "../context.ts";
import { EFAULT, EINVAL } from "../error-numbers.ts";
import {
  findHelperName,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_FUNC_ARG,
  HELPER_GET_FUNC_ARG_CNT,
  HELPER_GET_FUNC_IP,
  HELPER_GET_FUNC_RET,
  HELPER_GET_NUMA_NODE_ID,
  HELPER_GET_PRANDOM_U32,
  HELPER_GET_SMP_PROCESSOR_ID,
  HELPER_GET_STACK,
  HELPER_GET_STACKID,
  HELPER_JIFFIES64,
  HELPER_KTIME_GET_BOOT_NS,
  HELPER_KTIME_GET_COARSE_NS,
  HELPER_KTIME_GET_NS,
  HELPER_KTIME_GET_TAI_NS,
  HELPER_OVERRIDE_RETURN,
  HELPER_PROBE_READ,
  HELPER_PROBE_READ_KERNEL,
  HELPER_PROBE_READ_KERNEL_STR,
  HELPER_PROBE_READ_STR,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
  HELPER_SNPRINTF,
  HELPER_STRNCMP,
  HELPER_STRTOL,
  HELPER_STRTOUL,
  HELPER_TRACE_PRINTK,
  HELPER_TRACE_VPRINTK,
  MAX_CPU,
} from "../helpers.ts";
import { readNumber } from "../text-number.ts";
import { bytesAt, copyIn, type HelperWorld, textAt } from "./helper-world.ts";
import { callMapHelper } from "./map-calls.ts";
import { loadAt, MemoryFault, storeAt } from "./memory.ts";
import { readMemory, readString } from "./memory-reads.ts";
import { snprintf, tracePrintk, traceVprintk } from "./print-calls.ts";
import { getStack, getStackId } from "./stack-walk.ts";

/** Slots of the context with the integer arguments of a function, in order, and with its result. */
const ctxArguments = [112n, 104n, 96n, 88n, 72n, 64n];
const CTX_RESULT = 80n;

/** Calls helper `number` with the registers r1 to r5; returns r0. Throws MemoryFault on a bad argument. */
export function callHelper(world: HelperWorld, number: number, args: readonly bigint[]): bigint {
  const { host } = world;
  const [a1 = 0n, a2 = 0n, a3 = 0n, a4 = 0n] = args;
  switch (number) {
    case HELPER_KTIME_GET_NS:
      return u64(host.ktimeGetNs());
    case HELPER_KTIME_GET_BOOT_NS:
      return u64(host.clockNs("boot"));
    case HELPER_KTIME_GET_COARSE_NS:
      return u64(host.clockNs("coarse"));
    case HELPER_KTIME_GET_TAI_NS:
      return u64(host.clockNs("tai"));
    case HELPER_JIFFIES64:
      return u64(host.jiffies());
    case HELPER_GET_NUMA_NODE_ID:
      return BigInt(host.numaNode());
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
    case HELPER_PROBE_READ:
    case HELPER_PROBE_READ_USER:
    case HELPER_PROBE_READ_KERNEL: {
      const into = bytesAt(world, a1, a2);
      if (readMemory(world, a3, into)) return 0n;
      into.fill(0);
      return u64(BigInt(EFAULT));
    }
    case HELPER_PROBE_READ_STR:
    case HELPER_PROBE_READ_USER_STR:
    case HELPER_PROBE_READ_KERNEL_STR:
      return u64(BigInt(readString(world, a3, bytesAt(world, a1, a2))));
    case HELPER_STRNCMP:
      return u64(BigInt(compareText(copyIn(world, a1, Number(a2)), textAt(world, a3))));
    case HELPER_SNPRINTF:
      return snprintf(world, args);
    case HELPER_TRACE_PRINTK:
      return tracePrintk(world, args);
    case HELPER_TRACE_VPRINTK:
      return traceVprintk(world, args);
    case HELPER_STRTOL:
    case HELPER_STRTOUL: {
      storeU64(world, a4, 0n);
      const read = readNumber(copyIn(world, a1, Number(a2)), a3, number === HELPER_STRTOL);
      storeU64(world, a4, read.value);
      return u64(BigInt(read.result));
    }
    case HELPER_GET_STACK:
      return u64(BigInt(getStack(world, a1, bytesAt(world, a2, a3), a4)));
    case HELPER_GET_STACKID:
      return u64(BigInt(getStackId(world, a1, a2, a3)));
    case HELPER_OVERRIDE_RETURN:
      // No function stands still here that could be left.
      return 0n;
    case HELPER_GET_FUNC_ARG: {
      const slot = a2 < BigInt(ctxArguments.length) ? ctxArguments[Number(a2)] : undefined;
      storeU64(world, a3, slot === undefined ? 0n : loadCtx(world, a1 + slot));
      return slot === undefined ? u64(BigInt(EINVAL)) : 0n;
    }
    case HELPER_GET_FUNC_RET:
      storeU64(world, a2, loadCtx(world, a1 + CTX_RESULT));
      return 0n;
    case HELPER_GET_FUNC_ARG_CNT:
      return BigInt(ctxArguments.length);
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

/** An aligned 64-bit number that a helper gives back through a pointer. */
function storeU64(world: HelperWorld, addr: bigint, value: bigint): void {
  const { region, at } = world.space.getSpot(addr, 8, true);
  world.noteWritten(addr, 8);
  storeAt(region.block, at, 8, u64(value));
}

/** -1, 0 or 1: all of `text` up to a NUL, beside `known`, which comes without its NUL. */
function compareText(text: Uint8Array, known: Uint8Array): number {
  for (const [i, byte] of text.entries()) {
    const other = known[i] ?? 0;
    if (byte !== other) return byte < other ? -1 : 1;
    if (byte === 0) return 0;
  }
  return 0;
}
