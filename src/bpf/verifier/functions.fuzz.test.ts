import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeInsns, encodeInsns, type Insn } from "../insn.ts";
import { interpret } from "../interpreter/interpreter.ts";
import { fakeArray, fakeHash, fakeHost, fakeRing } from "../interpreter/test-world.ts";
import { randomSource } from "../random-program.ts";
import { printProgram } from "../text.ts";
import { contains } from "./scalar.ts";
import type { State } from "./state.ts";
import { randomFunctions } from "./test-random-functions.ts";
import { assembleCase } from "./test-text.ts";
import { type VerifyOptions, verifyProgram } from "./verify.ts";
import { caseMaps } from "./verify-cases.ts";

const seeds = fc.integer({ min: 0, max: 0x7fffffff });
const edges = [0n, 1n, 2n, 7n, 8n, 62n, 63n, 64n, 65n, 255n, 1n << 32n, (1n << 63n) - 1n, (1n << 64n) - 1n];

const strict = { checkInitialised: true, uninitStack: "allow" } as const;

/** As many checkpoints as there can be. */
const dense = { stepsBetween: 0 };

/** Those that a world has: a mutation may name any. */
const worldMaps = caseMaps.slice(0, 3);

function verify(insns: readonly Insn[], options: VerifyOptions = {}) {
  return verifyProgram({ insns }, worldMaps, { maxVisits: 20_000, ...options });
}

function randomWorld(seed: number) {
  const random = randomSource(seed);
  const number = () => edges[Math.floor(random() * edges.length)]!;
  const ctx = new Uint8Array(168);
  const view = new DataView(ctx.buffer);
  for (let at = 0; at < ctx.length; at += 8) view.setBigUint64(at, number(), true);
  const maps = [fakeArray(4, 64), fakeHash(8, 8, 100), fakeRing(32, 64)];
  for (const { memory } of maps)
    memory.words.set(Array.from(memory.words, () => BigInt.asIntN(64, number())));
  return { maps, host: fakeHost(), entry: { kind: "context", bytes: ctx } } as const;
}

describe("verifier on random programs of several functions", () => {
  it("never throws on mutated ones, and accepts only those that never fault", () => {
    fc.assert(
      fc.property(seeds, (seed) => {
        const random = randomSource(seed ^ 0x5eed);
        const below = (limit: number) => Math.floor(random() * limit);
        const bytes = encodeInsns(assembleCase(randomFunctions(seed)));
        for (let i = 0; i < 1 + below(3); i++) {
          const slot = below(bytes.length / 8) * 8;
          if (random() < 0.5) bytes.copyWithin(slot, below(bytes.length / 8) * 8, slot + 8);
          else bytes[slot + below(8)] = random() < 0.5 ? below(256) : below(12);
        }
        const decoded = decodeInsns(bytes);
        if (decoded.kind === "bad") throw new Error(decoded.message);
        const { insns } = decoded;
        if (verify(insns, { maxVisits: 3000 }).kind !== "accepted") return;
        const result = interpret({ insns, ...randomWorld(seed), ...strict, maxSteps: 200_000 });
        // A mutation can make a callback run up to 2^23 times.
        if (result.kind === "faulted" && !result.message.startsWith("no exit within"))
          throw new Error(`${result.message} at ${result.at} of\n${printProgram(insns)}`);
      }),
      { numRuns: 400 },
    );
  });

  it("accepts only those that never fault, and accepts many", () => {
    let accepted = 0;
    fc.assert(
      fc.property(seeds, (seed) => {
        const text = randomFunctions(seed);
        const insns = assembleCase(text);
        if (verify(insns, { observer: dense }).kind !== "accepted") return;
        accepted++;
        for (let i = 0; i < 6; i++) {
          const world = randomWorld(seed + i);
          const result = interpret({ insns, ...world, ...strict, maxSteps: 1_000_000 });
          if (result.kind !== "returned") throw new Error(`${result.message} at ${result.at} of\n${text}`);
        }
      }),
      { numRuns: 300 },
    );
    expect(accepted).toBeGreaterThan(100);
  });

  it("knows every number that a run has at every instruction", () => {
    fc.assert(
      fc.property(seeds, (seed) => {
        const text = randomFunctions(seed);
        const insns = assembleCase(text);
        const states = new Map<number, State[]>();
        const onState = (at: number, state: State) => {
          const list = states.get(at) ?? [];
          list.push(state.clone());
          states.set(at, list);
        };
        const verdict = verify(insns, { maxVisits: 3000, observer: { prunes: false, onState } });
        if (verdict.kind !== "accepted") return;
        for (let i = 0; i < 4; i++) {
          interpret({
            insns,
            ...randomWorld(seed + i),
            trace: (at, regs, depth) => {
              const isKnown = (state: State) =>
                state.depth === depth - 1 &&
                state.regs.every((value, reg) => value.kind !== "scalar" || contains(value, regs[reg]!));
              if (states.get(at)?.some(isKnown)) return;
              throw new Error(`r0..r10 = ${regs.join(" ")} at ${at} of\n${text}`);
            },
          });
        }
      }),
      { numRuns: 150 },
    );
  });

  it("refuses nothing less when it stops at covered states", () => {
    fc.assert(
      fc.property(seeds, (seed) => {
        const text = randomFunctions(seed);
        const insns = assembleCase(text);
        if (verify(insns, { maxVisits: 4000, observer: dense }).kind !== "accepted") return;
        const whole = verify(insns, { maxVisits: 12_000, observer: { prunes: false } });
        if (whole.kind === "rejected" && !/too (large|complex)/.test(whole.message))
          throw new Error(`${text}\n${whole.log}`);
      }),
      { numRuns: 300 },
    );
  });
});
