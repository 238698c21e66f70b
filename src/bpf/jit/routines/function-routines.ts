/** Arguments and result of the traced function, from the context. */
import { ptRegsOffset, R8, R9, RAX, RCX, RDI, RDX, RSI, regSet } from "../../../x86/registers.ts";
import { EINVAL } from "../../error-numbers.ts";
import type { Routine, RoutineSet } from "./routine.ts";

/** Integer arguments that a function gets in registers, in order (psABI, 3.2.3). */
const argumentRegs = [RDI, RSI, RDX, RCX, R8, R9];

export const FUNCTION_ARGUMENTS = argumentRegs.length;

/** rdi = context, rsi = number of the argument, rdx = where it goes; rax = 0, or -EINVAL and 0 goes there. */
export function funcArg(routines: RoutineSet): Routine {
  return routines.get("func arg", () => ({
    args: [1, 2, 3],
    clobbers: regSet(RAX, RCX),
    stackBytes: 0,
    emit: (a) => {
      const [none, store] = [a.label("no such argument"), a.label("store")];
      const table = a.label("offsets");
      a.cmpImm(RSI, FUNCTION_ARGUMENTS);
      a.jcc("ae", none);
      a.lea(RAX, { ripTo: table });
      a.movzx(RAX, { base: RAX, index: RSI }, 8);
      a.mov(RCX, { base: RDI, index: RAX });
      a.zero(RAX);
      a.bind(store);
      a.mov({ base: RDX }, RCX);
      a.ret();
      a.bind(none);
      a.zero(RCX);
      a.movImm(RAX, EINVAL);
      a.jmp(store);
      a.bind(table);
      a.bytes(argumentRegs.map((reg) => ptRegsOffset[reg]!));
    },
  }));
}

/** rdi = context, rsi = where the result goes; rax = 0. */
export function funcRet(routines: RoutineSet): Routine {
  return routines.get("func ret", () => ({
    args: [1, 2],
    clobbers: regSet(RAX),
    stackBytes: 0,
    emit: (a) => {
      a.mov(RAX, { base: RDI, disp: ptRegsOffset[RAX]! });
      a.mov({ base: RSI }, RAX);
      a.zero(RAX);
      a.ret();
    },
  }));
}

/** rax = how many arguments there can be: what a function really has is not known. */
export function funcArgCount(routines: RoutineSet): Routine {
  return routines.get("func arg count", () => ({
    args: [],
    clobbers: regSet(RAX),
    stackBytes: 0,
    emit: (a) => {
      a.movImm(RAX, FUNCTION_ARGUMENTS);
      a.ret();
    },
  }));
}
