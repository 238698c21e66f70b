/**
 * Compiles proved programs to x86-64: one unit per placement of code, in one assembler.
 *
 *     const unit = new JitUnit(asm, bundle, env);
 *     const program = unit.emit(bundle.programs[0]!, proof);
 *     unit.finish();                       // the routines that programs call
 *     asm.finish();
 *
 * Stages, one file each: what is known about registers (values), operations with resolved operands (lower,
 * operations), removal of what has no effect (liveness), joining (fold), registers (allocate), code
 * (program-emitter). Routines (hash, ring, array, task, user reads) are specialised for their map and emitted once.
 *
 * A program is reached by `call` with the context right above the return address, and ends with `ret`. It changes
 * the flags and the registers in `clobbers`; it never touches vector registers or the direction flag, takes no
 * lock, and assumes nothing about the alignment of rsp.
 */
import type { Assembler, Label } from "../../x86/assembler.ts";
import type { RegSet } from "../../x86/registers.ts";
import type { Bundle, ProgramSpec, Proof } from "../program.ts";
import { assignRegs } from "./allocate.ts";
import { foldOperations } from "./fold.ts";
import { type HelperCall, routineFor } from "./helper-routines.ts";
import type { LinkEnv } from "./link-env.ts";
import { type OpList, removeDead } from "./liveness.ts";
import { lowerInsn } from "./lower.ts";
import { isNear } from "./memory-moves.ts";
import { ProgramEmitter } from "./program-emitter.ts";
import { RoutineSet } from "./routine.ts";
import { fillPidCache } from "./task-routines.ts";
import { knownValues } from "./values.ts";

export interface CompiledProgram {
  readonly name: string;
  readonly entry: Label;
  /** Behind the last byte of the program itself. */
  readonly end: Label;
  /** Registers that a call may change, routines included; flags always, rsp never. */
  readonly clobbers: RegSet;
  /** Offsets of the slots of the context that the program may read. */
  readonly ctxReads: ReadonlySet<number>;
  /** Bytes below rsp at entry (where the return address lies) that may be used, routines included. */
  readonly stackBytes: number;
  /**
   * Where the code of an instruction begins, for those that have code, and at the number of slots what is out of line;
   * empty unless asked for.
   */
  readonly slots: ReadonlyMap<number, Label>;
}

export interface EmitOptions {
  /** Leave r0 in rax. Without it, what only computes the result is left out. */
  readonly keepsResult?: boolean;
  /**
   * What lies above the return address: the context itself, or two 64-bit words, which become r1 (the address of
   * memory) and r2 (its length).
   */
  readonly entry?: "context" | "memory";
  /** Fills `CompiledProgram.slots`. */
  readonly marksSlots?: boolean;
}

export class JitUnit {
  readonly #asm: Assembler;
  readonly #bundle: Bundle;
  readonly #env: LinkEnv;
  readonly #routines: RoutineSet;

  constructor(asm: Assembler, bundle: Bundle, env: LinkEnv) {
    this.#asm = asm;
    this.#bundle = bundle;
    this.#env = env;
    this.#routines = new RoutineSet(asm);
  }

  /** Emits one program here. `proof` must be the verifier's for exactly this program and the unit's maps. */
  emit(program: ProgramSpec, proof: Proof, options: EmitOptions = {}): CompiledProgram {
    const { keepsResult = false, entry = "context", marksSlots = false } = options;
    const { insns } = program;
    const isDead = (slot: number) => proof.deadInsns.has(slot);
    const { before, isTarget } = knownValues(insns, isDead, entry, (index) => this.#env.mapAddr(index));
    const context = {
      bundle: this.#bundle,
      proof,
      env: this.#env,
      isNear: (address: bigint) => isNear(this.#asm, address),
      routineFor: (call: HelperCall) =>
        routineFor({ routines: this.#routines, env: this.#env, bundle: this.#bundle }, call),
    };
    const list: OpList = {
      ops: insns.map((_, slot) => {
        const values = before[slot];
        return values === undefined ? undefined : lowerInsn(context, insns, slot, values);
      }),
      keepsResult,
    };
    foldOperations(list, removeDead(list), isTarget);
    const live = removeDead(list);
    const emitted = new ProgramEmitter({
      asm: this.#asm,
      env: this.#env,
      list,
      live,
      assignment: assignRegs(list, live),
      isTarget,
      entry,
      marksSlots,
      frameBytes: proof.stackBytes,
      fillPidCache: () => fillPidCache(this.#routines, this.#env),
    }).emit();
    return { name: program.name, ...emitted, ctxReads: proof.ctxReads };
  }

  /** Emits the routines that programs call; more programs may follow, and then another `finish`. */
  finish(): void {
    this.#routines.emitPending();
  }
}
