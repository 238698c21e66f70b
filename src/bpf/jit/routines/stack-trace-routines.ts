/** Keeping stacks in one stack trace map (maps/stack-trace-layout.ts has the invariants). */
import { R8, R9, R10, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { EEXIST, ENOMEM } from "../../error-numbers.ts";
import { HASH_MULTIPLIER, HASH_ROTATE } from "../../maps/key-hash.ts";
import {
  STACK_ADDRESSES,
  STACK_COUNT,
  STACK_HASH,
  STACK_ID_SHIFT,
  STACK_SLOTS,
  type StackTraceLayout,
} from "../../maps/stack-trace-layout.ts";
import { emitFrame } from "../memory-moves.ts";
import { emitElement, emitNextTag, emitRefOf, releaseRoutine, takeRoutine } from "./element-pool.ts";
import { argsOf, emitMapAddress, type MapRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

export type StackTraceRoutineInput = MapRoutineInput<StackTraceLayout>;

/** BPF_F_FAST_STACK_CMP and BPF_F_REUSE_STACKID, by their bits. */
const FAST_COMPARE_BIT = 9;
const REUSE_ID_BIT = 10;

/** A variable in the frame of a routine. */
const local = (disp: number) => ({ base: RSP, disp });

/**
 * rsi = addresses, 8 bytes each, the innermost first; rdx = how many, 0 to `layout.frames`; rcx = flags of
 * bpf_get_stackid: rax = the id of the stack, which is kept if it is new; -EEXIST if another stack has the id,
 * -ENOMEM if there is no room. The caller has checked the flags.
 */
export function stackInsert(input: StackTraceRoutineInput): Routine {
  const { routines, name, layout } = input;
  return routines.get(`stack insert ${name}`, (): RoutineBody => {
    const take = takeRoutine(routines, `stack ${name}`, layout.pool);
    const release = releaseRoutine(routines, `stack ${name}`, layout.pool);
    const [id, hash, element] = [0, 8, 16];
    const frameBytes = 24;
    return {
      args: argsOf(input, 2, 3, 4),
      clobbers: regSet(RAX, RDX, RDI, R8, R9, R10),
      stackBytes: frameBytes + 8,
      calls: [take, release],
      emit: (a) =>
        emitFrame(a, frameBytes, (leave) => {
          const [hashed, insert, differs, changed] = [
            a.label("hashed"),
            a.label("insert"),
            a.label("differs"),
            a.label("changed"),
          ];
          const [same, finish, haveElement, exchange] = [
            a.label("same"),
            a.label("finish"),
            a.label("have"),
            a.label("exchange"),
          ];
          emitMapAddress(a, input);
          a.movImm(local(element), 0);
          // The hash of the number of addresses and the addresses.
          a.movImm(RAX, HASH_MULTIPLIER);
          a.mov(R8, RDX);
          a.imul(R8, RAX);
          a.zero(R9);
          const word = a.here("hash");
          a.cmp(R9, RDX);
          a.jcc("ae", hashed);
          a.rol(R8, HASH_ROTATE);
          a.xor(R8, { base: RSI, index: R9, scale: 8 });
          a.imul(R8, RAX);
          a.inc(R9);
          a.jmp(word);
          a.bind(hashed);
          a.mov(local(hash), R8);
          a.shr(R8, STACK_ID_SHIFT);
          a.andImm(R8, layout.ids - 1, 32);
          a.mov(local(id), R8);

          // r8 = id, r9 = its slot, r10 = element
          const retry = a.here("retry");
          const slot = { base: RDI, index: R8, scale: 8, disp: STACK_SLOTS } as const;
          a.mov(R8, local(id));
          a.mov(R9, slot);
          emitElement(a, R10, R9, layout.pool, insert);
          a.mov(RAX, { base: R10, disp: STACK_HASH });
          a.cmp(RAX, local(hash));
          a.jcc("ne", differs);
          a.btImm(RCX, FAST_COMPARE_BIT);
          a.jcc("b", same);
          a.cmp({ base: R10, disp: STACK_COUNT }, RDX);
          a.jcc("ne", differs);
          a.push(RDX);
          const [nextWord, unequal, compared] = [a.label("compare"), a.label("unequal"), a.label("compared")];
          a.bind(nextWord);
          a.subImm(RDX, 1);
          a.jcc("b", compared);
          a.mov(RAX, { base: RSI, index: RDX, scale: 8 });
          a.cmp(RAX, { base: R10, index: RDX, scale: 8, disp: STACK_ADDRESSES });
          a.jcc("e", nextWord);
          a.bind(unequal);
          a.pop(RDX);
          a.jmp(differs);
          a.bind(compared);
          a.pop(RDX);
          a.bind(same);
          a.cmp(slot, R9);
          a.jcc("ne", changed);
          a.mov(RAX, R8);
          a.jmp(finish);

          a.bind(differs);
          a.cmp(slot, R9);
          a.jcc("ne", changed);
          a.btImm(RCX, REUSE_ID_BIT);
          a.jcc("b", insert);
          a.movImm(RAX, EEXIST);
          // rax = result: an element that was taken in vain goes back.
          a.bind(finish);
          a.cmpImm(local(element), 0);
          const giveBack = a.label("give back");
          a.jcc("ne", giveBack);
          leave();
          a.bind(giveBack);
          a.mov(R9, RAX);
          a.mov(RAX, local(element));
          a.call(release.label);
          a.mov(RAX, R9);
          leave();
          a.bind(changed);
          a.jmp(retry);

          a.bind(insert);
          a.mov(RAX, local(element));
          a.test(RAX, RAX);
          a.jcc("ne", exchange);
          a.push(RDX);
          a.call(take.label);
          a.pop(RDX);
          a.test(RAX, RAX);
          a.jcc("ne", haveElement);
          a.movImm(RAX, ENOMEM);
          leave();
          a.bind(haveElement);
          a.mov(local(element), RAX);
          a.mov(R9, local(hash));
          a.mov({ base: RAX, disp: STACK_HASH }, R9);
          a.mov({ base: RAX, disp: STACK_COUNT }, RDX);
          a.zero(R9);
          const [copy, copied] = [a.label("copy"), a.label("copied")];
          a.bind(copy);
          a.cmp(R9, RDX);
          a.jcc("ae", copied);
          a.mov(R10, { base: RSI, index: R9, scale: 8 });
          a.mov({ base: RAX, index: R9, scale: 8, disp: STACK_ADDRESSES }, R10);
          a.inc(R9);
          a.jmp(copy);
          a.bind(copied);
          a.jmp(retry);

          a.bind(exchange);
          emitRefOf(a, R10, RAX);
          a.mov(RAX, R9);
          emitNextTag(a, RAX);
          a.or(R10, RAX);
          a.mov(RAX, R9);
          a.lock().cmpxchg(slot, R10);
          a.jcc("ne", changed);
          const first = a.label("first");
          emitElement(a, RAX, R9, layout.pool, first);
          a.call(release.label);
          a.bind(first);
          a.mov(RAX, R8);
          leave();
        }),
    };
  });
}
