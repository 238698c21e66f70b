/**
 * Routines: code that programs of one unit share, such as the lookup in one hash map.
 *
 * A routine is called with the stack as it is, takes BPF arguments in the registers that BPF's convention gives
 * them (r1 rdi, r2 rsi, r3 rdx, r4 rcx, r5 r8) and returns in rax. It reads only the arguments that it names: the
 * map, above all, is part of its code.
 */
import type { Assembler, Label } from "../../../x86/assembler.ts";
import type { RegSet } from "../../../x86/registers.ts";

export interface Routine {
  readonly label: Label;
  /** BPF argument registers that it reads. */
  readonly args: readonly number[];
  /** Registers that it may change, with those of the routines that it calls. */
  readonly clobbers: RegSet;
  /** Stack below the return address that it uses, with the routines that it calls. */
  readonly stackBytes: number;
  /**
   * Of a function that makes tail calls: how far below its own return address the one lies that the deepest of them
   * has.
   */
  readonly tailDepth?: number | undefined;
}

export interface RoutineBody {
  readonly args: readonly number[];
  /** Registers that its own code may change. */
  readonly clobbers: RegSet;
  /** Its own frame and pushes, without the return addresses of calls. */
  readonly stackBytes: number;
  readonly calls?: readonly Routine[];
  /** Those that it ends in by a jump, with nothing of its own on the stack. */
  readonly jumpsTo?: readonly Routine[];
  emit(a: Assembler): void;
}

const RETURN_ADDRESS_BYTES = 8;

/** The routines of one unit: each is made at its first use and emitted once. */
export class RoutineSet {
  readonly #asm: Assembler;
  readonly #byName = new Map<string, Routine>();
  readonly #pending: { readonly label: Label; readonly body: RoutineBody }[] = [];

  constructor(asm: Assembler) {
    this.#asm = asm;
  }

  get(name: string, makeBody: () => RoutineBody): Routine {
    const known = this.#byName.get(name);
    if (known !== undefined) return known;
    const body = makeBody();
    const { calls = [], jumpsTo = [] } = body;
    const deepest = Math.max(0, ...calls.map((callee) => RETURN_ADDRESS_BYTES + callee.stackBytes));
    const beyond = Math.max(0, ...jumpsTo.map((other) => other.stackBytes));
    const routine: Routine = {
      label: this.#asm.label(name),
      args: body.args,
      clobbers: [...calls, ...jumpsTo].reduce((set, callee) => set | callee.clobbers, body.clobbers),
      stackBytes: Math.max(body.stackBytes + deepest, beyond),
    };
    this.#byName.set(name, routine);
    this.#pending.push({ label: routine.label, body });
    return routine;
  }

  /** Emits the routines that were not emitted yet. */
  emitPending(): void {
    for (const { label, body } of this.#pending.splice(0)) {
      this.#asm.align(16, "int3");
      this.#asm.bind(label);
      body.emit(this.#asm);
    }
  }
}
