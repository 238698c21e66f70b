/**
 * The walk through one bucket of a hash map, which lookup, update and deletion share. Registers:
 *
 *     rdi  map          rcx  address of the word that led here       rax  element
 *     rdx  key word 0   r8   that word as it was read                rsi  key, if it has more than one word
 *
 * and `next`, the element's next word, in rsi for keys of one word and in r9 for longer ones. An element's word and
 * key count only if the word that led to it is unchanged after they were read; otherwise the traversal starts over.
 * That happens only when another thread got something done, so no thread waits for a particular other one.
 *
 * The process can have written anything there. A word that names no element ends the list, and a traversal that takes
 * more steps than any list has (hash-layout.ts) gives up.
 */
import type { Assembler, Label, Mem } from "../../../x86/assembler.ts";
import { R8, R9, R10, RAX, RCX, RDI, RDX, type Reg, RSI, RSP } from "../../../x86/registers.ts";
import { ELEMENT_KEY, HASH_BUCKETS, hashPool, mostSteps } from "../../maps/hash-layout.ts";
import { emitCopyWords, emitLoadBytes } from "../memory-moves.ts";
import { emitElement } from "./element-pool.ts";
import { emitHashWords } from "./key-hash.ts";
import { emitMapAddress, type HashRoutineInput } from "./map-input.ts";
import type { Routine } from "./routine.ts";

/** Above this many words a key is compared in a loop. */
const UNROLLED_KEY_WORDS = 8;

/** Where a padded copy of the key lies in the frame of a routine, if its size is no multiple of 8. */
export function keyFrameBytes({ spec, layout }: HashRoutineInput): number {
  return layout.keyWords > 1 && spec.keyBytes % 8 !== 0 ? layout.keyWords * 8 : 0;
}

export const isOneWord = (input: HashRoutineInput): boolean => input.layout.keyWords === 1;

export function nextReg(input: HashRoutineInput): Reg {
  return isOneWord(input) ? RSI : R9;
}

/** rdi = map, rdx = key word 0; rsi = whole key, padded, if it has more words. */
export function emitLoadMapAndKey(a: Assembler, input: HashRoutineInput, keyFrame: number): void {
  const { spec, layout } = input;
  if (isOneWord(input)) {
    emitLoadBytes(a, RDX, { base: RSI, disp: 0 }, spec.keyBytes, R8);
  } else {
    if (keyFrameBytes(input) > 0) {
      emitCopyWords(a, { base: RSP, disp: keyFrame }, { base: RSI, disp: 0 }, spec.keyBytes, R9, R10, R8);
      a.lea(RSI, { base: RSP, disp: keyFrame });
    }
    a.mov(RDX, { base: RSI });
  }
  emitMapAddress(a, input, { offset: layout.headerBytes });
}

export interface Traversal {
  /** To be jumped to only where the steps are in the frame. */
  readonly restart: Label;
  /** Reached when no element has the key. */
  readonly absent: Label;
  /** Reached when the steps are used up: the list has no end, or the process changes it all the time. */
  readonly endless: Label;
  /** Emits what lies out of the way; after the routine's own code. */
  emitTail(): void;
}

/** What a traversal begins with in its steps. */
export function emitStartSteps(a: Assembler, { layout }: HashRoutineInput, steps: Mem): void {
  a.movImm(steps, mostSteps(layout));
}

/** Stack of a traversal that counts its steps itself. */
export const TRAVERSAL_STACK_BYTES = 8;

/**
 * Emits the traversal for the key; the code that follows is reached with the element in rax, its next word
 * (unmarked) in `next`. `atHead` is emitted where rcx and r8 are the bucket's head and its word. `steps` is where the
 * steps that are left stand, for callers that start over (`emitStartSteps`); without it, one that gets beyond the second
 * element has them on the stack.
 */
export function emitTraversal(
  a: Assembler,
  input: HashRoutineInput,
  unlink: Routine,
  { atHead, steps }: { readonly atHead?: () => void; readonly steps?: Mem },
): Traversal {
  const { layout } = input;
  const next = nextReg(input);
  const labels = (...names: string[]) => names.map((name) => a.label(name));
  const [restart, absent, endless, found] = labels("restart", "absent", "endless", "found") as [
    Label,
    Label,
    Label,
    Label,
  ];
  const pool = hashPool(layout);

  const emitHead = () => {
    emitHash(a, input);
    a.shr(RCX, layout.hashShift);
    a.lea(RCX, { base: RDI, index: RCX, scale: 8, disp: HASH_BUCKETS });
    a.mov(R8, { base: RCX });
    atHead?.();
  };
  /** What follows is reached with the element that has the key. */
  const emitStep = (step: { none: Label; differs: Label; changed: Label; marked: Label }) => {
    emitElement(a, RAX, R8, pool, step.none, next);
    a.mov(next, { base: RAX });
    a.cmp(RDX, { base: RAX, disp: ELEMENT_KEY });
    a.jcc("ne", step.differs);
    if (!isOneWord(input)) emitCompareRest(a, layout.keyWords, step.differs);
    a.cmp({ base: RCX }, R8);
    a.jcc("ne", step.changed);
    a.test(next, next, 32);
    a.jcc("s", step.marked);
  };
  /** What follows is reached with the word of the next element in r8. */
  const emitAdvance = (step: { changed: Label; marked: Label }) => {
    a.cmp({ base: RCX }, R8);
    a.jcc("ne", step.changed);
    a.test(next, next, 32);
    a.jcc("s", step.marked);
    a.mov(RCX, RAX);
    a.mov(R8, next);
  };

  const [differs, changed, marked] = labels("differs", "changed", "marked") as [Label, Label, Label];
  const start = a.here("start");
  emitHead();
  const step = a.here("step");
  emitStep({ none: absent, differs, changed, marked });
  a.bind(found);

  if (steps !== undefined) {
    const emitTail = () => {
      a.bind(differs);
      emitAdvance({ changed, marked });
      a.dec(steps);
      a.jcc("s", endless);
      a.jmp(step);
      a.bind(marked);
      a.call(unlink.label);
      a.bind(changed);
      a.bind(restart);
      a.dec(steps);
      a.jcc("s", endless);
      a.jmp(start);
    };
    return { restart, absent, endless, emitTail };
  }

  const emitTail = () => {
    const counted = { base: RSP, disp: 0 };
    const [noneLeft, differsHere, changedHere, markedHere, tooMany] = labels(
      "none left",
      "differs here",
      "changed here",
      "marked here",
      "too many",
    ) as [Label, Label, Label, Label, Label];
    const [look, counting] = labels("look", "counting") as [Label, Label];
    /** Back to where nothing is on the stack; flags stay. */
    const leaveTo = (where: Label) => {
      a.lea(RSP, { base: RSP, disp: TRAVERSAL_STACK_BYTES });
      a.jmp(where);
    };
    a.bind(marked);
    a.call(unlink.label);
    a.bind(changed);
    a.pushImm(mostSteps(layout));
    a.jmp(changedHere);
    // Most lists have one element or two.
    a.bind(differs);
    emitAdvance({ changed, marked });
    const second = a.label("second differs");
    emitStep({ none: absent, differs: second, changed, marked });
    a.jmp(found);
    a.bind(second);
    emitAdvance({ changed, marked });
    a.pushImm(mostSteps(layout) - 1);
    a.jmp(counting);

    a.bind(differsHere);
    emitAdvance({ changed: changedHere, marked: markedHere });
    a.bind(counting);
    a.dec(counted);
    a.jcc("s", tooMany);
    a.bind(look);
    emitStep({ none: noneLeft, differs: differsHere, changed: changedHere, marked: markedHere });
    leaveTo(found);
    a.bind(noneLeft);
    leaveTo(absent);
    a.bind(markedHere);
    a.call(unlink.label);
    a.bind(changedHere);
    a.dec(counted);
    a.jcc("s", tooMany);
    emitHead();
    a.jmp(look);
    a.bind(tooMany);
    leaveTo(endless);
  };
  return { restart, absent, endless, emitTail };
}

/** rcx = hash of the key; uses rax, and r9 for long keys. */
function emitHash(a: Assembler, input: HashRoutineInput): void {
  emitHashWords(a, {
    hash: RCX,
    first: RDX,
    rest: RSI,
    words: input.layout.keyWords,
    temp: RAX,
    counter: R9,
  });
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
