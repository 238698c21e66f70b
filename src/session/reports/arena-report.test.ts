import { expect, test } from "vitest";
import { DataArena } from "../../probe/data-arena.ts";
import { arenaJson, describeArena } from "./arena-report.ts";

const arena = new DataArena(0x7000_0000n, 6 << 20);
arena.take({ use: "journal", lenBytes: 9 * 4096 });
arena.take({ use: "maps", lenBytes: 2 << 20, pageBytes: 2 << 20 });
const report = { pid: 7, accounts: arena.accounts, key: undefined, hugeMaps: undefined };

test("what data takes is said in the largest unit that fits", () => {
  expect(describeArena(report)).toBe(
    "data: 6 MiB of addresses reserved, 2.0 MiB mapped (journal 36 KiB, maps 2 MiB), 4 KiB spare, 2.0 MiB guards, 2.0 MiB free; " +
      "maps in 4 KiB pages; no protection key",
  );
  expect(describeArena({ ...report, key: 3, hugeMaps: "thp" })).toContain(
    "; maps in transparent huge pages; protection key 3",
  );
});

test("programs get all numbers, which add up to what is reserved", () => {
  const { type, data } = JSON.parse(arenaJson({ ...report, key: 3, hugeMaps: "2m" }));
  expect(type).toBe("arena");
  expect(data).toMatchObject({
    pid: 7,
    reserved: 6 << 20,
    parts: { journal: { used: 36_864, spare: 4096 }, maps: { used: 2 << 20, spare: 0 } },
    pages: "2m",
    key: 3,
  });
  expect(data.used + data.spare + data.guards + data.free).toBe(data.reserved);
});
