/** Lookup, update, deletion and iteration in one hash map; hash-traversal.ts has the registers. */
import type { Assembler } from "../../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { E2BIG, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM } from "../../error-numbers.ts";
import { ELEMENT_KEY, HASH_REFUSED } from "../../maps/hash-layout.ts";
import { emitCopyWords, emitFrame } from "../memory-moves.ts";
import { emitNextTag, emitRefOf } from "./element-pool.ts";
import {
  releaseElement,
  releaseSpare,
  takeElement,
  takeSpare,
  takeUnlessFull,
  unlinkRoutine,
} from "./hash-pool.ts";
import {
  emitLoadMapAndKey,
  emitStartSteps,
  emitTraversal,
  isOneWord,
  keyFrameBytes,
  nextReg,
  TRAVERSAL_STACK_BYTES,
} from "./hash-traversal.ts";
import { argsOf, type HashRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

const FLAG_NOEXIST = 1;
const FLAG_EXIST = 2;

/** A variable in the frame of a routine. */
const local = (disp: number) => ({ base: RSP, disp });

/** Notes in an LRU map that the element in rax was used. Changes flags. */
function emitTouch(a: Assembler, { layout }: HashRoutineInput): void {
  if (layout.touchedOffset === undefined) return;
  const touched = { base: RAX, disp: layout.touchedOffset };
  const done = a.label("touched");
  // Most are touched already, and a store would take the line from the other processors.
  a.cmpImm(touched, 0, 8);
  a.jcc("ne", done);
  a.movImm(touched, 1, 8);
  a.bind(done);
}

/** rax = element, rdi = map, r11 = slot of a per-CPU map: rax = the value. Changes rcx and r8 for per-CPU maps. */
export function emitValueAddress(a: Assembler, { layout }: HashRoutineInput): void {
  const { copies } = layout;
  if (copies === undefined) {
    a.addImm(RAX, layout.valueOffset);
    return;
  }
  a.sub(RAX, RDI);
  a.subImm(RAX, layout.elementsOffset);
  a.shr(RAX, copies.elementShift);
  a.imulImm(RAX, RAX, copies.stride);
  a.movImm(RCX, copies.slotBytes);
  a.mov(R8, R11, 32);
  a.imul(RCX, R8);
  a.add(RAX, RCX);
  a.movImm(RCX, copies.offset);
  a.add(RAX, RCX);
  a.add(RAX, RDI);
}

/** rsi = key; rax = address of the value, or 0. Of a per-CPU map that of the slot in r11. */
export function hashLookup(input: HashRoutineInput): Routine {
  return lookupRoutine(input, "r11");
}

/** rsi = key, edx = slot of the per-CPU map; rax = address of the value, or 0. */
export function hashLookupSlot(input: HashRoutineInput): Routine {
  return lookupRoutine(input, "argument");
}

function lookupRoutine(input: HashRoutineInput, slot: "r11" | "argument"): Routine {
  const { routines, name, layout } = input;
  const isArgument = slot === "argument";
  return routines.get(`hash lookup ${name}${isArgument ? " slot" : ""}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    const frameBytes = keyFrameBytes(input);
    const base = regSet(RAX, RCX, RDX, RDI, RSI, R8) | (isArgument ? regSet(R11) : 0);
    return {
      args: argsOf(input, 2, ...(isArgument ? [3] : [])),
      clobbers: isOneWord(input) ? base : base | regSet(R9, R10),
      stackBytes: frameBytes + TRAVERSAL_STACK_BYTES + longKeyBytes(input),
      calls: [unlink],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const noSlot = a.label("no slot");
          if (isArgument) {
            a.cmpImm(RDX, layout.copies!.cpus, 32);
            a.jcc("ae", noSlot);
            a.mov(R11, RDX, 32);
          }
          emitLoadMapAndKey(a, input, 0);
          const traversal = emitTraversal(a, input, unlink, {});
          emitTouch(a, input);
          emitValueAddress(a, input);
          leave();
          a.bind(noSlot);
          a.bind(traversal.absent);
          a.bind(traversal.endless);
          a.zero(RAX);
          leave();
          traversal.emitTail();
        }),
    };
  });
}

/** What the comparison of long keys pushes. */
function longKeyBytes(input: HashRoutineInput): number {
  return input.layout.keyWords > 8 ? 8 : 0;
}

/** rsi = key, rdx = value, rcx = flags, r11 = slot of a per-CPU map; rax = 0 or an error. */
export function hashUpdate(input: HashRoutineInput): Routine {
  const { routines, name, layout } = input;
  return routines.get(`hash update ${name}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    const take = takeElement(input);
    const release = releaseElement(input);
    const replaces = layout.spareBytes > 0;
    const spares = replaces
      ? { take: takeSpare(input), release: releaseSpare(input), takeEntry: takeUnlessFull(input) }
      : undefined;
    const { copies } = layout;
    const isLru = layout.touchedOffset !== undefined;
    // `how`: what a found key makes of the new element: 0 nothing yet, 1 it is a spare, 2 write in place, 3 done.
    const [value, flags, element, headWord, head, slot, how, steps, key] = [0, 8, 16, 24, 32, 40, 48, 56, 64];
    const [IS_SPARE, IN_PLACE, DONE] = [1, 2, 3];
    const frameBytes = key + keyFrameBytes(input);
    const next = nextReg(input);
    const calls = [unlink, take, release];
    if (spares !== undefined) calls.push(spares.take, spares.release, spares.takeEntry);
    return {
      args: argsOf(input, 2, 3, 4),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: frameBytes + 8,
      calls,
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [invalid, exists, full, missing] = [
            a.label("invalid"),
            a.label("exists"),
            a.label("full"),
            a.label("missing"),
          ];
          const [haveElement, success, finish] = [a.label("have"), a.label("success"), a.label("finish")];
          const copyValue = () => {
            a.mov(RCX, local(value));
            const disp = copies === undefined ? layout.valueOffset : 0;
            emitCopyWords(
              a,
              { base: RAX, disp },
              { base: RCX, disp: 0 },
              layout.valueBytes,
              R9,
              R10,
              copies === undefined ? R11 : R8,
            );
          };
          /** rax = element: the value of this slot, rcx and r8 change. */
          const writeInPlace = () => {
            if (copies !== undefined) {
              a.mov(R11, local(slot), 32);
              emitValueAddress(a, input);
            }
            copyValue();
          };
          /** rax = a new element, r8 = key word 0: fills it; r8 = whether it was used before. Leaves rdx = key word 0. */
          const fill = () => {
            a.mov(local(element), RAX);
            a.mov({ base: RAX, disp: ELEMENT_KEY }, R8);
            if (copies !== undefined) a.xchg(R8, RDX);
            else a.mov(RDX, R8);
            if (!isOneWord(input))
              emitCopyWords(
                a,
                { base: RAX, disp: ELEMENT_KEY + 8 },
                { base: RSI, disp: 8 },
                (layout.keyWords - 1) * 8,
                R9,
                R10,
                R11,
              );
            if (copies === undefined) {
              copyValue();
              return;
            }
            // The other slots' copies are zeros, as they were at the beginning.
            const clean = a.label("clean");
            a.mov(RCX, R8);
            a.push(RAX);
            a.test(RCX, RCX);
            a.jcc("e", clean);
            a.zero(R11);
            emitValueAddress(a, input);
            a.movImm(R9, copies.cpus, 32);
            const nextSlot = a.here("next slot");
            a.zero(R10);
            const nextWord = a.here("next word");
            a.movImm({ base: RAX, index: R10 }, 0);
            a.addImm(R10, 8);
            a.cmpImm(R10, copies.stride);
            a.jcc("b", nextWord);
            a.movImm(RCX, copies.slotBytes);
            a.add(RAX, RCX);
            a.dec(R9, 32);
            a.jcc("ne", nextSlot);
            a.bind(clean);
            a.mov(RAX, { base: RSP });
            a.mov(R11, { base: RSP, disp: slot + 8 }, 32);
            emitValueAddress(a, input);
            a.mov(RCX, { base: RSP, disp: value + 8 });
            emitCopyWords(a, { base: RAX, disp: 0 }, { base: RCX, disp: 0 }, layout.valueBytes, R9, R10, R8);
            a.pop(RAX);
          };

          a.cmpImm(RCX, FLAG_EXIST);
          a.jcc("a", invalid);
          a.mov(local(value), RDX);
          a.mov(local(flags), RCX);
          a.movImm(local(element), 0);
          if (copies !== undefined) a.mov(local(slot), R11);
          if (replaces) a.movImm(local(how), 0);
          emitStartSteps(a, input, local(steps));
          emitLoadMapAndKey(a, input, key);
          const traversal = emitTraversal(a, input, unlink, {
            steps: local(steps),
            atHead: () => {
              a.mov(local(headWord), R8);
              a.mov(local(head), RCX);
            },
          });

          // There is such an element.
          a.cmpImm(local(flags), FLAG_NOEXIST, 32);
          if (replaces) {
            const [replace, inPlace] = [a.label("replace"), a.label("in place")];
            const [taken, done] = [a.label("taken"), a.label("done")];
            a.jcc("e", exists);
            a.cmpImm(local(how), IN_PLACE);
            a.jcc("e", inPlace);
            a.jcc("a", done);
            a.cmpImm(local(element), 0);
            a.jcc("ne", replace);
            // A new element for the value, then look again.
            a.mov(R8, RDX);
            a.call(spares!.take.label);
            a.movImm(local(how), IS_SPARE);
            a.test(RAX, RAX);
            a.jcc("ne", taken);
            a.call(spares!.takeEntry.label);
            a.movImm(local(how), 0);
            a.test(RAX, RAX);
            a.jcc("ne", taken);
            a.movImm(local(how), IN_PLACE);
            a.mov(RDX, R8);
            a.jmp(traversal.restart);
            a.bind(taken);
            fill();
            a.jmp(traversal.restart);

            // One exchange marks the old element and puts the new one behind it.
            a.bind(replace);
            a.mov(R10, RAX);
            a.mov(RAX, local(element));
            if (isLru) a.movImm({ base: RAX, disp: layout.touchedOffset! }, 1, 8);
            a.mov(R11, { base: RAX });
            emitNextTag(a, R11);
            a.push(RCX);
            a.mov(RCX, next, 32);
            a.or(R11, RCX);
            a.mov({ base: RAX }, R11);
            emitRefOf(a, R11, RAX);
            a.or(R11, { base: RSP, disp: how + 8 });
            a.mov(RCX, next);
            emitNextTag(a, RCX);
            a.or(R11, RCX);
            a.pop(RCX);
            a.btsImm(R11, 31);
            a.mov(RAX, next);
            a.lock().cmpxchg({ base: R10 }, R11);
            a.jcc("ne", traversal.restart);
            a.mov(RAX, R10);
            a.call(unlink.label);
            a.jcc("e", success);
            // The word before it has changed: the next traversal unlinks it.
            a.movImm(local(element), 0);
            a.movImm(local(how), DONE);
            a.jmp(traversal.restart);

            a.bind(done);
            a.zero(RAX);
            leave();
            a.bind(inPlace);
          } else a.jcc("e", exists);
          emitTouch(a, input);
          writeInPlace();
          a.zero(RAX);
          a.jmp(finish);

          // There is none: fill a new element, then link it at the head.
          a.bind(traversal.absent);
          if (replaces) {
            const isNoSpare = a.label("no spare");
            a.cmpImm(local(how), DONE);
            a.jcc("e", success);
            a.cmpImm(local(how), IS_SPARE);
            a.jcc("ne", isNoSpare);
            // A spare becomes no entry: the map would hold more than it may.
            a.mov(RAX, local(element));
            a.call(spares!.release.label);
            a.movImm(local(element), 0);
            a.movImm(local(how), 0);
            a.bind(isNoSpare);
          }
          a.cmpImm(local(flags), FLAG_EXIST, 32);
          a.jcc("e", missing);
          a.mov(RAX, local(element));
          a.test(RAX, RAX);
          a.jcc("ne", haveElement);
          a.mov(R8, RDX);
          a.call(take.label);
          a.test(RAX, RAX);
          a.jcc("e", full);
          fill();
          if (isLru) a.movImm({ base: RAX, disp: layout.touchedOffset! }, 0);
          a.bind(haveElement);
          // The element's own word: the old first element, and the next tag.
          a.mov(R8, local(headWord));
          a.mov(R9, { base: RAX, disp: 0 });
          emitNextTag(a, R9);
          a.mov(R10, R8, 32);
          a.or(R9, R10);
          a.mov({ base: RAX, disp: 0 }, R9);
          // The head: this element, and the next tag.
          a.mov(R9, R8);
          emitNextTag(a, R9);
          emitRefOf(a, R10, RAX);
          a.or(R9, R10);
          a.mov(RCX, local(head));
          a.mov(RAX, R8);
          a.lock().cmpxchg({ base: RCX }, R9);
          a.jcc("ne", traversal.restart);
          a.bind(success);
          a.zero(RAX);
          leave();

          // An element that was taken in vain goes back.
          a.bind(exists);
          a.movImm(RAX, EEXIST);
          a.jmp(finish);
          a.bind(traversal.endless);
          a.movImm(RAX, EBUSY);
          if (replaces) {
            a.cmpImm(local(how), DONE);
            a.jcc("e", success);
          }
          a.jmp(finish);
          a.bind(missing);
          a.movImm(RAX, ENOENT);
          a.bind(finish);
          a.cmpImm(local(element), 0);
          const giveBack = a.label("give back");
          a.jcc("ne", giveBack);
          leave();
          a.bind(giveBack);
          a.mov(R9, RAX);
          a.mov(RAX, local(element));
          if (spares === undefined) a.call(release.label);
          else {
            const [toSpares, given] = [a.label("to spares"), a.label("given")];
            a.cmpImm(local(how), IS_SPARE);
            a.jcc("e", toSpares);
            a.call(release.label);
            a.jmp(given);
            a.bind(toSpares);
            a.call(spares.release.label);
            a.bind(given);
          }
          a.mov(RAX, R9);
          leave();

          a.bind(full);
          a.lock().inc({ base: RDI, disp: HASH_REFUSED });
          a.movImm(RAX, isLru ? ENOMEM : E2BIG);
          leave();
          a.bind(invalid);
          a.movImm(RAX, EINVAL);
          leave();
          traversal.emitTail();
        }),
    };
  });
}

/** rsi = key; rax = 0 or -ENOENT. */
export function hashDelete(input: HashRoutineInput): Routine {
  const { routines, name } = input;
  return routines.get(`hash delete ${name}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    /** Whether the mark was set in an earlier round: what is found after that is another element. */
    const isMarked = { base: RSP, disp: 0 };
    const steps = local(8);
    const key = 16;
    const frameBytes = key + keyFrameBytes(input);
    const next = nextReg(input);
    return {
      args: argsOf(input, 2),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: frameBytes + longKeyBytes(input),
      calls: [unlink],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const done = a.label("done");
          a.movImm(isMarked, 0);
          emitStartSteps(a, input, steps);
          emitLoadMapAndKey(a, input, key);
          const traversal = emitTraversal(a, input, unlink, { steps });
          a.cmpImm(isMarked, 0);
          a.jcc("ne", done);
          // The next word with the mark and the next tag.
          a.mov(R10, RAX);
          a.mov(RAX, next);
          a.mov(R11, RAX);
          emitNextTag(a, R11);
          a.mov(next, RAX, 32);
          a.or(R11, next);
          a.btsImm(R11, 31);
          a.lock().cmpxchg({ base: R10 }, R11);
          a.jcc("ne", traversal.restart);
          a.mov(RAX, R10);
          a.call(unlink.label);
          a.jcc("e", done);
          // The word before it has changed: the next traversal unlinks it. If this thread dies, any other's does.
          a.movImm(isMarked, 1);
          a.jmp(traversal.restart);
          a.bind(done);
          a.zero(RAX);
          leave();

          a.bind(traversal.absent);
          a.movImm(RAX, ENOENT);
          const given = a.label("given");
          a.bind(given);
          // What is marked is deleted, whoever unlinks it.
          a.cmpImm(isMarked, 0);
          a.jcc("ne", done);
          leave();
          a.bind(traversal.endless);
          a.movImm(RAX, EBUSY);
          a.jmp(given);
          traversal.emitTail();
        }),
    };
  });
}
