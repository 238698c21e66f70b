/** Map helpers as compiled code does them, against models. */
import { describe, expect, it } from "vitest";
import { contextOf, insnsOf, nativeBpfOpener } from "../../../../test/support/native-bpf.ts";
import { randomWords } from "../../../../test/support/native-code.ts";
import {
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  type InsnBuilder,
  r0,
  r1,
  r2,
  r3,
  r4,
  r6,
  r10,
} from "../../index.ts";
import type { HashMap } from "../../maps/index.ts";

const open = nativeBpfOpener();
const s64 = (value: bigint) => BigInt.asIntN(64, value);

/** Fills `lenBytes` of stack from `at` with copies of a register, padded to words. */
const fillStack = (b: InsnBuilder, at: number, lenBytes: number, reg: typeof r0) => {
  for (let i = 0; i < Math.ceil(lenBytes / 8); i++) b.stx(8, r10, at + 8 * i, reg);
};
const roundUp = (bytes: number) => Math.ceil(bytes / 8) * 8;
const key8 = (value: bigint, lenBytes: number) => {
  const bytes = new Uint8Array(roundUp(lenBytes));
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += 8) view.setBigUint64(at, value, true);
  return bytes.subarray(0, lenBytes);
};
const byKey = (a: Uint8Array[], b: Uint8Array[]) => Buffer.compare(a[0]!, b[0]!);
const arrayKey = (b: InsnBuilder) =>
  b.ldx(8, r2, r1, 0).stx(4, r10, -4, r2).ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, -4);
function lookupInsns(valueBytes: number) {
  return insnsOf((b) => {
    const [none, done] = [b.label(), b.label()];
    arrayKey(b);
    b.call(HELPER_MAP_LOOKUP_ELEM)
      .jmp("eq", r0, 0, none)
      .ldx(4, r0, r0, valueBytes - 4)
      .goto(done);
    b.bind(none).mov64(r0, -1).bind(done);
  });
}

describe("hash map", () => {
  const shapes = [
    ...[1, 2, 3, 4, 5, 6, 7, 8].map((keyBytes) => ({ keyBytes, valueBytes: 8 })),
    ...[9, 12, 15, 16, 23, 24, 64, 72, 77, 128].map((keyBytes) => ({ keyBytes, valueBytes: 16 })),
    ...[1, 2, 3, 5, 7, 12, 63, 64, 72, 100, 128].map((valueBytes) => ({ keyBytes: 8, valueBytes })),
    { keyBytes: 20, valueBytes: 70 },
  ].map((shape) => ({ name: `${shape.keyBytes}-byte keys, ${shape.valueBytes}-byte values`, ...shape }));

  it.each(shapes)("$name: 400 random operations do what a Map does", ({ keyBytes, valueBytes }) => {
    const maxEntries = 6;
    const native = open([{ name: "h", kind: "hash", keyBytes, valueBytes, maxEntries }]);
    const map = native.maps[0] as HashMap;
    const keyAt = -roundUp(keyBytes);
    const valueAt = keyAt - roundUp(valueBytes);
    const key = (b: InsnBuilder) => {
      b.ldx(8, r2, r1, 0).mov64(r6, r1);
      fillStack(b, keyAt, keyBytes, r2);
      b.ldMapFd(r1, 0).mov64(r2, r10).alu64("add", r2, keyAt);
    };
    const lookup = native.compile(
      insnsOf((b) => {
        const [none, done] = [b.label(), b.label()];
        key(b);
        b.call(HELPER_MAP_LOOKUP_ELEM).jmp("eq", r0, 0, none);
        b.ldx(1, r1, r0, 0)
          .ldx(1, r0, r0, valueBytes - 1)
          .alu64("lsh", r0, 8)
          .alu64("or", r0, r1)
          .goto(done);
        b.bind(none).mov64(r0, -1).bind(done);
      }),
    );
    const update = native.compile(
      insnsOf((b) => {
        b.ldx(8, r4, r1, 8).ldx(8, r3, r1, 16);
        fillStack(b, valueAt, valueBytes, r3);
        key(b);
        b.mov64(r3, r10).alu64("add", r3, valueAt).call(HELPER_MAP_UPDATE_ELEM);
      }),
    );
    const remove = native.compile(
      insnsOf((b) => {
        key(b);
        b.call(HELPER_MAP_DELETE_ELEM);
      }),
    );

    const model = new Map<bigint, bigint>();
    const next = randomWords(keyBytes * 1000 + valueBytes);
    for (let i = 0; i < 400; i++) {
      const k = (next() % 10n) * 0x0101_0101_0101_0101n;
      const v = (next() % 256n) * 0x0101_0101_0101_0101n;
      const flags = next() % 4n;
      const ctx = contextOf((offset) => (offset === 0 ? k : offset === 8 ? flags : v));
      switch (Number(next() % 3n)) {
        case 0: {
          const value = model.get(k);
          const want = value === undefined ? -1n : (value & 0xffn) * 0x101n;
          expect(s64(native.run(lookup, ctx))).toBe(want);
          break;
        }
        case 1:
          expect(s64(native.run(remove, ctx))).toBe(model.delete(k) ? 0n : -2n);
          break;
        default: {
          const has = model.has(k);
          const want =
            flags > 2n
              ? -22n
              : flags === 1n && has
                ? -17n
                : flags === 2n && !has
                  ? -2n
                  : !has && model.size >= maxEntries
                    ? -7n
                    : 0n;
          expect(s64(native.run(update, ctx))).toBe(want);
          if (want === 0n) model.set(k, v);
        }
      }
    }
    const seen = [...map.entries()].map((entry) => [entry.key, entry.value]);
    const wanted = [...model].map(([k, v]) => [key8(k, keyBytes), key8(v, valueBytes)]);
    expect(seen.sort(byKey)).toEqual(wanted.sort(byKey));
  });

  it("finds what the tracer put there, and the other way round, over all buckets", () => {
    const native = open([{ name: "h", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 2000 }]);
    const map = native.maps[0] as HashMap;
    const insert = native.compile(
      insnsOf((b) => {
        b.ldx(8, r2, r1, 0).stx(8, r10, -8, r2).alu64("mul", r2, 3).stx(8, r10, -16, r2);
        b.ldMapFd(r1, 0)
          .mov64(r2, r10)
          .alu64("add", r2, -8)
          .mov64(r3, r10)
          .alu64("add", r3, -16)
          .mov64(r4, 1);
        b.call(HELPER_MAP_UPDATE_ELEM);
      }),
    );
    const read = native.compile(
      insnsOf((b) => {
        const done = b.label();
        b.ldx(8, r2, r1, 0).stx(8, r10, -8, r2);
        b.ldMapFd(r1, 0)
          .mov64(r2, r10)
          .alu64("add", r2, -8)
          .call(HELPER_MAP_LOOKUP_ELEM)
          .jmp("eq", r0, 0, done);
        b.ldx(8, r0, r0, 0).bind(done);
      }),
    );
    for (let i = 1n; i <= 2000n; i++) {
      const ctx = contextOf(() => i);
      if (i % 2n === 0n) expect(native.run(insert, ctx)).toBe(0n);
      else expect(map.update(key8(i, 8), key8(i * 3n, 8), 1n)).toBe(0);
    }
    expect(
      s64(
        native.run(
          insert,
          contextOf(() => 2001n),
        ),
      ),
    ).toBe(-7n);
    expect(map.refused).toBe(1n);
    for (let i = 1n; i <= 2000n; i++) {
      expect(
        native.run(
          read,
          contextOf(() => i),
        ),
      ).toBe(i * 3n);
      expect(map.lookup(key8(i, 8))).toBeDefined();
    }
    expect([...map.entries()].length).toBe(2000);
    map.clear();
    expect([...map.entries()].length).toBe(0);
    expect(
      native.run(
        read,
        contextOf(() => 5n),
      ),
    ).toBe(0n);
    expect(
      native.run(
        insert,
        contextOf(() => 5n),
      ),
    ).toBe(0n);
  });

  it("a marked element that a dead thread left is passed, unlinked, and used again", () => {
    const native = open([{ name: "h", kind: "hash", keyBytes: 8, valueBytes: 8, maxEntries: 4 }]);
    const map = native.maps[0] as HashMap;
    const read = native.compile(
      insnsOf((b) => {
        const done = b.label();
        b.ldx(8, r2, r1, 0).stx(8, r10, -8, r2);
        b.ldMapFd(r1, 0)
          .mov64(r2, r10)
          .alu64("add", r2, -8)
          .call(HELPER_MAP_LOOKUP_ELEM)
          .jmp("eq", r0, 0, done);
        b.ldx(8, r0, r0, 0).bind(done);
      }),
    );
    for (let i = 1n; i <= 4n; i++) map.update(key8(i, 8), key8(i, 8));
    // What a thread does between its two steps of a deletion.
    const { words } = native.memory;
    const marked = (map.lookup(key8(2n, 8))! - map.layout.valueOffset) / 8;
    words[marked] = BigInt.asIntN(64, words[marked]! + (1n << 32n)) | 0x8000_0000n;
    for (const [key, want] of [
      [2n, 0n],
      [1n, 1n],
      [3n, 3n],
      [4n, 4n],
      [2n, 0n],
    ] as const) {
      expect(
        native.run(
          read,
          contextOf(() => key),
        ),
      ).toBe(want);
    }
    expect(map.update(key8(9n, 8), key8(9n, 8))).toBe(0);
    expect(
      native.run(
        read,
        contextOf(() => 9n),
      ),
    ).toBe(9n);
  });
});

describe("array", () => {
  it("lookup, update and deletion, with every index around the end", () => {
    for (const { valueBytes, maxEntries } of [
      { valueBytes: 8, maxEntries: 1 },
      { valueBytes: 8, maxEntries: 5 },
      { valueBytes: 12, maxEntries: 5 },
      { valueBytes: 40, maxEntries: 3 },
      { valueBytes: 100, maxEntries: 3 },
    ]) {
      const native = open([{ name: "a", kind: "array", keyBytes: 4, valueBytes, maxEntries }]);
      const lookup = native.compile(
        insnsOf((b) => {
          const [none, done] = [b.label(), b.label()];
          arrayKey(b);
          b.call(HELPER_MAP_LOOKUP_ELEM)
            .jmp("eq", r0, 0, none)
            .ldx(4, r0, r0, valueBytes - 4)
            .goto(done);
          b.bind(none).mov64(r0, -1).bind(done);
        }),
      );
      const update = native.compile(
        insnsOf((b) => {
          b.ldx(8, r4, r1, 8).ldx(8, r3, r1, 16);
          fillStack(b, -8 - roundUp(valueBytes), valueBytes, r3);
          arrayKey(b);
          b.mov64(r3, r10)
            .alu64("add", r3, -8 - roundUp(valueBytes))
            .call(HELPER_MAP_UPDATE_ELEM);
        }),
      );
      const remove = native.compile(
        insnsOf((b) => {
          arrayKey(b);
          b.call(HELPER_MAP_DELETE_ELEM);
        }),
      );
      for (const index of [0n, BigInt(maxEntries - 1), BigInt(maxEntries), 0xffff_ffffn, 0x1_0000_0000n]) {
        const isThere = (index & 0xffff_ffffn) < BigInt(maxEntries);
        for (const flags of [0n, 1n, 2n, 3n, 1n << 32n]) {
          const value = 0x4141_4141_4141_4141n + index * 0x0101_0101n;
          const ctx = contextOf((offset) => (offset === 0 ? index : offset === 8 ? flags : value));
          const want = flags > 2n ? -22n : !isThere ? -7n : flags === 1n ? -17n : 0n;
          expect(s64(native.run(update, ctx))).toBe(want);
          expect(s64(native.run(lookup, ctx)) === -1n).toBe(!isThere);
          expect(native.run(lookup, ctx)).toBe(native.interpret(lookupInsns(valueBytes), ctx));
          expect(s64(native.run(remove, ctx))).toBe(-22n);
        }
      }
    }
  });
});
