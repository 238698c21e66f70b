/**
 * Lookup in one array or hash of maps. A slot holds the distance to the inner map, in memory that the process can
 * change: only what is one of the maps that the slot can hold is handed on.
 */
import type { Assembler } from "../../../x86/assembler.ts";
import { RAX, RCX, RDI, RSI, regSet } from "../../../x86/registers.ts";
import type { SlotsLayout } from "../../maps/array-layout.ts";
import { emitAddress } from "../memory-moves.ts";
import { hashLookup } from "./hash-routines.ts";
import { emitMapAddress, type HashRoutineInput, type MapRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

/** rsi = key; rax = address of the inner map, or 0. `inner` are the addresses of all maps that it can be. */
export function arrayOfMapsLookup(input: MapRoutineInput<SlotsLayout>, inner: readonly bigint[]): Routine {
  const { routines, name, spec } = input;
  return routines.get(
    `array of maps lookup ${name}`,
    (): RoutineBody => ({
      args: [2],
      clobbers: regSet(RAX, RCX, RDI),
      stackBytes: 0,
      emit: (a) => {
        const none = a.label("none");
        a.mov(RCX, { base: RSI }, 32);
        a.cmpImm(RCX, spec.maxEntries, 32);
        a.jcc("ae", none);
        emitMapAddress(a, input);
        a.mov(RAX, { base: RDI, index: RCX, scale: 8 });
        a.add(RAX, RDI);
        emitCheckInner(a, inner);
        a.bind(none);
        a.zero(RAX);
        a.ret();
      },
    }),
  );
}

/** rsi = key; rax = address of the inner map, or 0. `inner` are the addresses of all maps that it can be. */
export function hashOfMapsLookup(input: HashRoutineInput, inner: readonly bigint[]): Routine {
  return input.routines.get(`hash of maps lookup ${input.name}`, (): RoutineBody => {
    const lookup = hashLookup(input);
    return {
      args: lookup.args,
      clobbers: regSet(RAX, RCX, RDI),
      stackBytes: 0,
      calls: [lookup],
      emit: (a) => {
        const none = a.label("none");
        a.call(lookup.label);
        a.test(RAX, RAX);
        a.jcc("e", none);
        a.mov(RAX, { base: RAX });
        emitMapAddress(a, input);
        a.add(RAX, RDI);
        emitCheckInner(a, inner);
        a.bind(none);
        a.zero(RAX);
        a.ret();
      },
    };
  });
}

/** Returns if rax is one of the addresses; what follows is reached if not. */
function emitCheckInner(a: Assembler, inner: readonly bigint[]): void {
  const found = a.label("found");
  const after = a.label("after");
  for (const address of inner) {
    emitAddress(a, RCX, address);
    a.cmp(RAX, RCX);
    a.jcc("e", found);
  }
  a.jmp(after);
  a.bind(found);
  a.ret();
  a.bind(after);
}
