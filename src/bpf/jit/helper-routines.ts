/** Which routine a call of a helper becomes, for helpers that are not inlined; those of maps are in `map-routines.ts`. */
import {
  findHelperName,
  HELPER_GET_CURRENT_COMM,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_CURRENT_UID_GID,
  HELPER_GET_PRANDOM_U32,
  HELPER_KTIME_GET_NS,
  HELPER_PROBE_READ_USER,
  HELPER_PROBE_READ_USER_STR,
} from "../helpers.ts";
import type { Bundle } from "../program.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv } from "./link-env.ts";
import { mapRoutineFor } from "./map-routines.ts";
import type { Routine, RoutineSet } from "./routine.ts";
import { currentComm, ktimeGetNs, pidTgid, prandomU32, uidGid } from "./task-routines.ts";
import { probeReadUser, probeReadUserStr } from "./user-read-routines.ts";

/** One call of a helper, and what the proof says about its arguments. */
export interface HelperCall {
  readonly helper: number;
  /** Index of the map that is passed. */
  readonly mapIndex: number | undefined;
  /** The map of maps that the passed inner map comes from; its address is in the first argument's register. */
  readonly outerMapIndex: number | undefined;
  /** Bytes of the constant string that is passed, without its NUL. */
  readonly text: Uint8Array | undefined;
}

/** What routines are made for. */
export interface RoutineContext {
  readonly routines: RoutineSet;
  readonly env: LinkEnv;
  readonly bundle: Bundle;
}

/** Throws JitError if there is none. */
export function routineFor(context: RoutineContext, call: HelperCall): Routine {
  const { routines, env } = context;
  switch (call.helper) {
    case HELPER_KTIME_GET_NS:
      return ktimeGetNs(routines, env);
    case HELPER_GET_PRANDOM_U32:
      return prandomU32(routines);
    case HELPER_GET_CURRENT_PID_TGID:
      return pidTgid(routines, env);
    case HELPER_GET_CURRENT_UID_GID:
      return uidGid(routines);
    case HELPER_GET_CURRENT_COMM:
      return currentComm(routines);
    case HELPER_PROBE_READ_USER:
      return probeReadUser(routines, env);
    case HELPER_PROBE_READ_USER_STR:
      return probeReadUserStr(routines, env);
    default: {
      const routine = mapRoutineFor(context, call);
      if (routine !== undefined) return routine;
      const map = call.mapIndex === undefined ? undefined : context.bundle.maps[call.mapIndex];
      const on = map === undefined ? "" : ` on map ${map.name} of kind ${map.kind}`;
      throw new JitError(
        `compile call of ${findHelperName(call.helper) ?? `helper ${call.helper}`}${on}: no routine`,
      );
    }
  }
}
