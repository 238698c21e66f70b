/**
 * The code generator's view of a program: one operation per instruction slot, with operands resolved.
 *
 * Registers are still BPF registers. Memory operands know whether they are in the stack, in the context or at a
 * fixed address; helpers have become loads, inline sequences or calls of routines.
 */
import type { AluOp, Condition, ShiftOp } from "../../x86/assembler.ts";
import type { Routine } from "./routines/routine.ts";

/** A BPF register, 0 to 9. The frame pointer never is an operand: it is known everywhere. */
export type BpfRegNumber = number;

/** The second operand: a register, or a constant that an instruction can hold. */
export type Source =
  | { readonly kind: "reg"; readonly reg: BpfRegNumber }
  | { readonly kind: "imm"; readonly value: number };

export interface OpMem {
  /** A register, the frame pointer, the context, or a fixed address in reach of the code. */
  readonly base: BpfRegNumber | "stack" | "ctx" | bigint;
  readonly index?: { readonly reg: BpfRegNumber; readonly scale: 1 | 2 | 4 | 8 };
  readonly disp: number;
}

export type AtomicKind = "add" | "or" | "and" | "xor" | "xchg" | "cmpxchg";

export type Op =
  | { readonly kind: "const"; readonly dst: BpfRegNumber; readonly value: bigint }
  | {
      readonly kind: "address";
      readonly dst: BpfRegNumber;
      readonly of: "stack" | "ctx";
      readonly off: number;
    }
  | { readonly kind: "move"; readonly dst: BpfRegNumber; readonly src: BpfRegNumber; readonly width: 32 | 64 }
  | {
      readonly kind: "extend";
      readonly dst: BpfRegNumber;
      readonly src: BpfRegNumber;
      readonly from: 8 | 16 | 32;
      readonly width: 32 | 64;
    }
  | {
      readonly kind: "alu";
      readonly op: AluOp | "mul";
      readonly dst: BpfRegNumber;
      readonly src: Source;
      readonly width: 32 | 64;
    }
  | {
      readonly kind: "shift";
      readonly op: ShiftOp;
      readonly dst: BpfRegNumber;
      readonly src: Source;
      readonly width: 32 | 64;
    }
  | {
      readonly kind: "divide";
      readonly dst: BpfRegNumber;
      readonly src: Source;
      readonly isModulo: boolean;
      readonly isSigned: boolean;
      readonly width: 32 | 64;
    }
  | { readonly kind: "negate"; readonly dst: BpfRegNumber; readonly width: 32 | 64 }
  /** The low bits in the same or the reversed byte order, zero-extended. */
  | {
      readonly kind: "byte-order";
      readonly dst: BpfRegNumber;
      readonly bits: 16 | 32 | 64;
      readonly swaps: boolean;
    }
  | {
      readonly kind: "load";
      readonly dst: BpfRegNumber;
      readonly mem: OpMem;
      readonly lenBytes: 1 | 2 | 4 | 8;
      readonly isSigned: boolean;
    }
  | {
      readonly kind: "store";
      readonly mem: OpMem;
      readonly src: Source;
      readonly lenBytes: 1 | 2 | 4 | 8;
    }
  | {
      readonly kind: "atomic";
      readonly op: AtomicKind;
      /** Whether the old value goes into `src` (for cmpxchg: r0). */
      readonly fetches: boolean;
      readonly mem: OpMem;
      readonly src: Source;
      readonly width: 32 | 64;
    }
  | {
      readonly kind: "branch";
      readonly condition: Condition;
      readonly dst: BpfRegNumber;
      readonly src: Source;
      readonly width: 32 | 64;
      /** Whether the operands are combined by `test` rather than `cmp`. */
      readonly isBitTest: boolean;
      readonly target: number;
    }
  | { readonly kind: "goto"; readonly target: number }
  | { readonly kind: "exit" }
  /** The processor number, and `mask` applied to it. */
  | { readonly kind: "cpu"; readonly dst: BpfRegNumber; readonly mask: number }
  /** Process id << 32 | thread id, or only one of them. */
  | { readonly kind: "pid-tgid"; readonly dst: BpfRegNumber; readonly part: "both" | "pid" | "tid" }
  | {
      readonly kind: "array-lookup";
      readonly dst: BpfRegNumber;
      readonly key: OpMem;
      readonly base: bigint;
      readonly stride: number;
      readonly maxEntries: number;
    }
  | { readonly kind: "release-record"; readonly record: BpfRegNumber; readonly isDiscarded: boolean }
  /** A routine or a function of the program. `takesSlot`: it wants the slot in per-CPU maps in r11. */
  | {
      readonly kind: "call";
      readonly routine: Routine;
      readonly takesSlot: boolean;
      /** What the routine returns when an event has found no room. */
      readonly noRoom?: number | undefined;
    }
  /** bpf_loop: calls `callee` with r1 = 0, 1, ... and r2 = the context. */
  | {
      readonly kind: "loop";
      readonly callee: Routine;
      readonly count: Source;
      readonly context: CallbackContext;
      readonly flags: Source;
    }
  /** bpf_for_each_map_elem: calls `callee` with r1 = the map, r2 = a key, r3 = its value, r4 = the context. */
  | {
      readonly kind: "for-each";
      readonly callee: Routine;
      readonly elements: MapElements;
      readonly context: CallbackContext;
      readonly flags: Source;
    }
  /** r1 is the context and r3 the index; only if there is no such program what follows is reached. */
  | { readonly kind: "tail-call"; readonly array: ProgramArray };

/** What a callback gets as its last argument. */
export type CallbackContext =
  | { readonly kind: "reg"; readonly reg: BpfRegNumber }
  | { readonly kind: "const"; readonly value: bigint }
  | { readonly kind: "stack"; readonly off: number };

/** How the elements of a map are found one after the other. */
export type MapElements = {
  /** Undefined: it is in r1, as with inner maps. */
  readonly mapAddr: bigint | undefined;
} & (
  | {
      readonly kind: "array";
      /** From the map to the value of element 0. */
      readonly valuesOffset: number;
      readonly stride: number;
      readonly maxEntries: number;
      /** For a per-CPU array: bytes from one copy of a value to the next. */
      readonly copyStride: number | undefined;
    }
  /**
   * `next` takes a cursor in rdi, 0 at first, and the map in rsi if its address is not known, and gives another in rax, or 0 at the end; the address of the key in rsi and of
   * the value in rdx. After `most` elements it is enough.
   */
  | {
      readonly kind: "cursor";
      readonly next: Routine;
      readonly takesSlot: boolean;
      readonly most: number;
    }
);

/** A program array in memory: slots of 8 bytes. */
export interface ProgramArray {
  /** Address of slot 0. */
  readonly slots: bigint;
  readonly maxEntries: number;
}

/** Registers by bit. */
export type BpfRegSet = number;

const CALLER_SAVED: BpfRegSet = 0b111111;

/** Registers that the operation reads. */
export function usesOf(op: Op, keepsResult: boolean): BpfRegSet {
  switch (op.kind) {
    case "const":
    case "address":
    case "goto":
    case "cpu":
    case "pid-tgid":
      return 0;
    case "exit":
      return keepsResult ? 1 : 0;
    case "move":
    case "extend":
      return 1 << op.src;
    case "alu":
    case "shift":
    case "divide":
    case "branch":
      return (1 << op.dst) | sourceUses(op.src);
    case "negate":
    case "byte-order":
      return 1 << op.dst;
    case "load":
      return memUses(op.mem);
    case "store":
      return memUses(op.mem) | sourceUses(op.src);
    case "atomic":
      return memUses(op.mem) | sourceUses(op.src) | (op.op === "cmpxchg" ? 1 : 0);
    case "array-lookup":
      return memUses(op.key);
    case "release-record":
      return 1 << op.record;
    case "call":
      return op.routine.args.reduce((set, reg) => set | (1 << reg), 0);
    case "loop":
      return sourceUses(op.count) | contextUses(op) | sourceUses(op.flags);
    case "for-each":
      return contextUses(op) | sourceUses(op.flags) | (op.elements.mapAddr === undefined ? 1 << 1 : 0);
    case "tail-call":
      return (1 << 1) | (1 << 3);
    default:
      return op satisfies never;
  }
}

/** Registers that the operation writes, or leaves with no meaning. */
export function definesOf(op: Op): BpfRegSet {
  switch (op.kind) {
    case "const":
    case "address":
    case "move":
    case "extend":
    case "alu":
    case "shift":
    case "divide":
    case "negate":
    case "byte-order":
    case "load":
    case "cpu":
    case "pid-tgid":
    case "array-lookup":
      return 1 << op.dst;
    case "atomic":
      if (op.op === "cmpxchg") return 1;
      return op.fetches && op.src.kind === "reg" ? 1 << op.src.reg : 0;
    case "call":
    case "loop":
    case "for-each":
    case "tail-call":
      return CALLER_SAVED;
    case "store":
    case "branch":
    case "goto":
    case "exit":
    case "release-record":
      return 0;
    default:
      return op satisfies never;
  }
}

/** Whether nothing is lost when the operation is left out and its result is not used. */
export function isPure(op: Op): boolean {
  switch (op.kind) {
    case "store":
    case "atomic":
    case "branch":
    case "goto":
    case "exit":
    case "release-record":
    case "call":
    case "loop":
    case "for-each":
    case "tail-call":
      return false;
    default:
      return true;
  }
}

/** The BPF argument register that a callback gets its context in. */
export function contextArgOf(op: Extract<Op, { kind: "loop" | "for-each" }>): BpfRegNumber {
  return op.kind === "loop" ? 2 : 4;
}

function contextUses(op: Extract<Op, { kind: "loop" | "for-each" }>): BpfRegSet {
  const isRead = op.callee.args.includes(contextArgOf(op));
  return isRead && op.context.kind === "reg" ? 1 << op.context.reg : 0;
}

/** The code that the operation calls while registers r6 to r9 keep their values. */
export function calleesOf(op: Op): readonly Routine[] {
  switch (op.kind) {
    case "call":
      return [op.routine];
    case "loop":
      return [op.callee];
    case "for-each":
      return op.elements.kind === "cursor" ? [op.callee, op.elements.next] : [op.callee];
    default:
      return [];
  }
}

/** Whether r0 to r5 must be where routines have them. */
export function isCallLike(op: Op): boolean {
  return op.kind === "call" || op.kind === "loop" || op.kind === "for-each" || op.kind === "tail-call";
}

function sourceUses(src: Source): BpfRegSet {
  return src.kind === "reg" ? 1 << src.reg : 0;
}

function memUses(mem: OpMem): BpfRegSet {
  return (
    (typeof mem.base === "number" ? 1 << mem.base : 0) | (mem.index === undefined ? 0 : 1 << mem.index.reg)
  );
}
