/** How bpf_for_each_map_elem finds the elements of a map, by its kind. */
import { HELPER_FOR_EACH_MAP_ELEM } from "../../helpers.ts";
import { isPerCpu } from "../../map-kinds.ts";
import { mostSteps } from "../../maps/hash-layout.ts";
import { layoutMap } from "../../maps/index.ts";
import type { Bundle } from "../../program.ts";
import { JitError } from "../jit-error.ts";
import type { LinkEnv } from "../link-env.ts";
import type { MapElements } from "../operations.ts";
import type { HelperCall } from "./helper-call.ts";
import type { Routine } from "./routine.ts";

export interface ElementsContext {
  readonly bundle: Bundle;
  readonly env: LinkEnv;
  routineFor(call: HelperCall): Routine;
}

export function elementsOf(
  { bundle, env, routineFor }: ElementsContext,
  mapIndex: number | undefined,
  outerMapIndex: number | undefined,
): MapElements {
  const spec = outerMapIndex === undefined ? bundle.maps[mapIndex ?? -1] : bundle.maps[outerMapIndex]?.inner;
  if (spec === undefined) throw new JitError("compile bpf_for_each_map_elem: the map is not known");
  const layout = layoutMap(spec);
  const mapAddr = outerMapIndex === undefined ? env.mapAddr(mapIndex!) : undefined;
  if (layout.kind === "array") {
    const { stride } = layout;
    return {
      kind: "array",
      mapAddr,
      valuesOffset: 0,
      stride,
      maxEntries: spec.maxEntries,
      copyStride: undefined,
    };
  }
  if (layout.kind === "percpu_array") {
    const { stride, copiesOffset, copyBytes } = layout;
    return {
      kind: "array",
      mapAddr,
      valuesOffset: copiesOffset,
      stride,
      maxEntries: spec.maxEntries,
      copyStride: copyBytes,
    };
  }
  if (layout.kind === "hash") {
    const call = { helper: HELPER_FOR_EACH_MAP_ELEM, mapIndex, outerMapIndex, text: undefined };
    return {
      kind: "cursor",
      mapAddr,
      next: routineFor(call),
      most: mostSteps(layout),
      takesSlot: isPerCpu(spec) && bundle.maps.some(isPerCpu),
    };
  }
  throw new JitError(`compile bpf_for_each_map_elem on map ${spec.name} of kind ${spec.kind}: no routine`);
}
