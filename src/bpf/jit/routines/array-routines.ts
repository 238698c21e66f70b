/** Lookup and update of one array, and of one slot of a per-CPU array. Lookups in arrays at known addresses are inline. */
import type { Assembler } from "../../../x86/assembler.ts";
import { R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, regSet } from "../../../x86/registers.ts";
import { E2BIG, EEXIST, EINVAL } from "../../error-numbers.ts";
import type { ArrayLayout, PerCpuArrayLayout } from "../../maps/array-layout.ts";
import { emitCopyWords } from "../memory-moves.ts";
import { argsOf, emitMapAddress, type MapRoutineInput } from "./map-input.ts";
import type { Routine, RoutineBody } from "./routine.ts";

const FLAG_NOEXIST = 1;
const FLAG_EXIST = 2;

export type ArrayRoutineInput = MapRoutineInput<ArrayLayout | PerCpuArrayLayout>;

/** rax = index, r11 = slot of a per-CPU array: rax = the value. Changes rdi, and r8 for per-CPU arrays. */
function emitElementAddress(a: Assembler, input: ArrayRoutineInput): void {
  const { layout } = input;
  const isPerCpu = layout.kind === "percpu_array";
  a.imulImm(RAX, RAX, layout.stride);
  emitMapAddress(a, input, { offset: isPerCpu ? layout.copiesOffset : 0 });
  a.add(RAX, RDI);
  if (!isPerCpu) return;
  a.mov(R8, R11, 32);
  a.movImm(RDI, layout.copyBytes);
  a.imul(R8, RDI);
  a.add(RAX, R8);
}

/** rsi = key; rax = address of the value, or 0. Of a per-CPU array that of the slot in r11. */
export function arrayLookup(input: ArrayRoutineInput): Routine {
  return lookupRoutine(input, "r11");
}

/** rsi = key, edx = slot of the per-CPU array; rax = address of the value, or 0. */
export function arrayLookupSlot(input: ArrayRoutineInput): Routine {
  return lookupRoutine(input, "argument");
}

function lookupRoutine(input: ArrayRoutineInput, slot: "r11" | "argument"): Routine {
  const { routines, name, spec, layout } = input;
  const isArgument = slot === "argument";
  return routines.get(
    `array lookup ${name}${isArgument ? " slot" : ""}`,
    (): RoutineBody => ({
      args: argsOf(input, 2, ...(isArgument ? [3] : [])),
      clobbers: regSet(RAX, RDI, R8) | (isArgument ? regSet(R11) : 0),
      stackBytes: 0,
      emit: (a) => {
        const none = a.label("none");
        if (isArgument && layout.kind === "percpu_array") {
          a.cmpImm(RDX, layout.cpus, 32);
          a.jcc("ae", none);
          a.mov(R11, RDX, 32);
        }
        a.mov(RAX, { base: RSI }, 32);
        a.cmpImm(RAX, spec.maxEntries, 32);
        a.jcc("ae", none);
        emitElementAddress(a, input);
        a.ret();
        a.bind(none);
        a.zero(RAX);
        a.ret();
      },
    }),
  );
}

/** rsi = key, rdx = value, rcx = flags, r11 = slot of a per-CPU array; rax = 0 or an error. */
export function arrayUpdate(input: ArrayRoutineInput): Routine {
  const { routines, name, spec } = input;
  return routines.get(
    `array update ${name}`,
    (): RoutineBody => ({
      args: argsOf(input, 2, 3, 4),
      clobbers: regSet(RAX, RCX, RDI, RSI, R8, R9, R10),
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
        emitElementAddress(a, input);
        emitCopyWords(a, { base: RAX, disp: 0 }, { base: RDX, disp: 0 }, spec.valueBytes, R8, R9, R10);
        a.zero(RAX);
        a.ret();
        for (const { error, label } of errors) {
          a.bind(label);
          a.movImm(RAX, error);
          a.ret();
        }
      },
    }),
  );
}

/** Elements of an array cannot be deleted. */
export function arrayDelete({ routines }: ArrayRoutineInput): Routine {
  return routines.get(
    "array delete",
    (): RoutineBody => ({
      args: [],
      clobbers: regSet(RAX),
      stackBytes: 0,
      emit: (a) => {
        a.movImm(RAX, EINVAL);
        a.ret();
      },
    }),
  );
}
