/** A program that the JIT was not made for; the verifier lets none through. */
export class JitError extends Error {
  readonly code = "jit";
  override readonly name = "JitError";
}
