/** Records of one ring buffer or perf event array (maps/ring-layout.ts has the states of a cell). */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import { R8, RAX, RCX, RDI, RDX, type Reg, RSI, regSet } from "../../../x86/registers.ts";
import { E2BIG, EAGAIN, EINVAL, ENOSPC } from "../../error-numbers.ts";
import {
  CELL_LENGTH,
  CELL_RECORD,
  CELL_STATE,
  RING_CELLS,
  RING_DROPPED,
  RING_HEAD,
  RING_QUERY_AVAILABLE,
  RING_QUERY_HEAD,
  RING_QUERY_SIZE,
  RING_QUERY_TAIL,
  RING_TAIL,
  type RingLayout,
} from "../../maps/ring-layout.ts";
import { argsOf, emitMapAddress, type MapRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

export type RingRoutineInput = MapRoutineInput<RingLayout>;

/** Flags of bpf_ringbuf_output: whether the reader is woken, who is not asleep. */
const WAKEUP_FLAGS = 3;

/** rdi = map, rsi = bytes of the record: rax = the record, or 0 if the ring is full (counted) or the record too long. */
function takeCell({ routines, name, spec, layout }: RingRoutineInput): Routine {
  return routines.get(
    `ring take ${name}`,
    (): RoutineBody => ({
      args: [],
      clobbers: regSet(RAX, RCX, RDX, R8),
      stackBytes: 0,
      emit: (a) => {
        const tail = { base: RDI, disp: RING_TAIL };
        const [retry, slow, full, tooLong] = [
          a.label("retry"),
          a.label("slow"),
          a.label("full"),
          a.label("too long"),
        ];
        a.cmpImm(RSI, spec.valueBytes);
        a.jcc("a", tooLong);
        a.bind(retry);
        a.mov(RAX, tail);
        a.mov(RCX, RAX, 32);
        a.andImm(RCX, layout.cells - 1, 32);
        // The state of a cell that is free for this position: the position without its index.
        a.mov(R8, RAX);
        a.sub(R8, RCX);
        a.imulImm(RDX, RCX, layout.cellBytes);
        a.lea(RDX, { base: RDI, index: RDX, disp: RING_CELLS });
        a.cmp({ base: RDX, disp: CELL_STATE }, R8);
        a.jcc("ne", slow);
        a.lea(RCX, { base: RAX, disp: 1 });
        a.lock().cmpxchg(tail, RCX);
        a.jcc("ne", retry);
        // Length, and flags 0.
        a.mov({ base: RDX, disp: CELL_LENGTH }, RSI);
        a.lea(RAX, { base: RDX, disp: CELL_RECORD });
        a.ret();

        // The head is read before the state: if the ring is not full then, the state is already the new one.
        a.bind(slow);
        a.mov(RCX, { base: RDI, disp: RING_HEAD });
        a.cmp({ base: RDX, disp: CELL_STATE }, R8);
        a.jcc("e", retry);
        a.mov(R8, RAX);
        a.sub(R8, RCX);
        // Unsigned: a head above the tail is no head, if this is still the tail.
        a.cmpImm(R8, layout.cells);
        a.jcc("ae", full);
        // A retired cell, or the tail has moved: then this fails.
        a.lea(RCX, { base: RAX, disp: 1 });
        a.lock().cmpxchg(tail, RCX);
        a.jmp(retry);

        a.bind(full);
        a.cmp(tail, RAX);
        a.jcc("ne", retry);
        a.lock().inc({ base: RDI, disp: RING_DROPPED });
        a.bind(tooLong);
        a.zero(RAX);
        a.ret();
      },
    }),
  );
}

/**
 * rsi = bytes of the record, rdx = flags, which must be 0; rax = the record, or 0. With `hasNoFlags` they are known to be
 * 0, and nothing reads rdx.
 */
export function ringReserve(input: RingRoutineInput, hasNoFlags = false): Routine {
  const name = `ring reserve ${input.name}${hasNoFlags ? " without flags" : ""}`;
  return input.routines.get(name, (): RoutineBody => {
    const take = takeCell(input);
    return {
      args: hasNoFlags ? argsOf(input, 2) : argsOf(input, 2, 3),
      clobbers: regSet(RAX, RDI),
      stackBytes: 0,
      jumpsTo: [take],
      emit: (a) => {
        const invalid = a.label("invalid");
        if (!hasNoFlags) {
          a.test(RDX, RDX);
          a.jcc("ne", invalid);
        }
        emitMapAddress(a, input);
        a.jmp(take.label);
        if (hasNoFlags) return;
        a.bind(invalid);
        a.zero(RAX);
        a.ret();
      },
    };
  });
}

/** Copies `count` bytes; `from`, `to` and `count` change, and `temp`. */
function emitCopyBytes(a: Assembler, to: Reg, from: Reg, count: Reg, temp: Reg): void {
  const [word, bytes, byte, done] = [a.label("word"), a.label("bytes"), a.label("byte"), a.label("copied")];
  a.subImm(count, 8);
  a.jcc("b", bytes);
  a.bind(word);
  a.mov(temp, { base: from });
  a.mov({ base: to }, temp);
  a.addImm(from, 8);
  a.addImm(to, 8);
  a.subImm(count, 8);
  a.jcc("ae", word);
  a.bind(bytes);
  a.addImm(count, 8);
  a.jcc("e", done);
  a.bind(byte);
  a.movzx(temp, { base: from }, 8);
  a.mov({ base: to }, temp, 8);
  a.inc(from);
  a.inc(to);
  a.dec(count);
  a.jcc("ne", byte);
  a.bind(done);
}

/** rdi = map, rsi = bytes, on the stack above the return address the address of the data: sends it, or jumps. */
function emitSend(a: Assembler, take: Routine, data: Reg, full: Label): void {
  a.push(data);
  a.push(RSI);
  a.call(take.label);
  a.pop(RCX);
  a.pop(RSI);
  a.test(RAX, RAX);
  a.jcc("e", full);
  a.lea(R8, { base: RAX, disp: CELL_STATE - CELL_RECORD });
  emitCopyBytes(a, RAX, RSI, RCX, RDX);
  a.inc({ base: R8 });
}

/** rsi = data, rdx = its size, rcx = flags; rax = 0, or -EAGAIN if the ring is full. */
export function ringOutput(input: RingRoutineInput): Routine {
  return input.routines.get(`ring output ${input.name}`, (): RoutineBody => {
    const take = takeCell(input);
    return {
      args: argsOf(input, 2, 3, 4),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8),
      stackBytes: 16,
      calls: [take],
      emit: (a) => {
        const [invalid, full] = [a.label("invalid"), a.label("full")];
        a.cmpImm(RCX, WAKEUP_FLAGS);
        a.jcc("a", invalid);
        emitMapAddress(a, input);
        a.xchg(RSI, RDX);
        emitSend(a, take, RDX, full);
        a.zero(RAX);
        a.ret();
        a.bind(invalid);
        a.movImm(RAX, EINVAL);
        a.ret();
        a.bind(full);
        a.movImm(RAX, EAGAIN);
        a.ret();
      },
    };
  });
}

/**
 * rdx = flags, rcx = data, r8 = its size; rax = 0, or -ENOSPC if the ring is full. The map is the second argument. All
 * processors have one ring, so every index in the flags is right.
 */
export function perfEventOutput(input: RingRoutineInput): Routine {
  return input.routines.get(`perf event output ${input.name}`, (): RoutineBody => {
    const take = takeCell(input);
    return {
      args: input.mapAddr === undefined ? [2, 3, 4, 5] : [3, 4, 5],
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8),
      stackBytes: 16,
      calls: [take],
      emit: (a) => {
        const [invalid, full, tooLong] = [a.label("invalid"), a.label("full"), a.label("too long")];
        a.shr(RDX, 32);
        a.jcc("ne", invalid);
        emitMapAddress(a, input, { from: RSI });
        a.cmpImm(R8, input.spec.valueBytes);
        a.jcc("a", tooLong);
        a.mov(RSI, R8);
        emitSend(a, take, RCX, full);
        a.zero(RAX);
        a.ret();
        for (const [label, error] of [
          [invalid, EINVAL],
          [full, ENOSPC],
          [tooLong, E2BIG],
        ] as const) {
          a.bind(label);
          a.movImm(RAX, error);
          a.ret();
        }
      },
    };
  });
}

/** rsi = what is asked; rax = the answer, 0 for what there is not. */
export function ringQuery(input: RingRoutineInput): Routine {
  const { routines, name, layout } = input;
  return routines.get(
    `ring query ${name}`,
    (): RoutineBody => ({
      args: argsOf(input, 2),
      clobbers: regSet(RAX, RDI, RCX),
      stackBytes: 0,
      emit: (a) => {
        emitMapAddress(a, input);
        const answers: readonly (readonly [bigint, () => void])[] = [
          [
            RING_QUERY_AVAILABLE,
            () => {
              a.mov(RAX, { base: RDI, disp: RING_TAIL });
              a.sub(RAX, { base: RDI, disp: RING_HEAD });
            },
          ],
          [RING_QUERY_SIZE, () => a.movImm(RAX, layout.cells)],
          [RING_QUERY_HEAD, () => a.mov(RAX, { base: RDI, disp: RING_HEAD })],
          [RING_QUERY_TAIL, () => a.mov(RAX, { base: RDI, disp: RING_TAIL })],
        ];
        const inBytes = a.label("in bytes");
        for (const [what, emitAnswer] of answers) {
          const other = a.label("other");
          a.cmpImm(RSI, what);
          a.jcc("ne", other);
          emitAnswer();
          a.jmp(inBytes);
          a.bind(other);
        }
        a.zero(RAX);
        a.bind(inBytes);
        a.movImm(RCX, layout.cellBytes);
        a.imul(RAX, RCX);
        a.ret();
      },
    }),
  );
}
