/**
 * Compiles the session's programs for the places where they will be: each once for every code space that calls it.
 * Only a program with a proof is compiled.
 */
import { HELPER_TAIL_CALL } from "../../bpf/helpers.ts";
import type { Bundle, Proof } from "../../bpf/index.ts";
import { emitAccountCount, JitUnit, type LinkEnv } from "../../bpf/jit/index.ts";
import type { GateProgram } from "../../gate/index.ts";
import { emitLoadGate, LOAD_GATE_STACK_BYTES, loadGateClobbers } from "../../patch/load-gate.ts";
import { type UnwindHook, unwindHookClobbers, unwindHookReads } from "../../patch/unwind-table.ts";
import { Assembler } from "../../x86/assembler.ts";
import type { CodeSpace } from "./code-space.ts";
import { countingOf } from "./counting-place.ts";

/** Most that an instruction becomes, and that the routines of one program take; what is not used is never touched. */
const INSN_SPACE_BYTES = 96;
const ROUTINES_SPACE_BYTES = 24 << 10;
/** Most that code of the engine itself takes. */
const ENGINE_SPACE_BYTES = 256;

/** A program of the bundle, compiled for the account of a probe (a number of the session), or code of the engine itself. */
export type Runnable =
  | {
      readonly kind: "program";
      /** The bundle that was added as this one; the first unless told. */
      readonly bundle?: number | undefined;
      readonly index: number;
      readonly account?: number | undefined;
    }
  /** Waits at the dynamic loader; `words` is the address of the words shared with the tracer. */
  | { readonly kind: "load-gate"; readonly words: bigint }
  /** Counts the hits of one point, in an account of its own. */
  | { readonly kind: "site-count"; readonly account: number }
  /** Answers the unwinder of one image, by its site, for replaced return addresses. */
  | { readonly kind: "unwind-hook"; readonly site: bigint; readonly hook: (at: bigint) => UnwindHook };

/** A program at its place. */
export interface PlacedProgram extends Omit<GateProgram, "cookie"> {
  readonly kind: "program" | "load_gate" | "unwind_hook";
  /** Its own code, without the routines that it calls. */
  readonly bytes: Uint8Array;
  /** All that was written for it, with the routines. */
  readonly unit: { readonly at: bigint; readonly bytes: Uint8Array };
  readonly run: Runnable;
  /** Whether a hit whose main function is at this address has been counted in its account. */
  isCounted(at: bigint): boolean;
}

/** Takes the bytes that are to be written at the next free place of a space. */
export type WriteCode = (space: CodeSpace, at: bigint, bytes: Uint8Array) => void;

export interface CompilerInput {
  readonly bundle: Bundle;
  /** By program index. */
  readonly proofs: readonly Proof[];
  readonly env: LinkEnv;
  /** Undefined: nothing is counted. */
  readonly accounts?: ProgramAccounts | undefined;
  /**
   * A program may be left in the middle. Then what its routines give back at their end counts as changed, and it is known where
   * the program counts its hit.
   */
  readonly mayAbandon: boolean;
}

/** Where the accounts of probes are in the target. */
export interface ProgramAccounts {
  at(account: number): bigint;
  /** Index of the map that stands for the account of a script's program; undefined: programs know nothing of accounts. */
  readonly map: number | undefined;
}

export class ProgramCompiler {
  readonly #inputs: CompilerInput[];
  readonly #compiled = new Map<CodeSpace, Map<string, PlacedProgram>>();
  readonly #mayAbandon: boolean;

  constructor(input: CompilerInput) {
    this.#inputs = [input];
    this.#mayAbandon = input.mayAbandon;
  }

  /** Takes another bundle; returns its number. */
  add(input: Omit<CompilerInput, "mayAbandon">): number {
    return this.#inputs.push({ ...input, mayAbandon: this.#mayAbandon }) - 1;
  }

  /** The proofs of the bundle that a program is in. */
  proofsOf({ bundle }: Extract<Runnable, { kind: "program" }>): readonly Proof[] {
    return this.#inputs[bundle ?? 0]!.proofs;
  }

  /** Most bytes that these programs together take in one space. */
  spaceBytes(runs: Iterable<Runnable>): number {
    const sizes = new Map<string, number>();
    for (const run of runs) {
      if (run.kind !== "program") {
        sizes.set(keyOf(run), ENGINE_SPACE_BYTES);
        continue;
      }
      const { bundle, proofs } = this.#inputs[run.bundle ?? 0]!;
      const all = bundle.programs.reduce((sum, { insns }) => sum + insns.length * INSN_SPACE_BYTES, 0);
      const { insns } = bundle.programs[run.index]!;
      // A program that makes tail calls has all others beside it.
      const own = proofs[run.index]?.helpers.has(HELPER_TAIL_CALL) ? all : insns.length * INSN_SPACE_BYTES;
      sizes.set(keyOf(run), own + ROUTINES_SPACE_BYTES);
    }
    return [...sizes.values()].reduce((sum, size) => sum + size, ROUTINES_SPACE_BYTES);
  }

  /** Is the program there already? */
  isIn(space: CodeSpace, run: Runnable): boolean {
    return this.#compiled.get(space)?.has(keyOf(run)) === true;
  }

  /** The program as compiled for this space; compiled and handed to `write` the first time it is asked for. */
  programIn(space: CodeSpace, run: Runnable, write: WriteCode): PlacedProgram {
    const key = keyOf(run);
    let programs = this.#compiled.get(space);
    if (programs === undefined) {
      programs = new Map();
      this.#compiled.set(space, programs);
    }
    let program = programs.get(key);
    if (program === undefined) {
      program =
        run.kind === "program"
          ? this.#compile(space, run, write)
          : run.kind === "load-gate"
            ? emitGate(space, run, write)
            : run.kind === "site-count"
              ? this.#emitSiteCount(space, run, write)
              : emitHook(space, run, write);
      programs.set(key, program);
    }
    return program;
  }

  /** What was compiled to be called at an address. */
  findAt(entry: bigint): PlacedProgram | undefined {
    for (const program of this.placed()) if (program.entry === entry) return program;
    return undefined;
  }

  /** Everything that is in place. */
  *placed(): Generator<PlacedProgram> {
    for (const programs of this.#compiled.values()) yield* programs.values();
  }

  #emitSiteCount(space: CodeSpace, run: EngineRun<"site-count">, write: WriteCode): PlacedProgram {
    const { accounts, env } = this.#inputs[0]!;
    if (accounts === undefined) throw new Error("count the hits of a site: there are no accounts");
    const asm = new Assembler(space.next);
    const { clobbers } = emitAccountCount(asm, accounts.at(run.account), env.cpu);
    const bytes = asm.finish();
    write(space, asm.base, bytes);
    return {
      kind: "program",
      ...ofEngine(run),
      name: "site count",
      unit: { at: asm.base, bytes },
      bytes,
      entry: asm.base,
      clobbers,
      ctxReads: new Set(),
      stackBytes: 0,
    };
  }

  #compile(space: CodeSpace, run: EngineRun<"program">, write: WriteCode): PlacedProgram {
    const { bundle: number = 0, index, account } = run;
    const input = this.#inputs[number]!;
    const { bundle, proofs } = input;
    const env = envFor(input, account);
    const spec = bundle.programs[index]!;
    const asm = new Assembler(space.next);
    const unit = new JitUnit(asm, bundle, env, proofs);
    const compiled = unit.emit(spec, proofs[index]!, { marksSlots: this.#mayAbandon });
    unit.finish();
    const code = asm.finish();
    write(space, asm.base, code);
    return {
      kind: "program",
      name: spec.name,
      unit: { at: asm.base, bytes: code },
      bytes: code.slice(asm.offsetOf(compiled.start), asm.offsetOf(compiled.end)),
      run,
      isCounted:
        account === undefined
          ? () => true
          : countingOf(
              spec.insns,
              input.accounts?.map,
              compiled.slots.map(([slot, label]) => ({ slot, at: asm.addressOf(label) })),
            ),
      entry: asm.addressOf(compiled.entry),
      clobbers: compiled.clobbers | (this.#mayAbandon ? asm.poppedRegs : 0),
      ctxReads: compiled.ctxReads,
      stackBytes: compiled.stackBytes,
    };
  }
}

function envFor({ env, accounts }: CompilerInput, account: number | undefined): LinkEnv {
  if (account === undefined || accounts === undefined) return env;
  const at = accounts.at(account);
  return {
    ...env,
    mapAddr: (index) => (index === accounts.map ? at : env.mapAddr(index)),
    account: { at, isKeptByProgram: accounts.map !== undefined },
  };
}

function keyOf(run: Runnable): string {
  switch (run.kind) {
    case "program":
      return `program ${run.bundle ?? 0} ${run.index} for ${run.account}`;
    case "site-count":
      return `${run.kind} ${run.account}`;
    case "load-gate":
      return run.kind;
    case "unwind-hook":
      return `${run.kind} ${run.site}`;
    default:
      return run satisfies never;
  }
}

type EngineRun<Kind extends Runnable["kind"]> = Extract<Runnable, { kind: Kind }>;

const ofEngine = (run: Runnable) => ({ run, isCounted: () => true });

function emitHook(space: CodeSpace, run: EngineRun<"unwind-hook">, write: WriteCode): PlacedProgram {
  const { at, bytes, entry } = run.hook(space.next);
  write(space, at, bytes);
  return {
    kind: "unwind_hook",
    ...ofEngine(run),
    name: "unwind hook",
    unit: { at, bytes },
    bytes,
    entry,
    clobbers: unwindHookClobbers,
    ctxReads: unwindHookReads,
    stackBytes: 0,
  };
}

function emitGate(space: CodeSpace, run: EngineRun<"load-gate">, write: WriteCode): PlacedProgram {
  const asm = new Assembler(space.next);
  const entry = emitLoadGate(asm, run.words);
  const bytes = asm.finish();
  write(space, asm.base, bytes);
  return {
    kind: "load_gate",
    ...ofEngine(run),
    name: "load gate",
    unit: { at: asm.base, bytes },
    bytes,
    entry: asm.addressOf(entry),
    clobbers: loadGateClobbers,
    ctxReads: new Set(),
    stackBytes: LOAD_GATE_STACK_BYTES,
  };
}
