/**
 * Static probes of images for programs that use libbpf's usdt.bpf.h: where they are, and the descriptions of their
 * arguments, which programs find in a map by the attach cookie. Places with equal arguments share a description.
 */

import type { UsdtPlace } from "../../bpf/object/index.ts";
import { findUsdtProbes, nearestNames, type UsdtProbe } from "../../elf/index.ts";
import type { MappedImage } from "../../target/process/mapped-image.ts";
import type { UsdtFinder, UsdtSite } from "./probe-resolution.ts";
import { encodeUsdtSpec } from "./usdt-spec.ts";

/** The map of descriptions, once there is memory for it. */
export interface SpecMap {
  update(key: Uint8Array, value: Uint8Array, flags: bigint): number;
}

/** Descriptions of arguments, numbered as they come. */
export class UsdtSpecs {
  readonly #maxEntries: number;
  readonly #ids = new Map<string, number>();
  readonly #bytes: Uint8Array[] = [];
  #map: SpecMap | undefined;

  /** `maxEntries` of the map that holds them. */
  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
  }

  /** The number of a description, or why there can be none. */
  idOf(args: string): number | string {
    const known = this.#ids.get(args);
    if (known !== undefined) return known;
    const result = encodeUsdtSpec(args);
    if (result.kind === "bad") return result.reason;
    const id = this.#bytes.length;
    if (id >= this.#maxEntries)
      return `there are more than ${this.#maxEntries} different lists of arguments (BPF_USDT_MAX_SPEC_CNT)`;
    this.#ids.set(args, id);
    this.#bytes.push(result.bytes);
    this.#write(id);
    return id;
  }

  /** From here on descriptions are written to the map, those that are there already first. */
  writeTo(map: SpecMap): void {
    this.#map = map;
    for (const id of this.#bytes.keys()) this.#write(id);
  }

  #write(id: number): void {
    const key = new Uint8Array(4);
    new DataView(key.buffer).setUint32(0, id, true);
    this.#map?.update(key, this.#bytes[id]!, 0n);
  }
}

/** Finds the places of one static probe. `specs` is undefined for an object without the map of descriptions. */
export function usdtFinder({ provider, name }: UsdtPlace, specs: UsdtSpecs | undefined): UsdtFinder {
  return {
    find(image) {
      const all = findUsdtProbes(image.elf);
      const probes = all.filter((probe) => probe.provider === provider && probe.name === name);
      const problem = probes.length === 0 ? notThere(image, `${provider}:${name}`, all) : undefined;
      const sites: UsdtSite[] = [];
      for (const { addr, args, semaphore } of probes) {
        const id = specs?.idOf(args) ?? 0;
        if (typeof id === "string") return { sites: [], problem: `${image.name}: ${id}` };
        sites.push({ addr, cookie: BigInt(id), semaphore: semaphore === 0n ? undefined : semaphore });
      }
      return { sites, problem };
    },
  };
}

function notThere({ name }: MappedImage, wanted: string, all: readonly UsdtProbe[]): string {
  if (all.length === 0) return `${name} has no static probes`;
  const names = [...new Set(all.map((probe) => `${probe.provider}:${probe.name}`))];
  const nearest = nearestNames(wanted, names);
  return `${name} has no static probe ${wanted}${nearest.length > 0 ? `; it has ${nearest.join(", ")}` : ""}`;
}
