/**
 * The JIT against the interpreter on as many generated programs as TRAPLINE_PROGRAMS says, from the seed
 * TRAPLINE_SEED on: `npm run bpf:differential -- COUNT SEED`. Prints the seed of a program that differs.
 */
import { expect, it } from "vitest";
import { NativeBpf } from "../support/native-bpf.ts";
import { computingMaps, findDifference } from "../support/random-programs.ts";

const programs = Number(process.env.TRAPLINE_PROGRAMS ?? 2000);
const firstSeed = Number(process.env.TRAPLINE_SEED ?? 1);
const HOUR_MS = 3_600_000;

it(
  `${programs} generated programs from seed ${firstSeed} on`,
  () => {
    const worlds = [false, true].map((isNear) => new NativeBpf({ maps: computingMaps, isNear }));
    let run = 0;
    let seed = firstSeed;
    const startMs = performance.now();
    for (; run < programs; seed++) {
      const difference = findDifference(worlds[seed % 2]!, seed);
      if (difference === undefined) continue;
      run++;
      if (difference !== "") expect.fail(difference);
    }
    const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
    const refused = seed - firstSeed - run;
    console.log(`${run} programs do the same, ${refused} were refused, last seed ${seed - 1}, ${seconds} s`);
    for (const world of worlds) world[Symbol.dispose]();
  },
  HOUR_MS,
);
