/** From proved bytecode to x86-64. */

export { emitAccountCount } from "./account-count.ts";
export { JitError } from "./jit-error.ts";
export { type CompiledProgram, type EmitOptions, JitUnit } from "./jit-unit.ts";
export type { LinkEnv, ProgramAccount } from "./link-env.ts";
export { type ReturnLookup, returnLookupWrites } from "./routines/return-lookup.ts";
export { PID_CACHE_TID_OFFSET } from "./routines/task-routines.ts";
