/** Counting in an account by itself: what a point runs when its own hits are to be known. */
import type { Assembler } from "../../x86/assembler.ts";
import { R10, R11, type RegSet, regSet } from "../../x86/registers.ts";
import { ACCOUNT_PASSED, ACCOUNT_SHARD_SHIFT, ACCOUNT_SHARDS } from "../accounts.ts";
import { emitCpuWord } from "./cpu-number.ts";
import type { LinkEnv } from "./link-env.ts";
import { emitAddress } from "./memory-moves.ts";

/** A routine that adds 1 to the account at an address. */
export function emitAccountCount(
  a: Assembler,
  account: bigint,
  cpu: LinkEnv["cpu"],
): { readonly clobbers: RegSet } {
  emitCpuWord(a, R11, cpu);
  a.andImm(R11, ACCOUNT_SHARDS - 1, 32);
  a.shl(R11, ACCOUNT_SHARD_SHIFT, 32);
  emitAddress(a, R10, account);
  a.lock().inc({ base: R10, index: R11, disp: ACCOUNT_PASSED });
  a.ret();
  return { clobbers: regSet(R10, R11) };
}
