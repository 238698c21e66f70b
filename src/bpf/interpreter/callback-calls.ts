/** The helpers that call a function of the program back, as the interpreter does them. */
import { u64 } from "../alu.ts";
import { EINVAL } from "../error-numbers.ts";
import { HELPER_FOR_EACH_MAP_ELEM, HELPER_LOOP } from "../helpers.ts";
import type { HelperWorld } from "./helper-world.ts";
import { slotOf } from "./map-calls.ts";
import { MemoryFault, newBlock } from "./memory.ts";

const E2BIG = 7n;
const MAX_LOOPS = 1n << 23n;
/** Where the keys of running iterations lie, one step per nesting. */
const KEY_BASE = 0x7300_0000_0000n;
const KEY_STEP = 0x10_0000n;

/** Calls a function with r1, r2, ...; returns its r0. */
export type CallBack = (fn: bigint, args: readonly bigint[]) => bigint;

/** r0; undefined if this helper calls nothing back. Throws MemoryFault on a bad argument. */
export function callBackHelper(
  world: HelperWorld,
  number: number,
  args: readonly bigint[],
  call: CallBack,
): bigint | undefined {
  const [a1 = 0n, fn = 0n, context = 0n, flags = 0n] = args;
  switch (number) {
    case HELPER_LOOP: {
      const count = BigInt.asUintN(32, a1);
      if (flags !== 0n) return u64(BigInt(EINVAL));
      if (count > MAX_LOOPS) return u64(-E2BIG);
      for (let i = 0n; i < count; i++) if (call(fn, [i, context]) !== 0n) return i + 1n;
      return count;
    }
    case HELPER_FOR_EACH_MAP_ELEM:
      if (flags !== 0n) return u64(BigInt(EINVAL));
      return forEach(world, a1, (key, value) => call(fn, [a1, key, value, context]));
    default:
      return undefined;
  }
}

/** Visits the elements that are there, until `visit` returns something else than 0. */
function forEach(world: HelperWorld, map: bigint, visit: (key: bigint, value: bigint) => bigint): bigint {
  const { space, maps } = world;
  const access = maps.getLookupMap(map);
  if (access.entries === undefined)
    throw new MemoryFault(`iteration over map ${access.spec.name} of kind ${access.spec.kind}`);
  const block = newBlock(access.spec.keyBytes);
  let base = KEY_BASE;
  while (space.has(base)) base += KEY_STEP;
  const lenBytes = access.spec.keyBytes;
  space.add({ name: `key of map ${access.spec.name}`, base, lenBytes, writable: false, block, offset: 0 });
  let visited = 0n;
  for (const { key, offset } of access.entries(slotOf(world, access.spec))) {
    block.bytes.set(key);
    visited++;
    if (visit(base, maps.addressOfValue(map, offset)) !== 0n) break;
  }
  space.remove(base);
  return visited;
}
