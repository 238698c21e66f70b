/**
 * Reads what `clang -target bpf -O2 -g` writes for programs in the style of libbpf: maps and globals, programs with the
 * functions that they call, where they belong, and the lines of the source. Everything is plain data; nothing is proved.
 *
 * Any bytes may come: what cannot be read is told in a sentence, and nothing is thrown.
 *
 * Not handled: the kernel's types, variables and functions (CO-RE, kconfig, ksyms, kfuncs), maps with initial values,
 * old map definitions.
 */
import { type AttachTarget, parseSectionName } from "./attach-target.ts";
import { type Btf, parseBtf } from "./btf.ts";
import { type BtfExt, parseBtfExt } from "./btf-ext.ts";
import { type ElfObject, readElfObject, type Section } from "./elf-object.ts";
import { findFunctions, type LinkedProgram, linkProgram } from "./link.ts";
import { fail, ObjectError } from "./object-error.ts";
import { type ObjectMap, type PlacedMap, readMaps } from "./object-maps.ts";

export interface ObjectProgram {
  /** Name of its function. */
  readonly name: string;
  readonly section: string;
  /** False: its section begins with `?`, so nobody needs it who does not ask for it. */
  readonly isAutoloaded: boolean;
  readonly attach: AttachTarget;
  readonly code:
    | ({ readonly kind: "linked" } & LinkedProgram)
    /** It needs something that does not exist here. */
    | { readonly kind: "refused"; readonly reason: string };
}

export interface BpfObject {
  readonly license: string | undefined;
  /** In the order of the indexes that programs name. */
  readonly maps: readonly ObjectMap[];
  readonly programs: readonly ObjectProgram[];
  /** Undefined: compiled without -g. */
  readonly btf: Btf | undefined;
  /** What was read and has no effect. */
  readonly notes: readonly string[];
}

export type ObjectResult =
  | { readonly kind: "object"; readonly object: BpfObject }
  | { readonly kind: "bad"; readonly message: string };

export function readObject(bytes: Uint8Array): ObjectResult {
  try {
    return { kind: "object", object: read(bytes) };
  } catch (error) {
    if (!(error instanceof ObjectError)) throw error;
    return { kind: "bad", message: error.message };
  }
}

function read(bytes: Uint8Array): BpfObject {
  const elf = readElfObject(bytes);
  const btf = withSection(elf, ".BTF", (section) => parseBtf(section.data));
  const ext: BtfExt | undefined =
    btf && withSection(elf, ".BTF.ext", (section) => parseBtfExt(section.data, btf));
  const notes: string[] = [];
  const maps = readMaps(elf, btf, notes);
  const programs = readPrograms(elf, maps, btf, ext);
  return {
    license: withSection(elf, "license", ({ data }) => (data.length > 0 ? data.string(0) : "")),
    maps,
    programs,
    btf,
    notes,
  };
}

function readPrograms(
  elf: ElfObject,
  maps: readonly PlacedMap[],
  btf: Btf | undefined,
  ext: BtfExt | undefined,
): ObjectProgram[] {
  const functions = findFunctions(elf);
  return functions
    .filter(({ section }) => section.name !== ".text")
    .map((fn): ObjectProgram => {
      const program = {
        name: fn.name,
        section: fn.section.name,
        isAutoloaded: !fn.section.name.startsWith("?"),
        attach: parseSectionName(fn.section.name),
      };
      try {
        if (fn.isLocal) fail("it is static, and programs have to be global");
        const linked = linkProgram({ elf, maps, btf, ext }, functions, fn);
        return { ...program, code: { kind: "linked", ...linked } };
      } catch (error) {
        if (!(error instanceof ObjectError)) throw error;
        return { ...program, code: { kind: "refused", reason: error.message } };
      }
    });
}

function withSection<T>({ sections }: ElfObject, name: string, use: (section: Section) => T): T | undefined {
  const section = sections.find((candidate) => candidate.name === name);
  return section === undefined ? undefined : use(section);
}
