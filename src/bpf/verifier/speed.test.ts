import { describe, expect, it } from "vitest";
import { assembleCase } from "./test-text.ts";
import { verifyProgram } from "./verify.ts";
import { caseMaps } from "./verify-cases.ts";

const times = (count: number, text: (i: number) => string) =>
  Array.from({ length: count }, (_, i) => text(i)).join("\n");
const slot = (i: number) => `*(u64 *)(r10 -${8 * ((i % 64) + 1)})`;

/** Processor time of this process, so that others on the machine do not count. */
function userMs(run: () => void): number {
  const before = process.cpuUsage();
  run();
  return process.cpuUsage(before).user / 1000;
}

const shapes = [
  {
    name: "a long straight line",
    text: `r0 = *(u64 *)(r1 +0)\nr2 = *(u32 *)(r1 +8)\n${times(2500, (i) => `r0 += ${i}\nr0 ^= r2\nw0 *= 3\nr2 |= r0`)}\nexit`,
  },
  {
    name: "many branches",
    text: `r6 = r1\nr7 = 0\n${times(2500, (i) => `r1 = *(u64 *)(r6 +${8 * (i % 20)})\nif r1 == ${i} goto +1\nr7 += ${i}\nr7 ^= r1`)}\nr0 = r7\nexit`,
  },
  {
    name: "a search for a number",
    text: `r6 = *(u64 *)(r1 +0)\nr7 = 0\n${times(3300, (i) => `if r6 != ${i * 3} goto +1\nr7 = ${i}\nr7 += 1`)}\nr0 = r7\nexit`,
  },
  {
    name: "an unrolled loop over a value",
    text: `r6 = r1\nr7 = 0\n${times(1600, () => "r1 = *(u64 *)(r6 +0)\nif r1 > 56 goto +4\nr2 = map[0][0]+0\nr2 += r1\nr7 = *(u8 *)(r2 +0)")}\nr0 = r7\nexit`,
  },
  {
    name: "many lookups",
    text: `${times(1000, (i) => `*(u64 *)(r10 -8) = ${i}\nr1 = map[1]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nif r0 == 0 goto +2\nr1 = 1\nlock *(u64 *)(r0 +0) += r1\nr3 = 5`)}\nr0 = 0\nexit`,
  },
  {
    name: "a full stack",
    text: `r6 = r1\n${times(64, (i) => `r1 = *(u64 *)(r6 +${8 * (i % 20)})\n${slot(i)} = r1`)}\n${times(2000, (i) => `r1 = ${slot(i * 7)}\nr2 = ${slot(i * 13)}\nif r1 > r2 goto +1\nr1 += r2\n${slot(i * 5)} = r1`)}\nr0 = 0\nexit`,
  },
  {
    name: "many calls",
    text: `r6 = r1\n${times(3300, (i) => `r1 = r6\nr2 = ${i}\ncall &f`)}\nr0 = 0\nexit\nf: r3 = *(u64 *)(r1 +0)\nif r3 > r2 goto +1\nr2 += r3\n*(u64 *)(r10 -8) = r2\nr0 = *(u64 *)(r10 -8)\nexit`,
  },
  {
    name: "a loop of 900,000 steps",
    text: "r0 = 0\nr1 = 0\ntop: r0 += 3\nr0 ^= r1\nr1 += 1\nif r1 < 225000 goto top\nexit",
  },
];

describe("speed", () => {
  it.each(shapes)("verifies $name within two seconds", ({ text }) => {
    const insns = assembleCase(text);
    const spent = userMs(() => {
      expect(verifyProgram({ insns }, caseMaps).kind).toBe("accepted");
    });
    expect(spent).toBeLessThan(2000);
  });
});
