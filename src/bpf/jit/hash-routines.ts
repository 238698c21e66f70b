/** Lookup, update and deletion in one hash map; hash-traversal.ts has the registers. */
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../x86/registers.ts";
import { E2BIG, EEXIST, EINVAL, ENOENT } from "../maps/index.ts";
import { ELEMENT_KEY } from "../maps/layout.ts";
import {
  emitNextTag,
  type HashRoutineInput,
  releaseRoutine,
  takeRoutine,
  unlinkRoutine,
} from "./hash-pool.ts";
import { emitLoadMapAndKey, emitTraversal, isOneWord, keyFrameBytes, nextReg } from "./hash-traversal.ts";
import { emitCopyWords, emitFrame } from "./memory-moves.ts";
import type { Routine, RoutineBody } from "./routine.ts";

const FLAG_NOEXIST = 1;
const FLAG_EXIST = 2;

/** A variable in the frame of a routine. */
const local = (disp: number) => ({ base: RSP, disp });

/** rsi = key; rax = address of the value, or 0. */
export function hashLookup(input: HashRoutineInput): Routine {
  const { routines, mapIndex, layout } = input;
  return routines.get(`hash lookup ${mapIndex}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    const frameBytes = keyFrameBytes(input);
    const base = regSet(RAX, RCX, RDX, RDI, RSI, R8);
    return {
      args: [2],
      clobbers: isOneWord(input) ? base : base | regSet(R9, R10),
      stackBytes: frameBytes,
      calls: [unlink],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          emitLoadMapAndKey(a, input, 0);
          const traversal = emitTraversal(a, input, unlink, {});
          a.addImm(RAX, layout.valueOffset);
          leave();
          a.bind(traversal.absent);
          // eax is 0: the ref that ended the list.
          leave();
          traversal.emitTail();
        }),
    };
  });
}

/** rsi = key, rdx = value, rcx = flags; rax = 0 or an error. */
export function hashUpdate(input: HashRoutineInput): Routine {
  const { routines, mapIndex, spec, layout } = input;
  return routines.get(`hash update ${mapIndex}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    const take = takeRoutine(input);
    const release = releaseRoutine(input);
    const [value, flags, element, headWord, head, key] = [0, 8, 16, 24, 32, 40];
    const frameBytes = key + keyFrameBytes(input);
    return {
      args: [2, 3, 4],
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: frameBytes,
      calls: [unlink, take, release],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [invalid, exists, full, haveElement] = [
            a.label("invalid"),
            a.label("exists"),
            a.label("full"),
            a.label("have element"),
          ];
          a.cmpImm(RCX, FLAG_EXIST);
          a.jcc("a", invalid);
          a.mov(local(value), RDX);
          a.mov(local(flags), RCX);
          a.movImm(local(element), 0);
          emitLoadMapAndKey(a, input, key);
          const traversal = emitTraversal(a, input, unlink, {
            atHead: () => {
              a.mov(local(headWord), R8);
              a.mov(local(head), RCX);
            },
          });

          // There is such an element. One that was taken for it goes back.
          const returnElement = a.label("return element");
          const writeValue = a.label("write value");
          a.cmpImm(local(element), 0);
          a.jcc("ne", returnElement);
          a.bind(writeValue);
          a.cmpImm(local(flags), FLAG_NOEXIST, 32);
          a.jcc("e", exists);
          a.mov(RCX, local(value));
          emitCopyWords(
            a,
            { base: RAX, disp: layout.valueOffset },
            { base: RCX, disp: 0 },
            spec.valueBytes,
            R9,
            R10,
            R11,
          );
          a.zero(RAX);
          leave();
          a.bind(returnElement);
          a.mov(R9, RAX);
          a.mov(RAX, local(element));
          a.call(release.label);
          a.mov(RAX, R9);
          a.jmp(writeValue);

          // There is none: fill a new element, then link it at the head.
          a.bind(traversal.absent);
          const missing = a.label("missing");
          a.cmpImm(local(flags), FLAG_EXIST, 32);
          a.jcc("e", missing);
          a.mov(RAX, local(element));
          a.test(RAX, RAX);
          a.jcc("ne", haveElement);
          a.mov(R8, RDX);
          a.call(take.label);
          a.mov(RDX, R8);
          a.test(RAX, RAX);
          a.jcc("e", full);
          a.mov(local(element), RAX);
          a.mov({ base: RAX, disp: ELEMENT_KEY }, RDX);
          if (!isOneWord(input)) {
            const words = layout.keyWords - 1;
            emitCopyWords(
              a,
              { base: RAX, disp: ELEMENT_KEY + 8 },
              { base: RSI, disp: 8 },
              words * 8,
              R9,
              R10,
              R11,
            );
          }
          a.mov(RCX, local(value));
          emitCopyWords(
            a,
            { base: RAX, disp: layout.valueOffset },
            { base: RCX, disp: 0 },
            spec.valueBytes,
            R9,
            R10,
            R11,
          );
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
          a.mov(R10, RAX);
          a.sub(R10, RDI);
          a.shr(R10, 3);
          a.or(R9, R10);
          a.mov(RCX, local(head));
          a.mov(RAX, R8);
          a.lock().cmpxchg({ base: RCX }, R9);
          a.jcc("ne", traversal.restart);
          a.zero(RAX);
          leave();

          for (const [label, error] of [
            [invalid, EINVAL],
            [exists, EEXIST],
            [missing, ENOENT],
            [full, E2BIG],
          ] as const) {
            a.bind(label);
            a.movImm(RAX, error);
            leave();
          }
          traversal.emitTail();
        }),
    };
  });
}

/** rsi = key; rax = 0 or -ENOENT. */
export function hashDelete(input: HashRoutineInput): Routine {
  const { routines, mapIndex } = input;
  return routines.get(`hash delete ${mapIndex}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    /** Whether the mark was set in an earlier round: what is found after that is another element. */
    const isMarked = { base: RSP, disp: 0 };
    const key = 8;
    const frameBytes = key + keyFrameBytes(input);
    const next = nextReg(input);
    return {
      args: [2],
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10, R11),
      stackBytes: frameBytes,
      calls: [unlink],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [done, missing] = [a.label("done"), a.label("missing")];
          a.movImm(isMarked, 0);
          emitLoadMapAndKey(a, input, key);
          const traversal = emitTraversal(a, input, unlink, {});
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
          a.cmpImm(isMarked, 0);
          a.jcc("e", missing);
          leave(); // eax is 0
          a.bind(missing);
          a.movImm(RAX, ENOENT);
          leave();
          traversal.emitTail();
        }),
    };
  });
}
