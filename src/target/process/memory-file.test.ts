import { expect, test } from "vitest";
import { buildFixture } from "../../../test/support/fixtures.ts";
import { UnmanagedChild } from "../../../test/support/unmanaged-child.ts";
import { MemoryFile } from "./memory-file.ts";
import { readMaps } from "./proc-fs.ts";

test("a process that has ended can be neither read nor written", async () => {
  using child = await UnmanagedChild.start([buildFixture("lifecycle")]);
  const memory = MemoryFile.open(child.pid);
  const { start } = readMaps(child.pid).find(({ path }) => path === "[heap]")!;
  const bytes = memory.read(start, 8);
  memory.write(start, bytes);
  child.kill();
  expect(await child.line()).toMatch(/^status /);
  expect(memory.readInto(start, bytes)).toBe(0);
  expect(() => memory.write(start, bytes)).toThrow(expect.objectContaining({ code: "ESRCH" }));
  memory.close();
});
