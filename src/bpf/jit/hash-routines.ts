/**
 * Lookup, update and deletion in one hash map (maps/layout.ts has the layout and the invariants).
 *
 * All three traverse a bucket in the same way, with these registers:
 *
 *     rdi  map          rcx  address of the word that led here       rax  element
 *     rdx  key word 0   r8   that word as it was read                rsi  key, if it has more than one word
 *
 * and `next`, the element's next word, in rsi for keys of one word and in r9 for longer ones. An element's word and
 * key count only if the word that led to it is unchanged after they were read; otherwise the traversal starts over.
 * That happens only when another thread got something done, so no thread waits for a particular other one.
 */
import type { Assembler, Label } from "../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, type Reg, RSI, RSP, regSet } from "../../x86/registers.ts";
import { E2BIG, EEXIST, EINVAL, ENOENT, type HashLayout } from "../maps/index.ts";
import {
  ELEMENT_FREE_LINK,
  ELEMENT_KEY,
  HASH_BUCKETS,
  HASH_FREE,
  HASH_MULTIPLIER,
  HASH_REFUSED,
  HASH_ROTATE,
  HASH_USED,
} from "../maps/layout.ts";
import type { MapSpec } from "../program.ts";
import { emitAddress, emitCopyWords, emitFrame, emitLoadBytes } from "./memory-moves.ts";
import type { Routine, RoutineBody, RoutineSet } from "./routine.ts";

const REF_MASK = 0x7fffffff;
/** Above this many words a key is hashed and compared in loops. */
const UNROLLED_KEY_WORDS = 8;

const FLAG_NOEXIST = 1;
const FLAG_EXIST = 2;

export interface HashRoutineInput {
  readonly routines: RoutineSet;
  readonly mapIndex: number;
  readonly spec: MapSpec;
  readonly layout: HashLayout;
  /** Address of the map's storage. */
  readonly mapAddr: bigint;
}

/** Where a padded copy of the key lies in the frame of a routine, if its size is no multiple of 8. */
function keyFrameBytes({ spec, layout }: HashRoutineInput): number {
  return layout.keyWords > 1 && spec.keyBytes % 8 !== 0 ? layout.keyWords * 8 : 0;
}

const isOneWord = (input: HashRoutineInput): boolean => input.layout.keyWords === 1;

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

function nextReg(input: HashRoutineInput): Reg {
  return isOneWord(input) ? RSI : R9;
}

/** Replaces the low half of a word by zero and counts its tag. */
function emitNextTag(a: Assembler, word: Reg): void {
  a.shr(word, 32);
  a.inc(word, 32);
  a.shl(word, 32);
}

/** rdi = map, rdx = key word 0; rsi = whole key, padded, if it has more words. */
function emitLoadMapAndKey(a: Assembler, input: HashRoutineInput, keyFrame: number): void {
  const { spec, mapAddr } = input;
  if (isOneWord(input)) {
    // rdi is loaded afterwards: it serves as the second register of the odd sizes.
    emitLoadBytes(a, RDX, { base: RSI, disp: 0 }, spec.keyBytes, RDI);
  } else {
    if (keyFrameBytes(input) > 0) {
      emitCopyWords(a, { base: RSP, disp: keyFrame }, { base: RSI, disp: 0 }, spec.keyBytes, R9, R10, R8);
      a.lea(RSI, { base: RSP, disp: keyFrame });
    }
    a.mov(RDX, { base: RSI });
  }
  emitAddress(a, RDI, mapAddr);
}

const local = (disp: number) => ({ base: RSP, disp });

interface Traversal {
  readonly restart: Label;
  /** Reached with rax = 0 when no element has the key. */
  readonly absent: Label;
  /** Emits what lies out of the way; after the routine's own code. */
  emitTail(): void;
}

/**
 * Emits the traversal for the key; the code that follows is reached with the element in rax, its next word
 * (unmarked) in `next`. `atHead` is emitted where rcx and r8 are the bucket's head and its word.
 */
function emitTraversal(
  a: Assembler,
  input: HashRoutineInput,
  unlink: Routine,
  { atHead }: { readonly atHead?: () => void },
): Traversal {
  const { layout } = input;
  const next = nextReg(input);
  const [restart, step, absent, advance, marked] = ["restart", "step", "absent", "advance", "marked"].map(
    (name) => a.label(name),
  ) as [Label, Label, Label, Label, Label];

  a.bind(restart);
  emitHash(a, input);
  a.shr(RCX, layout.hashShift);
  a.lea(RCX, { base: RDI, index: RCX, scale: 8, disp: HASH_BUCKETS });
  a.mov(R8, { base: RCX });
  atHead?.();
  a.bind(step);
  a.mov(RAX, R8, 32);
  a.test(RAX, RAX, 32);
  a.jcc("e", absent);
  a.lea(RAX, { base: RDI, index: RAX, scale: 8 });
  a.mov(next, { base: RAX });
  a.cmp(RDX, { base: RAX, disp: ELEMENT_KEY });
  a.jcc("ne", advance);
  if (!isOneWord(input)) emitCompareRest(a, layout.keyWords, advance);
  a.cmp({ base: RCX }, R8);
  a.jcc("ne", restart);
  a.test(next, next, 32);
  a.jcc("s", marked);

  return {
    restart,
    absent,
    emitTail: () => {
      a.bind(advance);
      a.cmp({ base: RCX }, R8);
      a.jcc("ne", restart);
      a.test(next, next, 32);
      a.jcc("s", marked);
      a.mov(RCX, RAX);
      a.mov(R8, next);
      a.jmp(step);
      a.bind(marked);
      a.call(unlink.label);
      a.jmp(restart);
    },
  };
}

/** rcx = hash of the key; uses rax, and r9 for long keys. */
function emitHash(a: Assembler, input: HashRoutineInput): void {
  const { keyWords } = input.layout;
  if (isOneWord(input)) {
    a.movImm(RCX, HASH_MULTIPLIER);
    a.imul(RCX, RDX);
    return;
  }
  a.movImm(RAX, HASH_MULTIPLIER);
  a.mov(RCX, RDX);
  a.imul(RCX, RAX);
  if (keyWords <= UNROLLED_KEY_WORDS) {
    for (let i = 1; i < keyWords; i++) {
      a.rol(RCX, HASH_ROTATE);
      a.xor(RCX, { base: RSI, disp: i * 8 });
      a.imul(RCX, RAX);
    }
    return;
  }
  a.movImm(R9, -(keyWords - 1) * 8);
  const word = a.here("hash");
  a.rol(RCX, HASH_ROTATE);
  a.xor(RCX, { base: RSI, index: R9, disp: keyWords * 8 });
  a.imul(RCX, RAX);
  a.addImm(R9, 8);
  a.jcc("ne", word);
}

/** Compares the words after the first; uses r10. A long key's loop counts in the element's address. */
function emitCompareRest(a: Assembler, keyWords: number, advance: Label): void {
  if (keyWords <= UNROLLED_KEY_WORDS) {
    for (let i = 1; i < keyWords; i++) {
      a.mov(R10, { base: RSI, disp: i * 8 });
      a.cmp(R10, { base: RAX, disp: ELEMENT_KEY + i * 8 });
      a.jcc("ne", advance);
    }
    return;
  }
  a.push(RCX);
  a.movImm(RCX, -(keyWords - 1) * 8);
  const word = a.here("compare");
  a.mov(R10, { base: RSI, index: RCX, disp: keyWords * 8 });
  a.cmp(R10, { base: RAX, index: RCX, disp: ELEMENT_KEY + keyWords * 8 });
  const differs = a.label("differs");
  a.jcc("ne", differs);
  a.addImm(RCX, 8);
  a.jcc("ne", word);
  a.bind(differs);
  // pop leaves the flags of the last comparison or addition
  a.pop(RCX);
  a.jcc("ne", advance);
}

/**
 * rcx = address of a word, r8 = the word, rax = the marked element that it leads to: unlinks the element and gives
 * it back. ZF is set if that succeeded. Changes nothing else.
 */
function unlinkRoutine(input: HashRoutineInput): Routine {
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
function releaseRoutine({ routines, mapIndex }: HashRoutineInput): Routine {
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
function takeRoutine({ routines, mapIndex, layout }: HashRoutineInput): Routine {
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
