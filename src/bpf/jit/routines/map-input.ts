/** What the routines of one map are made for. */
import type { Assembler } from "../../../x86/assembler.ts";
import { RDI, type Reg } from "../../../x86/registers.ts";
import type { HashLayout } from "../../maps/hash-layout.ts";
import type { MapSpec } from "../../program.ts";
import { emitAddress } from "../memory-moves.ts";
import type { RoutineSet } from "./routine.ts";

export interface MapRoutineInput<Layout> {
  readonly routines: RoutineSet;
  /** Tells the routines of this map from those of others. */
  readonly name: string;
  readonly spec: MapSpec;
  readonly layout: Layout;
  /** Address of the map's storage; undefined: it is in the register of the argument, as with inner maps. */
  readonly mapAddr: bigint | undefined;
}

export type HashRoutineInput = MapRoutineInput<HashLayout>;

/** The BPF arguments that a routine reads: those given, and the map if its address is not known. */
export function argsOf(input: MapRoutineInput<unknown>, ...others: number[]): readonly number[] {
  return input.mapAddr === undefined ? [1, ...others] : others;
}

/** `dst` = the map's storage plus `offset`; an address that is not known is in `from`. Changes flags. */
export function emitMapAddress(
  a: Assembler,
  input: MapRoutineInput<unknown>,
  { dst = RDI, from = RDI, offset = 0 }: { dst?: Reg; from?: Reg; offset?: number } = {},
): void {
  if (input.mapAddr !== undefined) emitAddress(a, dst, input.mapAddr + BigInt(offset));
  else if (offset !== 0) a.lea(dst, { base: from, disp: offset });
  else if (dst !== from) a.mov(dst, from);
}
