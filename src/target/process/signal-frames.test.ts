/** Finding signal frames in stacks that are laid out by hand. */
import { expect, test } from "vitest";
import { HEAD_SP, STACK_HEAD, STACK_STRIDE } from "../../gate/private-stacks.ts";
import { findSavedPositions, STACKS_MEMORY_NAME, type StackMapping } from "./signal-frames.ts";

const STACK_AT = 0x7fff_0000_0000n;
const STACK_BYTES = 600 << 10;
const CHUNK_BYTES = 256 << 10;
const SELECTORS = 0x002b_0000_0000_0033n;

/** A frame as the kernel lays it out: its first word, the saved rsp and rip, and the segment selectors. */
interface Frame {
  /** Byte offset of the frame's first word in the stack. */
  readonly at: number;
  readonly sp: bigint;
  readonly ip: bigint;
  readonly restorer: bigint;
}

const RSP_AT = 21 * 8;
const RIP_AT = 22 * 8;
const SELECTORS_AT = 24 * 8;

function stackWith(frames: readonly Frame[]) {
  const stack = new Uint8Array(STACK_BYTES);
  const view = new DataView(stack.buffer);
  for (const { at, sp, ip, restorer } of frames) {
    view.setBigUint64(at, restorer, true);
    view.setBigUint64(at + RSP_AT, sp, true);
    view.setBigUint64(at + RIP_AT, ip, true);
    view.setBigUint64(at + SELECTORS_AT, SELECTORS, true);
  }
  return {
    readInto(at: bigint, bytes: Uint8Array): number {
      const part = stack.subarray(Number(at - STACK_AT), Number(at - STACK_AT) + bytes.length);
      bytes.set(part);
      return part.length;
    },
    setWord: (offset: number, value: bigint) => view.setBigUint64(offset, value, true),
  };
}

const frame = (at: number, sp = STACK_AT + BigInt(STACK_BYTES) - 64n): Frame => ({
  at,
  sp,
  ip: 0x40_1000n + BigInt(at),
  restorer: 0x40_0100n,
});
const endAt = (selectorsAt: number): number => selectorsAt - SELECTORS_AT;

interface Case {
  readonly name: string;
  readonly frames: readonly Frame[];
  /** Offset of the stack pointer in the stack. */
  readonly from: number;
  /** Which of the frames are found. */
  readonly found: readonly number[];
}

const cases: readonly Case[] = [
  { name: "no frame", frames: [], from: 0, found: [] },
  { name: "frame at the stack pointer", frames: [frame(4096)], from: 4096, found: [0] },
  { name: "frame below the stack pointer is dead", frames: [frame(4096)], from: 8192, found: [] },
  { name: "stack pointer that is not a multiple of 8", frames: [frame(4104)], from: 4099, found: [0] },
  { name: "selectors between two words are data", frames: [frame(4100)], from: 4096, found: [] },
  {
    name: "nested frames",
    frames: [frame(4096, STACK_AT + 16384n), frame(32768)],
    from: 4096,
    found: [0, 1],
  },
  {
    name: "selectors in the last word of the first chunk",
    frames: [frame(endAt(CHUNK_BYTES - 8))],
    from: 0,
    found: [0],
  },
  {
    name: "selectors in the first word behind the first chunk",
    frames: [frame(endAt(CHUNK_BYTES))],
    from: 0,
    found: [0],
  },
  {
    name: "frame that ends with the stack",
    frames: [frame(endAt(STACK_BYTES - 8))],
    from: 0,
    found: [0],
  },
];

test.each(cases)("signal frames: $name", ({ frames, from, found }) => {
  const mappings = [{ start: STACK_AT, end: STACK_AT + BigInt(STACK_BYTES) }];
  const positions = findSavedPositions(stackWith(frames), mappings, STACK_AT + BigInt(from));
  expect(positions).toEqual(
    found.map((index) => {
      const { ip, sp, restorer } = frames[index]!;
      return { ip, sp, restorer };
    }),
  );
});

test.each([
  ["in use: the search goes on where its thread left its own stack", 0x2_0000n, [0]],
  ["not in use: a thread there is about to come back from it", 0n, []],
])("a private stack, %s", (_, leftAt, found) => {
  const left: Frame = { at: 0x3_0000, sp: STACK_AT + 0x4_0000n, ip: 0x1234n, restorer: 0x5678n };
  const stack = stackWith([left]);
  const own = { start: STACK_AT + BigInt(STACK_STRIDE), end: STACK_AT + BigInt(STACK_BYTES) };
  const ours = { start: STACK_AT + 4096n, end: own.start, path: `/memfd:${STACKS_MEMORY_NAME} (deleted)` };
  stack.setWord(STACK_HEAD + HEAD_SP, leftAt === 0n ? 0n : STACK_AT + leftAt);
  const find = (mapping: StackMapping) =>
    findSavedPositions(stack, [mapping, own], STACK_AT + BigInt(STACK_HEAD) - 256n);
  expect(find(ours)).toEqual(found.map(() => ({ ip: left.ip, sp: left.sp, restorer: left.restorer })));
  expect(find({ ...ours, path: "/memfd:other (deleted)" })).toEqual([]);
});
