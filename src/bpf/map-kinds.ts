/** The kinds of map: their numbers in the kernel, and which maps are alike. */
import type { MapSpec } from "./program.ts";

/** The kinds of map that the kernel has, and their numbers (enum bpf_map_type of include/uapi/linux/bpf.h). */
const kernelKinds: readonly string[] = `
  unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array lru_hash
  lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap sockhash cgroup_storage
  reuseport_sockarray percpu_cgroup_storage queue stack sk_storage devmap_hash struct_ops ringbuf inode_storage
  task_storage bloom_filter user_ringbuf cgrp_storage arena
`
  .trim()
  .split(/\s+/);

/** The kernel's name of a number, without BPF_MAP_TYPE_, in lower case. */
export function findMapKindName(number: number): string | undefined {
  return kernelKinds[number];
}

/** The number of a kind by its kernel name. */
export function mapKindNumber(kind: string): number {
  return kernelKinds.indexOf(kind);
}

/** Whether code for one map works on the other: a map of maps can hold any that is like its inner map. */
export function isAlike(a: MapSpec, b: MapSpec): boolean {
  return (
    a.kind === b.kind &&
    a.keyBytes === b.keyBytes &&
    a.valueBytes === b.valueBytes &&
    a.maxEntries === b.maxEntries &&
    (a.isReadOnly ?? false) === (b.isReadOnly ?? false) &&
    (a.isWriteOnly ?? false) === (b.isWriteOnly ?? false) &&
    a.cpus === b.cpus &&
    a.hashFunctions === b.hashFunctions
  );
}

/** Whether every value has a copy for each slot: programs have the slot in r11 when they work on one. */
export function isPerCpu({ kind }: MapSpec): boolean {
  return kind === "percpu_array" || kind === "percpu_hash" || kind === "lru_percpu_hash";
}
