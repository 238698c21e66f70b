/** What the routine of a helper is chosen by, and what it is made for. */
import type { Bundle } from "../../program.ts";
import type { LinkEnv } from "../link-env.ts";
import type { RoutineSet } from "./routine.ts";

/** One call of a helper, and what the proof says about its arguments. */
export interface HelperCall {
  readonly helper: number;
  /** Index of the map that is passed. */
  readonly mapIndex: number | undefined;
  /** The map of maps that the passed inner map comes from; its address is in the first argument's register. */
  readonly outerMapIndex: number | undefined;
  /** Bytes of the constant string that is passed, without its NUL. */
  readonly text: Uint8Array | undefined;
  /** Of r1 to r5 those that are known to be 0, as flags mostly are. */
  readonly zeroArgs?: readonly number[];
}

/** What routines are made for. */
export interface RoutineContext {
  readonly routines: RoutineSet;
  readonly env: LinkEnv;
  readonly bundle: Bundle;
}
