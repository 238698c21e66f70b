/** Proves programs. */
export { MAX_FRAMES } from "./limits.ts";
export { STACK_BYTES } from "./stack.ts";
export type { Entry } from "./state.ts";
export { MAX_VISITS, type Verdict, type VerifyOptions, verifyProgram } from "./verify.ts";
