/**
 * Compiles proved programs to x86-64: one unit per placement of code, in one assembler.
 *
 *     const unit = new JitUnit(asm, bundle, env);
 *     const program = unit.emit(bundle.programs[0]!, proof);
 *     unit.finish();                       // the routines that programs call
 *     asm.finish();
 *
 * Stages, one file each: the functions of a program in order (compile-program), what is known about registers
 * (values), operations with resolved operands (lower, operations), removal of what has no effect (liveness),
 * joining (fold), registers (allocate), code (function-emitter). Routines (hash, ring, array, task, user reads) are
 * specialised for their map and emitted once.
 *
 * A program that makes tail calls has all programs of its bundle beside it, compiled as functions, because it may go
 * to any of them; what it declares then holds for all that can happen.
 *
 * A program is reached by `call` with the context right above the return address, and ends with `ret`. It changes
 * the flags and the registers in `clobbers`; it never touches vector registers or the direction flag, takes no
 * lock, and assumes nothing about the alignment of rsp.
 */
import type { Assembler, Label } from "../../x86/assembler.ts";
import { RAX, type RegSet, regSet } from "../../x86/registers.ts";
import { HELPER_OVERRIDE_RETURN, HELPER_TAIL_CALL } from "../helpers.ts";
import type { Bundle, ProgramSpec, Proof } from "../program.ts";
import { type CompilationContext, type CompiledFunctions, compileProgram } from "./compile-program.ts";
import type { TailTargets } from "./function-emitter.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv } from "./link-env.ts";
import { noRoomResults } from "./lower.ts";
import { isNear } from "./memory-moves.ts";
import { type ProgramState, takeSlot } from "./program-state.ts";
import { type HelperCall, routineFor } from "./routines/helper-routines.ts";
import { RoutineSet } from "./routines/routine.ts";
import { fillPidCache } from "./routines/task-routines.ts";

/** The kernel's limit of tail calls of one run. */
const MAX_TAIL_CALLS = 33;

export interface CompiledProgram {
  readonly name: string;
  /** The first byte of the program's own code; functions lie before the entry. */
  readonly start: Label;
  readonly entry: Label;
  /** Behind the last byte of the program itself. */
  readonly end: Label;
  /** Registers that a call may change, routines and tail calls included; flags always, rsp never. */
  readonly clobbers: RegSet;
  /** Offsets of the slots of the context that the program, or one that it goes to, may read. */
  readonly ctxReads: ReadonlySet<number>;
  /** Bytes below rsp at entry (where the return address lies) that may be used, routines and tail calls included. */
  readonly stackBytes: number;
  /** Whether the program, or one that it goes to, may decide what the probed function returns. */
  readonly overridesReturn: boolean;
  /**
   * Where the code of an instruction begins, for those that have code; with slot -1 where the main function does, and
   * with the number of slots what is out of line. Empty unless asked for.
   */
  readonly slots: readonly (readonly [slot: number, at: Label])[];
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

/** The programs that tail calls lead to, compiled as functions. */
interface Targets extends TailTargets {
  readonly programs: readonly CompiledFunctions[];
}

export class JitUnit {
  readonly #asm: Assembler;
  readonly #bundle: Bundle;
  readonly #env: LinkEnv;
  readonly #proofs: readonly Proof[];
  readonly #routines: RoutineSet;
  #targets: Targets | undefined;

  /** `proofs` are those of the bundle's programs, in their order; only tail calls need them. */
  constructor(asm: Assembler, bundle: Bundle, env: LinkEnv, proofs: readonly Proof[] = []) {
    this.#asm = asm;
    this.#bundle = bundle;
    this.#env = env;
    this.#proofs = proofs;
    this.#routines = new RoutineSet(asm);
  }

  /** Emits one program here. `proof` must be the verifier's for exactly this program and the unit's maps. */
  emit(program: ProgramSpec, proof: Proof, options: EmitOptions = {}): CompiledProgram {
    const { keepsResult = false, entry = "context", marksSlots = false } = options;
    const makesTailCalls = proof.helpers.has(HELPER_TAIL_CALL);
    const proofs = makesTailCalls ? [proof, ...this.#getProofs()] : [proof];
    const slots: (readonly [number, Label])[] = [];
    const dispatch = makesTailCalls ? (this.#targets?.dispatch ?? this.#asm.label("tail call")) : undefined;
    const context = this.#context(proofs, dispatch);
    const main = compileProgram(context, program, proof, {
      entry,
      keepsResult,
      mark: marksSlots ? (slot, label) => slots.push([slot, label]) : undefined,
    });
    if (dispatch !== undefined) this.#targets ??= this.#emitTargets(dispatch, context);
    const { start, end } = main;
    return {
      name: program.name,
      start,
      entry: main.entry,
      end,
      ...(makesTailCalls && this.#targets !== undefined ? withTargets(main, this.#targets) : main),
      ctxReads: new Set(proofs.flatMap(({ ctxReads }) => [...ctxReads])),
      overridesReturn: proofs.some(({ helpers }) => helpers.has(HELPER_OVERRIDE_RETURN)),
      slots,
    };
  }

  /** Emits the routines that programs call; more programs may follow, and then another `finish`. */
  finish(): void {
    this.#routines.emitPending();
  }

  #getProofs(): readonly Proof[] {
    if (this.#proofs.length !== this.#bundle.programs.length)
      throw new JitError(
        `compile tail call: ${this.#proofs.length} proofs for ${this.#bundle.programs.length} programs`,
      );
    return this.#proofs;
  }

  /** What the programs with these proofs need while they run. */
  #context(proofs: readonly Proof[], dispatch: Label | undefined): CompilationContext {
    const { maps } = this.#bundle;
    const routines = this.#routines;
    const env = this.#env;
    const isPerCpu = (index: number) => maps[index]?.cpus !== undefined;
    const owner = maps.findIndex((_, index) => isPerCpu(index));
    const isInnerPerCpu = (outer: number) => owner >= 0 && maps[outer]?.inner?.cpus !== undefined;
    const hasSlot = proofs.some(
      ({ mapAtCall, outerMapAtCall }) =>
        [...mapAtCall.values()].some(isPerCpu) || [...outerMapAtCall.values()].some(isInnerPerCpu),
    );
    const hasTailCalls = dispatch !== undefined;
    const hasDrops =
      env.account !== undefined &&
      proofs.some(({ helpers }) => [...helpers].some((helper) => noRoomResults.has(helper)));
    const hasFunctions = proofs.some(({ subprograms }) => subprograms.length > 1);
    const state: ProgramState = {
      hasSlot,
      hasTailCalls,
      hasDrops,
      isInRegister: hasTailCalls || ((hasSlot || hasDrops) && hasFunctions),
    };
    return {
      asm: this.#asm,
      bundle: this.#bundle,
      env,
      state,
      tailTargets: dispatch === undefined ? undefined : { dispatch, count: this.#bundle.programs.length },
      isNear: (address) => isNear(this.#asm, address),
      routineFor: (call: HelperCall) => routineFor({ routines, env, bundle: this.#bundle }, call),
      fillPidCache: () => fillPidCache(routines, env),
      unreached: () =>
        routines.get("unreached", () => ({
          args: [],
          clobbers: regSet(RAX),
          stackBytes: 0,
          emit: (a) => {
            // Ends an iteration that should not have begun.
            a.movImm(RAX, 1);
            a.ret();
          },
        })),
      takeSlot: () => takeSlot(routines, env, env.mapAddr(owner), maps[owner]!.cpus!),
    };
  }

  /** All programs as functions, and the code that goes to the one whose index is in rax. */
  #emitTargets(dispatch: Label, context: CompilationContext): Targets {
    const { programs } = this.#bundle;
    const proofs = this.#getProofs();
    const compiled = programs.map((program, index) =>
      compileProgram(context, program, proofs[index]!, { entry: "tail", keepsResult: true, mark: undefined }),
    );
    this.#asm.bind(dispatch);
    this.#emitDispatch(compiled, 0);
    return { dispatch, count: programs.length, programs: compiled };
  }

  /** Halves the programs, whose first has index `first`, until one is left. */
  #emitDispatch(programs: readonly CompiledFunctions[], first: number): void {
    const asm = this.#asm;
    const [only] = programs;
    if (programs.length <= 1) {
      // Without any program no index comes here.
      if (only === undefined) asm.ret();
      else asm.jmp(only.entry);
      return;
    }
    const half = Math.ceil(programs.length / 2);
    const upper = asm.label("upper half");
    asm.cmpImm(RAX, first + half, 32);
    asm.jcc("ae", upper);
    this.#emitDispatch(programs.slice(0, half), first);
    asm.bind(upper);
    this.#emitDispatch(programs.slice(half), first + half);
  }
}

/**
 * A tail call of a main function leaves nothing behind. One in a function leaves the frames of those that called it, and
 * the next one goes below them.
 */
function withTargets(main: CompiledFunctions, { programs }: Targets) {
  const deepest = Math.max(0, ...programs.map(({ stackBytes }) => stackBytes));
  const left = Math.max(0, ...programs.map(({ tailDepth = 0 }) => tailDepth));
  const depth = (main.tailDepth ?? 0) + (MAX_TAIL_CALLS - 1) * left + deepest;
  return {
    clobbers: programs.reduce((set, { clobbers }) => set | clobbers, main.clobbers),
    stackBytes: Math.max(main.stackBytes, depth),
  };
}
