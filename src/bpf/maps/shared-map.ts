/** What accessors of all kinds of map have: the map's description, and where its storage lies. */
import type { MapSpec } from "../program.ts";
import type { SharedMemory } from "./shared-memory.ts";

export abstract class SharedMap<Layout> {
  readonly spec: MapSpec;
  readonly layout: Layout;
  readonly memory: SharedMemory;
  /** Where the storage begins in `memory`. */
  readonly byteOffset: number;

  constructor(spec: MapSpec, layout: Layout, memory: SharedMemory, byteOffset: number) {
    this.spec = spec;
    this.layout = layout;
    this.memory = memory;
    this.byteOffset = byteOffset;
  }
}
