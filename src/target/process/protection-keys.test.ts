/** What is known of keys without having any; with them: protection-keys.pku.test.ts. */
import { closeSync } from "node:fs";
import { expect, test } from "vitest";
import { keyedFixture } from "../../../test/support/keyed-process.ts";
import { UnmanagedChild } from "../../../test/support/unmanaged-child.ts";
import {
  describeKeyRefusal,
  findKeyObstacle,
  isClosedIn,
  readPkruIn,
  withClosed,
  writePkruIn,
} from "./protection-keys.ts";
import { TracedProcess } from "./traced-process.ts";

const obstacle = findKeyObstacle();

test.each([
  ["the kernel uses them", "flags\t\t: fpu pku ospke rdpid\n", undefined],
  ["the kernel does not use them", "flags\t\t: fpu pku rdpid\n", "not-switched-on"],
  ["the processor has none", "flags\t\t: fpu rdpid\n", "no-hardware"],
  ["a flag only begins like theirs", "flags\t\t: ospkeys pkus\n", "no-hardware"],
  ["nothing is said of the processor", "", "no-hardware"],
])("keys where %s", (_, cpuInfo, kind) => {
  expect(findKeyObstacle(cpuInfo)?.kind).toBe(kind);
});

test.each([
  ["the initial value", 0x5555_5554, 3, true, 0x5555_5554],
  ["everything open", 0, 3, false, 0x40],
  ["everything open, the last key", 0, 15, false, 0x4000_0000],
  ["writes alone closed", 0x80, 3, false, 0xc0],
  ["only others closed", 0x5555_5514, 3, false, 0x5555_5554],
])("PKRU with %s", (_, pkru, key, isClosed, closed) => {
  expect(isClosedIn(pkru, key)).toBe(isClosed);
  expect(withClosed(pkru, key)).toBe(closed);
});

test("a written PKRU counts: its bit in XSTATE_BV is set, and the others stay", () => {
  const state = new Uint8Array(1024);
  state[512] = 0x07;
  writePkruIn(state, 832, 0x5555_5554);
  expect(readPkruIn(state, 832)).toBe(0x5555_5554);
  expect([state[512], state[513]]).toEqual([0x07, 0x02]);
  expect(state.reduce((sum, byte) => sum + (byte === 0 ? 0 : 1), 0)).toBe(6);
});

test.runIf(obstacle !== undefined)("without keys none is given, and it is said why", async () => {
  using child = await UnmanagedChild.start([keyedFixture]);
  const traced = TracedProcess.open(child.pid);
  const { at, fd } = traced.createShared("trapline", 4096);
  closeSync(fd);
  expect(traced.allocateKey(at)).toEqual({ kind: "refused", refusal: obstacle });
  expect(describeKeyRefusal(obstacle!)).toMatch(/protection keys/);
  expect([...traced.read(at, 1)]).toEqual([0]);
  traced.close();
});
