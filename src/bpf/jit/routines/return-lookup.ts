/**
 * Return addresses that a return probe has replaced: a walk of the stack finds the address of a stub there, and asks for
 * what was there before.
 *
 * Programs are compiled before it is known where the stubs will be, so three words behind the pid cache say it:
 *
 *     +0  where the stubs begin     +8  the routine that looks up     +16  bytes of stubs, 0: there are none
 *
 * The routine takes the slot's address | the number of the stub in r10, and gives the address that was there, or 0, in
 * r11; it changes rdx too. A stub's number is in bits 4 to 6 of its address: that many other stubs were there before.
 */
import type { Assembler } from "../../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDX, type Reg } from "../../../x86/registers.ts";
import type { LinkEnv } from "../link-env.ts";
import { emitAddress } from "../memory-moves.ts";

/** Where the words lie beside the pid cache. */
export const RETURN_LOOKUP_OFFSET = 16;
const [START, ROUTINE, LENGTH] = [RETURN_LOOKUP_OFFSET, RETURN_LOOKUP_OFFSET + 8, RETURN_LOOKUP_OFFSET + 16];
/** Most stubs that one slot can have had. */
const MAX_STUBS = 8;

export interface ReturnLookup {
  readonly stubs: { readonly start: bigint; readonly end: bigint };
  /** Address of the routine. */
  readonly routine: bigint;
}

function words(...values: bigint[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(values).buffer);
}

/** What to write where, one after the other, so that programs may run meanwhile. */
export function returnLookupWrites(
  pidCache: bigint,
  { stubs, routine }: ReturnLookup,
): readonly { readonly at: bigint; readonly bytes: Uint8Array }[] {
  return [
    { at: pidCache + BigInt(START), bytes: words(stubs.start, routine) },
    { at: pidCache + BigInt(LENGTH), bytes: words(stubs.end - stubs.start) },
  ];
}

/** The stack's address `base + disp` holds rax: if that is a stub, rax becomes what was there. Changes rcx, rdx, r8 to r11. */
export function emitOriginalReturn(a: Assembler, env: LinkEnv, slot: { base: Reg; disp: number }): void {
  const [again, done, isNot] = [a.label("stub"), a.label("original"), a.label("unknown")];
  a.movImm(R8, MAX_STUBS);
  emitAddress(a, RCX, env.pidCache);
  a.bind(again);
  a.mov(RDX, RAX);
  a.sub(RDX, { base: RCX, disp: START });
  a.cmp(RDX, { base: RCX, disp: LENGTH });
  a.jcc("ae", done);
  a.mov(R9, RAX);
  a.shr(RAX, 4);
  a.andImm(RAX, MAX_STUBS - 1, 32);
  a.lea(R10, slot);
  a.or(R10, RAX);
  a.callTo({ base: RCX, disp: ROUTINE });
  a.mov(RAX, R11);
  a.test(RAX, RAX);
  a.jcc("e", isNot);
  a.dec(R8);
  a.jcc("ne", again);
  a.jmp(done);
  a.bind(isNot);
  a.mov(RAX, R9);
  a.bind(done);
}
