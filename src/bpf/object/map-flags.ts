/**
 * `map_flags` of a map's definition: which the kernel takes for each kind of map, and which of them mean anything for maps
 * that processes share with a tracer.
 */
import type { MapKind } from "../program.ts";
import { fail } from "./object-error.ts";

/** Who may do what with the values of a map. */
export interface MapAccess {
  /** Programs do not write. */
  readonly isReadOnly: boolean;
  /** Programs do not read. */
  readonly isWriteOnly: boolean;
  /** The tracer does not read, so nothing is shown. */
  readonly isHidden: boolean;
}

interface MapFlag {
  readonly bit: number;
  readonly name: string;
  readonly kinds: readonly MapKind[] | "all but rings";
}

const hashes: readonly MapKind[] = ["hash", "percpu_hash", "lru_hash", "lru_percpu_hash", "hash_of_maps"];
const flags: readonly MapFlag[] = [
  { bit: 0x1, name: "BPF_F_NO_PREALLOC", kinds: ["hash", "percpu_hash", "hash_of_maps"] },
  { bit: 0x2, name: "BPF_F_NO_COMMON_LRU", kinds: ["lru_hash", "lru_percpu_hash"] },
  { bit: 0x8, name: "BPF_F_RDONLY", kinds: "all but rings" },
  { bit: 0x10, name: "BPF_F_WRONLY", kinds: "all but rings" },
  { bit: 0x40, name: "BPF_F_ZERO_SEED", kinds: [...hashes, "bloom_filter"] },
  { bit: 0x80, name: "BPF_F_RDONLY_PROG", kinds: "all but rings" },
  { bit: 0x100, name: "BPF_F_WRONLY_PROG", kinds: "all but rings" },
  { bit: 0x400, name: "BPF_F_MMAPABLE", kinds: ["array"] },
  { bit: 0x800, name: "BPF_F_PRESERVE_ELEMS", kinds: ["perf_event_array"] },
];

const NUMA_NODE = 0x4;
const TRACER_WRITE_ONLY = 0x10;
const PROGRAM_READ_ONLY = 0x80;
const PROGRAM_WRITE_ONLY = 0x100;

/** Flags that the kernel has and that cannot be kept here. */
const refused: ReadonlyMap<number, string> = new Map([
  [0x20, "BPF_F_STACK_BUILD_ID: stacks hold addresses, which are shown with their symbols"],
  [0x1000, "BPF_F_INNER_MAP: inner maps of different sizes are not supported"],
]);

/** Throws ObjectError for what the kernel refuses, too, and for what there is not. */
export function checkMapFlags(name: string, kind: MapKind, value: number): MapAccess {
  const ofRing = kind === "ringbuf";
  for (let bit = 1; bit !== 0 && bit <= value; bit *= 2) {
    // Bit by bit, as numbers: the operators are signed.
    if (Math.floor(value / bit) % 2 === 0 || bit === NUMA_NODE) continue;
    const reason = refused.get(bit);
    if (reason !== undefined) fail(`map ${name}: ${reason}`);
    const flag = flags.find((candidate) => candidate.bit === bit);
    if (flag === undefined) fail(`map ${name}: map_flags 0x${value.toString(16)} are not supported`);
    const applies = flag.kinds === "all but rings" ? !ofRing : flag.kinds.includes(kind);
    if (!applies) fail(`map ${name}: ${flag.name} has no meaning for a map of kind ${kind}`);
  }
  const isReadOnly = (value & PROGRAM_READ_ONLY) !== 0;
  const isWriteOnly = (value & PROGRAM_WRITE_ONLY) !== 0;
  if (isReadOnly && isWriteOnly)
    fail(`map ${name}: BPF_F_RDONLY_PROG and BPF_F_WRONLY_PROG exclude each other`);
  return { isReadOnly, isWriteOnly, isHidden: (value & TRACER_WRITE_ONLY) !== 0 };
}
