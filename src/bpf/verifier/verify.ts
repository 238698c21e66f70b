/**
 * The verifier: proves that a program cannot fault, cannot leak a record, and ends, or says why not.
 *
 * Path-sensitive abstract interpretation, as the kernel does it, and refusing by default. Division by zero and shifts
 * beyond the width are defined (RFC 9669), so they are accepted. Unreachable instructions are refused, as the kernel
 * does; `Proof.deadInsns` are those that only a decided comparison cuts off.
 *
 * What is proved holds while other threads write to maps and records: what is loaded from them is never trusted, but
 * for read-only maps whose contents the caller gives.
 *
 * Functions of the program are walked at each call with what they are given (functions.ts), as the kernel does it with
 * static functions. The other programs to which a tail call can lead have proofs of their own.
 */
import type { MapSpec, ProgramSpec, Proof } from "../program.ts";
import { Explorer, type Observer } from "./explore.ts";
import { defaultLimits, type Limits } from "./limits.ts";
import { printFunctions, printPath, printState } from "./log.ts";
import { Machine } from "./machine.ts";
import { Rejection } from "./rejection.ts";
import { checkStackDepth } from "./stack-depth.ts";
import { type Entry, entryState } from "./state.ts";
import { checkStructure, type GoodStructure } from "./structure.ts";

/** Instructions that are looked at before a program is refused as too complex. */
export const MAX_VISITS = 1_000_000;
/** Steps of the path that the log shows. */
const LOG_STEPS = 80;

export type Verdict =
  | { readonly kind: "accepted"; readonly proof: Proof }
  | {
      readonly kind: "rejected";
      /** Index of the instruction. */
      readonly at: number;
      /** One line, as the kernel's verifier words it. */
      readonly message: string;
      /** The path to the instruction, what was known there, and the message. */
      readonly log: string;
    };

export interface VerifyOptions {
  /** What r1 is; a context unless told otherwise. */
  readonly entry?: Entry;
  readonly maxVisits?: number;
  /** What differs from `defaultLimits`. */
  readonly limits?: Partial<Limits>;
  readonly observer?: Observer;
}

/** Proves or refuses one program. Never throws, and ends on any input. `maps` are those that the program names by index. */
export function verifyProgram(
  program: Pick<ProgramSpec, "insns">,
  maps: readonly MapSpec[],
  options: VerifyOptions = {},
): Verdict {
  const { insns } = program;
  const limits = { ...defaultLimits, ...options.limits };
  const structure = checkStructure(insns, maps, limits.unreachable);
  if (structure.kind === "bad") {
    const { at, message } = structure;
    return { kind: "rejected", at, message, log: `${printPath(insns, [at])}${message}\n` };
  }
  const machine = new Machine(insns, maps, structure.starts, limits);
  const entry = entryState(options.entry ?? { kind: "context" });
  const maxVisits = options.maxVisits ?? MAX_VISITS;
  const explorer = new Explorer(machine, structure.meets, entry, maxVisits, options.observer);
  try {
    explorer.exploreAll();
  } catch (error) {
    if (!(error instanceof Rejection)) throw error;
    const path = printPath(insns, explorer.path(LOG_STEPS));
    const known = printState(explorer.state, machine);
    const log = `${printFunctions(structure.starts)}${path}${known}\n${error.message}\nprocessed ${explorer.visited} insns\n`;
    return { kind: "rejected", at: explorer.at, message: error.message, log };
  }
  const tooDeep = checkStackDepth(machine, structure, explorer.reached);
  if (tooDeep) {
    const { at, message } = tooDeep;
    const log = `${printPath(insns, [at])}${message}\nprocessed ${explorer.visited} insns\n`;
    return { kind: "rejected", at, message, log };
  }
  const proof = proofOf(machine, structure, explorer);
  return { kind: "accepted", proof };
}

function proofOf(machine: Machine, { starts }: GoodStructure, { reached, visited }: Explorer): Proof {
  const { stackBytes, findings, insns, callbacks } = machine;
  const deadInsns = new Set<number>();
  reached.forEach((isReached, at) => {
    if (!isReached) deadInsns.add(at);
  });
  const subprograms = starts.map((start, fn) => ({
    start,
    end: starts[fn + 1] ?? insns.length,
    stackBytes: stackBytes[fn]!,
    isCallback: callbacks.has(start),
  }));
  return {
    ...findings,
    stackBytes: stackBytes[0]!,
    subprograms: subprograms.filter(({ start }) => reached[start] === 1),
    deadInsns,
    visited,
  };
}
