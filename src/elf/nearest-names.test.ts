import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { editDistance, nearestNames } from "./nearest-names.ts";

const names = ["malloc", "calloc", "free", "pthread_create", "open", "fopen", "open64", "SSL_read", "x"];

describe("nearest names", () => {
  it.each([
    { name: "one letter missing", wanted: "mallc", expected: ["malloc", "calloc"] },
    { name: "two letters swapped", wanted: "mallco", expected: ["malloc", "calloc"] },
    { name: "other case", wanted: "ssl_READ", expected: ["SSL_read"] },
    { name: "part of a longer name", wanted: "thread_create", expected: ["pthread_create"] },
    { name: "nothing close", wanted: "gettimeofday", expected: [] },
    { name: "closest first", wanted: "open6", expected: ["open", "open64", "fopen"] },
    { name: "empty", wanted: "", expected: ["x"] },
  ])("$name", ({ wanted, expected }) => {
    expect(nearestNames(wanted, names)).toEqual(expected);
  });

  it("agrees with the plain definition of the distance within its limit", () => {
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 7 });
    fc.assert(
      fc.property(word, word, fc.integer({ min: 0, max: 5 }), (a, b, limit) => {
        const plain = plainDistance(a, b);
        const found = editDistance(a, b, limit);
        return plain <= limit ? found === plain : found > limit;
      }),
    );
  });
});

/** Optimal string alignment by its recursive definition. */
function plainDistance(a: string, b: string): number {
  if (a === "" || b === "") return a.length + b.length;
  const [restA, restB] = [a.slice(0, -1), b.slice(0, -1)];
  let best = Math.min(
    plainDistance(restA, b) + 1,
    plainDistance(a, restB) + 1,
    plainDistance(restA, restB) + (a.at(-1) === b.at(-1) ? 0 : 1),
  );
  if (a.length > 1 && b.length > 1 && a.at(-1) === b.at(-2) && a.at(-2) === b.at(-1)) {
    best = Math.min(best, plainDistance(a.slice(0, -2), b.slice(0, -2)) + 1);
  }
  return best;
}
