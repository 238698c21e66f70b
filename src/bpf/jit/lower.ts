/** Turns instructions into operations, using what is known about registers. */
import type { AluOp, Condition } from "../../x86/assembler.ts";
import { CTX_COOKIE, CTX_IP } from "../context.ts";
import { EAGAIN, EBUSY, ENOSPC } from "../error-numbers.ts";
import {
  HELPER_FOR_EACH_MAP_ELEM,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_GET_CURRENT_PID_TGID,
  HELPER_GET_FUNC_IP,
  HELPER_GET_SMP_PROCESSOR_ID,
  HELPER_LOOP,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_LOOKUP_PERCPU_ELEM,
  HELPER_PERF_EVENT_OUTPUT,
  HELPER_RINGBUF_DISCARD,
  HELPER_RINGBUF_OUTPUT,
  HELPER_RINGBUF_RESERVE,
  HELPER_RINGBUF_SUBMIT,
  HELPER_TAIL_CALL,
  HELPER_TRACE_PRINTK,
  HELPER_TRACE_VPRINTK,
  MAX_CPU,
} from "../helpers.ts";
import { type Insn, jumpTarget } from "../insn.ts";
import { EINVAL, layoutMap } from "../maps/index.ts";
import {
  ALU_ADD,
  ALU_AND,
  ALU_ARSH,
  ALU_DIV,
  ALU_END,
  ALU_LSH,
  ALU_MOD,
  ALU_MOV,
  ALU_MUL,
  ALU_NEG,
  ALU_OR,
  ALU_RSH,
  ALU_SUB,
  ALU_XOR,
  ATOMIC_ADD,
  ATOMIC_AND,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  ATOMIC_OR,
  ATOMIC_XCHG,
  ATOMIC_XOR,
  CALL_HELPER,
  CALL_LOCAL,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_JMP,
  CLASS_LD,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
  classOf,
  isSrcReg,
  JMP_JEQ,
  JMP_JGE,
  JMP_JGT,
  JMP_JLE,
  JMP_JLT,
  JMP_JNE,
  JMP_JSET,
  JMP_JSGE,
  JMP_JSGT,
  JMP_JSLE,
  JMP_JSLT,
  MODE_ATOMIC,
  MODE_MEMSX,
  modeOf,
  OP_CALL,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  opOf,
  sizeBytesOf,
} from "../opcodes.ts";
import type { Bundle, Proof } from "../program.ts";
import { JitError } from "./jit-error.ts";
import type { LinkEnv } from "./link-env.ts";
import type { AtomicKind, CallbackContext, Op, OpMem, Source } from "./operations.ts";
import type { HelperCall } from "./routines/helper-routines.ts";
import { elementsOf } from "./routines/map-elements.ts";
import type { Routine } from "./routines/routine.ts";
import { aluResult, type KnownLoad, loadedConstant, type Value, type Values } from "./values.ts";

/** What lowering needs from the unit. */
export interface LowerContext {
  readonly bundle: Bundle;
  readonly proof: Proof;
  readonly env: LinkEnv;
  /** The slot of the program where the function begins; slots of instructions count from there. */
  readonly start: number;
  /** Whether the context lies above the return address. */
  readonly hasContextAbove: boolean;
  /** What a load is known to give. */
  readonly knownLoad: KnownLoad;
  /** The function of the program that begins at this slot of the program. */
  functionAt(slot: number): Routine;
  /** Whether code can address this place relative to itself. */
  isNear(address: bigint): boolean;
  routineFor(call: HelperCall): Routine;
}

/** The operation of the instruction at `slot`; undefined if there is nothing to do. */
export function lowerInsn(
  context: LowerContext,
  insns: readonly Insn[],
  slot: number,
  before: Values,
): Op | undefined {
  const insn = insns[slot]!;
  switch (classOf(insn.opcode)) {
    case CLASS_ALU:
    case CLASS_ALU64:
      return lowerAlu(insn, before);
    case CLASS_LD:
      return placeValue(
        insn.dst,
        loadedConstant(insn, insns[slot + 1]!, (index) => context.env.mapAddr(index)),
      );
    case CLASS_LDX: {
      const known = context.knownLoad(insn, before);
      if (known !== undefined) return placeValue(insn.dst, known);
      return {
        kind: "load",
        dst: insn.dst,
        mem: memAt(context, insn.src, insn.off, before),
        lenBytes: sizeBytesOf(insn.opcode),
        isSigned: modeOf(insn.opcode) === MODE_MEMSX,
      };
    }
    case CLASS_ST:
      return {
        kind: "store",
        mem: memAt(context, insn.dst, insn.off, before),
        src: { kind: "imm", value: truncate(insn.imm, sizeBytesOf(insn.opcode)) },
        lenBytes: sizeBytesOf(insn.opcode),
      };
    case CLASS_STX:
      if (modeOf(insn.opcode) === MODE_ATOMIC) return lowerAtomic(context, insn, before);
      return {
        kind: "store",
        mem: memAt(context, insn.dst, insn.off, before),
        src: storedSource(insn, before),
        lenBytes: sizeBytesOf(insn.opcode),
      };
    default:
      return lowerJump(context, insn, slot, before);
  }
}

function lowerAlu(insn: Insn, before: Values): Op | undefined {
  const { dst } = insn;
  const width = classOf(insn.opcode) === CLASS_ALU64 ? 64 : 32;
  const op = opOf(insn.opcode);
  if (op === ALU_END) {
    const swaps = width === 64 || isSrcReg(insn.opcode);
    return { kind: "byte-order", dst, bits: insn.imm as 16 | 32 | 64, swaps };
  }
  const known = aluResult(insn, before);
  if (known !== undefined) return placeValue(dst, known);
  const src = sourceOf(insn, before, width);
  switch (op) {
    case ALU_MOV:
      if (src.kind === "imm") throw new JitError("lower mov: a constant is a known value");
      if (insn.off === 0) return { kind: "move", dst, src: src.reg, width };
      return { kind: "extend", dst, src: src.reg, from: insn.off as 8 | 16 | 32, width };
    case ALU_NEG:
      return { kind: "negate", dst, width };
    case ALU_DIV:
    case ALU_MOD:
      return { kind: "divide", dst, src, isModulo: op === ALU_MOD, isSigned: insn.off === 1, width };
    case ALU_LSH:
      return { kind: "shift", op: "shl", dst, src, width };
    case ALU_RSH:
      return { kind: "shift", op: "shr", dst, src, width };
    case ALU_ARSH:
      return { kind: "shift", op: "sar", dst, src, width };
    default: {
      const name = aluNames.get(op);
      if (name === undefined) throw new JitError(`lower arithmetic: no operation 0x${op.toString(16)}`);
      return { kind: "alu", op: name, dst, src, width };
    }
  }
}

const aluNames: ReadonlyMap<number, AluOp | "mul"> = new Map([
  [ALU_ADD, "add"],
  [ALU_SUB, "sub"],
  [ALU_MUL, "mul"],
  [ALU_OR, "or"],
  [ALU_AND, "and"],
  [ALU_XOR, "xor"],
] as const);

/** Puts a known value into a register; a map needs none, because routines know theirs. */
function placeValue(dst: number, value: Value): Op | undefined {
  switch (value?.kind) {
    case "const":
      return { kind: "const", dst, value: value.value };
    case "stack":
    case "ctx":
      return { kind: "address", dst, of: value.kind, off: value.off };
    default:
      return undefined;
  }
}

/** The second operand of an arithmetic or jump instruction. */
function sourceOf(insn: Insn, before: Values, width: 32 | 64): Source {
  return isSrcReg(insn.opcode) ? registerSource(insn.src, before, width) : { kind: "imm", value: insn.imm };
}

function storedSource(insn: Insn, before: Values): Source {
  return registerSource(insn.src, before, sizeBytesOf(insn.opcode) * 8);
}

/** The low `width` bits of a register; a constant if they are known and an instruction can hold them. */
function registerSource(reg: number, before: Values, width: number): Source {
  const value = before[reg];
  if (value?.kind === "const") {
    const signed = BigInt.asIntN(width, value.value);
    if (BigInt.asIntN(32, signed) === signed) return { kind: "imm", value: Number(signed) };
  }
  return { kind: "reg", reg };
}

/** The low bytes of a constant, signed. */
function truncate(value: number, lenBytes: 1 | 2 | 4 | 8): number {
  return lenBytes >= 4 ? value : (value << (32 - lenBytes * 8)) >> (32 - lenBytes * 8);
}

function memAt(context: LowerContext, base: number, off: number, before: Values): OpMem {
  const value = before[base];
  switch (value?.kind) {
    case "stack":
    case "ctx":
      return { base: value.kind, disp: value.off + off };
    case "const": {
      const address = BigInt.asUintN(64, value.value + BigInt(off));
      return context.isNear(address) ? { base: address, disp: 0 } : { base, disp: off };
    }
    default:
      return { base, disp: off };
  }
}

const atomicKinds = new Map<number, AtomicKind>([
  [ATOMIC_ADD, "add"],
  [ATOMIC_OR, "or"],
  [ATOMIC_AND, "and"],
  [ATOMIC_XOR, "xor"],
]);

function lowerAtomic(context: LowerContext, insn: Insn, before: Values): Op {
  const mem = memAt(context, insn.dst, insn.off, before);
  const width = sizeBytesOf(insn.opcode) === 8 ? 64 : 32;
  const reg: Source = { kind: "reg", reg: insn.src };
  if (insn.imm === ATOMIC_XCHG) return { kind: "atomic", op: "xchg", fetches: true, mem, src: reg, width };
  if (insn.imm === ATOMIC_CMPXCHG)
    return { kind: "atomic", op: "cmpxchg", fetches: true, mem, src: reg, width };
  const op = atomicKinds.get(insn.imm & ~ATOMIC_FETCH);
  if (op === undefined) throw new JitError(`lower atomic: no operation 0x${insn.imm.toString(16)}`);
  const fetches = (insn.imm & ATOMIC_FETCH) !== 0;
  return { kind: "atomic", op, fetches, mem, src: fetches ? reg : storedSource(insn, before), width };
}

const conditions = new Map<number, Condition>([
  [JMP_JEQ, "e"],
  [JMP_JNE, "ne"],
  [JMP_JGT, "a"],
  [JMP_JGE, "ae"],
  [JMP_JLT, "b"],
  [JMP_JLE, "be"],
  [JMP_JSGT, "g"],
  [JMP_JSGE, "ge"],
  [JMP_JSLT, "l"],
  [JMP_JSLE, "le"],
  [JMP_JSET, "ne"],
]);

function lowerJump(context: LowerContext, insn: Insn, slot: number, before: Values): Op | undefined {
  if (insn.opcode === OP_EXIT) return { kind: "exit" };
  if (insn.opcode === OP_CALL) return lowerCall(context, insn, slot, before);
  const target = jumpTarget(insn, slot);
  if (target === undefined) throw new JitError(`lower jump: no opcode 0x${insn.opcode.toString(16)}`);
  if (insn.opcode === OP_JA || insn.opcode === OP_JA32) return { kind: "goto", target };
  const isDead = (at: number) => context.proof.deadInsns.has(context.start + at);
  // Where the proof knows the outcome there is nothing to compare.
  if (isDead(target)) return undefined;
  if (isDead(slot + 1)) return { kind: "goto", target };
  const width = classOf(insn.opcode) === CLASS_JMP ? 64 : 32;
  const op = opOf(insn.opcode);
  return {
    kind: "branch",
    condition: conditions.get(op)!,
    dst: insn.dst,
    src: sourceOf(insn, before, width),
    width,
    isBitTest: op === JMP_JSET,
    target,
  };
}

function lowerCall(context: LowerContext, insn: Insn, slot: number, before: Values): Op {
  const { bundle, proof, env, start } = context;
  if (insn.src === CALL_LOCAL)
    return { kind: "call", routine: context.functionAt(start + slot + 1 + insn.imm), takesSlot: false };
  if (insn.src !== CALL_HELPER) throw new JitError(`lower call: no source ${insn.src}`);
  const mapIndex = proof.mapAtCall.get(start + slot);
  const outerMapIndex = proof.outerMapAtCall.get(start + slot);
  const spec = bundle.maps[mapIndex ?? -1];
  switch (insn.imm) {
    case HELPER_GET_SMP_PROCESSOR_ID:
      return { kind: "cpu", dst: 0, mask: MAX_CPU };
    case HELPER_GET_ATTACH_COOKIE:
      return loadContext(context, CTX_COOKIE, before);
    case HELPER_GET_FUNC_IP:
      return loadContext(context, CTX_IP, before);
    case HELPER_GET_CURRENT_PID_TGID:
      if (env.tidOffset !== undefined) return { kind: "pid-tgid", dst: 0, part: "both" };
      break;
    case HELPER_RINGBUF_SUBMIT:
      return { kind: "release-record", record: 1, isDiscarded: false };
    case HELPER_RINGBUF_DISCARD:
      return { kind: "release-record", record: 1, isDiscarded: true };
    case HELPER_MAP_LOOKUP_ELEM:
    case HELPER_MAP_DELETE_ELEM: {
      if (spec?.kind !== "array" || outerMapIndex !== undefined) break;
      if (insn.imm === HELPER_MAP_DELETE_ELEM)
        return { kind: "const", dst: 0, value: BigInt.asUintN(64, BigInt(EINVAL)) };
      const layout = layoutMap(spec);
      if (layout.kind !== "array") break;
      return {
        kind: "array-lookup",
        dst: 0,
        key: memAt(context, 2, 0, before),
        base: env.mapAddr(mapIndex!),
        stride: layout.stride,
        maxEntries: spec.maxEntries,
      };
    }
    case HELPER_TAIL_CALL: {
      if (mapIndex === undefined || spec === undefined) break;
      return { kind: "tail-call", array: { slots: env.mapAddr(mapIndex), maxEntries: spec.maxEntries } };
    }
    case HELPER_LOOP:
      return {
        kind: "loop",
        callee: context.functionAt(proof.callbackAtCall.get(start + slot) ?? -1),
        count: registerSource(1, before, 32),
        context: callbackContext(before),
        flags: registerSource(4, before, 64),
      };
    case HELPER_FOR_EACH_MAP_ELEM:
      return {
        kind: "for-each",
        callee: context.functionAt(proof.callbackAtCall.get(start + slot) ?? -1),
        elements: elementsOf(context, mapIndex, outerMapIndex),
        context: callbackContext(before),
        flags: registerSource(4, before, 64),
      };
    default:
  }
  const call = {
    helper: insn.imm,
    mapIndex,
    outerMapIndex,
    text: proof.stringAtCall.get(start + slot),
    zeroArgs: [1, 2, 3, 4, 5].filter((reg) => isZero(before[reg])),
  };
  const called = outerMapIndex === undefined ? spec : bundle.maps[outerMapIndex]?.inner;
  // Without any per-CPU map there is no slot, and no inner map either.
  const takesSlot =
    called?.cpus !== undefined &&
    insn.imm !== HELPER_MAP_LOOKUP_PERCPU_ELEM &&
    bundle.maps.some(({ cpus }) => cpus !== undefined);
  return { kind: "call", routine: context.routineFor(call), takesSlot, noRoom: noRoomResults.get(insn.imm) };
}

/** What helpers that send events return when there is no room for one. */
export const noRoomResults: ReadonlyMap<number, number> = new Map([
  [HELPER_RINGBUF_RESERVE, 0],
  [HELPER_RINGBUF_OUTPUT, EAGAIN],
  [HELPER_PERF_EVENT_OUTPUT, ENOSPC],
  [HELPER_TRACE_PRINTK, EBUSY],
  [HELPER_TRACE_VPRINTK, EBUSY],
]);

function isZero(value: Value): boolean {
  return value?.kind === "const" && value.value === 0n;
}

/** r0 = a word of the context that is in r1. */
function loadContext(context: LowerContext, disp: number, before: Values): Op {
  const mem: OpMem = context.hasContextAbove ? { base: "ctx", disp } : memAt(context, 1, disp, before);
  return { kind: "load", dst: 0, mem, lenBytes: 8, isSigned: false };
}

/** r3 as a helper hands it on. */
function callbackContext(before: Values): CallbackContext {
  const value = before[3];
  if (value?.kind === "const") return { kind: "const", value: value.value };
  return value?.kind === "stack" ? { kind: "stack", off: value.off } : { kind: "reg", reg: 3 };
}
