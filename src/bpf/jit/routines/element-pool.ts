/** Taking elements out of a pool and giving them back (maps/tagged-words.ts has the layout and the reasons). */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import { R9, R10, RAX, RDI, RDX, type Reg, regSet } from "../../../x86/registers.ts";
import type { PoolLayout } from "../../maps/tagged-words.ts";
import type { Routine, RoutineBody, RoutineSet } from "./routine.ts";

export const REF_MASK = 0x7fffffff;

/**
 * `dst` = address of the element that the low half of `word` names; the map is in rdi. Jumps to `none` where it names nothing
 * that lies in the pool whole: 0, a mark, or whatever the process has written there. With a register to spare, `temp`, what
 * comes next does not wait for the check.
 */
export function emitElement(
  a: Assembler,
  dst: Reg,
  word: Reg,
  { region, stride }: Pick<PoolLayout, "region" | "stride">,
  none: Label,
  temp?: Reg,
): void {
  if (temp !== undefined) {
    a.lea(temp, { base: word, disp: -region.offset / 8 }, 32);
    a.mov(dst, word, 32);
    a.cmpImm(temp, (region.lenBytes - stride) / 8, 32);
    a.jcc("a", none);
    a.lea(dst, { base: RDI, index: dst, scale: 8 });
    return;
  }
  a.lea(dst, { base: word, disp: -region.offset / 8 }, 32);
  a.cmpImm(dst, (region.lenBytes - stride) / 8, 32);
  a.jcc("a", none);
  a.lea(dst, { base: RDI, index: dst, scale: 8, disp: region.offset });
}

/** Replaces the low half of a word by zero and counts its tag. */
export function emitNextTag(a: Assembler, word: Reg): void {
  a.shr(word, 32);
  a.inc(word, 32);
  a.shl(word, 32);
}

/** `dst` = the ref of the element in `element`; the map is in rdi. */
export function emitRefOf(a: Assembler, dst: Reg, element: Reg): void {
  a.mov(dst, element);
  a.sub(dst, RDI);
  a.shr(dst, 3);
}

/** rax = element that nothing leads to, rdi = map: puts it into the free list. Changes only flags. */
export function releaseRoutine(routines: RoutineSet, name: string, pool: PoolLayout): Routine {
  const free = { base: RDI, disp: pool.free };
  return routines.get(
    `release ${name}`,
    (): RoutineBody => ({
      args: [],
      clobbers: 0,
      stackBytes: 32,
      emit: (a) => {
        for (const reg of [RAX, RDX, R9, R10]) a.push(reg);
        a.mov(R9, RAX);
        emitRefOf(a, R10, RAX);
        a.mov(RAX, free);
        const retry = a.here("release");
        a.mov(RDX, RAX, 32);
        a.mov({ base: R9, disp: pool.link }, RDX);
        a.mov(RDX, RAX);
        emitNextTag(a, RDX);
        a.or(RDX, R10);
        a.lock().cmpxchg(free, RDX);
        a.jcc("ne", retry);
        for (const reg of [R10, R9, RDX, RAX]) a.pop(reg);
        a.ret();
      },
    }),
  );
}

/**
 * rdi = map: rax = an element, or 0 if there is none; rdx is 0 if the element was never used before. Changes r9 and
 * r10 besides.
 */
export function takeRoutine(routines: RoutineSet, name: string, pool: PoolLayout): Routine {
  const free = { base: RDI, disp: pool.free };
  const used = { base: RDI, disp: pool.used };
  return routines.get(
    `take ${name}`,
    (): RoutineBody => ({
      args: [],
      clobbers: regSet(RAX, RDX, R9, R10),
      stackBytes: 0,
      emit: (a) => {
        const [retry, unused, none] = [a.label("retry"), a.label("unused"), a.label("none")];
        a.mov(RAX, free);
        a.bind(retry);
        emitElement(a, RDX, RAX, pool, unused);
        a.mov(R9, RAX);
        emitNextTag(a, R9);
        // The link of an element that was taken meanwhile is garbage, but then the tag has changed.
        a.mov(R10, { base: RDX, disp: pool.link }, 32);
        a.or(R9, R10);
        a.lock().cmpxchg(free, R9);
        a.jcc("ne", retry);
        a.mov(RAX, RDX);
        a.ret();

        a.bind(unused);
        a.zero(RDX);
        // The last place that an element can have.
        a.movImm(R9, (pool.poolBytes - pool.stride) / 8);
        a.cmp(used, R9);
        a.jcc("a", none);
        a.movImm(RAX, pool.stride / 8);
        a.lock().xadd(used, RAX);
        a.cmp(RAX, R9);
        a.jcc("a", none);
        a.lea(RAX, { base: RDI, index: RAX, scale: 8, disp: pool.elementsOffset });
        a.ret();

        a.bind(none);
        a.zero(RAX);
        a.ret();
      },
    }),
  );
}
