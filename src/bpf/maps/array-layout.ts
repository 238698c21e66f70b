/**
 * Arrays: elements of `stride` bytes by index, all zeros at the beginning.
 *
 *     array            the elements, from the first byte on
 *     percpu_array     owner words (percpu-header.ts), then for each slot a copy of the whole array
 *     prog_array       an 8-byte word per index: number of a program + 1; 0 is none
 *     array_of_maps    an 8-byte word per index: signed distance from this map's storage to the inner map's; 0 is none
 */
import type { MapSpec } from "../program.ts";
import { CACHE_LINE_BYTES, roundUp } from "./layout-sizes.ts";
import { ownerBytes } from "./percpu-header.ts";

export interface ArrayLayout {
  readonly kind: "array";
  readonly totalBytes: number;
  /** Distance of elements. */
  readonly stride: number;
}

export interface PerCpuArrayLayout {
  readonly kind: "percpu_array";
  readonly totalBytes: number;
  readonly cpus: number;
  /** Where the copy of slot 0 begins. */
  readonly copiesOffset: number;
  /** Distance of the copies of two slots. */
  readonly copyBytes: number;
  /** Distance of elements in one copy. */
  readonly stride: number;
}

/** Words that name programs or maps. */
export interface SlotsLayout {
  readonly kind: "prog_array" | "array_of_maps";
  readonly totalBytes: number;
  readonly stride: 8;
}

export function layoutArray(spec: MapSpec): ArrayLayout {
  const stride = roundUp(spec.valueBytes, 8);
  return { kind: "array", stride, totalBytes: roundUp(stride * spec.maxEntries, CACHE_LINE_BYTES) };
}

export function layoutPerCpuArray(spec: MapSpec, cpus: number): PerCpuArrayLayout {
  const stride = roundUp(spec.valueBytes, 8);
  const copiesOffset = ownerBytes(cpus);
  const copyBytes = roundUp(stride * spec.maxEntries, CACHE_LINE_BYTES);
  const totalBytes = copiesOffset + copyBytes * cpus;
  return { kind: "percpu_array", cpus, copiesOffset, copyBytes, stride, totalBytes };
}

export function layoutSlots(kind: SlotsLayout["kind"], spec: MapSpec): SlotsLayout {
  return { kind, stride: 8, totalBytes: roundUp(8 * spec.maxEntries, CACHE_LINE_BYTES) };
}
