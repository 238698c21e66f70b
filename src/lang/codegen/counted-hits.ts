/**
 * Which programs keep accounts of their hits, and which of them have one for nothing: `@ = count()` first thing in an
 * action is already a count of the hits that passed the predicate. Such a program counts in the account of its attach
 * point only, which is laid out like the value of the map, and whoever reads the map adds the accounts to it.
 *
 * That works as long as nothing else is done with the map than adding to it and printing it: programs could not read such a
 * value, and nobody could begin it anew.
 */
import { ACCOUNT_SHARD_BYTES, ACCOUNT_SHARDS } from "../../bpf/index.ts";
import { childrenOf, type Expr, exprsOf, type ProbeNode, type ScriptNode, type Statement } from "../ast.ts";
import type { ScriptPlan } from "./plan.ts";

export class CountedHits {
  readonly #plan: ScriptPlan;
  readonly #probes: readonly ProbeNode[];
  /** Names of maps that are used in any other way. */
  readonly #usedOtherwise = new Set<string>();

  constructor(script: ScriptNode, plan: ScriptPlan) {
    this.#plan = plan;
    this.#probes = script.probes;
    for (const { predicate, body } of script.probes) {
      if (predicate !== undefined) this.#noteUses(predicate);
      for (const statement of body.statements) {
        if (countedMap(statement) !== undefined) continue;
        for (const expr of exprsOf(statement)) this.#noteUses(expr);
      }
    }
  }

  /** Whether the program counts what becomes of its hits: one of the tracer itself has none. */
  isAccounted({ attachPoints }: ProbeNode): boolean {
    return (
      this.#plan.options.accounts &&
      attachPoints.every(({ kind }) => kind === "uprobe" || kind === "uretprobe")
    );
  }

  /** Whether the account of the hits is the count that the first statement is about. */
  isCountedFirst(probe: ProbeNode): boolean {
    return this.#countedMap(probe) !== undefined;
  }

  /** Indexes of the programs in whose accounts a map's count is. */
  programsOf(name: string): number[] {
    return this.#probes.flatMap((probe, index) => (this.#countedMap(probe) === name ? [index] : []));
  }

  #countedMap(probe: ProbeNode): string | undefined {
    const [first] = probe.body.statements;
    const name = first === undefined ? undefined : countedMap(first);
    if (name === undefined || !this.isAccounted(probe) || this.#usedOtherwise.has(name)) return undefined;
    const { value } = this.#plan.map(name);
    const isAlike =
      value.kind === "sharded" &&
      value.shards === ACCOUNT_SHARDS &&
      value.strideBytes === ACCOUNT_SHARD_BYTES;
    return isAlike ? name : undefined;
  }

  #noteUses(expr: Expr): void {
    if (expr.kind === "map") this.#usedOtherwise.add(expr.name);
    const isPrinted = expr.kind === "call" && expr.name === "print";
    for (const child of childrenOf(expr))
      if (!(isPrinted && child.kind === "map" && child.keys.length === 0)) this.#noteUses(child);
  }
}

/** The map without keys that the statement counts in: `@ = count();`. */
function countedMap(statement: Statement): string | undefined {
  if (statement.kind !== "assign" || statement.op !== undefined) return undefined;
  const { target, value } = statement;
  const counts = value.kind === "call" && value.name === "count";
  return target.kind === "map" && target.keys.length === 0 && counts ? target.name : undefined;
}
