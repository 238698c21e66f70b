/** How bpf_for_each_map_elem finds the elements of a map, by its kind. */
import { layoutMap } from "../maps/index.ts";
import type { Bundle } from "../program.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv } from "./link-env.ts";
import type { MapElements } from "./operations.ts";

export interface ElementsContext {
  readonly bundle: Bundle;
  readonly env: LinkEnv;
}

export function elementsOf(
  { bundle, env }: ElementsContext,
  mapIndex: number | undefined,
  outerMapIndex: number | undefined,
): MapElements {
  const spec = bundle.maps[mapIndex ?? -1];
  if (mapIndex === undefined || spec === undefined || outerMapIndex !== undefined)
    throw new JitError("compile bpf_for_each_map_elem: the map is not known");
  const layout = layoutMap(spec);
  const mapAddr = env.mapAddr(mapIndex);
  if (layout.kind === "array") {
    const { stride } = layout;
    return {
      kind: "array",
      mapAddr,
      values: mapAddr,
      stride,
      maxEntries: spec.maxEntries,
      copyStride: undefined,
    };
  }
  throw new JitError(`compile bpf_for_each_map_elem on map ${spec.name} of kind ${spec.kind}: no routine`);
}
