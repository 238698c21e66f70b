/** What an object's programs have collected, as text: maps and globals at the end, records as they come. */
import type { BpfObject, ObjectMap } from "../bpf/object/index.ts";
import { printBtfValue, printHex } from "../bpf/object/index.ts";
import type { SharedMaps } from "./shared-maps.ts";

/** A record of a ring buffer: its type is not in the object. */
export function printRecord(map: string, record: Uint8Array): string {
  const text = Array.from(record, (byte) =>
    byte >= 0x20 && byte <= 0x7e ? String.fromCharCode(byte) : ".",
  ).join("");
  return `${map}: ${printHex(record)}  ${text}\n`;
}

/**
 * All maps but ring buffers and constants: a hash in the order of its keys, an array without the elements that are all
 * zero, globals by name.
 */
export function printMaps(object: BpfObject, maps: SharedMaps): string {
  return object.maps.map((map, index) => printMap(object, map, maps, index)).join("");
}

function printMap(object: BpfObject, map: ObjectMap, maps: SharedMaps, index: number): string {
  const { btf } = object;
  const opened = maps.maps[index];
  if (opened === undefined || !("entries" in opened)) return "";
  if (map.variables !== undefined) {
    const bytes = opened.kind === "array" ? opened.read(0) : undefined;
    if (map.spec.isReadOnly === true || bytes === undefined) return "";
    return map.variables
      .map(({ name, offset, sizeBytes, type }) => {
        const value = printBtfValue(btf, type, bytes.subarray(offset, offset + sizeBytes));
        return `${name} = ${value}\n`;
      })
      .join("");
  }
  const all = [...opened.entries()];
  const entries = opened.kind === "array" ? all.filter(({ value }) => value.some((byte) => byte !== 0)) : all;
  const rows = entries
    .map(({ key, value }) => ({
      key: printBtfValue(btf, map.keyType, key),
      value: printBtfValue(btf, map.valueType, value),
    }))
    .sort((a, b) => a.key.localeCompare(b.key, "en", { numeric: true }));
  const head = `map ${map.spec.name} (${map.spec.kind}, ${rows.length} of ${map.spec.maxEntries})\n`;
  return head + rows.map(({ key, value }) => `  [${key}]: ${value}\n`).join("");
}
