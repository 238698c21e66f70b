import { describe, expect, it } from "vitest";
import { decodeFields, decodeKey, decodeMapValue, decodeValue, zeroedMapValue } from "./decode.ts";
import type { ScriptMap, ShardedValue } from "./script.ts";
import { compileOk } from "./test-run.ts";
import type { ValueType } from "./value-type.ts";

const script = compileOk(
  'BEGIN { @int = 1; @str = "abc"; @count = count(); @sum = sum(-1); @min = min(-1); @max = max(1); @avg = avg(1); ' +
    '@hist = hist(1); @lhist = lhist(1, 0, 10, 5); @key[1, "ab", (2, 3)] = 1; }',
);

function mapNamed(name: string): ScriptMap {
  return script.maps.find((map) => map.name === name)!;
}

function bytesOfMap(name: string): number {
  return script.bundle.maps[mapNamed(name).map]!.valueBytes;
}

describe("decodeMapValue", () => {
  it("adds the shards of several copies", () => {
    const map = mapNamed("@count");
    const value = map.value as ShardedValue;
    const copies = [1n, 2n].map((amount) => {
      const bytes = new Uint8Array(bytesOfMap("@count"));
      const view = new DataView(bytes.buffer);
      for (let shard = 0; shard < value.shards; shard++)
        view.setBigUint64(shard * value.strideBytes, amount, true);
      return bytes;
    });
    expect(decodeMapValue(copies, map)).toEqual({ kind: "count", value: 24n, signed: true });
  });

  it("shows a map without keys only once it was assigned", () => {
    for (const name of ["@int", "@str", "@sum", "@min", "@max", "@avg", "@hist", "@lhist"]) {
      expect(decodeMapValue([new Uint8Array(bytesOfMap(name))], mapNamed(name)), name).toBeUndefined();
    }
    const count = decodeMapValue([new Uint8Array(bytesOfMap("@count"))], mapNamed("@count"));
    expect(count).toEqual({ kind: "count", value: 0n, signed: true });
  });

  it("shows 0 after zero()", () => {
    for (const name of ["@avg", "@hist", "@lhist"]) {
      const map = mapNamed(name);
      expect(decodeMapValue([zeroedMapValue(map, bytesOfMap(name))], map), name).toBeDefined();
    }
    for (const name of ["@int", "@sum", "@min", "@max", "@count"]) {
      const map = mapNamed(name);
      const decoded = decodeMapValue([zeroedMapValue(map, bytesOfMap(name))], map);
      const number = decoded?.kind === "plain" ? decoded.value : decoded;
      expect(number, name).toMatchObject({ value: 0n });
    }
  });
});

it("a minimum begins anew after zero()", () => {
  const map = mapNamed("@min");
  const bytes = zeroedMapValue(map, bytesOfMap("@min"));
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, 5n ^ 0x7fff_ffff_ffff_ffffn, true);
  view.setBigUint64(8, 1n, true);
  expect(decodeMapValue([bytes], map)).toEqual({ kind: "min", value: 5n, signed: true });
});

describe("decodeValue", () => {
  const types: readonly ValueType[] = [
    { kind: "integer", signed: true },
    { kind: "pointer" },
    { kind: "string", sizeBytes: 20 },
    { kind: "buffer", sizeBytes: 20 },
    { kind: "symbol" },
    { kind: "probe", shows: "probe" },
    { kind: "timestamp", format: "%H" },
    {
      kind: "tuple",
      elements: [
        { kind: "string", sizeBytes: 5 },
        { kind: "buffer", sizeBytes: 3 },
      ],
    },
  ];

  it("never throws, whatever the bytes and however many", () => {
    for (const fill of [0, 1, 0x7f, 0xff]) {
      for (let length = 0; length < 40; length++) {
        const bytes = new Uint8Array(length).fill(fill);
        for (const type of types) for (const offset of [0, 3, 39]) decodeValue(bytes, offset, type);
        for (const map of script.maps) {
          decodeKey(bytes, map);
          decodeMapValue([bytes], map);
        }
        decodeFields(bytes, [{ offset: 8, type: types[2]! }]);
      }
    }
  });

  it("cuts a string at its end mark and at its size", () => {
    const bytes = Uint8Array.from([97, 98, 0, 99, 97, 97, 97, 97]);
    expect(decodeValue(bytes, 0, { kind: "string", sizeBytes: 8 })).toEqual({
      kind: "string",
      bytes: Uint8Array.from([97, 98]),
    });
    expect(decodeValue(bytes, 4, { kind: "string", sizeBytes: 3 })).toEqual({
      kind: "string",
      bytes: Uint8Array.from([97, 97, 97]),
    });
  });
});
