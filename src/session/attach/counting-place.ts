/**
 * Where in a compiled program its hit is counted: for hits whose program is left in the middle, which are counted all the same.
 *
 * A program of an object counts first of all. One of a script has a predicate before it, and counts behind it in one of two words,
 * by an atomic addition to the map that stands for its account: `passed`, or `filtered` in a piece of its own at its end.
 */
import { ACCOUNT_FILTERED, ACCOUNT_PASSED, type Insn } from "../../bpf/index.ts";
import {
  CLASS_STX,
  MODE_ATOMIC,
  OP_EXIT,
  OP_LDIMM64,
  PSEUDO_MAP_INDEX_VALUE,
  PSEUDO_MAP_VALUE,
} from "../../bpf/opcodes.ts";

/** Where the code of the instruction in a slot begins. */
export interface SlotPlace {
  readonly slot: number;
  readonly at: bigint;
}

/**
 * Whether a hit has been counted when its main function is at an address. `map` is the index of the map that stands for the
 * account; undefined: the compiler counts in front of everything. Code out of line is taken to be behind the predicate.
 */
export function countingOf(
  insns: readonly Insn[],
  map: number | undefined,
  places: readonly SlotPlace[],
): (at: bigint) => boolean {
  const passed = map === undefined ? -1 : findCount(insns, map, ACCOUNT_PASSED);
  if (passed === undefined) return () => true;
  const filtered = map === undefined ? undefined : findCount(insns, map, ACCOUNT_FILTERED);
  const filteredFrom = filtered === undefined ? insns.length : 1 + insns.findLastIndex(isExit, filtered);
  const inOrder = places.toSorted((a, b) => (a.at < b.at ? -1 : 1));
  return (at) => {
    const slot = inOrder.findLast((place) => place.at <= at)?.slot ?? -1;
    return (slot > passed && slot < filteredFrom) || slot > (filtered ?? insns.length - 1);
  };

  function isExit(insn: Insn, slot: number): boolean {
    return slot < filtered! && insn.opcode === OP_EXIT;
  }
}

/** The slot of the atomic addition to a word of the account. */
function findCount(insns: readonly Insn[], map: number, word: number): number | undefined {
  const address = insns.findIndex(
    ({ opcode, src, imm }, slot) =>
      opcode === OP_LDIMM64 &&
      (src === PSEUDO_MAP_VALUE || src === PSEUDO_MAP_INDEX_VALUE) &&
      imm === map &&
      insns[slot + 1]!.imm === word,
  );
  if (address < 0) return undefined;
  const count = insns.findIndex(
    ({ opcode }, slot) => slot > address && (opcode & 0xe7) === (CLASS_STX | MODE_ATOMIC),
  );
  return count < 0 ? undefined : count;
}
