/** Which routine a call of a map helper becomes, by the kind of the map. */
import {
  HELPER_FOR_EACH_MAP_ELEM,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_LOOKUP_PERCPU_ELEM,
  HELPER_MAP_PEEK_ELEM,
  HELPER_MAP_POP_ELEM,
  HELPER_MAP_PUSH_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  HELPER_PERF_EVENT_OUTPUT,
  HELPER_RINGBUF_OUTPUT,
  HELPER_RINGBUF_QUERY,
  HELPER_RINGBUF_RESERVE,
} from "../../helpers.ts";
import { isAlike } from "../../map-kinds.ts";
import { layoutMap } from "../../maps/index.ts";
import type { MapSpec } from "../../program.ts";
import { JitError } from "../jit-error.ts";
import {
  type ArrayRoutineInput,
  arrayDelete,
  arrayLookup,
  arrayLookupSlot,
  arrayUpdate,
} from "./array-routines.ts";
import { bloomPeek, bloomPush } from "./bloom-routines.ts";
import { hashNext } from "./hash-iteration.ts";
import { hashDelete, hashLookup, hashLookupSlot, hashUpdate } from "./hash-routines.ts";
import type { HelperCall, RoutineContext } from "./helper-call.ts";
import type { HashRoutineInput, MapRoutineInput } from "./map-input.ts";
import { arrayOfMapsLookup, hashOfMapsLookup } from "./map-of-maps-routines.ts";
import { type QueueRoutineInput, queuePeek, queuePop, queuePush } from "./queue-routines.ts";
import {
  perfEventOutput,
  type RingRoutineInput,
  ringOutput,
  ringQuery,
  ringReserve,
} from "./ring-routines.ts";
import type { Routine } from "./routine.ts";
import type { StackTraceRoutineInput } from "./stack-trace-routines.ts";

type MapCall = Pick<HelperCall, "mapIndex" | "outerMapIndex">;
type RoutineInput = Omit<MapRoutineInput<unknown>, "layout">;

/**
 * The routine of a map helper; undefined: there is none for this helper on this kind of map. Those for inner maps
 * take the address of the map's storage in the register of the map argument; those for per-CPU maps the slot in r11.
 * For bpf_for_each_map_elem it is the routine that finds the next element of a hash map (hash-iteration.ts).
 */
export function mapRoutineFor(context: RoutineContext, call: HelperCall): Routine | undefined {
  const input = inputOf(context, call);
  if (input === undefined) return undefined;
  const { helper } = call;
  checkSlots(context, input.spec);
  const layout = layoutMap(input.spec);
  switch (layout.kind) {
    case "array":
    case "percpu_array":
      return arrayRoutine(helper, { ...input, layout });
    case "hash":
      if (input.spec.kind !== "hash_of_maps") return hashRoutine(helper, { ...input, layout });
      if (helper !== HELPER_MAP_LOOKUP_ELEM) return undefined;
      return hashOfMapsLookup({ ...input, layout }, innerAddresses(context, input.spec));
    case "array_of_maps":
      if (helper !== HELPER_MAP_LOOKUP_ELEM) return undefined;
      return arrayOfMapsLookup({ ...input, layout }, innerAddresses(context, input.spec));
    case "ringbuf":
      return ringRoutine(call, { ...input, layout });
    case "queue":
      return queueRoutine(helper, { ...input, layout });
    case "bloom_filter":
      if (helper === HELPER_MAP_PUSH_ELEM) return bloomPush({ ...input, layout });
      return helper === HELPER_MAP_PEEK_ELEM ? bloomPeek({ ...input, layout }) : undefined;
    case "stack_trace":
    case "prog_array":
      return undefined;
    default:
      return layout satisfies never;
  }
}

/** A program has one slot for all per-CPU maps. */
function checkSlots({ bundle }: RoutineContext, { name, cpus }: MapSpec): void {
  if (cpus === undefined) return;
  const other = bundle.maps.find((map) => map.cpus !== undefined && map.cpus !== cpus);
  if (other !== undefined)
    throw new JitError(
      `compile call on map ${name}: it has ${cpus} copies of each value, and map ${other.name} ${other.cpus}`,
    );
}

/** What a routine on a stack trace map is made for. */
export function stackTraceInput(context: RoutineContext, call: MapCall): StackTraceRoutineInput | undefined {
  const input = inputOf(context, call);
  const layout = input === undefined ? undefined : layoutMap(input.spec);
  return input === undefined || layout?.kind !== "stack_trace" ? undefined : { ...input, layout };
}

/** A map of the bundle by its index, or the inner map of one, which is like all others of that one. */
function inputOf({ routines, env, bundle }: RoutineContext, call: MapCall): RoutineInput | undefined {
  const { mapIndex, outerMapIndex } = call;
  if (outerMapIndex !== undefined) {
    const spec = bundle.maps[outerMapIndex]?.inner;
    return spec === undefined
      ? undefined
      : { routines, name: `inner of ${outerMapIndex}`, spec, mapAddr: undefined };
  }
  const spec = mapIndex === undefined ? undefined : bundle.maps[mapIndex];
  if (mapIndex === undefined || spec === undefined) return undefined;
  return { routines, name: `${mapIndex}`, spec, mapAddr: env.mapAddr(mapIndex) };
}

/** Where the maps lie that a map of maps can hold: those of the bundle that are as it says. */
function innerAddresses({ env, bundle }: RoutineContext, outer: MapSpec): bigint[] {
  const { inner } = outer;
  if (inner === undefined) return [];
  return bundle.maps.flatMap((spec, index) => (isAlike(spec, inner) ? [env.mapAddr(index)] : []));
}

function arrayRoutine(helper: number, input: ArrayRoutineInput): Routine | undefined {
  switch (helper) {
    case HELPER_MAP_LOOKUP_ELEM:
      return arrayLookup(input);
    case HELPER_MAP_LOOKUP_PERCPU_ELEM:
      return input.layout.kind === "percpu_array" ? arrayLookupSlot(input) : undefined;
    case HELPER_MAP_UPDATE_ELEM:
      return arrayUpdate(input);
    case HELPER_MAP_DELETE_ELEM:
      return arrayDelete(input);
    default:
      return undefined;
  }
}

function hashRoutine(helper: number, input: HashRoutineInput): Routine | undefined {
  switch (helper) {
    case HELPER_MAP_LOOKUP_ELEM:
      return hashLookup(input);
    case HELPER_MAP_LOOKUP_PERCPU_ELEM:
      return input.layout.copies === undefined ? undefined : hashLookupSlot(input);
    case HELPER_MAP_UPDATE_ELEM:
      return hashUpdate(input);
    case HELPER_MAP_DELETE_ELEM:
      return hashDelete(input);
    case HELPER_FOR_EACH_MAP_ELEM:
      return hashNext(input);
    default:
      return undefined;
  }
}

function ringRoutine({ helper, zeroArgs = [] }: HelperCall, input: RingRoutineInput): Routine | undefined {
  if (input.spec.kind === "perf_event_array")
    return helper === HELPER_PERF_EVENT_OUTPUT ? perfEventOutput(input) : undefined;
  switch (helper) {
    case HELPER_RINGBUF_RESERVE:
      return ringReserve(input, zeroArgs.includes(3));
    case HELPER_RINGBUF_OUTPUT:
      return ringOutput(input);
    case HELPER_RINGBUF_QUERY:
      return ringQuery(input);
    default:
      return undefined;
  }
}

function queueRoutine(helper: number, input: QueueRoutineInput): Routine | undefined {
  switch (helper) {
    case HELPER_MAP_PUSH_ELEM:
      return queuePush(input);
    case HELPER_MAP_POP_ELEM:
      return queuePop(input);
    case HELPER_MAP_PEEK_ELEM:
      return queuePeek(input);
    default:
      return undefined;
  }
}
