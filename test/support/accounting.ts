/** The accounting at the end of a session, as its JSON output has it. */
import type { JsonLine } from "./tracing.ts";

export interface Accounting {
  readonly probe: string;
  readonly hits: number;
  readonly run: number;
  readonly filtered: number;
  readonly recursed: number;
  readonly dropped: number;
  readonly faulted: number;
  readonly missed: number;
  readonly unwound: number;
  readonly mechanisms: Readonly<Record<string, number>>;
}

export function accountingOf(lines: readonly JsonLine[]): readonly Accounting[] {
  const all = lines.filter(({ type }) => type === "accounting");
  if (all.length !== 1) throw new Error(`${all.length} accountings`);
  return (all[0]!.data as { probes: readonly Accounting[] }).probes;
}

/** Whether the words add up. */
export function isBalanced({ hits, run, filtered, recursed, dropped, faulted }: Accounting): boolean {
  return hits === run + filtered + recursed + dropped + faulted;
}
