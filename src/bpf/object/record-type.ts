/**
 * The type of the records in a ring buffer. The kernel's rings have none, so the object may say it in two ways that tools
 * have agreed on: as the value type of the map, or by a global variable, or pointer, of the record's type that no program
 * refers to: it is there only to have the type in the object (`struct event *unused`). The size has to be the record's.
 */
import { OP_LDIMM64, PSEUDO_MAP_VALUE } from "../opcodes.ts";
import type { Btf } from "./btf.ts";
import type { ObjectVariable } from "./object-maps.ts";
import type { BpfObject } from "./read-object.ts";

type TypedObject = Pick<BpfObject, "btf" | "maps" | "programs">;

/** BTF type of a record of that size from map `map`; undefined: it is not known. */
export function findRecordType(object: TypedObject, map: number, lenBytes: number): number | undefined {
  const { btf, maps } = object;
  if (btf === undefined) return undefined;
  const stated = maps[map]?.valueType;
  if (stated !== undefined && btf.findSize(stated) === lenBytes) return stated;
  const candidates = new Set<number>();
  for (const [index, { variables = [] }] of maps.entries())
    for (const variable of variables) {
      const struct = variable.type === undefined ? undefined : structOf(btf, variable.type);
      if (struct !== undefined && btf.findSize(struct) === lenBytes && !isUsed(object, index, variable))
        candidates.add(struct);
    }
  return candidates.size === 1 ? [...candidates][0] : undefined;
}

/** The struct that a variable is or points to. */
function structOf(btf: Btf, id: number): number | undefined {
  const type = btf.resolve(id);
  const target = type.kind === "pointer" ? btf.resolve(type.to) : type;
  return target.kind === "struct" ? btf.idOf(target) : undefined;
}

function isUsed({ programs }: TypedObject, map: number, { offset, sizeBytes }: ObjectVariable): boolean {
  return programs.some(
    ({ code }) =>
      code.kind === "linked" &&
      code.insns.some(({ opcode, src, imm }, at) => {
        if (opcode !== OP_LDIMM64 || src !== PSEUDO_MAP_VALUE || imm !== map) return false;
        const place = code.insns[at + 1]?.imm ?? 0;
        return place >= offset && place < offset + sizeBytes;
      }),
  );
}
