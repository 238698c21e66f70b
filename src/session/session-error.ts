/** What a session could not do for a reason outside of it, in the form in which it is shown. */

/** Says operation, object and reason in one line; the hint says what to do about it. */
export class SessionError extends Error {
  readonly code: string;
  readonly hint: string | undefined;

  constructor(
    code: string,
    where: { readonly operation: string; readonly object: string; readonly reason: string },
    hint?: string,
    cause?: unknown,
  ) {
    super(
      `${where.operation}: ${where.object}: ${where.reason}`,
      cause === undefined ? undefined : { cause },
    );
    this.name = "SessionError";
    this.code = code;
    this.hint = hint;
  }
}
