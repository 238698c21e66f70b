/**
 * The maps of an object as a session has them: with as many copies as there are processors, rings with cells for the
 * records that the proofs tell of, and one ring more for what programs print.
 */
import { readFileSync } from "node:fs";
import type { Insn, MapSpec, Proof } from "../../bpf/index.ts";
import { isPerCpu } from "../../bpf/map-kinds.ts";
import { layoutMap } from "../../bpf/maps/index.ts";
import { type BpfObject, fitRing } from "../../bpf/object/index.ts";
import { SessionError } from "../session-error.ts";
import { printkRing, printsSomething } from "./printk-ring.ts";

/** Slots of per-CPU maps beyond one for each processor: a thread can be preempted inside of a program. */
const SPARE_CPU_SLOTS = 6;
/** Memory is mapped by lengths of 31 bits. */
const MAX_MAPS_BYTES = 2 ** 31 - 2 ** 20;

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
  return isPerCpu(spec) ? { ...spec, ...inner, cpus } : { ...spec, ...inner };
}

/** How many processors there may ever be: the last number of `0-7` or `0,2-5`, and one. */
function possibleCpus(): number {
  const text = readFileSync("/sys/devices/system/cpu/possible", "latin1");
  return Number(/(\d+)\s*$/.exec(text)?.[1] ?? 0) + 1;
}

/** All maps lie in one piece of memory that the tracer maps, too. Throws SessionError. */
export function checkMapSizes(
  { operation, path }: { readonly operation: string; readonly path: string },
  maps: readonly MapSpec[],
): void {
  const error = (object: string, reason: string) =>
    new SessionError("cannot-run", { operation, object, reason });
  const most = `there may be ${mebibytes(MAX_MAPS_BYTES)}`;
  let totalBytes = 0;
  for (const spec of maps) {
    const lenBytes = sizeOf(spec);
    if (lenBytes === undefined) throw error(`map ${spec.name}`, `${spec.maxEntries} entries are too many`);
    if (lenBytes > MAX_MAPS_BYTES)
      throw error(`map ${spec.name}`, `it takes ${mebibytes(lenBytes)}; ${most}`);
    totalBytes += lenBytes;
  }
  if (totalBytes > MAX_MAPS_BYTES) throw error(path, `its maps take ${mebibytes(totalBytes)}; ${most}`);
}

/** Undefined: there is no layout for so much. */
function sizeOf(spec: MapSpec): number | undefined {
  try {
    return layoutMap(spec).totalBytes;
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

const mebibytes = (lenBytes: number): string => `${Math.ceil(lenBytes / 2 ** 20)} MiB`;
