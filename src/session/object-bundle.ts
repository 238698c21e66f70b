/**
 * The maps of an object as a session has them: with as many copies as there are processors, rings with cells for the
 * records that the proofs tell of, and one ring more for what programs print.
 */
import { readFileSync } from "node:fs";
import type { Insn, MapSpec, Proof } from "../bpf/index.ts";
import { type BpfObject, fitRing } from "../bpf/object/index.ts";
import { printkRing, printsSomething } from "./printk-ring.ts";

/** Slots of per-CPU maps beyond one for each processor: a thread can be preempted inside of a program. */
const SPARE_CPU_SLOTS = 6;

export interface ObjectBundleMaps {
  /** The object's maps, and then the ring of what programs print. What proofs are made with. */
  readonly specs: readonly MapSpec[];
  /** Index of that ring; undefined: nothing is printed. */
  readonly printk: number | undefined;
}

/** `programs` are those that will run. */
export function bundleMaps(
  object: BpfObject,
  programs: readonly { readonly insns: readonly Insn[] }[],
): ObjectBundleMaps {
  const cpus = possibleCpus() + SPARE_CPU_SLOTS;
  const specs = object.maps.map(({ spec }) => withCpus(spec, cpus));
  if (!programs.some(({ insns }) => printsSomething(insns))) return { specs, printk: undefined };
  return { specs: [...specs, printkRing], printk: specs.length };
}

/** Rings get cells for the largest record that any of the programs sends. */
export function fitRings(object: BpfObject, specs: readonly MapSpec[], proofs: readonly Proof[]): MapSpec[] {
  return specs.map((spec, index) => {
    const { ringBytes } = object.maps[index] ?? {};
    const largest = Math.max(0, ...proofs.map(({ recordBytes }) => recordBytes.get(index) ?? 0));
    return ringBytes === undefined ? spec : fitRing(spec, ringBytes, largest);
  });
}

function withCpus(spec: MapSpec, cpus: number): MapSpec {
  const inner = spec.inner === undefined ? {} : { inner: withCpus(spec.inner, cpus) };
  return spec.kind.includes("percpu") ? { ...spec, ...inner, cpus } : { ...spec, ...inner };
}

/** How many processors there may ever be: the last number of `0-7` or `0,2-5`, and one. */
function possibleCpus(): number {
  const text = readFileSync("/sys/devices/system/cpu/possible", "latin1");
  return Number(/(\d+)\s*$/.exec(text)?.[1] ?? 0) + 1;
}
