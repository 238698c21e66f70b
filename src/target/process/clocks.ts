/** The clocks of the kernel that Node does not give, by their numbers in uapi/linux/time.h. */
import koffi from "koffi";
import { errno, SystemError } from "./libc.ts";

export const CLOCK_MONOTONIC_COARSE = 6;
export const CLOCK_BOOTTIME = 7;
export const CLOCK_TAI = 11;

const NS_PER_SECOND = 1_000_000_000n;
const lib = koffi.load("libc.so.6");
const clockGetTime = lib.func("int clock_gettime(int clock, void *time)") as (
  clock: number,
  time: unknown,
) => number;
const clockGetRes = lib.func("int clock_getres(int clock, void *time)") as (
  clock: number,
  time: unknown,
) => number;

/** Nanoseconds of a clock. */
export function clockNs(clock: number): bigint {
  return ask(clockGetTime, "clock_gettime", clock);
}

/** Nanoseconds from one timer tick of the kernel to the next. */
export function clockTickNs(): bigint {
  return ask(clockGetRes, "clock_getres", CLOCK_MONOTONIC_COARSE);
}

function ask(call: typeof clockGetTime, name: string, clock: number): bigint {
  const time = new BigInt64Array(2);
  if (call(clock, time) !== 0) throw new SystemError(name, errno());
  return time[0]! * NS_PER_SECOND + time[1]!;
}
