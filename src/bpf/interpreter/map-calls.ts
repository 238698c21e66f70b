/** The helpers that work on maps, as the interpreter does them. */
import { u64 } from "../alu.ts";
import { EINVAL } from "../error-numbers.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_LOOKUP_PERCPU_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_POP_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_PERF_EVENT_OUTPUT,
  HELPER_RINGBUF_DISCARD,
  HELPER_RINGBUF_OUTPUT,
  HELPER_RINGBUF_QUERY,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
} from "../helpers.ts";
import type { MapSpec } from "../program.ts";
import { bytesAt, copyIn, type HelperWorld } from "./helper-world.ts";

const ENOENT = -2;
const E2BIG = -7;
const EAGAIN = -11;
const ENOSPC = -28;
/** Flags of bpf_ringbuf_output. */
const WAKEUP_FLAGS = 3n;

const result = (value: number): bigint => u64(BigInt(value));

/** The slot of per-CPU maps that a program here uses. */
export function slotOf(world: HelperWorld, spec: MapSpec): number {
  return world.host.cpu() % (spec.cpus ?? 1);
}

/** r0; undefined if this is no map helper. Throws MemoryFault on a bad argument. */
export function callMapHelper(
  world: HelperWorld,
  number: number,
  args: readonly bigint[],
): bigint | undefined {
  const { maps } = world;
  const [a1 = 0n, a2 = 0n, a3 = 0n, a4 = 0n, a5 = 0n] = args;
  switch (number) {
    case HELPER_MAP_LOOKUP_ELEM: {
      const outer = maps.getOuterMap(a1);
      if (outer !== undefined) return maps.innerMap(outer, copyIn(world, a2, outer.spec.keyBytes));
      const map = maps.getLookupMap(a1);
      const key = copyIn(world, a2, map.spec.keyBytes);
      return maps.addressOfValue(a1, map.lookup(key, slotOf(world, map.spec)));
    }
    case HELPER_MAP_LOOKUP_PERCPU_ELEM: {
      const map = maps.getLookupMap(a1);
      const slot = Number(BigInt.asUintN(32, a3));
      const key = copyIn(world, a2, map.spec.keyBytes);
      return slot < (map.spec.cpus ?? 1) ? maps.addressOfValue(a1, map.lookup(key, slot)) : 0n;
    }
    case HELPER_MAP_UPDATE_ELEM: {
      const map = maps.getLookupMap(a1);
      const key = copyIn(world, a2, map.spec.keyBytes);
      const value = copyIn(world, a3, map.spec.valueBytes);
      return result(map.update(key, value, a4, slotOf(world, map.spec)));
    }
    case HELPER_MAP_DELETE_ELEM: {
      const map = maps.getLookupMap(a1);
      return result(map.delete(copyIn(world, a2, map.spec.keyBytes)));
    }
    case HELPER_MAP_PUSH_ELEM: {
      const map = maps.getPushMap(a1);
      return result(map.push(copyIn(world, a2, map.spec.valueBytes), a3));
    }
    case HELPER_MAP_POP_ELEM:
    case HELPER_MAP_PEEK_ELEM: {
      const map = maps.getPushMap(a1);
      if (map.test !== undefined) return result(map.test(copyIn(world, a2, map.spec.valueBytes)));
      const value = number === HELPER_MAP_POP_ELEM ? map.pop?.() : map.peek?.();
      const into = bytesAt(world, a2, BigInt(map.spec.valueBytes));
      into.set(value ?? new Uint8Array(into.length));
      return result(value === undefined ? ENOENT : 0);
    }
    case HELPER_RINGBUF_RESERVE:
      return a3 === 0n ? maps.reserveRecord(a1, Number(a2)) : 0n;
    case HELPER_RINGBUF_OUTPUT:
      if (a4 > WAKEUP_FLAGS) return result(EINVAL);
      return result(send(world, a1, a2, a3) ? 0 : EAGAIN);
    case HELPER_RINGBUF_QUERY:
      return maps.getRingMap(a1).query?.(a2) ?? 0n;
    case HELPER_PERF_EVENT_OUTPUT:
      if (a3 >> 32n !== 0n) return result(EINVAL);
      if (a5 > BigInt(maps.getRingMap(a2).spec.valueBytes)) return result(E2BIG);
      return result(send(world, a2, a4, a5) ? 0 : ENOSPC);
    case HELPER_RINGBUF_SUBMIT:
      maps.releaseRecord(a1, "submit", a2);
      return 0n;
    case HELPER_RINGBUF_DISCARD:
      maps.releaseRecord(a1, "discard", a2);
      return 0n;
    default:
      return undefined;
  }
}

/** Sends a copy of memory as one record; false if it was not taken. */
function send(world: HelperWorld, handle: bigint, data: bigint, size: bigint): boolean {
  const ring = world.maps.getRingMap(handle);
  if (size > BigInt(ring.spec.valueBytes)) return false;
  const record = size === 0n ? new Uint8Array(0) : copyIn(world, data, Number(size));
  const offset = ring.reserve(record.length);
  if (offset === undefined) return false;
  ring.memory.bytes.set(record, offset);
  ring.submit(offset, 0n);
  return true;
}
