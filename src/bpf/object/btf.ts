/**
 * The types of a BTF section (Documentation/bpf/btf.rst): what is needed to know maps, globals, and how their values are
 * shown. Type 0 is void. Names are byte strings.
 *
 *      info   31 kflag   28..24 kind   15..0 vlen
 */
import type { ByteReader } from "./byte-reader.ts";
import { fail } from "./object-error.ts";

export const BTF_MAGIC = 0xeb9f;

export interface BtfMember {
  readonly name: string;
  readonly type: number;
  readonly bitOffset: number;
  /** 0: no bit field. */
  readonly bitSize: number;
}

export type BtfType =
  | { readonly kind: "void" }
  | {
      readonly kind: "int";
      readonly name: string;
      readonly sizeBytes: number;
      readonly encoding: "signed" | "char" | "bool" | "unsigned";
    }
  | { readonly kind: "pointer"; readonly to: number }
  | { readonly kind: "array"; readonly of: number; readonly count: number }
  | {
      readonly kind: "struct" | "union";
      readonly name: string;
      readonly sizeBytes: number;
      readonly members: readonly BtfMember[];
    }
  | {
      readonly kind: "enum";
      readonly name: string;
      readonly sizeBytes: number;
      readonly isSigned: boolean;
      readonly values: ReadonlyMap<bigint, string>;
    }
  /** typedef, const, volatile, restrict, type tag: another name for a type, or none. */
  | { readonly kind: "alias"; readonly name: string; readonly of: number }
  | { readonly kind: "float"; readonly name: string; readonly sizeBytes: number }
  | { readonly kind: "function"; readonly name: string }
  | { readonly kind: "variable"; readonly name: string; readonly type: number }
  /** A section of variables, by their type ids. */
  | { readonly kind: "section"; readonly name: string; readonly variables: readonly number[] }
  /** Forward declarations, prototypes, tags. */
  | { readonly kind: "other"; readonly name: string };

export type BtfVariable = Extract<BtfType, { readonly kind: "variable" }>;

export class Btf {
  readonly types: readonly BtfType[];
  readonly strings: ByteReader;

  constructor(types: readonly BtfType[], strings: ByteReader) {
    this.types = types;
    this.strings = strings;
  }

  /** The type behind all aliases. */
  resolve(id: number): BtfType {
    let type = this.#type(id);
    for (let steps = 0; type.kind === "alias"; steps++) {
      if (steps > 32) fail(`BTF type ${id}: too many names for one type`);
      type = this.#type(type.of);
    }
    return type;
  }

  /** The id of a type that `resolve` has returned. */
  idOf(type: BtfType): number {
    return this.types.indexOf(type);
  }

  /** Size of a value in bytes; undefined for what has none. */
  findSize(id: number, depth = 0): number | undefined {
    const type = this.resolve(id);
    switch (type.kind) {
      case "int":
      case "struct":
      case "union":
      case "enum":
      case "float":
        return type.sizeBytes;
      case "pointer":
        return 8;
      case "array": {
        const element = depth > 16 ? undefined : this.findSize(type.of, depth + 1);
        return element === undefined ? undefined : element * type.count;
      }
      default:
        return undefined;
    }
  }

  findVariable(name: string): BtfVariable | undefined {
    return this.types.find((type): type is BtfVariable => type.kind === "variable" && type.name === name);
  }

  /** The variables that a section holds or, for those of the kernel's, that are looked for there. */
  variablesIn(section: string): readonly BtfVariable[] {
    return this.types
      .flatMap((type) => (type.kind === "section" && type.name === section ? type.variables : []))
      .map((id) => this.#type(id))
      .filter((type): type is BtfVariable => type.kind === "variable");
  }

  /** The name of a type as C has it, without `struct`; empty if it has none. */
  nameOf(id: number, depth = 0): string {
    const type = this.#type(id);
    if ("name" in type && type.name !== "") return type.name;
    return type.kind === "alias" && depth < 32 ? this.nameOf(type.of, depth + 1) : "";
  }

  #type(id: number): BtfType {
    return this.types[id] ?? fail(`BTF type ${id} is not there`);
  }
}

/** Throws ObjectError. */
export function parseBtf(data: ByteReader): Btf {
  if (data.u16(0) !== BTF_MAGIC) fail("section .BTF does not begin with its magic number");
  const headerBytes = data.u32(4);
  const section = data.part(headerBytes + data.u32(8), data.u32(12), "types of .BTF");
  const strings = data.part(headerBytes + data.u32(16), data.u32(20), "strings of .BTF");
  const types: BtfType[] = [{ kind: "void" }];
  for (let at = 0; at < section.length; ) {
    const { type, lenBytes } = parseType(section, at, strings);
    types.push(type);
    at += lenBytes;
  }
  return new Btf(types, strings);
}

function parseType(
  data: ByteReader,
  at: number,
  strings: ByteReader,
): { readonly type: BtfType; readonly lenBytes: number } {
  const name = strings.string(data.u32(at));
  const info = data.u32(at + 4);
  const sizeOrType = data.u32(at + 8);
  const count = info & 0xffff;
  const kflag = info >>> 31 === 1;
  const body = at + 12;
  const each = <T>(lenBytes: number, read: (at: number) => T): T[] =>
    Array.from({ length: count }, (_, i) => read(body + i * lenBytes));
  const kind = (info >>> 24) & 31;
  switch (kind) {
    case 1: {
      const bits = (data.u32(body) >>> 24) & 15;
      const encoding =
        (bits & 4) !== 0 ? "bool" : (bits & 2) !== 0 ? "char" : (bits & 1) !== 0 ? "signed" : "unsigned";
      return { type: { kind: "int", name, sizeBytes: sizeOrType, encoding }, lenBytes: 16 };
    }
    case 2:
      return { type: { kind: "pointer", to: sizeOrType }, lenBytes: 12 };
    case 3:
      return { type: { kind: "array", of: data.u32(body), count: data.u32(body + 8) }, lenBytes: 24 };
    case 4:
    case 5: {
      const members = each(12, (member): BtfMember => {
        const offset = data.u32(member + 8);
        return {
          name: strings.string(data.u32(member)),
          type: data.u32(member + 4),
          bitOffset: kflag ? offset & 0xff_ffff : offset,
          bitSize: kflag ? offset >>> 24 : 0,
        };
      });
      return {
        type: { kind: kind === 4 ? "struct" : "union", name, sizeBytes: sizeOrType, members },
        lenBytes: 12 + count * 12,
      };
    }
    case 6:
      return {
        type: {
          kind: "enum",
          name,
          sizeBytes: sizeOrType,
          isSigned: kflag,
          values: new Map(
            each(8, (value) => [BigInt(data.i32(value + 4)), strings.string(data.u32(value))] as const),
          ),
        },
        lenBytes: 12 + count * 8,
      };
    case 8:
    case 9:
    case 10:
    case 11:
    case 18:
      return { type: { kind: "alias", name: kind === 8 ? name : "", of: sizeOrType }, lenBytes: 12 };
    case 12:
      return { type: { kind: "function", name }, lenBytes: 12 };
    case 13:
      return { type: { kind: "other", name }, lenBytes: 12 + count * 8 };
    case 14:
      return { type: { kind: "variable", name, type: sizeOrType }, lenBytes: 16 };
    case 15:
      return {
        type: { kind: "section", name, variables: each(12, (variable) => data.u32(variable)) },
        lenBytes: 12 + count * 12,
      };
    case 16:
      return { type: { kind: "float", name, sizeBytes: sizeOrType }, lenBytes: 12 };
    case 7:
      return { type: { kind: "other", name }, lenBytes: 12 };
    case 17:
      return { type: { kind: "other", name }, lenBytes: 16 };
    case 19: {
      const values = each(12, (value): [bigint, string] => [
        BigInt.asIntN(64, (BigInt(data.u32(value + 8)) << 32n) | BigInt(data.u32(value + 4))),
        strings.string(data.u32(value)),
      ]);
      return {
        type: { kind: "enum", name, sizeBytes: sizeOrType, isSigned: kflag, values: new Map(values) },
        lenBytes: 12 + count * 12,
      };
    }
    default:
      return fail(`section .BTF: type at ${at} is of unknown kind ${kind}`);
  }
}
