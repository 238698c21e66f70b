/**
 * Compiles the session's programs for the places where they will be: each once for every code space that calls it.
 * Only a program with a proof is compiled.
 */
import { HELPER_TAIL_CALL } from "../bpf/helpers.ts";
import type { Bundle, Proof } from "../bpf/index.ts";
import { JitUnit, type LinkEnv } from "../bpf/jit/index.ts";
import type { GateProgram } from "../gate/index.ts";
import { emitLoadGate, LOAD_GATE_STACK_BYTES, loadGateClobbers } from "../patch/load-gate.ts";
import { Assembler } from "../x86/assembler.ts";
import type { CodeSpace } from "./code-space.ts";

/** Most that an instruction becomes, and that the routines of one program take; what is not used is never touched. */
const INSN_SPACE_BYTES = 96;
const ROUTINES_SPACE_BYTES = 24 << 10;

/** A program of the bundle, or code of the engine itself. */
export type Runnable =
  | { readonly kind: "program"; readonly index: number }
  /** Waits at the dynamic loader; `words` is the address of the words shared with the tracer. */
  | { readonly kind: "load-gate"; readonly words: bigint };

/** A program at its place. */
export interface PlacedProgram extends Omit<GateProgram, "cookie"> {
  /** Its own code, without the routines that it calls. */
  readonly bytes: Uint8Array;
}

/** Takes the bytes that are to be written at the next free place of a space. */
export type WriteCode = (space: CodeSpace, at: bigint, bytes: Uint8Array) => void;

export interface CompilerInput {
  readonly bundle: Bundle;
  /** By program index. */
  readonly proofs: readonly Proof[];
  readonly env: LinkEnv;
}

export class ProgramCompiler {
  readonly #input: CompilerInput;
  readonly #compiled = new Map<CodeSpace, Map<string, PlacedProgram>>();

  constructor(input: CompilerInput) {
    this.#input = input;
  }

  /** Most bytes that all programs together take in one space. */
  get spaceBytes(): number {
    const { bundle, proofs } = this.#input;
    const all = bundle.programs.reduce((sum, { insns }) => sum + insns.length * INSN_SPACE_BYTES, 0);
    // A program that makes tail calls has all others beside it.
    const own = bundle.programs.map(({ insns }, index) =>
      proofs[index]?.helpers.has(HELPER_TAIL_CALL) ? all : insns.length * INSN_SPACE_BYTES,
    );
    return own.reduce((sum, lenBytes) => sum + lenBytes + ROUTINES_SPACE_BYTES, ROUTINES_SPACE_BYTES);
  }

  /** The program as compiled for this space; compiled and handed to `write` the first time it is asked for. */
  programIn(space: CodeSpace, run: Runnable, write: WriteCode): PlacedProgram {
    const key = run.kind === "program" ? `program ${run.index}` : run.kind;
    let programs = this.#compiled.get(space);
    if (programs === undefined) {
      programs = new Map();
      this.#compiled.set(space, programs);
    }
    let program = programs.get(key);
    if (program === undefined) {
      program =
        run.kind === "program" ? this.#compile(space, run.index, write) : emitGate(space, run.words, write);
      programs.set(key, program);
    }
    return program;
  }

  #compile(space: CodeSpace, index: number, write: WriteCode): PlacedProgram {
    const { bundle, proofs, env } = this.#input;
    const spec = bundle.programs[index]!;
    const asm = new Assembler(space.next);
    const unit = new JitUnit(asm, bundle, env, proofs);
    const compiled = unit.emit(spec, proofs[index]!);
    unit.finish();
    const code = asm.finish();
    write(space, asm.base, code);
    return {
      name: spec.name,
      bytes: code.slice(asm.offsetOf(compiled.start), asm.offsetOf(compiled.end)),
      entry: asm.addressOf(compiled.entry),
      clobbers: compiled.clobbers,
      ctxReads: compiled.ctxReads,
      stackBytes: compiled.stackBytes,
    };
  }
}

function emitGate(space: CodeSpace, words: bigint, write: WriteCode): PlacedProgram {
  const asm = new Assembler(space.next);
  const entry = emitLoadGate(asm, words);
  const bytes = asm.finish();
  write(space, asm.base, bytes);
  return {
    name: "load gate",
    bytes,
    entry: asm.addressOf(entry),
    clobbers: loadGateClobbers,
    ctxReads: new Set(),
    stackBytes: LOAD_GATE_STACK_BYTES,
  };
}
