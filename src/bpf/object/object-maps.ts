/**
 * The maps of an object: those that section .maps defines (libbpf's BTF-defined maps), one array for each section of
 * globals, whose one element is the section's contents, and one for those variables of .kconfig that libbpf itself
 * gives a value to.
 */
import type { MapSpec } from "../program.ts";
import type { Btf } from "./btf.ts";
import {
  type ElfObject,
  type ObjectSymbol,
  type Relocation,
  type Section,
  SHT_NOBITS,
} from "./elf-object.ts";
import { type MapDefinition, readMapDefinition } from "./map-definition.ts";
import { fail } from "./object-error.ts";

/** A global variable in the one element of a section's map. */
export interface ObjectVariable {
  readonly name: string;
  readonly offset: number;
  /** BTF type; undefined: there is none. */
  readonly type: number | undefined;
  readonly sizeBytes: number;
}

/** What an element of a program array or of a map of maps begins with. */
export interface MapSlot {
  readonly index: number;
  readonly target:
    | { readonly kind: "program"; readonly name: string }
    /** Index of the map in the object. */
    | { readonly kind: "map"; readonly map: number };
}

export interface ObjectMap {
  /** For a ring buffer or perf event array `valueBytes` is 0 and `maxEntries` 1: `fitMaps` knows them. */
  readonly spec: MapSpec;
  /** For these, too: how many bytes of records the object asks for. */
  readonly ringBytes: number | undefined;
  /** What element 0 begins with; undefined: zeros. */
  readonly initial: Uint8Array | undefined;
  readonly slots: readonly MapSlot[];
  /** BTF types of keys and values (of records, for a ring buffer); undefined where only their sizes are known. */
  readonly keyType: number | undefined;
  readonly valueType: number | undefined;
  /** For a map of globals. */
  readonly variables: readonly ObjectVariable[] | undefined;
  /** The object does not want the tracer to read it. */
  readonly isHidden: boolean;
}

/** A map, and where instructions refer to it: a whole section of globals, one symbol in .maps, or by names. */
export interface PlacedMap extends ObjectMap {
  readonly section: number;
  /** Undefined for globals. */
  readonly symbol: ObjectSymbol | undefined;
}

/** Of no section: variables that the object only declares. */
export const DECLARED = -1;
const R_BPF_64_ABS64 = 2;
const POINTER_BYTES = 8;

/** Variables that libbpf answers itself, without looking at the kernel's configuration. */
const knownConfig: ReadonlyMap<string, bigint> = new Map([
  ["LINUX_HAS_BPF_COOKIE", 1n],
  ["LINUX_HAS_SYSCALL_WRAPPER", 1n],
]);

/** Throws ObjectError. What is read and has no effect becomes a note. */
export function readMaps(elf: ElfObject, btf: Btf | undefined, notes: string[]): PlacedMap[] {
  const maps: PlacedMap[] = [];
  const definitions: {
    readonly at: number;
    readonly definition: MapDefinition;
    readonly section: Section;
  }[] = [];
  for (const section of elf.sections) {
    if (section.name === "maps")
      fail('section maps: old map definitions are not supported; use SEC(".maps")');
    if (section.name === ".maps")
      for (const { symbol, definition } of readDefinitions(elf, section, btf, notes)) {
        definitions.push({ at: maps.length, definition, section });
        maps.push(definedMap(definition, section, symbol));
      }
    else if (isGlobals(section)) maps.push(globalsOf(elf, section, btf));
  }
  const config = btf && declaredConfig(elf, btf);
  if (config !== undefined) maps.push(config);
  for (const { at, definition, section } of definitions)
    maps[at] = { ...maps[at]!, slots: readSlots(elf, section, maps[at]!, definition, maps) };
  return maps;
}

/** The map and offset of a variable that the object only declares, if it has a value here. */
export function findDeclared(
  maps: readonly PlacedMap[],
  name: string,
): { readonly map: number; readonly offset: number } | undefined {
  const map = maps.findIndex(({ section }) => section === DECLARED);
  const variable = maps[map]?.variables?.find((candidate) => candidate.name === name);
  return variable === undefined ? undefined : { map, offset: variable.offset };
}

function isGlobals({ name, sizeBytes, isCode }: Section): boolean {
  return sizeBytes > 0 && !isCode && /^\.(rodata|data|bss)(\.|$)/.test(name);
}

const plainMap = {
  ringBytes: undefined,
  slots: [],
  keyType: undefined,
  valueType: undefined,
  isHidden: false,
} as const;

function globalsSpec(name: string, valueBytes: number, isReadOnly: boolean): MapSpec {
  return { name, kind: "array", keyBytes: 4, valueBytes, maxEntries: 1, isReadOnly };
}

function globalsOf(elf: ElfObject, section: Section, btf: Btf | undefined): PlacedMap {
  const { index, name, sizeBytes, type, data } = section;
  const symbols = elf.symbols.filter((symbol) => symbol.section === index && symbol.kind === "object");
  const [address] = elf.relocations.get(index) ?? [];
  if (address !== undefined) {
    const holder = symbols.find(
      ({ value, sizeBytes: size }) => address.offset >= value && address.offset < value + size,
    );
    fail(
      `section ${name}: ${holder?.name ?? `offset ${address.offset}`} begins with an address ` +
        `(of ${address.symbol.name}), which globals cannot hold: several processes share them`,
    );
  }
  const isReadOnly = name.startsWith(".rodata");
  const initial = type === SHT_NOBITS ? undefined : Uint8Array.from(data.bytes);
  const spec = globalsSpec(name, sizeBytes, isReadOnly);
  return {
    ...plainMap,
    spec: isReadOnly ? { ...spec, contents: initial ?? new Uint8Array(sizeBytes) } : spec,
    initial,
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

/** The variables of .kconfig that have a value: those that libbpf knows, and weak ones, which are 0. */
function declaredConfig(elf: ElfObject, btf: Btf): PlacedMap | undefined {
  const variables: ObjectVariable[] = [];
  const values: bigint[] = [];
  for (const { name, type } of btf.variablesIn(".kconfig")) {
    const symbol = elf.symbols.find((candidate) => candidate.name === name && candidate.section === 0);
    const sizeBytes = btf.findSize(type);
    const value = knownConfig.get(name) ?? (symbol?.isWeak === true ? 0n : undefined);
    if (symbol === undefined || value === undefined || sizeBytes === undefined || sizeBytes > POINTER_BYTES)
      continue;
    variables.push({ name, offset: variables.length * POINTER_BYTES, type, sizeBytes });
    values.push(value);
  }
  if (values.length === 0) return undefined;
  const contents = new Uint8Array(new BigUint64Array(values).buffer);
  return {
    ...plainMap,
    spec: { ...globalsSpec(".kconfig", contents.length, true), contents },
    initial: contents,
    variables,
    section: DECLARED,
    symbol: undefined,
  };
}

function readDefinitions(
  elf: ElfObject,
  section: Section,
  btf: Btf | undefined,
  notes: string[],
): { readonly symbol: ObjectSymbol; readonly definition: MapDefinition }[] {
  if (btf === undefined) fail("section .maps cannot be read without BTF: compile with -g");
  return elf.symbols
    .filter((symbol) => symbol.section === section.index && symbol.kind === "object")
    .sort((a, b) => a.value - b.value)
    .map((symbol) => {
      const { name } = symbol;
      const variable = btf.findVariable(name) ?? fail(`map ${name}: BTF has no such variable`);
      return { symbol, definition: readMapDefinition(btf, name, variable.type, notes) };
    });
}

function definedMap(definition: MapDefinition, section: Section, symbol: ObjectSymbol): PlacedMap {
  const { spec, ringBytes, access, keyType, valueType } = definition;
  return {
    spec,
    ringBytes,
    initial: undefined,
    slots: [],
    keyType,
    valueType,
    variables: undefined,
    isHidden: access.isHidden,
    section: section.index,
    symbol,
  };
}

/** What `.values = { [1] = &x }` says. */
function readSlots(
  elf: ElfObject,
  section: Section,
  { spec, symbol }: PlacedMap,
  { valuesOffset }: MapDefinition,
  maps: readonly PlacedMap[],
): MapSlot[] {
  const start = symbol!.value;
  const isHash = spec.kind === "hash_of_maps";
  return (elf.relocations.get(section.index) ?? [])
    .filter(({ offset }) => offset >= start && offset < start + symbol!.sizeBytes)
    .map((relocation): MapSlot => {
      const at = relocation.offset - start - (valuesOffset ?? 0);
      if (
        valuesOffset === undefined ||
        at < 0 ||
        at % POINTER_BYTES !== 0 ||
        relocation.type !== R_BPF_64_ABS64
      )
        fail(`map ${spec.name}: its definition holds an address that is no initial value`);
      // libbpf takes the place in the list for the key of a hash, too.
      const index = at / POINTER_BYTES;
      if (isHash && spec.keyBytes !== 4)
        fail(`map ${spec.name}: a list of values has keys of 4 bytes, not ${spec.keyBytes}`);
      if (index >= spec.maxEntries && !isHash)
        fail(`map ${spec.name}: it has a value at ${index}, and max_entries is ${spec.maxEntries}`);
      return { index, target: slotTarget(elf, section, spec, relocation, maps) };
    });
}

function slotTarget(
  elf: ElfObject,
  section: Section,
  spec: MapSpec,
  { symbol, offset }: Relocation,
  maps: readonly PlacedMap[],
): MapSlot["target"] {
  if (spec.kind === "prog_array") {
    const isCode = elf.sections[symbol.section]?.isCode === true;
    if (!isCode || symbol.kind !== "function")
      fail(`map ${spec.name}: its value ${symbol.name} is no program of the object`);
    return { kind: "program", name: symbol.name };
  }
  // Of a static map the symbol is its section, and the place stands in the word.
  const value = symbol.value + section.data.u64(offset);
  const map = maps.findIndex(
    (candidate) => candidate.section === symbol.section && candidate.symbol?.value === value,
  );
  const inner = maps[map]?.spec;
  if (inner === undefined) fail(`map ${spec.name}: its value ${symbol.name} is no map of the object`);
  const difference = differenceOf(spec.inner!, inner);
  if (difference !== undefined)
    fail(`map ${spec.name}: its value ${inner.name} is not like its inner maps: ${difference}`);
  return { kind: "map", map };
}

function differenceOf(wanted: MapSpec, given: MapSpec): string | undefined {
  for (const key of ["kind", "keyBytes", "valueBytes", "maxEntries", "isReadOnly", "isWriteOnly"] as const)
    if (wanted[key] !== given[key]) return `${key} is ${given[key] ?? false}, not ${wanted[key] ?? false}`;
  return undefined;
}
