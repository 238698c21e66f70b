/**
 * The frames of an interpreted program: 512 bytes for each function that is running, each a region of its own that
 * goes when the function returns, so that an address in it faults afterwards.
 *
 * Frames of one depth use the same block again, zeroed. Nothing else is between frames: an access that leaves one
 * finds nothing.
 */
import { s64 } from "../alu.ts";
import { type AddressSpace, type Block, MemoryFault, newBlock } from "./memory.ts";

export const FRAME_BYTES = 512;
/** Functions of one program that can be running at once, the main function among them. */
export const MAX_FRAMES = 8;
const STACK_BASE = 0x7000_0000_0000n;
const FRAME_STEP = 0x1000n;

interface Frame {
  readonly base: bigint;
  readonly block: Block;
  /** 1 for each byte that was written. */
  readonly written: Uint8Array;
}

export class CallStack {
  readonly #space: AddressSpace;
  /** Whether a read of bytes that were never written is a fault. */
  readonly #checksReads: boolean;
  readonly #frames: Frame[] = [];
  #depth = 0;
  /** How many frames the program that is running may have, with those of the programs that it is called from. */
  #limit = MAX_FRAMES;

  constructor(space: AddressSpace, checksReads: boolean) {
    this.#space = space;
    this.#checksReads = checksReads;
  }

  /** How many functions are running. */
  get depth(): number {
    return this.#depth;
  }

  /** Makes a frame; returns its frame pointer. */
  enter(): bigint {
    if (this.#depth >= this.#limit) throw new MemoryFault(`the call stack of ${MAX_FRAMES} frames is full`);
    const depth = this.#depth++;
    const frame = this.#frames[depth] ?? {
      base: STACK_BASE + BigInt(depth) * FRAME_STEP,
      block: newBlock(FRAME_BYTES),
      written: new Uint8Array(FRAME_BYTES),
    };
    this.#frames[depth] = frame;
    frame.block.bytes.fill(0);
    frame.written.fill(0);
    const { base, block } = frame;
    const name = depth === 0 ? "stack" : `stack of frame ${depth}`;
    this.#space.add({ name, base, lenBytes: FRAME_BYTES, writable: true, block, offset: 0 });
    return base + BigInt(FRAME_BYTES);
  }

  /** Begins another program in place of the function that is running; returns its frame pointer. */
  replace(): bigint {
    this.leave();
    this.#limit = this.#depth + MAX_FRAMES;
    return this.enter();
  }

  /** What `limit` was when the function began that is left. */
  restoreLimit(limit: number): void {
    this.#limit = limit;
  }

  get limit(): number {
    return this.#limit;
  }

  leave(): void {
    this.#depth--;
    this.#space.remove(this.#frames[this.#depth]!.base);
  }

  noteWritten(addr: bigint, lenBytes: number): void {
    const spot = this.#find(addr);
    if (spot) spot.frame.written.fill(1, spot.at, spot.at + lenBytes);
  }

  checkRead(addr: bigint, lenBytes: number): void {
    const spot = this.#checksReads ? this.#find(addr) : undefined;
    if (spot === undefined || !spot.frame.written.subarray(spot.at, spot.at + lenBytes).includes(0)) return;
    throw new MemoryFault(
      `read of ${lenBytes} stack bytes at fp${spot.at - FRAME_BYTES}, not all written before`,
    );
  }

  #find(addr: bigint): { readonly frame: Frame; readonly at: number } | undefined {
    const offset = s64(addr - STACK_BASE);
    if (offset < 0n || offset >= BigInt(this.#depth) * FRAME_STEP) return undefined;
    const at = Number(offset % FRAME_STEP);
    const frame = this.#frames[Number(offset / FRAME_STEP)]!;
    return at < FRAME_BYTES ? { frame, at } : undefined;
  }
}
