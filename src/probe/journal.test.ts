import fc from "fast-check";
import { expect, test } from "vitest";
import { JOURNAL_KEY, Journal, JournalError, journalBytes, parseJournal } from "./journal.ts";

const header = { tracerPid: 17, tracerStart: 123_456n, targetPid: 99, sharedBytes: 1 << 20 };

function journalWith(fill: (journal: Journal) => void, capacity = 8): Uint8Array {
  const memory = new Uint8Array(journalBytes(capacity));
  fill(new Journal(memory, capacity, header));
  return memory;
}

test("what is written is read back", () => {
  const site = {
    at: 0x7f00_1234_5678n,
    mechanism: "jump" as const,
    oldBytes: Uint8Array.of(0x55, 0x48, 0x89, 0xe5, 0x53),
    newBytes: Uint8Array.of(0xe9, 1, 2, 3, 4),
    detour: 0x7f00_0000_1000n,
    leadsTo: 0x7f00_0000_0800n,
    copyOffset: 48,
  };
  const hook = {
    at: 0x7f00_0000_2000n,
    oldBytes: Uint8Array.of(0x0f, 0x1f, 0x44, 0, 0),
    newBytes: Uint8Array.of(0xe9, 5, 6, 7, 8),
    detour: 0x7f00_0000_3000n,
    site: 0x7f00_1234_9000n,
    linkOffset: 0x1_0040,
  };
  const memory = journalWith((journal) => {
    journal.setScratch(0x5000n);
    journal.setReturnTable({
      at: 0x6000n,
      entries: 64,
      entryBytes: 16,
      slotOffset: 0,
      returnAddressOffset: 8,
    });
    journal.setTrapAction({ previous: new Uint8Array(32).fill(7), handler: 0xabcn, previousAt: 0xbcdn });
    journal.addMemory("code", 0x9000n, 65536);
    journal.addMemory("memory", 0xa000n, 4096);
    for (const handler of [0x123n, 0xdefn])
      journal.addSignal({ signal: 11, previous: new Uint8Array(32).fill(8), handler, previousAt: 0xef0n });
    const record = journal.addSite(site);
    journal.setState(record, "armed");
    journal.addKept(0x7f00_1234_5680n, Uint8Array.of(0x90, 0xc3));
    journal.addHook(hook);
  });
  memory[JOURNAL_KEY] = 15;
  expect(parseJournal(memory)).toEqual({
    header,
    isLeft: false,
    unwind: [],
    debug: [],
    signals: [{ signal: 11, previous: new Uint8Array(32).fill(8), handler: 0xdefn, previousAt: 0xef0n }],
    scratch: 0x5000n,
    key: 15,
    returnTable: { at: 0x6000n, entries: 64, entryBytes: 16, slotOffset: 0, returnAddressOffset: 8 },
    trapAction: { previous: new Uint8Array(32).fill(7), handler: 0xabcn, previousAt: 0xbcdn },
    sites: [{ kind: "site", record: 4, state: "armed", ...site }],
    kept: [{ kind: "kept", state: "planned", at: 0x7f00_1234_5680n, bytes: Uint8Array.of(0x90, 0xc3) }],
    hooks: [{ kind: "hook", state: "planned", ...hook }],
    memory: [
      { kind: "code", at: 0x9000n, lenBytes: 65536, state: "planned" },
      { kind: "memory", at: 0xa000n, lenBytes: 4096, state: "planned" },
    ],
  });
});

test("a changed site keeps its old bytes", () => {
  const memory = journalWith((journal) => {
    const record = journal.addSite({
      at: 1n,
      mechanism: "jump",
      oldBytes: Uint8Array.of(1, 2, 3, 4, 5),
      newBytes: Uint8Array.of(0xe9, 0, 0, 0, 0),
      detour: 2n,
    });
    journal.changeSite(record, "int3", Uint8Array.of(0xcc, 2, 3, 4, 5));
  });
  const [site] = parseJournal(memory).sites;
  expect(site).toMatchObject({ mechanism: "int3", oldBytes: Uint8Array.of(1, 2, 3, 4, 5) });
  expect(site?.newBytes).toEqual(Uint8Array.of(0xcc, 2, 3, 4, 5));
});

test("more records than there is room for are refused by the writer", () => {
  journalWith((journal) => {
    journal.addMemory("code", 0n, 1);
    expect(journal.remaining).toBe(0);
    expect(() => journal.addMemory("code", 0n, 1)).toThrow("full");
  }, 1);
});

test.each([
  ["memory of zeroes", () => new Uint8Array(4096)],
  ["another version", (bytes: Uint8Array) => bytes.with(8, 2)],
  ["more records than fit", (bytes: Uint8Array) => bytes.with(18, 255)],
  ["a site longer than an instruction and a jump", (bytes: Uint8Array) => bytes.with(256 + 1, 17)],
  ["a key that no processor has", (bytes: Uint8Array) => bytes.with(JOURNAL_KEY, 16)],
  ["memory that ends in the header", (bytes: Uint8Array) => bytes.slice(0, 100)],
])("is not understood: %s", (_, damage) => {
  const memory = journalWith((journal) => {
    journal.addSite({
      at: 1n,
      mechanism: "jump",
      oldBytes: new Uint8Array(5),
      newBytes: new Uint8Array(5),
      detour: 0n,
    });
  });
  expect(() => parseJournal(damage(memory))).toThrow(JournalError);
});

test("no damage makes the reader fail in another way", () => {
  const memory = journalWith((journal) => {
    journal.addSite({
      at: 1n,
      mechanism: "jump",
      oldBytes: new Uint8Array(5),
      newBytes: new Uint8Array(5),
      detour: 0n,
    });
    journal.addMemory("code", 0x1000n, 4096);
  });
  fc.assert(
    fc.property(fc.nat(memory.length - 1), fc.nat(255), (at, value) => {
      try {
        parseJournal(memory.with(at, value));
      } catch (error) {
        expect(error).toBeInstanceOf(JournalError);
      }
    }),
  );
});
