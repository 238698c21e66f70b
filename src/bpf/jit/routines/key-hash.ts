/** The hash of keys and values (maps/key-hash.ts) in registers. */
import type { Assembler } from "../../../x86/assembler.ts";
import type { Reg } from "../../../x86/registers.ts";
import { HASH_MULTIPLIER, HASH_ROTATE } from "../../maps/key-hash.ts";

/** Above this many words they are hashed in a loop. */
const UNROLLED_WORDS = 8;

export interface HashRegs {
  readonly hash: Reg;
  /** The first word. */
  readonly first: Reg;
  /** The address of all words; read only if there are more than one. */
  readonly rest: Reg;
  readonly words: number;
  readonly temp: Reg;
  /** Changes if there are many words. */
  readonly counter: Reg;
}

export function emitHashWords(a: Assembler, { hash, first, rest, words, temp, counter }: HashRegs): void {
  if (words === 1) {
    a.movImm(hash, HASH_MULTIPLIER);
    a.imul(hash, first);
    return;
  }
  a.movImm(temp, HASH_MULTIPLIER);
  a.mov(hash, first);
  a.imul(hash, temp);
  if (words <= UNROLLED_WORDS) {
    for (let i = 1; i < words; i++) {
      a.rol(hash, HASH_ROTATE);
      a.xor(hash, { base: rest, disp: i * 8 });
      a.imul(hash, temp);
    }
    return;
  }
  a.movImm(counter, -(words - 1) * 8);
  const word = a.here("hash");
  a.rol(hash, HASH_ROTATE);
  a.xor(hash, { base: rest, index: counter, disp: words * 8 });
  a.imul(hash, temp);
  a.addImm(counter, 8);
  a.jcc("ne", word);
}
