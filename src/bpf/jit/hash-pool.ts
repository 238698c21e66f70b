/**
 * The pool of one hash map's elements, and unlinking, which gives elements back to it (maps/layout.ts has the
 * layout and the invariants).
 */
import type { Assembler } from "../../x86/assembler.ts";
import { R8, R9, R10, RAX, RCX, RDI, RDX, type Reg, regSet } from "../../x86/registers.ts";
import type { HashLayout } from "../maps/index.ts";
import { ELEMENT_FREE_LINK, HASH_FREE, HASH_REFUSED, HASH_USED } from "../maps/layout.ts";
import type { MapSpec } from "../program.ts";
import type { Routine, RoutineBody, RoutineSet } from "./routine.ts";

const REF_MASK = 0x7fffffff;

export interface HashRoutineInput {
  readonly routines: RoutineSet;
  readonly mapIndex: number;
  readonly spec: MapSpec;
  readonly layout: HashLayout;
  /** Address of the map's storage. */
  readonly mapAddr: bigint;
}

/** Replaces the low half of a word by zero and counts its tag. */
export function emitNextTag(a: Assembler, word: Reg): void {
  a.shr(word, 32);
  a.inc(word, 32);
  a.shl(word, 32);
}

/**
 * rcx = address of a word, r8 = the word, rax = the marked element that it leads to: unlinks the element and gives
 * it back. ZF is set if that succeeded. Changes nothing else.
 */
export function unlinkRoutine(input: HashRoutineInput): Routine {
  const { routines, mapIndex } = input;
  return routines.get(`hash unlink ${mapIndex}`, (): RoutineBody => {
    const release = releaseRoutine(input);
    return {
      args: [],
      clobbers: 0,
      stackBytes: 24,
      calls: [release],
      emit: (a) => {
        const done = a.label("done");
        a.push(RAX);
        a.push(RDX);
        a.push(R9);
        // The word of a marked element does not change while something leads to it.
        a.mov(RDX, { base: RAX }, 32);
        a.andImm(RDX, REF_MASK, 32);
        a.mov(R9, R8);
        emitNextTag(a, R9);
        a.or(RDX, R9);
        a.mov(R9, RAX);
        a.mov(RAX, R8);
        a.lock().cmpxchg({ base: RCX }, RDX);
        a.jcc("ne", done);
        a.mov(RAX, R9);
        a.call(release.label);
        a.cmp(RAX, RAX);
        a.bind(done);
        a.pop(R9);
        a.pop(RDX);
        a.pop(RAX);
        a.ret();
      },
    };
  });
}

/** rax = element that nothing leads to, rdi = map: puts it into the free list. Changes only flags. */
export function releaseRoutine({ routines, mapIndex }: HashRoutineInput): Routine {
  return routines.get(
    `hash release ${mapIndex}`,
    (): RoutineBody => ({
      args: [],
      clobbers: 0,
      stackBytes: 32,
      emit: (a) => {
        for (const reg of [RAX, RDX, R9, R10]) a.push(reg);
        a.mov(R9, RAX);
        a.mov(R10, RAX);
        a.sub(R10, RDI);
        a.shr(R10, 3);
        a.mov(RAX, { base: RDI, disp: HASH_FREE });
        const retry = a.here("release");
        a.mov(RDX, RAX, 32);
        a.mov({ base: R9, disp: ELEMENT_FREE_LINK }, RDX);
        a.mov(RDX, RAX);
        emitNextTag(a, RDX);
        a.or(RDX, R10);
        a.lock().cmpxchg({ base: RDI, disp: HASH_FREE }, RDX);
        a.jcc("ne", retry);
        for (const reg of [R10, R9, RDX, RAX]) a.pop(reg);
        a.ret();
      },
    }),
  );
}

/** rdi = map: rax = an element from the pool, or 0 (counted). Changes rdx, r9, r10. */
export function takeRoutine({ routines, mapIndex, layout }: HashRoutineInput): Routine {
  return routines.get(
    `hash take ${mapIndex}`,
    (): RoutineBody => ({
      args: [],
      clobbers: regSet(RAX, RDX, R9, R10),
      stackBytes: 0,
      emit: (a) => {
        const [retry, unused, full] = [a.label("retry"), a.label("unused"), a.label("full")];
        a.mov(RAX, { base: RDI, disp: HASH_FREE });
        a.bind(retry);
        a.mov(RDX, RAX, 32);
        a.test(RDX, RDX, 32);
        a.jcc("e", unused);
        a.mov(R9, RAX);
        emitNextTag(a, R9);
        // The link of an element that was taken meanwhile is garbage, but then the tag has changed.
        a.mov(R10, { base: RDI, index: RDX, scale: 8, disp: ELEMENT_FREE_LINK }, 32);
        a.or(R9, R10);
        a.lock().cmpxchg({ base: RDI, disp: HASH_FREE }, R9);
        a.jcc("ne", retry);
        a.lea(RAX, { base: RDI, index: RDX, scale: 8 });
        a.ret();

        a.bind(unused);
        a.movImm(R9, layout.poolBytes / 8);
        a.cmp({ base: RDI, disp: HASH_USED }, R9);
        a.jcc("ae", full);
        a.movImm(RAX, layout.stride / 8);
        a.lock().xadd({ base: RDI, disp: HASH_USED }, RAX);
        a.cmp(RAX, R9);
        a.jcc("ae", full);
        a.lea(RAX, { base: RDI, index: RAX, scale: 8, disp: layout.elementsOffset });
        a.ret();

        a.bind(full);
        a.lock().inc({ base: RDI, disp: HASH_REFUSED });
        a.zero(RAX);
        a.ret();
      },
    }),
  );
}
