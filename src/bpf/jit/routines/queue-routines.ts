/**
 * Push, pop and peek of one queue or stack (maps/queue-layout.ts has the invariants). Registers between the parts:
 *
 *     rdi  map     r8  state word     r9d  position of the oldest     r10d  count
 */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, type Reg, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { E2BIG, EBUSY, EINVAL, ENOENT } from "../../error-numbers.ts";
import {
  QUEUE_CELLS,
  QUEUE_STATE,
  type QueueLayout,
  RECORD_BOUNDS,
  RECORD_CELL_AFTER,
  RECORD_CELL_BEFORE,
} from "../../maps/queue-layout.ts";
import type { PoolLayout } from "../../maps/tagged-words.ts";
import { emitCopyWords, emitFrame } from "../memory-moves.ts";
import { emitElement, emitNextTag, emitRefOf, releaseRoutine, takeRoutine } from "./element-pool.ts";
import { argsOf, emitMapAddress, type MapRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

export type QueueRoutineInput = MapRoutineInput<QueueLayout>;

const FLAG_EXIST = 2;
const STATE = { base: RDI, disp: QUEUE_STATE };
const local = (disp: number) => ({ base: RSP, disp });

/** rdi = map: r8, r9 and r10 as above; the cell that the state leaves to be written is written. What makes no sense is empty. */
function settleRoutine({ routines, name, spec, layout }: QueueRoutineInput): Routine {
  return routines.get(
    `queue settle ${name}`,
    (): RoutineBody => ({
      args: [],
      clobbers: regSet(RAX, RCX, RDX, R8, R9, R10),
      stackBytes: 0,
      emit: (a) => {
        const [empty, done] = [a.label("empty"), a.label("done")];
        const retry = a.here("settle");
        a.mov(R8, STATE);
        emitElement(a, RCX, R8, layout.records, empty);
        a.mov(R9, { base: RCX, disp: RECORD_BOUNDS });
        a.mov(RAX, { base: RCX, disp: RECORD_CELL_BEFORE });
        a.mov(RDX, { base: RCX, disp: RECORD_CELL_AFTER });
        a.cmp(STATE, R8);
        a.jcc("ne", retry);
        a.mov(R10, R9);
        a.shr(R10, 32);
        a.mov(R9, R9, 32);
        // What the process has written there can be anything.
        a.cmpImm(R9, spec.maxEntries, 32);
        a.jcc("ae", empty);
        a.cmpImm(R10, spec.maxEntries, 32);
        a.jcc("a", empty);
        a.test(RDX, RDX);
        a.jcc("e", done);
        a.test(R10, R10, 32);
        a.jcc("e", done);
        a.lea(RCX, { base: R9, index: R10, disp: -1 });
        emitWrap(a, RCX, spec.maxEntries);
        const cell = { base: RDI, index: RCX, scale: 8, disp: QUEUE_CELLS } as const;
        a.cmp(cell, RAX);
        a.jcc("ne", done);
        a.lock().cmpxchg(cell, RDX);
        a.bind(done);
        a.ret();
        a.bind(empty);
        a.zero(R9);
        a.zero(R10);
        a.ret();
      },
    }),
  );
}

/** A position that may have gone past the last one, by less than the whole. */
function emitWrap(a: Assembler, position: Reg, maxEntries: number): void {
  const inside = a.label("inside");
  a.cmpImm(position, maxEntries, 32);
  a.jcc("b", inside);
  a.subImm(position, maxEntries, 32);
  a.bind(inside);
}

/** rax = a record with its cell words, rcx = oldest, rdx = count, r8 = state word: ZF is set if it is the state now. */
function emitExchange(a: Assembler): void {
  a.shl(RDX, 32);
  a.or(RDX, RCX);
  a.mov({ base: RAX, disp: RECORD_BOUNDS }, RDX);
  emitRefOf(a, RCX, RAX);
  a.mov(RDX, R8);
  emitNextTag(a, RDX);
  a.or(RDX, RCX);
  a.mov(RAX, R8);
  a.lock().cmpxchg(STATE, RDX);
}

/** The low half of `word` names an element, if any: gives it back. Changes rax. */
function emitReleaseRef(a: Assembler, word: Reg, pool: PoolLayout, release: Routine): void {
  const none = a.label("none");
  emitElement(a, RAX, word, pool, none);
  a.call(release.label);
  a.bind(none);
}

function poolsOf({ routines, name, layout }: QueueRoutineInput) {
  return {
    takeNode: takeRoutine(routines, `node ${name}`, layout.nodes),
    releaseNode: releaseRoutine(routines, `node ${name}`, layout.nodes),
    takeRecord: takeRoutine(routines, `record ${name}`, layout.records),
    releaseRecord: releaseRoutine(routines, `record ${name}`, layout.records),
  };
}

/** rsi = value, rdx = flags; rax = 0 or an error. */
export function queuePush(input: QueueRoutineInput): Routine {
  const { routines, name, spec, layout } = input;
  return routines.get(`queue push ${name}`, (): RoutineBody => {
    const settle = settleRoutine(input);
    const pools = poolsOf(input);
    const [flags, node, record] = [0, 8, 16];
    const frameBytes = 24;
    const { maxEntries } = spec;
    return {
      args: argsOf(input, 2, 3),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: frameBytes,
      calls: [settle, ...Object.values(pools)],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [invalid, full, giveBack, noNode, noRecord] = [
            a.label("invalid"),
            a.label("full"),
            a.label("give back"),
            a.label("no node"),
            a.label("no record"),
          ];
          a.testImm(RDX, ~FLAG_EXIST);
          a.jcc("ne", invalid);
          a.mov(local(flags), RDX);
          emitMapAddress(a, input);
          a.call(pools.takeNode.label);
          a.test(RAX, RAX);
          a.jcc("e", noNode);
          a.mov(local(node), RAX);
          emitCopyWords(a, { base: RAX, disp: 0 }, { base: RSI, disp: 0 }, spec.valueBytes, R9, R10, R11);
          a.call(pools.takeRecord.label);
          a.test(RAX, RAX);
          a.jcc("e", noRecord);
          a.mov(local(record), RAX);

          const retry = a.here("retry");
          const [hasRoom, exchange] = [a.label("has room"), a.label("exchange")];
          a.call(settle.label);
          a.lea(RCX, { base: R9, index: R10 });
          emitWrap(a, RCX, maxEntries);
          // How the cell is, and how it will be.
          a.mov(RSI, { base: RDI, index: RCX, scale: 8, disp: QUEUE_CELLS });
          a.mov(RCX, RSI);
          emitNextTag(a, RCX);
          a.mov(RAX, local(node));
          emitRefOf(a, RDX, RAX);
          a.or(RCX, RDX);
          a.mov(RAX, local(record));
          a.mov({ base: RAX, disp: RECORD_CELL_BEFORE }, RSI);
          a.mov({ base: RAX, disp: RECORD_CELL_AFTER }, RCX);
          a.mov(RCX, R9);
          a.lea(RDX, { base: R10, disp: 1 });
          a.cmpImm(R10, maxEntries, 32);
          a.jcc("b", hasRoom);
          a.cmpImm(local(flags), 0);
          a.jcc("e", full);
          // The oldest goes, and its cell is the one that is written.
          a.inc(RCX, 32);
          emitWrap(a, RCX, maxEntries);
          a.mov(RDX, R10);
          a.jmp(exchange);
          a.bind(hasRoom);
          a.zero(RSI);
          a.bind(exchange);
          emitExchange(a);
          a.jcc("ne", retry);
          emitReleaseRef(a, R8, layout.records, pools.releaseRecord);
          emitReleaseRef(a, RSI, layout.nodes, pools.releaseNode);
          a.zero(RAX);
          leave();

          a.bind(full);
          a.mov(RAX, local(record));
          a.call(pools.releaseRecord.label);
          a.movImm(RCX, E2BIG);
          a.bind(giveBack);
          a.mov(RAX, local(node));
          a.call(pools.releaseNode.label);
          a.mov(RAX, RCX);
          leave();
          a.bind(noRecord);
          a.movImm(RCX, EBUSY);
          a.jmp(giveBack);
          a.bind(noNode);
          a.movImm(RAX, EBUSY);
          leave();
          a.bind(invalid);
          a.movImm(RAX, EINVAL);
          leave();
        }),
    };
  });
}

/**
 * r9d, r10d as above: rcx = the cell of the value that comes out next, rdx = the address of the value. Jumps to `none` if the
 * cell names no node.
 */
function emitFirst(a: Assembler, { layout, spec }: QueueRoutineInput, none: Label): void {
  if (layout.isStack) {
    a.lea(RCX, { base: R9, index: R10, disp: -1 });
    emitWrap(a, RCX, spec.maxEntries);
  } else a.mov(RCX, R9);
  a.mov(RCX, { base: RDI, index: RCX, scale: 8, disp: QUEUE_CELLS });
  emitElement(a, RDX, RCX, layout.nodes, none);
}

/** There is no value: what rsi leads to becomes zeros. */
function emitZeroValue(a: Assembler, valueBytes: number): void {
  a.zero(RAX);
  const words = Math.floor(valueBytes / 8);
  if (words > 0) {
    a.movImm(RCX, words, 32);
    const next = a.here("zero");
    a.mov({ base: RSI }, RAX);
    a.addImm(RSI, 8);
    a.dec(RCX, 32);
    a.jcc("ne", next);
  }
  for (let at = 0; at < valueBytes % 8; at++) a.mov({ base: RSI, disp: at }, RAX, 8);
}

/** Copies exactly `lenBytes` bytes from rdx to rsi; rax and r11 change. */
function emitCopyOut(a: Assembler, lenBytes: number): void {
  const whole = lenBytes - (lenBytes % 8);
  emitCopyWords(a, { base: RSI, disp: 0 }, { base: RDX, disp: 0 }, whole, RAX, RAX, R11);
  let at = whole;
  for (const [size, bytes] of [
    [32, 4],
    [16, 2],
    [8, 1],
  ] as const) {
    if (lenBytes - at < bytes) continue;
    a.mov(RAX, { base: RDX, disp: at }, size);
    a.mov({ base: RSI, disp: at }, RAX, size);
    at += bytes;
  }
}

/** rsi = room for the value; rax = 0, or -ENOENT and zeros. */
export function queuePop(input: QueueRoutineInput): Routine {
  const { routines, name, spec, layout } = input;
  return routines.get(`queue pop ${name}`, (): RoutineBody => {
    const settle = settleRoutine(input);
    const pools = poolsOf(input);
    const { takeRecord, releaseRecord, releaseNode } = pools;
    const [cell, record] = [0, 8];
    const frameBytes = 16;
    return {
      args: argsOf(input, 2),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: frameBytes,
      calls: [settle, takeRecord, releaseRecord, releaseNode],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [empty, noRecord] = [a.label("empty"), a.label("no record")];
          emitMapAddress(a, input);
          a.call(takeRecord.label);
          a.test(RAX, RAX);
          a.jcc("e", noRecord);
          a.mov(local(record), RAX);
          const retry = a.here("retry");
          a.call(settle.label);
          a.test(R10, R10);
          a.jcc("e", empty);
          emitFirst(a, input, empty);
          a.mov(local(cell), RCX);
          // Only if the state is unchanged afterwards this is the value.
          emitCopyOut(a, spec.valueBytes);
          a.mov(RCX, R9);
          if (!layout.isStack) {
            a.inc(RCX, 32);
            emitWrap(a, RCX, spec.maxEntries);
          }
          a.lea(RDX, { base: R10, disp: -1 });
          a.mov(RAX, local(record));
          a.movImm({ base: RAX, disp: RECORD_CELL_AFTER }, 0);
          emitExchange(a);
          a.jcc("ne", retry);
          emitReleaseRef(a, R8, layout.records, releaseRecord);
          a.mov(RCX, local(cell));
          emitReleaseRef(a, RCX, layout.nodes, releaseNode);
          a.zero(RAX);
          leave();

          a.bind(empty);
          a.mov(RAX, local(record));
          a.call(releaseRecord.label);
          emitZeroValue(a, spec.valueBytes);
          a.movImm(RAX, ENOENT);
          leave();
          a.bind(noRecord);
          emitZeroValue(a, spec.valueBytes);
          a.movImm(RAX, EBUSY);
          leave();
        }),
    };
  });
}

/** rsi = room for the value; rax = 0, or -ENOENT and zeros. */
export function queuePeek(input: QueueRoutineInput): Routine {
  const { routines, name, spec } = input;
  return routines.get(`queue peek ${name}`, (): RoutineBody => {
    const settle = settleRoutine(input);
    return {
      args: argsOf(input, 2),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: 0,
      calls: [settle],
      emit: (a) => {
        const empty = a.label("empty");
        emitMapAddress(a, input);
        const retry = a.here("retry");
        a.call(settle.label);
        a.test(R10, R10);
        a.jcc("e", empty);
        emitFirst(a, input, empty);
        emitCopyOut(a, spec.valueBytes);
        a.cmp(STATE, R8);
        a.jcc("ne", retry);
        a.zero(RAX);
        a.ret();
        a.bind(empty);
        emitZeroValue(a, spec.valueBytes);
        a.movImm(RAX, ENOENT);
        a.ret();
      },
    };
  });
}
