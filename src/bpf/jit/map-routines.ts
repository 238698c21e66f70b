/** Which routine a call of a map helper becomes, by the kind of the map. */
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_RINGBUF_RESERVE,
} from "../helpers.ts";
import { layoutMap } from "../maps/index.ts";
import { arrayUpdate } from "./array-routines.ts";
import { hashDelete, hashLookup, hashUpdate } from "./hash-routines.ts";
import type { HelperCall, RoutineContext } from "./helper-call.ts";
import { ringReserve } from "./ring-routines.ts";
import type { Routine } from "./routine.ts";

/** Undefined: there is none for this helper on this kind of map. */
export function mapRoutineFor(
  { routines, env, bundle }: RoutineContext,
  { helper, mapIndex }: HelperCall,
): Routine | undefined {
  const spec = mapIndex === undefined ? undefined : bundle.maps[mapIndex];
  if (mapIndex === undefined || spec === undefined) return undefined;
  const layout = layoutMap(spec);
  const common = { routines, mapIndex, spec, mapAddr: env.mapAddr(mapIndex) };
  switch (layout.kind) {
    case "hash":
      if (helper === HELPER_MAP_LOOKUP_ELEM) return hashLookup({ ...common, layout });
      if (helper === HELPER_MAP_UPDATE_ELEM) return hashUpdate({ ...common, layout });
      return helper === HELPER_MAP_DELETE_ELEM ? hashDelete({ ...common, layout }) : undefined;
    case "array":
      return helper === HELPER_MAP_UPDATE_ELEM ? arrayUpdate({ ...common, layout }) : undefined;
    case "ringbuf":
      return helper === HELPER_RINGBUF_RESERVE ? ringReserve({ ...common, layout }) : undefined;
    default:
      return layout satisfies never;
  }
}
