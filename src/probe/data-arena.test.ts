import fc from "fast-check";
import { expect, test } from "vitest";
import {
  type ArenaAccounts,
  type ArenaPart,
  addArenaAccounts,
  arenaBytes,
  classPages,
  DataArena,
  GUARD_BYTES,
  type PartRequest,
  partUses,
} from "./data-arena.ts";

const MIB = 1 << 20;
const START = 0x7f12_3456_7000n;

const sum = (values: Iterable<number>): number => [...values].reduce((total, value) => total + value, 0);
const totalOf = ({ usedBytes, spareBytes, guardBytes, freeBytes }: ArenaAccounts): number =>
  sum(usedBytes.values()) + sum(spareBytes.values()) + guardBytes + freeBytes;

test.each([
  [1, 1],
  [4, 4],
  [5, 5],
  [8, 8],
  [9, 10],
  [11, 12],
  [15, 16],
  [17, 20],
  [33, 40],
  [1024, 1024],
  [1025, 1280],
])("%i pages take a slot of %i", (pages, slot) => {
  expect(classPages(pages)).toBe(slot);
});

test("a slot is never smaller than its part, and at most a fifth of it is spare", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 1 << 24 }), (pages) => {
      const slot = classPages(pages);
      return slot >= pages && (slot - pages) * 5 <= slot && classPages(slot) === slot;
    }),
  );
});

const request = fc.record({
  use: fc.constantFrom(...partUses),
  lenBytes: fc.integer({ min: 1, max: 3 * MIB }),
  pageBytes: fc.constantFrom(undefined, 4096, 2 * MIB),
  alignBytes: fc.constantFrom(undefined, 65536),
}) satisfies fc.Arbitrary<PartRequest>;

/** Parts lie inside, a guard apart from each other and from the ends, and each as it was asked for. */
function check(arena: DataArena, parts: readonly (readonly [PartRequest, ArenaPart])[]): void {
  const sorted = parts.map(([, part]) => part).sort((a, b) => (a.at < b.at ? -1 : 1));
  let free = arena.range.start;
  for (const { at, slotBytes } of sorted) {
    expect(at - free).toBeGreaterThanOrEqual(BigInt(GUARD_BYTES));
    free = at + BigInt(slotBytes);
  }
  if (sorted.length > 0) expect(arena.range.end - free).toBeGreaterThanOrEqual(BigInt(GUARD_BYTES));
  for (const [{ lenBytes, pageBytes = 4096, alignBytes = 1, use }, part] of parts) {
    expect(part.use).toBe(use);
    expect(part.lenBytes).toBeGreaterThanOrEqual(lenBytes);
    expect(part.lenBytes - lenBytes).toBeLessThan(pageBytes);
    expect(part.lenBytes % pageBytes).toBe(0);
    expect(part.slotBytes).toBeGreaterThanOrEqual(part.lenBytes);
    expect(part.at % BigInt(pageBytes)).toBe(0n);
    expect(part.at % BigInt(alignBytes)).toBe(0n);
  }
  const { accounts } = arena;
  expect(totalOf(accounts)).toBe(accounts.reservedBytes);
  for (const use of partUses)
    expect(accounts.usedBytes.get(use) ?? 0).toBe(
      sum(parts.map(([, part]) => (part.use === use ? part.lenBytes : 0))),
    );
}

test("what was planned fits wherever the range begins, and every byte is accounted for", () => {
  fc.assert(
    fc.property(
      fc.array(request, { maxLength: 12 }),
      fc.bigInt({ min: 16n, max: 1n << 30n }),
      (wanted, page) => {
        const arena = new DataArena(page * 4096n, arenaBytes(wanted));
        const parts = wanted.map((each) => [each, arena.take(each)!] as const);
        expect(parts.every(([, part]) => part !== undefined)).toBe(true);
        check(arena, parts);
      },
    ),
  );
});

test("parts that come and go never meet, and every byte is accounted for", () => {
  const step = fc.oneof(fc.record({ take: request }), fc.record({ giveBack: fc.nat({ max: 20 }) }));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const arena = new DataArena(START, 24 * MIB);
      const parts: (readonly [PartRequest, ArenaPart])[] = [];
      for (const each of steps) {
        if ("take" in each) {
          const part = arena.take(each.take);
          if (part !== undefined) parts.push([each.take, part]);
        } else if (parts.length > 0) {
          const [[, part]] = parts.splice(each.giveBack % parts.length, 1) as [(typeof parts)[number]];
          arena.giveBack(part);
        }
        check(arena, parts);
      }
    }),
  );
});

test("a slot that was given back is taken again, and not for something of half its size", () => {
  const arena = new DataArena(START, MIB);
  const first = arena.take({ use: "later maps", lenBytes: 64 << 10 })!;
  arena.take({ use: "journal", lenBytes: 4096 });
  arena.giveBack(first);
  expect(arena.take({ use: "later maps", lenBytes: 32 << 10 })!.at).not.toBe(first.at);
  expect(arena.take({ use: "later maps", lenBytes: 60 << 10 })!.at).toBe(first.at);
});

test("a part that does not fit is refused, and nothing has changed", () => {
  const arena = new DataArena(START, 3 * 4096);
  const before = arena.accounts;
  expect(arena.take({ use: "maps", lenBytes: 4097 })).toBeUndefined();
  expect(arena.accounts).toEqual(before);
  // A page between two guards.
  expect(arena.take({ use: "maps", lenBytes: 4096 })?.at).toBe(START + 4096n);
  expect(arena.accounts).toMatchObject({ guardBytes: 8192, freeBytes: 0 });
});

test("what is no part, or is given back already, is not given back", () => {
  const arena = new DataArena(START, MIB);
  const part = arena.take({ use: "mailboxes", lenBytes: 1 })!;
  arena.giveBack(part);
  expect(() => arena.giveBack(part)).toThrow("none of this arena");
});

test("accounts of several ranges add up", () => {
  const [first, second] = [new DataArena(START, MIB), new DataArena(START * 2n, 2 * MIB)];
  first.take({ use: "maps", lenBytes: 100_000 });
  second.take({ use: "maps", lenBytes: 5000 });
  second.take({ use: "stacks", lenBytes: 65536, alignBytes: 65536 });
  const both = addArenaAccounts([first.accounts, second.accounts]);
  expect(both.reservedBytes).toBe(3 * MIB);
  expect(totalOf(both)).toBe(3 * MIB);
  expect(both.usedBytes.get("maps")).toBe(102_400 + 8192);
});
