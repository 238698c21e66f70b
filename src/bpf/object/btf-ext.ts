/**
 * Lines of the source by instruction, and relocations for the kernel's types (CO-RE), from section .BTF.ext
 * (Documentation/bpf/btf.rst, section 3).
 */
import { BTF_MAGIC, type Btf } from "./btf.ts";
import type { ByteReader } from "./byte-reader.ts";
import { fail } from "./object-error.ts";

/** Where an instruction comes from. Lines and columns count from 1. */
export interface SourceLine {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** The line itself. */
  readonly text: string;
}

/** A place that depends on how a type of the kernel is laid out. */
export interface CoreRelocation {
  /** Byte offset of the instruction in its section. */
  readonly offset: number;
  /** Type id in the object's own BTF. */
  readonly type: number;
  /** Path of member indexes: `0:14`. */
  readonly access: string;
  /** enum bpf_core_relo_kind. */
  readonly kind: number;
}

export interface BtfExt {
  /** By name of the section, sorted by byte offset. */
  readonly lines: ReadonlyMap<string, readonly { readonly offset: number; readonly line: SourceLine }[]>;
  readonly core: ReadonlyMap<string, readonly CoreRelocation[]>;
}

const CORE_HEADER_BYTES = 32;

/** Throws ObjectError. */
export function parseBtfExt(data: ByteReader, btf: Btf): BtfExt {
  if (data.u16(0) !== BTF_MAGIC) fail("section .BTF.ext does not begin with its magic number");
  const { strings } = btf;
  const headerBytes = data.u32(4);
  const part = (at: number) => data.part(headerBytes + data.u32(at), data.u32(at + 4), "section .BTF.ext");
  const lines = readRecords(part(16), strings, (record, at) => {
    const position = record.u32(at + 12);
    return {
      offset: record.u32(at),
      line: {
        file: strings.string(record.u32(at + 4)),
        line: position >>> 10,
        column: position & 1023,
        text: strings.string(record.u32(at + 8)),
      },
    };
  });
  const core =
    headerBytes < CORE_HEADER_BYTES
      ? new Map<string, CoreRelocation[]>()
      : readRecords(part(24), strings, (record, at) => ({
          offset: record.u32(at),
          type: record.u32(at + 4),
          access: strings.string(record.u32(at + 8)),
          kind: record.u32(at + 12),
        }));
  return { lines, core };
}

/** Size of a record, then for each section its name, the number of records, and the records. */
function readRecords<T extends { readonly offset: number }>(
  data: ByteReader,
  strings: ByteReader,
  read: (data: ByteReader, at: number) => T,
): Map<string, T[]> {
  const bySection = new Map<string, T[]>();
  if (data.length === 0) return bySection;
  const recordBytes = data.u32(0);
  if (recordBytes < 16) fail(`section .BTF.ext: records of ${recordBytes} bytes`);
  for (let at = 4; at < data.length; ) {
    const name = strings.string(data.u32(at));
    const count = data.u32(at + 4);
    at += 8;
    // Checks the whole range, so that a wrong count is no long loop.
    data.part(at, count * recordBytes, "section .BTF.ext");
    const records = Array.from({ length: count }, (_, i) => read(data, at + i * recordBytes));
    bySection.set(
      name,
      [...(bySection.get(name) ?? []), ...records].sort((a, b) => a.offset - b.offset),
    );
    at += count * recordBytes;
  }
  return bySection;
}
