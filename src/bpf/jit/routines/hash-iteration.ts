/**
 * The elements of one hash map one after the other, for bpf_for_each_map_elem.
 *
 * Elements come in the order of the buckets, and of a bucket's list. A cursor says how many elements of the list
 * are still to come: insertions at the head do not change that, nor does it matter whether the element that was visited
 * is deleted or replaced meanwhile. Every element that stays is visited; where others are deleted meanwhile that
 * were still to come, one can be visited twice. Each bucket gives no more elements than it had when it was entered, so
 * that the walk ends whatever happens.
 */
import type { Label } from "../../../x86/assembler.ts";
import { R8, R9, R10, RAX, RCX, RDI, RDX, RSI, RSP, regSet } from "../../../x86/registers.ts";
import { ELEMENT_KEY, HASH_BUCKETS, hashPool, mostSteps } from "../../maps/hash-layout.ts";
import { emitElement } from "./element-pool.ts";
import { unlinkRoutine } from "./hash-pool.ts";
import { emitValueAddress } from "./hash-routines.ts";
import { emitMapAddress, type HashRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

/**
 * rdi = cursor, 0 at first, r11 = slot of a per-CPU map: rax = the next cursor, or 0 at the end, rsi = the key,
 * rdx = the value. If the address of the map is not known it is in rsi. A cursor:
 *
 *     63                     32 31                  0
 *    +-------------------------+---------------------+
 *    | elements still to come  |   bucket after it   |
 *    +-------------------------+---------------------+
 */
export function hashNext(input: HashRoutineInput): Routine {
  const { routines, name, layout } = input;
  return routines.get(`hash next ${name}`, (): RoutineBody => {
    const unlink = unlinkRoutine(input);
    const pool = hashPool(layout);
    return {
      args: input.mapAddr === undefined ? [1, 2] : [1],
      clobbers: regSet(RAX, RCX, RDX, RDI, RSI, R8, R9, R10),
      stackBytes: 8,
      calls: [unlink],
      emit: (a) => {
        const [enter, walk, counted, nextBucket] = [
          a.label("enter"),
          a.label("walk"),
          a.label("counted"),
          a.label("next bucket"),
        ];
        const [found, end, marked, again, senseless] = ["found", "end", "marked", "again", "senseless"].map(
          (each) => a.label(each),
        ) as [Label, Label, Label, Label, Label];
        const steps = { base: RSP, disp: 0 };
        a.pushImm(mostSteps(layout));
        // r9 = bucket, r10 = elements still to come, 0 at its beginning
        a.mov(R9, RDI, 32);
        a.mov(R10, RDI);
        a.shr(R10, 32);
        emitMapAddress(a, input, { from: RSI, offset: layout.headerBytes });
        a.test(R10, R10);
        a.jcc("e", enter);
        a.dec(R9, 32);
        a.jmp(walk);
        a.bind(nextBucket);
        a.zero(R10);
        a.inc(R9, 32);
        a.bind(enter);
        a.cmpImm(R9, layout.buckets, 32);
        a.jcc("ae", end);

        /** Steps through the list, with the element in rax, until `atElement` leaves. */
        const emitList = (listName: string, atEnd: Label, atElement: () => void) => {
          const step = a.label(listName);
          a.lea(RCX, { base: RDI, index: R9, scale: 8, disp: HASH_BUCKETS });
          a.mov(R8, { base: RCX });
          a.bind(step);
          emitElement(a, RAX, R8, pool, atEnd);
          a.mov(RSI, { base: RAX });
          a.cmp({ base: RCX }, R8);
          a.jcc("ne", again);
          a.test(RSI, RSI, 32);
          a.jcc("s", marked);
          atElement();
          a.mov(RCX, RAX);
          a.mov(R8, RSI);
          a.jmp(step);
        };

        a.bind(walk);
        a.zero(RDX);
        emitList("count", counted, () => {
          a.inc(RDX, 32);
          // More than there are elements: the list makes no sense.
          a.cmpImm(RDX, (layout.poolBytes + layout.spareBytes) / layout.stride, 32);
          a.jcc("a", senseless);
        });
        a.bind(counted);
        a.test(RDX, RDX, 32);
        a.jcc("e", nextBucket);
        const isNoMore = a.label("no more");
        a.test(R10, R10);
        a.cmov("e", R10, RDX);
        a.cmp(R10, RDX);
        a.jcc("be", isNoMore);
        a.mov(R10, RDX);
        a.bind(isNoMore);
        a.sub(RDX, R10);
        emitList("skip", again, () => {
          a.subImm(RDX, 1);
          a.jcc("b", found);
        });

        a.bind(found);
        a.lea(RSI, { base: RAX, disp: ELEMENT_KEY });
        emitValueAddress(a, input);
        a.mov(RDX, RAX);
        a.dec(R10);
        a.shl(R10, 32);
        a.lea(RAX, { base: R9, disp: 1 });
        a.or(RAX, R10);
        a.addImm(RSP, 8);
        a.ret();
        a.bind(end);
        a.zero(RAX);
        a.addImm(RSP, 8);
        a.ret();
        a.bind(marked);
        a.call(unlink.label);
        a.bind(again);
        a.dec(steps);
        a.jcc("ns", walk);
        a.jmp(end);
        a.bind(senseless);
        a.sub(steps, RDX);
        a.jcc("ns", nextBucket);
        a.jmp(end);
      },
    };
  });
}
