/** Update of one array. Lookups are inline. */
import { R8, R9, R10, RAX, RCX, RDX, RSI, regSet } from "../../x86/registers.ts";
import { type ArrayLayout, E2BIG, EEXIST, EINVAL } from "../maps/index.ts";
import type { MapSpec } from "../program.ts";
import { emitAddress, emitCopyWords } from "./memory-moves.ts";
import type { Routine, RoutineSet } from "./routine.ts";

const FLAG_NOEXIST = 1;
const FLAG_EXIST = 2;

export interface ArrayRoutineInput {
  readonly routines: RoutineSet;
  readonly mapIndex: number;
  readonly spec: MapSpec;
  readonly layout: ArrayLayout;
  /** Address of the map's storage. */
  readonly mapAddr: bigint;
}

/** rsi = key, rdx = value, rcx = flags; rax = 0 or an error. */
export function arrayUpdate({ routines, mapIndex, spec, layout, mapAddr }: ArrayRoutineInput): Routine {
  return routines.get(`array update ${mapIndex}`, () => ({
    args: [2, 3, 4],
    clobbers: regSet(RAX, RCX, RSI, R8, R9, R10),
    stackBytes: 0,
    emit: (a) => {
      const errors = [EINVAL, E2BIG, EEXIST].map((error) => ({ error, label: a.label(`error ${error}`) }));
      const [invalid, beyond, exists] = errors.map(({ label }) => label);
      a.cmpImm(RCX, FLAG_EXIST);
      a.jcc("a", invalid!);
      a.mov(RAX, { base: RSI }, 32);
      a.cmpImm(RAX, spec.maxEntries, 32);
      a.jcc("ae", beyond!);
      a.cmpImm(RCX, FLAG_NOEXIST, 32);
      a.jcc("e", exists!);
      a.imulImm(RAX, RAX, layout.stride);
      emitAddress(a, RSI, mapAddr);
      a.add(RSI, RAX);
      emitCopyWords(a, { base: RSI, disp: 0 }, { base: RDX, disp: 0 }, spec.valueBytes, R8, R9, R10);
      a.zero(RAX);
      a.ret();
      for (const { error, label } of errors) {
        a.bind(label);
        a.movImm(RAX, error);
        a.ret();
      }
    },
  }));
}
