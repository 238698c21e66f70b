/** Proves programs. */
export type { Entry } from "./state.ts";
export { MAX_VISITS, type Verdict, type VerifyOptions, verifyProgram } from "./verify.ts";
