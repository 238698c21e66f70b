/**
 * The maps of an object: those that section .maps defines by the members of a type (libbpf's BTF-defined maps), and one
 * array for each section of globals, whose one element is the section's contents.
 *
 *     struct { __uint(type, 1); __uint(max_entries, 64); __type(key, u32); __type(value, u64); } counts SEC(".maps");
 *
 * `__uint(n, x)` is a pointer to an array of x elements, `__type(n, t)` a pointer to t.
 */
import { findMapKindName } from "../map-kinds.ts";
import type { MapKind, MapSpec } from "../program.ts";
import type { Btf, BtfMember } from "./btf.ts";
import { type ElfObject, type ObjectSymbol, type Section, SHT_NOBITS } from "./elf-object.ts";
import { fail } from "./object-error.ts";

/** A global variable in the one element of a section's map. */
export interface ObjectVariable {
  readonly name: string;
  readonly offset: number;
  /** BTF type; undefined: there is none. */
  readonly type: number | undefined;
  readonly sizeBytes: number;
}

export interface ObjectMap {
  readonly spec: MapSpec;
  /** What element 0 begins with; undefined: zeros. */
  readonly initial: Uint8Array | undefined;
  /** BTF types of keys and values; undefined where only their sizes are known. */
  readonly keyType: number | undefined;
  readonly valueType: number | undefined;
  /** For a map of globals. */
  readonly variables: readonly ObjectVariable[] | undefined;
}

/** A map, and where instructions refer to it: a whole section of globals, or one symbol in .maps. */
export interface PlacedMap extends ObjectMap {
  readonly section: number;
  /** Undefined for globals. */
  readonly symbol: ObjectSymbol | undefined;
}

const supportedKinds: Readonly<Partial<Record<MapKind, true>>> = { array: true, hash: true, ringbuf: true };

/** Attributes that change how the kernel keeps a map, and nothing that a program can see. */
const ignoredFlags = 1 /* BPF_F_NO_PREALLOC */ | 4 /* BPF_F_NUMA_NODE */ | 0x400; /* BPF_F_MMAPABLE */
const READ_ONLY_FLAG = 0x80; /* BPF_F_RDONLY_PROG */

/** Throws ObjectError. What is read and has no effect becomes a note. */
export function readMaps(elf: ElfObject, btf: Btf | undefined, notes: string[]): PlacedMap[] {
  const maps: PlacedMap[] = [];
  for (const section of elf.sections) {
    if (section.name === "maps")
      fail('section maps: old map definitions are not supported; use SEC(".maps")');
    if (section.name === ".maps") maps.push(...readDefinitions(elf, section, btf, notes));
    else if (isGlobals(section)) maps.push(globalsOf(elf, section, btf));
  }
  return maps;
}

function isGlobals({ name, sizeBytes, isCode }: Section): boolean {
  return sizeBytes > 0 && !isCode && /^\.(rodata|data|bss)(\.|$)/.test(name);
}

function globalsOf(elf: ElfObject, section: Section, btf: Btf | undefined): PlacedMap {
  const { index, name, sizeBytes, type, data } = section;
  if ((elf.relocations.get(index)?.length ?? 0) > 0)
    fail(`section ${name}: initial values that are addresses are not supported`);
  const symbols = elf.symbols.filter((symbol) => symbol.section === index && symbol.kind === "object");
  return {
    spec: {
      name,
      kind: "array",
      keyBytes: 4,
      valueBytes: sizeBytes,
      maxEntries: 1,
      isReadOnly: name.startsWith(".rodata"),
    },
    initial: type === SHT_NOBITS ? undefined : data.bytes.slice(),
    keyType: undefined,
    valueType: undefined,
    variables: symbols
      .map((symbol) => ({
        name: symbol.name,
        offset: symbol.value,
        type: btf?.findVariable(symbol.name)?.type,
        sizeBytes: symbol.sizeBytes,
      }))
      .filter((variable) => variable.offset + variable.sizeBytes <= sizeBytes)
      .sort((a, b) => a.offset - b.offset),
    section: index,
    symbol: undefined,
  };
}

function readDefinitions(
  elf: ElfObject,
  section: Section,
  btf: Btf | undefined,
  notes: string[],
): PlacedMap[] {
  if (btf === undefined) fail("section .maps cannot be read without BTF: compile with -g");
  const [first] = elf.relocations.get(section.index) ?? [];
  if (first !== undefined) fail("section .maps: maps with initial values are not supported");
  return elf.symbols
    .filter((symbol) => symbol.section === section.index && symbol.kind === "object")
    .sort((a, b) => a.value - b.value)
    .map((symbol) => ({ ...readDefinition(symbol.name, btf, notes), section: section.index, symbol }));
}

function readDefinition(name: string, btf: Btf, notes: string[]): ObjectMap {
  const variable = btf.findVariable(name) ?? fail(`map ${name}: BTF has no such variable`);
  const definition = btf.resolve(variable.type);
  if (definition.kind !== "struct") fail(`map ${name}: its definition is no struct`);
  const numbers = new Map<string, number>();
  const types = new Map<string, number>();
  for (const member of definition.members) {
    if (member.name === "key" || member.name === "value")
      types.set(member.name, pointedType(btf, name, member));
    else numbers.set(member.name, numberOf(btf, name, member));
  }
  const number = (member: string) => numbers.get(member) ?? 0;
  const kernelKind = findMapKindName(number("type")) ?? `${number("type")}`;
  if (!Object.hasOwn(supportedKinds, kernelKind)) fail(`map ${name}: kind ${kernelKind} is not supported`);
  const kind = kernelKind as MapKind;
  if (number("pinning") !== 0)
    notes.push(`map ${name}: pinning is ignored: maps live as long as the session`);
  const flags = number("map_flags");
  if ((flags & ~(ignoredFlags | READ_ONLY_FLAG)) !== 0)
    fail(`map ${name}: map_flags 0x${flags.toString(16)} are not supported`);
  const sizeOf = (member: "key" | "value") => {
    const type = types.get(member);
    const size = type === undefined ? number(`${member}_size`) : btf.findSize(type);
    if (size === undefined) fail(`map ${name}: its ${member} has no size`);
    return size;
  };
  const maxEntries = number("max_entries");
  const spec: MapSpec = {
    name,
    kind,
    keyBytes: sizeOf("key"),
    valueBytes: sizeOf("value"),
    maxEntries,
    isReadOnly: (flags & READ_ONLY_FLAG) !== 0,
  };
  checkSpec(spec);
  return {
    spec,
    initial: undefined,
    keyType: types.get("key"),
    valueType: types.get("value"),
    variables: undefined,
  };
}

/** The rules of the kernel for creating a map. */
function checkSpec({ name, kind, keyBytes, valueBytes, maxEntries }: MapSpec): void {
  if (maxEntries === 0) fail(`map ${name}: max_entries is 0`);
  if (kind === "ringbuf") {
    if (keyBytes !== 0 || valueBytes !== 0) fail(`map ${name}: a ring buffer has neither key nor value`);
    if ((maxEntries & (maxEntries - 1)) !== 0 || maxEntries % 4096 !== 0)
      fail(`map ${name}: max_entries ${maxEntries} is no power of two of at least 4096 bytes`);
    return;
  }
  if (kind === "array" && keyBytes !== 4)
    fail(`map ${name}: the key of an array has 4 bytes, not ${keyBytes}`);
  if (keyBytes === 0) fail(`map ${name}: it has no key`);
  if (valueBytes === 0) fail(`map ${name}: it has no value`);
}

function pointedType(btf: Btf, map: string, member: BtfMember): number {
  const type = btf.resolve(member.type);
  return type.kind === "pointer" ? type.to : fail(`map ${map}: ${member.name} is no pointer to a type`);
}

function numberOf(btf: Btf, map: string, member: BtfMember): number {
  const type = btf.resolve(member.type);
  const array = type.kind === "pointer" ? btf.resolve(type.to) : undefined;
  if (type.kind === "array") fail(`map ${map}: maps of maps are not supported (${member.name})`);
  return array?.kind === "array" ? array.count : fail(`map ${map}: ${member.name} is no number`);
}
