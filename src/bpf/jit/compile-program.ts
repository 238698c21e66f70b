/**
 * Compiles the functions of one program, callees first: what a function changes and how deep it goes must be known
 * where it is called.
 *
 * Every function has registers and a frame of its own. Whatever a caller keeps over a call is in registers that the
 * callee leaves alone: it knows which those are, and a local function gives back all that `calleeSavedRegs` names,
 * so that there always are enough.
 */
import type { Assembler, Label } from "../../x86/assembler.ts";
import { hasReg, type RegSet, regSet } from "../../x86/registers.ts";
import { CALL_LOCAL, OP_CALL, OP_LDIMM64 } from "../opcodes.ts";
import type { Bundle, ProgramSpec, Proof, Subprogram } from "../program.ts";
import { type Assignment, assignRegs, calleeSavedRegs, preferredRegs } from "./allocate.ts";
import { foldOperations } from "./fold.ts";
import { type EmittedFunction, FunctionEmitter, type TailTargets } from "./function-emitter.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv } from "./link-env.ts";
import { type OpList, removeDead } from "./liveness.ts";
import { type LowerContext, lowerInsn } from "./lower.ts";
import { calleesOf, type Op } from "./operations.ts";
import { type ProgramState, STATE_REG } from "./program-state.ts";
import type { HelperCall } from "./routines/helper-routines.ts";
import type { Routine } from "./routines/routine.ts";
import { knownValues, loadsFrom } from "./values.ts";

/** How a program is entered; "tail": from another program, with the context in rdi and the state in its register. */
export type ProgramEntry = "context" | "memory" | "tail";

export interface CompilationContext {
  readonly asm: Assembler;
  readonly bundle: Bundle;
  readonly env: LinkEnv;
  readonly state: ProgramState;
  readonly tailTargets: TailTargets | undefined;
  isNear(address: bigint): boolean;
  routineFor(call: HelperCall): Routine;
  fillPidCache(): Routine;
  takeSlot(): Routine;
  /** Stands for a function that is never called, such as the callback of no iterations. */
  unreached(): Routine;
}

export interface ProgramOptions {
  readonly entry: ProgramEntry;
  readonly keepsResult: boolean;
  /** Told where the code of each instruction begins, and with the number of slots where code out of line does. */
  readonly mark: ((slot: number, label: Label) => void) | undefined;
}

/** The main function, and where the code of all functions begins. */
export interface CompiledFunctions extends EmittedFunction {
  readonly start: Label;
}

/** Registers that an iteration keeps over calls. */
const ITERATION_REGS = 3;

export function compileProgram(
  context: CompilationContext,
  program: ProgramSpec,
  proof: Proof,
  options: ProgramOptions,
): CompiledFunctions {
  const start = context.asm.here("program");
  const main = new FunctionCompiler(context, program, proof, options).compile(0);
  return { ...main, start };
}

class FunctionCompiler {
  readonly #context: CompilationContext;
  readonly #program: ProgramSpec;
  readonly #proof: Proof;
  readonly #options: ProgramOptions;
  readonly #reserved: RegSet;
  readonly #knownLoad;
  /** By the slot where the function begins; "open" while its callees are compiled. */
  readonly #functions = new Map<number, Routine | "open">();

  constructor(context: CompilationContext, program: ProgramSpec, proof: Proof, options: ProgramOptions) {
    this.#context = context;
    this.#program = program;
    this.#proof = proof;
    this.#options = options;
    this.#reserved = context.state.isInRegister ? regSet(STATE_REG) : 0;
    this.#knownLoad = loadsFrom(context.bundle.maps, (index) => context.env.mapAddr(index));
  }

  /** Compiles the function that begins at this slot, after those that it calls. */
  compile(start: number): EmittedFunction {
    const found = this.#find(start);
    if (found === undefined) throw new JitError(`compile program: no function begins at ${start}`);
    this.#functions.set(start, "open");
    for (const callee of this.#calleesIn(start, found.end)) {
      if (this.#find(callee) === undefined) continue;
      const known = this.#functions.get(callee);
      if (known === "open") throw new JitError(`compile program: the function at ${callee} calls itself`);
      if (known === undefined) this.compile(callee);
    }
    const { list, live, isTarget } = this.#operations(start, found.end);
    const isMain = start === 0;
    const entry = isMain && this.#options.entry !== "tail" ? this.#options.entry : "local";
    const assignment = assignRegs(list, live, {
      isLocalFunction: entry === "local",
      reserved: this.#reserved,
    });
    const saved = entry === "local" ? this.#savedRegs(list, assignment) : 0;
    const { asm, env, state, tailTargets } = this.#context;
    const { mark } = this.#options;
    if (!isMain) mark?.(start, asm.here());
    else mark?.(-1, asm.here());
    const emitted = new FunctionEmitter({
      asm,
      env,
      list,
      live,
      assignment,
      isTarget,
      entry,
      mark:
        mark === undefined
          ? undefined
          : (slot, label) =>
              mark(slot === list.ops.length ? this.#program.insns.length : start + slot, label),
      frameBytes: isMain ? this.#proof.stackBytes : found.stackBytes,
      saved,
      untouched: entry === "local" ? (calleeSavedRegs & ~saved) | this.#reserved : this.#reserved,
      state,
      tailTargets,
      fillPidCache: () => this.#context.fillPidCache(),
      takeSlot: () => this.#context.takeSlot(),
    }).emit();
    const args = [1, 2, 3, 4, 5].filter((reg) => ((live.atEntry >> reg) & 1) !== 0);
    const { clobbers, stackBytes, tailDepth } = emitted;
    this.#functions.set(start, { label: emitted.entry, args, clobbers, stackBytes, tailDepth });
    return emitted;
  }

  #find(start: number): Subprogram | undefined {
    return this.#proof.subprograms.find((fn) => fn.start === start);
  }

  /** Slots where the functions begin that code in `[start, end)` calls or hands to a helper. */
  *#calleesIn(start: number, end: number): Generator<number> {
    const { insns } = this.#program;
    for (let slot = start; slot < end; slot++) {
      const insn = insns[slot]!;
      if (insn.opcode === OP_CALL && !this.#proof.deadInsns.has(slot)) {
        const callback = this.#proof.callbackAtCall.get(slot);
        if (callback !== undefined) yield callback;
        if (insn.src === CALL_LOCAL) yield slot + 1 + insn.imm;
      }
      if (insn.opcode === OP_LDIMM64) slot++;
    }
  }

  #operations(start: number, end: number) {
    const { asm: _, state: __, ...context } = this.#context;
    const proof = this.#proof;
    const insns =
      start === 0 && end === this.#program.insns.length
        ? this.#program.insns
        : this.#program.insns.slice(start, end);
    const entry = start === 0 && this.#options.entry !== "tail" ? this.#options.entry : "local";
    const { before, isTarget } = knownValues(insns, {
      isDead: (slot) => proof.deadInsns.has(start + slot),
      entry,
      mapAddr: (index) => context.env.mapAddr(index),
      knownLoad: this.#knownLoad,
    });
    const lowering: LowerContext = {
      ...context,
      proof,
      start,
      hasContextAbove: entry === "context",
      knownLoad: this.#knownLoad,
      functionAt: (slot) => {
        const known = this.#functions.get(slot) ?? context.unreached();
        if (known === "open") throw new JitError(`compile program: the function at ${slot} is not compiled`);
        return known;
      },
    };
    const list: OpList = {
      ops: insns.map((_insn, slot) => {
        const values = before[slot];
        return values === undefined ? undefined : lowerInsn(lowering, insns, slot, values);
      }),
      // What a local function returns may be used.
      keepsResult: entry === "local" || this.#options.keepsResult,
    };
    foldOperations(list, removeDead(list), isTarget);
    return { list, live: removeDead(list), isTarget };
  }

  /**
   * Of the registers that a local function gives back those that it may change. Scratch registers are taken while code
   * is written, when it is too late to save one: so there must be enough of them.
   */
  #savedRegs(list: OpList, assignment: Assignment): RegSet {
    const assigned = assignment.reduce<RegSet>((set, reg) => (reg === undefined ? set : set | (1 << reg)), 0);
    let changed = assigned;
    let iterates = false;
    for (const op of list.ops) {
      if (op === undefined) continue;
      iterates ||= op.kind === "loop" || op.kind === "for-each";
      for (const callee of calleesOf(op)) changed |= callee.clobbers;
    }
    let saved = changed & calleeSavedRegs & ~this.#reserved;
    const isFree = (reg: number) => !hasReg(assigned, reg) && !hasReg(this.#reserved, reg);
    const spare = preferredRegs.filter((reg) => isFree(reg) && hasReg(calleeSavedRegs & ~saved, reg));
    const free = preferredRegs.filter((reg) => isFree(reg) && !hasReg(calleeSavedRegs & ~saved, reg)).length;
    const needed = list.ops.reduce((most, op) => Math.max(most, op === undefined ? 0 : scratchRegs(op)), 0);
    const missing = Math.max(0, needed - free);
    for (const reg of spare.slice(0, Math.max(missing, iterates ? ITERATION_REGS : 0))) saved |= 1 << reg;
    return saved;
  }
}

/** How many registers that no BPF register has an operation takes at most, among them those that its instruction names. */
function scratchRegs(op: Op): number {
  switch (op.kind) {
    case "shift":
      return op.src.kind === "reg" ? 2 : 0;
    case "divide":
      return 5;
    case "atomic":
      return op.op === "cmpxchg" || (op.fetches && op.op !== "add" && op.op !== "xchg") ? 5 : 0;
    case "pid-tgid":
    case "array-lookup":
      return 1;
    default:
      return 0;
  }
}
