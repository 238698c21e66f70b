/** The helpers that work on maps, as the interpreter does them. */
import { u64 } from "../alu.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_RINGBUF_DISCARD,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
} from "../helpers.ts";
import { copyIn, type HelperWorld } from "./helper-world.ts";

/** r0; undefined if this is no map helper. Throws MemoryFault on a bad argument. */
export function callMapHelper(
  world: HelperWorld,
  number: number,
  args: readonly bigint[],
): bigint | undefined {
  const { maps } = world;
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
    case HELPER_RINGBUF_RESERVE:
      return maps.reserveRecord(a1, Number(a2));
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
