/**
 * Generated programs, compiled and interpreted from the same state of registers, context and maps: the result and
 * every byte of the maps must be the same. A failure prints its seed. `npm run bpf:differential` runs many more.
 */
import { afterAll, describe, expect, it } from "vitest";
import { NativeBpf } from "../../../test/support/native-bpf.ts";
import { computingMaps, findDifference } from "../../../test/support/random-programs.ts";

const PROGRAMS = 2000;
/** It takes seconds, except on a machine that is busy with other things. */
const TIMEOUT_MS = 300_000;

describe.each([
  { name: "maps far from the code", isNear: false, firstSeed: 0 },
  { name: "maps in reach of the code", isNear: true, firstSeed: 100_000 },
])("generated programs, $name", ({ isNear, firstSeed }) => {
  const native = new NativeBpf({ maps: computingMaps, isNear });
  afterAll(() => native[Symbol.dispose]());

  it(
    `${PROGRAMS / 2} programs do the same compiled and interpreted`,
    () => {
      let run = 0;
      let seed = firstSeed;
      for (; run < PROGRAMS / 2; seed++) {
        const difference = findDifference(native, seed);
        if (difference === undefined) continue;
        run++;
        if (difference !== "") expect.fail(difference);
      }
      // Most of them are accepted: otherwise little is compared.
      expect((seed - firstSeed) / run).toBeLessThan(2);
    },
    TIMEOUT_MS,
  );
});
