/** Reservation of a record in one ring buffer (maps/layout.ts has the states of a cell). */
import { R8, RAX, RCX, RDI, RDX, RSI, regSet } from "../../x86/registers.ts";
import type { RingLayout } from "../maps/index.ts";
import {
  CELL_LENGTH,
  CELL_RECORD,
  CELL_STATE,
  RING_CELLS,
  RING_DROPPED,
  RING_HEAD,
  RING_TAIL,
} from "../maps/layout.ts";
import type { MapSpec } from "../program.ts";
import { emitAddress } from "./memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";

export interface RingRoutineInput {
  readonly routines: RoutineSet;
  readonly mapIndex: number;
  readonly spec: MapSpec;
  readonly layout: RingLayout;
  /** Address of the map's storage. */
  readonly mapAddr: bigint;
}

/** rsi = bytes of the record; rax = the record, or 0 if the ring is full (counted) or the record too long. */
export function ringReserve({ routines, mapIndex, spec, layout, mapAddr }: RingRoutineInput): Routine {
  return routines.get(`ring reserve ${mapIndex}`, () => ({
    args: [2],
    clobbers: regSet(RAX, RCX, RDX, RDI, R8),
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
      emitAddress(a, RDI, mapAddr);
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
      a.cmpImm(R8, layout.cells);
      a.jcc("ge", full);
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
  }));
}
