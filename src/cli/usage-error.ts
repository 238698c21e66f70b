/** A command line that does not say what to do. */

export class UsageError extends Error {
  readonly code = "usage";
  readonly hint: string;

  constructor(what: string, hint = "see: trapline --help") {
    super(what);
    this.name = "UsageError";
    this.hint = hint;
  }
}
