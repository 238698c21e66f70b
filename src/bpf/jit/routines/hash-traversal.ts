/**
 * The walk through one bucket of a hash map, which lookup, update and deletion share. Registers:
 *
 *     rdi  map          rcx  address of the word that led here       rax  element
 *     rdx  key word 0   r8   that word as it was read                rsi  key, if it has more than one word
 *
 * and `next`, the element's next word, in rsi for keys of one word and in r9 for longer ones. An element's word and
 * key count only if the word that led to it is unchanged after they were read; otherwise the traversal starts over.
 * That happens only when another thread got something done, so no thread waits for a particular other one.
 */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import { R8, R9, R10, RAX, RCX, RDI, RDX, type Reg, RSI, RSP } from "../../../x86/registers.ts";
import { ELEMENT_KEY, HASH_BUCKETS } from "../../maps/hash-layout.ts";
import { emitCopyWords, emitLoadBytes } from "../memory-moves.ts";
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
export function emitTraversal(
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
