/** bpf_override_return: notes in the context that the function is to be left; what runs the program does it. */
import { RAX, RDI, RSI, regSet } from "../../../x86/registers.ts";
import { CTX_OVERRIDE_VALUE, CTX_OVERRIDES } from "../../context.ts";
import type { Routine, RoutineSet } from "./routine.ts";

/** rdi = context, rsi = what the function returns; rax = 0. */
export function overrideReturn(routines: RoutineSet): Routine {
  return routines.get("override return", () => ({
    args: [1, 2],
    clobbers: regSet(RAX),
    stackBytes: 0,
    emit: (a) => {
      a.mov({ base: RDI, disp: CTX_OVERRIDE_VALUE }, RSI);
      a.movImm({ base: RDI, disp: CTX_OVERRIDES }, 1);
      a.zero(RAX);
      a.ret();
    },
  }));
}
