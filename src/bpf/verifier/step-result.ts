/** Where a path goes on after a step. */
import type { State } from "./state.ts";
import type { StepNote } from "./step-note.ts";

/** One of the ways that a step can go. */
export interface Way {
  readonly next: number;
  readonly state: State;
  readonly note: StepNote;
}

export type StepResult =
  | { readonly kind: "next"; readonly next: number }
  /** The first way is walked first. */
  | { readonly kind: "branch"; readonly ways: readonly [Way, Way] }
  /** The path ends: exit, or a comparison that cannot go either way, so that the path cannot be taken. */
  | { readonly kind: "end" };
