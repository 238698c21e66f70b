/**
 * How a failure is shown. An error with a literal `code` is a refusal of the world outside: one line, and a hint if it
 * has one. Anything else is a mistake of ours: it says so, and shows its stack when debugging is on.
 */

export function describeFailure(error: unknown, debug: boolean): string {
  const { name, message, code, hint, stack } = fieldsOf(error);
  const isExpected = code !== undefined && !code.startsWith("ERR_");
  const lines = isExpected
    ? [`trapline: ${message}`]
    : [
        `trapline: internal error: ${name}: ${message}`,
        ...(debug ? [] : ["hint: -d shows where it happened"]),
      ];
  if (isExpected && hint !== undefined) lines.push(`hint: ${hint}`);
  if (debug && stack !== undefined) lines.push(stack, ...causesOf(error));
  return `${lines.join("\n")}\n`;
}

interface ErrorFields {
  readonly name: string;
  readonly message: string;
  readonly code: string | undefined;
  readonly hint: string | undefined;
  readonly stack: string | undefined;
}

function fieldsOf(error: unknown): ErrorFields {
  if (!(error instanceof Error))
    return {
      name: "thrown value",
      message: String(error),
      code: undefined,
      hint: undefined,
      stack: undefined,
    };
  const { code, hint } = error as { code?: unknown; hint?: unknown };
  return {
    name: error.name,
    message: error.message,
    code: typeof code === "string" ? code : undefined,
    hint: typeof hint === "string" ? hint : undefined,
    stack: error.stack,
  };
}

function causesOf(error: unknown): string[] {
  const causes: string[] = [];
  let cause = error instanceof Error ? error.cause : undefined;
  while (cause instanceof Error && causes.length < 8) {
    causes.push(`caused by ${cause.stack ?? cause.message}`);
    cause = cause.cause;
  }
  return causes;
}
