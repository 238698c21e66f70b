import { describe, expect, test } from "vitest";
import { Journal, journalBytes, parseJournal } from "../../probe/journal.ts";
import type { AddrRange } from "../../target/target.ts";
import { CodeSpaces, NoCodeSpaceError } from "./code-space.ts";

const CAPACITY = 64;
const image = { start: 0x10_0000_0000n, end: 0x10_0010_0000n };
const request = { name: "image", image, lenBytes: 4096 };

function newJournal() {
  const bytes = new Uint8Array(journalBytes(CAPACITY));
  const facts = { tracerPid: 1, tracerStart: 1n, targetPid: 2, sharedBytes: bytes.length };
  return { bytes, journal: new Journal(bytes, CAPACITY, facts) };
}

/** Memory that whoever reads the journal would unmap. */
const recorded = (journal: Uint8Array) =>
  parseJournal(journal)
    .memory.filter(({ state }) => state !== "removed")
    .map(({ at }) => at);

describe("a process that maps memory where code was to go", () => {
  /** The process has `losses` mappings of its own exactly where ours was planned, one after the other. */
  function busyProcess(losses: number) {
    const mappings: AddrRange[] = [image];
    let left = losses;
    return {
      mappings: () => [...mappings].sort((a, b) => (a.start < b.start ? -1 : 1)),
      port: {
        createCodeWhereFree: async (ranges: readonly { at: bigint; lenBytes: number }[]) =>
          ranges.map(({ at, lenBytes }) => {
            if (left-- <= 0) return true;
            mappings.push({ start: at, end: at + BigInt(lenBytes) });
            return false;
          }),
      },
    };
  }

  test("gets the code elsewhere, and keeps what it has mapped", async () => {
    const { port, mappings } = busyProcess(3);
    const { bytes, journal } = newJournal();
    const spaces = new CodeSpaces(port, journal, mappings);
    const [space] = await spaces.provide([request]);
    const own = mappings();
    expect(own).toHaveLength(4);
    expect(own.some(({ start, end }) => space!.range.start < end && start < space!.range.end)).toBe(false);
    // Whoever reads the journal unmaps ours alone.
    expect(recorded(bytes)).toEqual([space!.range.start]);
    expect(spaces.spaces).toEqual([space]);
  });

  test("that never stops is given up", async () => {
    const { port, mappings } = busyProcess(Number.POSITIVE_INFINITY);
    const { bytes, journal } = newJournal();
    const spaces = new CodeSpaces(port, journal, mappings);
    await expect(spaces.provide([request])).rejects.toThrow(NoCodeSpaceError);
    expect(recorded(bytes)).toEqual([]);
  });
});
