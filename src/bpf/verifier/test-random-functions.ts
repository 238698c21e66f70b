/**
 * Random programs of several functions and callbacks, in text form, for tests of the verifier: from one seed always the
 * same program. They pass numbers and stack addresses around, branch on them, and index a value with or without a check.
 */
import { randomSource } from "../random-program.ts";

const conditions = ["==", "!=", ">", ">=", "<", "<=", "s>", "s<", "&"];
const operators = ["+=", "+=", "+=", "-=", "*=", "&=", "|=", "^=", "<<=", ">>="];
const bounds = [0, 1, 2, 3, 7, 8, 31, 56, 60, 61, 62, 63, 64];
/** Registers that hold numbers everywhere. r6 is the address of three numbers: the caller's, or in main its own. */
const numbers = ["r7", "r8", "r9"];
const FUNCTIONS = 4;

/** One program; for `assembleCase` with maps as in verify-cases.ts. */
export function randomFunctions(seed: number): string {
  const random = randomSource(seed);
  const below = (limit: number) => Math.floor(random() * limit);
  const pick = <T>(list: readonly T[]) => list[below(list.length)]!;
  let labels = 0;

  const statement = (fn: number, depth: number): string => {
    if (fn === 0 && random() < 0.15) return `r5 = *(u64 *)(r10 -40)\n${pick(numbers)} = *(u8 *)(r5 +0)`;
    const a = pick(numbers);
    const b = pick(numbers);
    const slot = `*(u64 *)(r6 +${8 * below(3)})`;
    const choice = below(100);
    if (choice < 14) return `${a} ${pick(operators)} ${pick(bounds)}`;
    if (choice < 20) return `${a} ${pick(["+=", "&=", "|=", "-="])} ${b}`;
    if (choice < 24) return `${a} = ${pick([b, `${pick(bounds)}`])}`;
    if (choice < 34) return `${a} = ${slot}`;
    if (choice < 44) return random() < 0.3 ? `${slot} = ${pick(bounds)}` : `${slot} = ${a}`;
    if (choice < 48)
      return `*(u64 *)(r10 -${8 + 8 * below(3)}) = ${a}\n${b} = *(u64 *)(r10 -${8 + 8 * below(3)})`;
    if (choice < 62 && depth < 3) {
      const label = `l${labels++}`;
      const inside = block(fn, depth + 1, 1 + below(3));
      return `if ${a} ${pick(conditions)} ${random() < 0.7 ? pick(bounds) : b} goto ${label}\n${inside}\n${label}: r0 = 0`;
    }
    if (choice < 72) {
      const label = `l${labels++}`;
      const guard = pick([
        "r2 &= 63",
        `if r2 > 63 goto ${label}`,
        `if r2 > 64 goto ${label}`,
        "",
        "",
        "",
        "",
      ]);
      return `r1 = map[0][0]+0\nr2 = ${a}\n${guard}\nr1 += r2\n${pick([`${b} = *(u8 *)(r1 +0)`, `*(u8 *)(r1 +0) = ${b}`])}\n${label}: r0 = 0`;
    }
    if (choice < 75) {
      const label = `l${labels++}`;
      return `*(u64 *)(r10 -32) = ${a}\nr1 = map[1]\nr2 = r10\nr2 += -32\ncall bpf_map_lookup_elem\nif r0 == 0 goto ${label}\n${b} = *(u64 *)(r0 +0)\n${label}: r0 = 0`;
    }
    if (choice < 78 && depth < 2) {
      const label = `l${labels++}`;
      return `${a} = 0\n${label}: ${block(fn, 3, 1)}\n${a} += 1\nif ${a} < ${1 + below(6)} goto ${label}`;
    }
    const address = pick(["r6", "r10"]);
    const shared = address === "r6" ? "r2 = r6" : "r2 = r10\nr2 += -24";
    if (fn + 1 < FUNCTIONS && choice < 90) {
      const callee = fn + 1 + below(FUNCTIONS - fn - 1);
      return `r1 = ${a}\n${shared}\ncall &f${callee}\n${random() < 0.7 ? `${b} = r0` : "r0 = 0"}`;
    }
    if (fn + 1 < FUNCTIONS) {
      const callee = fn + 1 + below(FUNCTIONS - fn - 1);
      const times = random() < 0.5 ? `r1 = ${below(9)}` : `r1 = ${a}\nr1 &= 7`;
      return `${times}\n${shared.replaceAll("r2", "r3")}\nr2 = &cb${callee}\nr4 = 0\ncall bpf_loop\n${random() < 0.3 ? `${b} = r0` : "r0 = 0"}`;
    }
    return `${a} += 1`;
  };
  const block = (fn: number, depth: number, count: number) =>
    Array.from({ length: count }, () => statement(fn, depth)).join("\n");

  const own = Array.from({ length: 3 }, (_, i) => `*(u64 *)(r10 -${8 * (i + 1)}) = ${pick(bounds)}`).join(
    "\n",
  );
  const bodies: string[] = [];
  for (let fn = 1; fn < FUNCTIONS; fn++) {
    const start = `r6 = r2\nr7 = r1\nr8 = ${pick(bounds)}\nr9 = *(u64 *)(r6 +${8 * below(3)})\n${own}`;
    const result = random() < 0.3 ? `r0 = ${pick(numbers)}\nr0 &= 1` : "r0 = 0";
    bodies.push(`f${fn}: ${start}\n${block(fn, 1, 1 + below(4))}\nr0 = ${pick(numbers)}\nexit`);
    bodies.push(`cb${fn}: ${start}\n${block(fn, 1, 1 + below(4))}\n${result}\nexit`);
  }
  const main = block(0, 0, 4 + below(6));
  // What nothing names is called at the end, so that all is reached.
  const rest: string[] = [];
  for (let fn = 1; fn < FUNCTIONS; fn++) {
    const all = [main, ...bodies].join("\n");
    if (!all.includes(`&f${fn}`)) rest.push(`r1 = r9\nr2 = r6\ncall &f${fn}`);
    if (!all.includes(`&cb${fn}`)) rest.push(`r1 = 2\nr2 = &cb${fn}\nr3 = r6\nr4 = 0\ncall bpf_loop`);
  }
  const begin = `*(u64 *)(r10 -40) = r1\nr7 = *(u64 *)(r1 +8)\nr7 &= ${pick([1, 3, 7])}\nr8 = ${pick(bounds)}\nr9 = ${pick(bounds)}\n${own}\nr6 = r10\nr6 += -24\n`;
  bodies.unshift([begin + main, ...rest, `r0 = ${pick([...numbers, "0"])}\nexit`].join("\n"));
  return bodies.join("\n");
}
