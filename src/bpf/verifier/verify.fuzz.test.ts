import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeInsns, type Insn } from "../insn.ts";
import { interpret } from "../interpreter/interpreter.ts";
import { fakeArray, fakeHash, fakeHost, fakeRing } from "../interpreter/test-world.ts";
import type { Proof } from "../program.ts";
import { randomProgram, randomProgramMaps, randomSource } from "../random-program.ts";
import { printProgram } from "../text.ts";
import { contains } from "./scalar.ts";
import type { Value } from "./value.ts";
import { verifyProgram } from "./verify.ts";

/** Enough for all programs that end; those that do not would take long to reach the real limit. */
const maxVisits = 20_000;
const seeds = fc.integer({ min: 0, max: 0x7fffffff });

const edges = [
  0n,
  1n,
  7n,
  8n,
  63n,
  64n,
  255n,
  1n << 31n,
  0xffff_ffffn,
  1n << 32n,
  (1n << 63n) - 1n,
  1n << 63n,
  (1n << 64n) - 1n,
];

/** Random contents for everything a program can read. */
function randomWorld(seed: number) {
  const random = randomSource(seed);
  const below = (limit: number) => Math.floor(random() * limit);
  const number = () =>
    random() < 0.6 ? edges[below(edges.length)]! : (BigInt(below(2 ** 32)) << 32n) | BigInt(below(2 ** 32));
  const ctx = new Uint8Array(168);
  const view = new DataView(ctx.buffer);
  for (let at = 0; at < ctx.length; at += 8) view.setBigUint64(at, number(), true);
  const maps = [fakeArray(4, 64), fakeHash(8, 8, 24), fakeRing(32, 4)];
  for (const { memory } of maps)
    memory.words.set(Array.from(memory.words, () => BigInt.asIntN(64, number())));
  const host = {
    ...fakeHost(),
    prandomU32: () => below(2 ** 32),
    cpu: () => below(4096),
    ktimeGetNs: number,
    pidTgid: number,
    uidGid: number,
    readUser(_addr: bigint, into: Uint8Array) {
      into.set(Array.from(into, () => (random() < 0.1 ? 0 : below(256))));
      return random() < 0.7;
    },
  };
  return { maps, host, entry: { kind: "context", bytes: ctx } } as const;
}

/** Runs an accepted program in a few worlds; it must return within what the proof walked. */
function expectNoFault(insns: readonly Insn[], proof: Proof, seed: number): void {
  for (let i = 0; i < 6; i++) {
    const world = randomWorld(seed * 31 + i);
    const result = interpret({
      insns,
      ...world,
      checkInitialised: true,
      uninitStack: "allow",
      maxSteps: proof.visited,
    });
    if (result.kind !== "returned")
      throw new Error(`${result.message} at ${result.at} of\n${printProgram(insns)}`);
  }
}

const isKnown = (regs: readonly bigint[]) => (state: Value[]) =>
  state.every((value, reg) => value.kind !== "scalar" || contains(value, regs[reg]!));

describe("verifier on random input", () => {
  it("never throws on random bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 0, maxLength: 80 }), (bytes) => {
        const decoded = decodeInsns(bytes.subarray(0, bytes.length & ~7));
        if (decoded.kind === "decoded")
          verifyProgram({ insns: decoded.insns }, randomProgramMaps, { maxVisits });
      }),
      { numRuns: 1000 },
    );
  });

  it("accepts only programs that never fault, and accepts many", () => {
    let accepted = 0;
    fc.assert(
      fc.property(seeds, (seed) => {
        const insns = randomProgram(seed);
        const verdict = verifyProgram({ insns }, randomProgramMaps, { maxVisits });
        if (verdict.kind !== "accepted") return;
        accepted++;
        expectNoFault(insns, verdict.proof, seed);
      }),
      { numRuns: 400 },
    );
    expect(accepted).toBeGreaterThan(40);
  });

  it("accepts only mutated programs that never fault", () => {
    fc.assert(
      fc.property(seeds, (seed) => {
        const insns = randomProgram(seed, { pieces: 6, mutate: true });
        const verdict = verifyProgram({ insns }, randomProgramMaps, { maxVisits });
        if (verdict.kind === "accepted") expectNoFault(insns, verdict.proof, seed);
      }),
      { numRuns: 700 },
    );
  });

  it("knows every number that a run has at every instruction", () => {
    fc.assert(
      fc.property(seeds, (seed) => {
        const insns = randomProgram(seed);
        const states = new Map<number, Value[][]>();
        const observer = {
          prunes: false,
          onState: (at: number, { regs }: { readonly regs: Value[] }) => {
            states.set(at, [...(states.get(at) ?? []), regs.slice()]);
          },
        };
        const verdict = verifyProgram({ insns }, randomProgramMaps, { maxVisits: 1500, observer });
        if (verdict.kind !== "accepted") return;
        for (let i = 0; i < 3; i++) {
          interpret({
            insns,
            ...randomWorld(seed + i),
            trace: (at, regs) => {
              if (states.get(at)?.some(isKnown(regs))) return;
              throw new Error(`r0..r10 = ${regs.join(" ")} at ${at} of\n${printProgram(insns)}`);
            },
          });
        }
      }),
      { numRuns: 300 },
    );
  });

  it("refuses nothing less when it stops at covered states", () => {
    const observer = { prunes: false, onState: () => undefined };
    fc.assert(
      fc.property(seeds, (seed) => {
        const insns = randomProgram(seed);
        const pruned = verifyProgram({ insns }, randomProgramMaps, { maxVisits: 3000 });
        if (pruned.kind !== "accepted") return;
        const full = verifyProgram({ insns }, randomProgramMaps, { maxVisits: 6000, observer });
        if (full.kind === "rejected" && !/too (large|complex)/.test(full.message)) throw new Error(full.log);
      }),
      { numRuns: 300 },
    );
  });
});
