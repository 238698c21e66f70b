/**
 * The elements of one hash map: unlinking, which gives them back to their pool, and taking one for a new key, for
 * which an LRU map that is full deletes another key (maps/hash-layout.ts has the layout and the invariants).
 */
import { R8, R9, R10, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import {
  CLOCK_MOST_STEPS,
  CLOCK_STEPS,
  ELEMENT_KEY,
  HASH_HAND,
  hashPool,
  sparePool,
} from "../../maps/hash-layout.ts";
import { emitCopyWords, emitFrame } from "../memory-moves.ts";
import { emitNextTag, REF_MASK, releaseRoutine, takeRoutine } from "./element-pool.ts";
import { emitStartSteps, emitTraversal, nextReg } from "./hash-traversal.ts";
import type { HashRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

/** Deletions in a full LRU map whose element another thread took. */
const MAX_EVICTIONS = 64;

/** A variable in the frame of a routine. */
const local = (disp: number) => ({ base: RSP, disp });

export function releaseElement({ routines, name, layout }: HashRoutineInput): Routine {
  return releaseRoutine(routines, `hash ${name}`, hashPool(layout));
}

export function releaseSpare({ routines, name, layout }: HashRoutineInput): Routine {
  return releaseRoutine(routines, `spare ${name}`, sparePool(layout));
}

export function takeSpare({ routines, name, layout }: HashRoutineInput): Routine {
  return takeRoutine(routines, `spare ${name}`, sparePool(layout));
}

/** An element for an entry, but in an LRU map not that of another key. */
export function takeUnlessFull({ routines, name, layout }: HashRoutineInput): Routine {
  return takeRoutine(routines, `hash ${name}`, hashPool(layout));
}

/** As `takeRoutine`, for a new key; the caller counts what is refused. */
export function takeElement(input: HashRoutineInput): Routine {
  const { routines, name, layout } = input;
  const take = takeUnlessFull(input);
  if (layout.touchedOffset === undefined) return take;
  return routines.get(`hash take or evict ${name}`, (): RoutineBody => {
    const evict = evictRoutine(input);
    const tries = { base: RSP, disp: 0 };
    return {
      args: [],
      clobbers: regSet(RAX, RDX, R9, R10),
      stackBytes: 8,
      calls: [take, evict],
      emit: (a) => {
        a.pushImm(MAX_EVICTIONS);
        const [again, last, done] = [a.here("again"), a.label("last"), a.label("done")];
        a.call(take.label);
        a.test(RAX, RAX);
        a.jcc("ne", done);
        a.call(evict.label);
        a.test(RAX, RAX);
        a.jcc("e", last);
        a.dec(tries);
        a.jcc("ne", again);
        // Where nothing was left to delete others have given elements back.
        a.bind(last);
        a.call(take.label);
        a.bind(done);
        a.pop(R9);
        a.ret();
      },
    };
  });
}

/**
 * rcx = address of a word, r8 = the word, rax = the marked element that it leads to: unlinks the element and gives
 * it back. ZF is set if that succeeded. Changes nothing else.
 */
export function unlinkRoutine(input: HashRoutineInput): Routine {
  const { routines, name, layout } = input;
  return routines.get(`hash unlink ${name}`, (): RoutineBody => {
    const release = releaseElement(input);
    const spare = layout.spareBytes > 0 ? releaseSpare(input) : undefined;
    return {
      args: [],
      clobbers: 0,
      stackBytes: spare === undefined ? 24 : 32,
      calls: spare === undefined ? [release] : [release, spare],
      emit: (a) => {
        const done = a.label("done");
        a.push(RAX);
        a.push(RDX);
        a.push(R9);
        // The word of a marked element does not change while something leads to it.
        a.mov(RDX, { base: RAX }, 32);
        a.andImm(RDX, spare === undefined ? REF_MASK : REF_MASK - 1, 32);
        a.mov(R9, R8);
        emitNextTag(a, R9);
        a.or(RDX, R9);
        a.mov(R9, RAX);
        if (spare !== undefined) a.push({ base: RAX });
        a.mov(RAX, R8);
        a.lock().cmpxchg({ base: RCX }, RDX);
        if (spare !== undefined) a.pop(RDX);
        a.jcc("ne", done);
        a.mov(RAX, R9);
        if (spare === undefined) a.call(release.label);
        else {
          const [toSpares, released] = [a.label("to spares"), a.label("released")];
          a.testImm(RDX, 1, 8);
          a.jcc("ne", toSpares);
          a.call(release.label);
          a.jmp(released);
          a.bind(toSpares);
          a.call(spare.label);
          a.bind(released);
        }
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

/**
 * rdi = map: deletes a key that was not touched since the hand of the clock went past it last; rax = 0 if none can
 * be deleted. Changes nothing else. After CLOCK_STEPS touched ones it takes what comes next.
 */
function evictRoutine(input: HashRoutineInput): Routine {
  const { routines, name, layout } = input;
  return routines.get(`hash evict ${name}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    const saved = [RCX, RDX, RSI, R8, R9, R10];
    const [candidate, looks, isMarked, steps, key] = [0, 8, 16, 24, 32];
    const keyBytes = layout.keyWords * 8;
    const frameBytes = key + keyBytes;
    const next = nextReg(input);
    const { stride, elementsOffset, touchedOffset } = layout;
    return {
      args: [],
      clobbers: regSet(RAX),
      // The loop that compares long keys pushes a word.
      stackBytes: saved.length * 8 + frameBytes + 8,
      calls: [unlink],
      emit: (a) => {
        const [look, consider] = [a.label("look"), a.label("consider")];
        const [done, none, leave] = [a.label("done"), a.label("none"), a.label("leave")];
        for (const reg of saved) a.push(reg);
        emitFrame(a, frameBytes, () => {
          a.movImm(local(looks), 0);
          emitStartSteps(a, input, local(steps));
          a.bind(look);
          a.inc(local(looks));
          a.cmpImm(local(looks), CLOCK_MOST_STEPS);
          a.jcc("a", none);
          a.movImm(RAX, 1);
          a.lock().xadd({ base: RDI, disp: HASH_HAND }, RAX);
          a.zero(RDX);
          a.movImm(RCX, (layout.poolBytes + layout.spareBytes) / stride, 32);
          a.div(RCX, 32);
          a.imulImm(RAX, RDX, stride);
          a.lea(RAX, { base: RDI, index: RAX, disp: elementsOffset });
          a.cmpImm({ base: RAX, disp: touchedOffset! }, 0, 8);
          a.jcc("e", consider);
          a.cmpImm(local(looks), CLOCK_STEPS);
          a.jcc("a", consider);
          a.movImm({ base: RAX, disp: touchedOffset! }, 0, 8);
          a.jmp(look);

          // Its key may be anything: only if a traversal for that key ends here it is an entry.
          a.bind(consider);
          a.mov(local(candidate), RAX);
          a.movImm(local(isMarked), 0);
          emitCopyWords(a, local(key), { base: RAX, disp: ELEMENT_KEY }, keyBytes, R8, R9, RCX);
          a.lea(RSI, local(key));
          a.mov(RDX, local(key));
          const traversal = emitTraversal(a, input, unlink, { steps: local(steps) });
          a.cmp(RAX, local(candidate));
          a.jcc("ne", traversal.absent);
          a.cmpImm(local(isMarked), 0);
          a.jcc("ne", done);
          a.mov(R10, RAX);
          a.mov(RAX, next);
          a.push(RAX);
          emitNextTag(a, RAX);
          a.mov(next, next, 32);
          a.or(next, RAX);
          a.pop(RAX);
          a.btsImm(next, 31);
          a.lock().cmpxchg({ base: R10 }, next);
          a.jcc("ne", look);
          a.mov(RAX, R10);
          a.call(unlink.label);
          a.jcc("e", done);
          // The word before it has changed: the next traversal unlinks it.
          a.movImm(local(isMarked), 1);
          a.jmp(traversal.restart);
          a.bind(traversal.absent);
          a.cmpImm(local(isMarked), 0);
          a.jcc("e", look);
          a.jmp(done);
          a.bind(traversal.endless);
          a.cmpImm(local(isMarked), 0);
          a.jcc("e", none);
          a.bind(done);
          a.movImm(RAX, 1);
          a.jmp(leave);
          a.bind(none);
          a.zero(RAX);
          a.bind(leave);
          a.addImm(RSP, frameBytes);
          for (const reg of [...saved].reverse()) a.pop(reg);
          a.ret();
          traversal.emitTail();
        });
      },
    };
  });
}
