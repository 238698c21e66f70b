/** The chain of frame pointers as the interpreter follows it; the JIT's routine keeps the same rules. */
import { u64 } from "../alu.ts";
import { CTX_IP, CTX_SITE, SITE_IS_ENTRY } from "../context.ts";
import { EFAULT, EINVAL } from "../error-numbers.ts";
import {
  MAX_STACK_FRAMES,
  STACK_FAST_COMPARE,
  STACK_REUSE_ID,
  STACK_SKIP_MASK,
  STACK_USER,
} from "../stack-flags.ts";
import type { HelperWorld } from "./helper-world.ts";
import { loadAt } from "./memory.ts";
import { readMemory } from "./memory-reads.ts";

const CTX_BP = 32;
const CTX_SP = 152;

/** Addresses without the first `skip`, at most `limit`; undefined if there are fewer than `skip`. */
function walkStack(world: HelperWorld, ctx: bigint, skip: number, limit: number): bigint[] | undefined {
  const atMost = Math.min(skip + limit, MAX_STACK_FRAMES);
  const frames: bigint[] = [];
  for (const frame of frameAddresses(world, ctx)) {
    if (frames.length === atMost) break;
    frames.push(frame);
  }
  return frames.length < skip ? undefined : frames.slice(skip);
}

function* frameAddresses(world: HelperWorld, ctx: bigint): Generator<bigint, void> {
  yield loadCtx(world, ctx, CTX_IP);
  if ((siteWord(world, ctx) & SITE_IS_ENTRY) !== 0) {
    const top = frameRecord(world, loadCtx(world, ctx, CTX_SP));
    if (top === undefined) return;
    yield top[0];
  }
  for (let fp = loadCtx(world, ctx, CTX_BP); fp !== 0n && fp % 8n === 0n; ) {
    const record = frameRecord(world, fp);
    if (record === undefined) return;
    yield record[1];
    if (record[0] <= fp) return;
    fp = record[0];
  }
}

function frameRecord(world: HelperWorld, addr: bigint): [bigint, bigint] | undefined {
  const bytes = new Uint8Array(16);
  if (!readMemory(world, u64(addr), bytes)) return undefined;
  const view = new DataView(bytes.buffer);
  return [view.getBigUint64(0, true), view.getBigUint64(8, true)];
}

function loadCtx(world: HelperWorld, ctx: bigint, offset: number): bigint {
  const { region, at } = world.space.getSpot(ctx + BigInt(offset), 8, false);
  return loadAt(region.block, at, 8);
}

/** 0 where the context ends before it: then no gate has filled it. */
function siteWord(world: HelperWorld, ctx: bigint): number {
  return world.space.findBytes(ctx + BigInt(CTX_SITE), 1)?.[0] ?? 0;
}

/** bpf_get_stackid: the id that the map gives, or an error number. */
export function getStackId(world: HelperWorld, ctx: bigint, map: bigint, flags: bigint): number {
  const stacks = world.maps.getStackMap(map);
  if ((flags & ~(STACK_SKIP_MASK | STACK_USER | STACK_FAST_COMPARE | STACK_REUSE_ID)) !== 0n) return EINVAL;
  const limit = Math.floor(stacks.spec.valueBytes / 8);
  const frames = walkStack(world, ctx, Number(flags & STACK_SKIP_MASK), limit);
  return frames === undefined || frames.length === 0 ? EFAULT : stacks.insert(frames, flags);
}

/** bpf_get_stack: fills `into`; bytes of addresses, or an error number and zeros. */
export function getStack(world: HelperWorld, ctx: bigint, into: Uint8Array, flags: bigint): number {
  into.fill(0);
  if ((flags & ~(STACK_SKIP_MASK | STACK_USER)) !== 0n || into.length % 8 !== 0) return EINVAL;
  const frames = walkStack(world, ctx, Number(flags & STACK_SKIP_MASK), into.length / 8);
  if (frames === undefined) return EFAULT;
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  for (const [i, frame] of frames.entries()) view.setBigUint64(8 * i, frame, true);
  return 8 * frames.length;
}
