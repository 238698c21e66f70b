/** Putting values into one bloom filter and asking for them (maps/bloom-layout.ts). */
import { R8, R9, R10, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { EINVAL, ENOENT } from "../../error-numbers.ts";
import type { BloomLayout } from "../../maps/bloom-layout.ts";
import { emitCopyWords, emitFrame, emitLoadBytes } from "../memory-moves.ts";
import { emitHashWords } from "./key-hash.ts";
import { argsOf, emitMapAddress, type MapRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

export type BloomRoutineInput = MapRoutineInput<BloomLayout>;

/** rsi = value, rdx = flags; rax = 0 or -EINVAL. */
export function bloomPush(input: BloomRoutineInput): Routine {
  return bloomRoutine(input, true);
}

/** rsi = value; rax = 0 if it may be there, or -ENOENT. */
export function bloomPeek(input: BloomRoutineInput): Routine {
  return bloomRoutine(input, false);
}

function bloomRoutine(input: BloomRoutineInput, isPush: boolean): Routine {
  const { routines, name, spec, layout } = input;
  return routines.get(`bloom ${isPush ? "push" : "peek"} ${name}`, (): RoutineBody => {
    // A padded copy of a value whose size is no multiple of 8.
    const frameBytes = layout.valueWords > 1 && spec.valueBytes % 8 !== 0 ? layout.valueWords * 8 : 0;
    return {
      args: argsOf(input, 2, ...(isPush ? [3] : [])),
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10),
      stackBytes: frameBytes,
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [invalid, absent] = [a.label("invalid"), a.label("absent")];
          if (isPush) {
            a.test(RDX, RDX);
            a.jcc("ne", invalid);
          }
          emitMapAddress(a, input);
          if (layout.valueWords === 1) emitLoadBytes(a, RDX, { base: RSI, disp: 0 }, spec.valueBytes, R8);
          else {
            if (frameBytes > 0) {
              emitCopyWords(a, { base: RSP, disp: 0 }, { base: RSI, disp: 0 }, spec.valueBytes, R8, R9, R10);
              a.mov(RSI, RSP);
            }
            a.mov(RDX, { base: RSI });
          }
          emitHashWords(a, {
            hash: R8,
            first: RDX,
            rest: RSI,
            words: layout.valueWords,
            temp: RAX,
            counter: R9,
          });
          // r8 = hash, r9 = distance, r10 = hash functions to go
          a.mov(R9, R8);
          a.rol(R9, 32);
          a.orImm(R9, 1);
          a.movImm(R10, layout.hashFunctions);
          const next = a.here("bit");
          a.mov(RCX, R8);
          a.shr(RCX, layout.bitShift);
          a.mov(RSI, RCX);
          a.shr(RSI, 6);
          a.movImm(RAX, 1);
          a.shiftCl("shl", RAX);
          const word = { base: RDI, index: RSI, scale: 8 } as const;
          const isSet = a.label("set");
          a.test(word, RAX);
          if (isPush) {
            a.jcc("ne", isSet);
            a.lock().or(word, RAX);
            a.bind(isSet);
          } else a.jcc("e", absent);
          a.add(R8, R9);
          a.dec(R10);
          a.jcc("ne", next);
          a.zero(RAX);
          leave();
          if (isPush) {
            a.bind(invalid);
            a.movImm(RAX, EINVAL);
          } else {
            a.bind(absent);
            a.movImm(RAX, ENOENT);
          }
          leave();
        }),
    };
  });
}
