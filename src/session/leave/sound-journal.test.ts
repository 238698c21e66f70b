/** Journals that a process has written over: what is believed of them can be undone without harm. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  findJournalDamage,
  Journal,
  type JournalContents,
  JournalError,
  journalBytes,
  parseJournal,
} from "../../probe/journal.ts";
import { planRestoration } from "../../probe/restoration.ts";
import type { MapEntry } from "../../target/process/proc-fs.ts";
import type { FileText } from "./file-text.ts";
import { soundJournal } from "./sound-journal.ts";

const map = (start: bigint, pages: bigint, perms: string, path = "", inode = 0n): MapEntry => ({
  start,
  end: start + pages * 0x1000n,
  perms,
  offset: 0n,
  dev: inode === 0n ? "00:00" : "fe:01",
  inode,
  path,
});

const TEXT = 0x40_0000n;
const CODE = 0x50_0000n;
const OPEN = 0x61_0000n;
const PRIVATE = 0x62_0000n;
const JOURNAL = 0x63_0000n;

const ARENA = 0x5f_f000n;
const ARENA_BYTES = 0x3_3000;
const guard = (start: bigint, pages: bigint) =>
  map(start, pages, "---p", "/memfd:trapline-arena (deleted)", 10n);

const maps: readonly MapEntry[] = [
  map(TEXT, 16n, "r-xp", "/bin/program", 7n),
  map(TEXT + 0x1_0000n, 16n, "rw-p", "/bin/program", 7n),
  map(CODE, 4n, "r-xp"),
  guard(ARENA, 1n),
  map(0x60_0000n, 4n, "rw-s", "/memfd:trapline-maps (deleted)", 9n),
  guard(0x60_4000n, 12n),
  map(OPEN, 2n, "rw-p"),
  guard(0x61_2000n, 14n),
  map(PRIVATE, 1n, "rw-p"),
  guard(0x62_1000n, 15n),
  map(JOURNAL, 1n, "rw-s", "/memfd:trapline (deleted)", 8n),
  guard(0x63_1000n, 1n),
  map(0x6f00_0000n, 16n, "rw-p"),
  map(0x7000_0000n, 8n, "rw-p", "[stack]"),
];
const arena = { ...guard(ARENA, 1n), end: ARENA + BigInt(ARENA_BYTES) };
const open = maps[6];

const NOP = [0x0f, 0x1f, 0x44, 0, 0];
/** `jmp` from a site to a detour. */
const jump = (at: bigint, to: bigint) => {
  const bytes = Uint8Array.of(0xe9, 0, 0, 0, 0);
  new DataView(bytes.buffer).setInt32(1, Number(to - at - 5n), true);
  return bytes;
};

function newJournal(): { readonly journal: Journal; readonly memory: Uint8Array } {
  const memory = new Uint8Array(journalBytes(16));
  const journal = new Journal(memory, 16, {
    tracerPid: 1,
    tracerStart: 2n,
    targetPid: 3,
    sharedBytes: memory.length,
  });
  journal.setScratch(OPEN);
  journal.setReturnTable({
    at: OPEN + 0x1000n,
    entries: 64,
    entryBytes: 16,
    slotOffset: 0,
    returnAddressOffset: 8,
  });
  journal.addMemory("memory", ARENA, ARENA_BYTES);
  journal.addMemory("code", CODE, 0x4000);
  journal.addImage({ start: TEXT, end: TEXT + 0x2_0000n, dev: "fe:01", inode: 7n });
  for (const offset of [0x100n, 0x200n]) {
    const detour = CODE + offset;
    const at = TEXT + offset;
    const record = journal.addSite({
      at,
      mechanism: "jump",
      oldBytes: Uint8Array.from(NOP),
      newBytes: jump(at, detour),
      detour,
      copyOffset: 32,
    });
    journal.setState(record, "armed");
  }
  journal.setTrapAction({
    previous: new Uint8Array(32),
    handler: CODE + 0x3000n,
    previousAt: CODE + 0x3100n,
  });
  return { journal, memory };
}

/** The file has NOPs everywhere. */
const files = {
  read: (_at: bigint, lenBytes: number) => Uint8Array.from({ length: lenBytes }, (_, i) => NOP[i % 5]!),
} as unknown as FileText;

const covers = (entry: MapEntry | undefined, at: bigint, lenBytes: number) =>
  entry !== undefined && at >= entry.start && at + BigInt(lenBytes) <= entry.end;

/** What may happen by a journal. */
function expectHarmless(journal: JournalContents): void {
  const found = journal.sites.map((site) => site.newBytes);
  const { transaction } = planRestoration({
    journal,
    journalMemory: { start: JOURNAL, end: JOURNAL + 0x1000n },
    found,
    handlers: new Map(),
    moves: [],
    others: [],
    read: () => undefined,
  });
  for (const { at, write } of transaction.sites) {
    expect(covers(maps[0], at, write.length)).toBe(true);
    expect([...write]).toEqual([...files.read(at, write.length)!]);
  }
  for (const { name, args } of transaction.finalCalls) {
    if (name !== "munmap") continue;
    const [start, lenBytes] = args as readonly bigint[];
    const ours = [maps[2], arena, open, maps[8]];
    expect(ours.some((entry) => covers(entry, start!, Number(lenBytes)))).toBe(true);
  }
  for (const { at, entries, entryBytes } of transaction.returnTables)
    expect(covers(open, at, entries * entryBytes) || covers(maps[8], at, entries * entryBytes)).toBe(true);
  for (const { from } of transaction.moves)
    expect(covers(maps[2], from, 1) || covers(maps[0], from, 1)).toBe(true);
}

describe("a journal", () => {
  it("as it was written is believed", () => {
    const { memory } = newJournal();
    const parsed = parseJournal(memory);
    expect(soundJournal(parsed, maps, files)).toEqual({ journal: parsed, doubts: [], keepsMemory: false });
  });

  it("whose image is being loaded anew: its text is gone, and that is no damage", () => {
    const { memory } = newJournal();
    const anew = [{ ...maps[0]!, perms: "r--p" }, ...maps.slice(1)];
    const { journal, doubts, keepsMemory } = soundJournal(parseJournal(memory), anew, files);
    expect([journal.sites, doubts, keepsMemory]).toEqual([[], [], false]);
  });

  it("of a tracer that has died on its way out, with its code unmapped, is believed", () => {
    const { memory } = newJournal();
    const left = maps.filter(({ start }) => start !== CODE);
    const { journal, doubts, keepsMemory } = soundJournal(parseJournal(memory), left, files);
    expect({ doubts, keepsMemory, sites: journal.sites.length }).toEqual({
      doubts: [],
      keepsMemory: false,
      sites: 2,
    });
    expect(journal.memory.some(({ kind }) => kind === "code")).toBe(false);
  });

  it("whose bytes are anything is refused, or does no harm", () => {
    const { memory } = newJournal();
    const addresses = [
      TEXT,
      TEXT + 0x1_0000n,
      CODE,
      ARENA,
      OPEN,
      PRIVATE,
      JOURNAL,
      0x7000_0000n,
      0n,
      (1n << 64n) - 1n,
    ];
    const word = fc.oneof(
      fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
      fc.tuple(fc.constantFrom(...addresses), fc.bigInt({ min: 0n, max: 0x4000n })).map(([a, b]) => a + b),
      fc.bigInt({ min: 0n, max: 20_000n }),
    );
    const damage = fc.array(
      fc.oneof(
        fc
          .tuple(fc.nat(memory.length / 8 - 1), word)
          .map(([index, value]) => ({ at: index * 8, value, bytes: 8 })),
        fc
          .tuple(fc.nat(memory.length - 1), fc.bigInt({ min: 0n, max: 255n }))
          .map(([at, value]) => ({ at, value, bytes: 1 })),
      ),
      { maxLength: 8 },
    );
    fc.assert(
      fc.property(damage, (writes) => {
        const bytes = memory.slice();
        const view = new DataView(bytes.buffer);
        for (const { at, value, bytes: count } of writes)
          if (count === 8) view.setBigUint64(at, BigInt.asUintN(64, value), true);
          else bytes[at] = Number(value);
        let parsed: JournalContents;
        try {
          parsed = parseJournal(bytes);
        } catch (error) {
          if (!(error instanceof JournalError)) throw error;
          return;
        }
        expectHarmless(soundJournal(parsed, maps, files).journal);
      }),
      { numRuns: 3000 },
    );
  });

  const forged: readonly {
    readonly name: string;
    readonly forge: (journal: Journal) => void;
    readonly doubt: RegExp;
  }[] = [
    {
      name: "old bytes that the file does not have: those of the file are put back",
      forge: (journal) => {
        const at = TEXT + 0x300n;
        journal.addSite({
          at,
          mechanism: "jump",
          oldBytes: Uint8Array.of(0xcc, 0xcc, 0xcc, 0xcc, 0xcc),
          newBytes: jump(at, CODE),
          detour: CODE,
        });
      },
      doubt: /0x400300: it says cccccccccc, and the file has 0f1f440000/,
    },
    {
      name: "a site in data",
      forge: (journal) => {
        const at = TEXT + 0x1_0100n;
        journal.addSite({
          at,
          mechanism: "jump",
          oldBytes: Uint8Array.from(NOP),
          newBytes: jump(at, CODE),
          detour: CODE,
        });
      },
      doubt: /a site at 0x410100: it lies in no program text/,
    },
    {
      name: "a detour in the program's own text",
      forge: (journal) => {
        const at = TEXT + 0x300n;
        journal.addSite({
          at,
          mechanism: "jump",
          oldBytes: Uint8Array.from(NOP),
          newBytes: jump(at, TEXT),
          detour: TEXT,
        });
      },
      doubt: /its detour, 0x400000, is no code of ours/,
    },
    {
      name: "the program's text as our code",
      forge: (journal) => journal.addMemory("code", TEXT, 0x1000),
      doubt: /memory at 0x400000: 4096 bytes there are not ours/,
    },
    {
      name: "memory of the process as a range of data",
      forge: (journal) => journal.addMemory("memory", 0x6f00_0000n, 0x1000),
      doubt: /memory at 0x6f000000: 4096 bytes there are not ours/,
    },
    {
      name: "a range of data that goes on behind ours",
      forge: (journal) => journal.addMemory("memory", ARENA, ARENA_BYTES + 0x1000),
      doubt: /memory at 0x5ff000: 212992 bytes there are not ours/,
    },
    {
      name: "a table of return addresses that does not end in our memory",
      forge: (journal) =>
        journal.setReturnTable({
          at: OPEN,
          entries: 1 << 30,
          entryBytes: 16,
          slotOffset: 0,
          returnAddressOffset: 8,
        }),
      doubt: /table of return addresses/,
    },
    {
      name: "a handler of SIGTRAP elsewhere",
      forge: (journal) =>
        journal.setTrapAction({ previous: new Uint8Array(32), handler: TEXT, previousAt: TEXT + 64n }),
      doubt: /handler of signal 5 at 0x400000/,
    },
  ];
  it.each(forged)("with $name", ({ forge, doubt }) => {
    const { journal, memory } = newJournal();
    forge(journal);
    const sound = soundJournal(parseJournal(memory), maps, files);
    expect(sound.doubts.join("\n")).toMatch(doubt);
    expectHarmless(sound.journal);
  });

  it("is remembered by its writer, who says what was written over", () => {
    const { journal, memory } = newJournal();
    expect(findJournalDamage(journal.written, memory)).toBeUndefined();
    memory.fill(0xff, 300, 310);
    expect(findJournalDamage(journal.written, memory)).toEqual({ header: false, records: 1, ofRecords: 5 });
    memory.fill(0, 0, 8);
    expect(findJournalDamage(journal.written, memory)).toMatchObject({ header: true });
    expect(parseJournal(journal.written).sites.length).toBe(2);
  });
});
