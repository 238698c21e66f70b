/**
 * The protection key that the engine's data is under, and how a thread lets itself in and out.
 *
 * A page has a key of 0 to 15; each thread's register PKRU has two bits for each key, "no access" and "no write". Outside the gate
 * the first of ours is set, as the kernel sets it for a new key, inside neither. Other keys are the application's, or other
 * sessions': the gate never changes their bits. A handler of ours does, for itself alone: the frame that it reads may lie on a
 * stack under any key.
 *
 * WRPKRU is an ordinary instruction, and whoever jumps to ours has chosen what it writes. So what was written is looked at behind
 * it, and stops the process if it is not what this place is for: behind the way in the path leads through the gate and out of
 * it, behind the way out our key is closed. Nothing between them returns through an address that the application could have changed.
 *
 * Facts: Intel SDM 3A 4.6.2 (bit 2i: access disable, 2i + 1: write disable), 2B (RDPKRU: ecx must be 0, edx becomes 0; WRPKRU: ecx
 * and edx must be 0); pkeys(7): a new thread inherits PKRU, and a signal handler begins with all keys but 0 closed.
 */
import { R9, RAX, RCX, RDX, type RegSet, regSet } from "../x86/registers.ts";
import type { CodeWriter } from "./code-writer.ts";

export interface GateKey {
  /** 1 to 15. */
  readonly number: number;
}

/** What both ways change, and the flags. */
export const KEY_CLOBBERS: RegSet = regSet(RAX, RCX, RDX);

/** Both bits of a key in PKRU; neither set: open. */
export const keyBits = ({ number }: GateKey): number => 3 << (2 * number);

/** The bit of a closed key. */
export const closedBit = ({ number }: GateKey): number => 1 << (2 * number);

export function emitKeyOpen(writer: CodeWriter, key: GateKey): void {
  const { asm } = writer;
  writer.note("open the protection key");
  asm.zero(RCX);
  asm.rdpkru();
  asm.andImm(RAX, ~keyBits(key), 32);
  emitWrite(writer, "clear", keyBits(key));
}

export function emitKeyClose(writer: CodeWriter, key: GateKey): void {
  const { asm } = writer;
  writer.note("close the protection key, and look that it is closed");
  asm.zero(RCX);
  asm.rdpkru();
  asm.orImm(RAX, closedBit(key), 32);
  emitWrite(writer, "set", closedBit(key));
}

/** At the beginning of a signal handler: opens all keys, and keeps what PKRU was in r9. Uses no stack. */
export function emitAllKeysOpen(writer: CodeWriter): void {
  const { asm } = writer;
  writer.note("open all protection keys");
  asm.zero(RCX);
  asm.rdpkru();
  asm.mov(R9, RAX, 32);
  asm.zero(RAX);
  emitWrite(writer, "clear", -1);
}

/** At its end: PKRU is what it was, as r9 says, with our key closed in any case. Uses no stack. */
export function emitKeysBack(writer: CodeWriter, key: GateKey): void {
  const { asm } = writer;
  writer.note("protection keys as they were, and look that ours is closed");
  asm.zero(RCX);
  asm.zero(RDX);
  asm.mov(RAX, R9, 32);
  asm.orImm(RAX, closedBit(key), 32);
  emitWrite(writer, "set", closedBit(key));
}

/** PKRU = eax, if the bits in it are what this place writes; whoever has jumped here with others is stopped. */
function emitWrite({ asm }: CodeWriter, state: "set" | "clear", bits: number): void {
  asm.wrpkru();
  const written = asm.label("written");
  asm.testImm(RAX, bits, 32);
  asm.jcc(state === "set" ? "ne" : "e", written);
  asm.ud2();
  asm.bind(written);
}
