/**
 * One instruction on one state: changes the state, says where the path goes on, and notes what decided it.
 *
 * Rules for pointers are the kernel's for a privileged program: pointers may be stored anywhere and compared, and
 * arithmetic other than adding and subtracting numbers is refused, as it has no use. What may be null, a map, or the
 * context is not calculated with.
 */
import { type Insn, imm64Of } from "../insn.ts";
import * as op from "../opcodes.ts";
import { atomicMemory, getReg, loadMemory, MAX_OFFSET, type Step, storeMemory } from "./access.ts";
import { callHelper } from "./call.ts";
import { callLocal, leaveFunction } from "./functions.ts";
import { reject } from "./rejection.ts";
import { constant, isConstant, S64_MIN, type Scalar, unknownScalar, withId } from "./scalar.ts";
import { aluScalar, swapScalar, unsignedOfBits } from "./scalar-alu.ts";
import { refine } from "./scalar-branch.ts";
import type { StoredValue } from "./stack.ts";
import type { FramePlaces, State } from "./state.ts";
import { newNote } from "./step-note.ts";
import type { StepResult, Way } from "./step-result.ts";
import { isFixed, type Pointer, pointerTo, typeName } from "./value.ts";

/** Runs the instruction at `step.at`. Throws Rejection. */
export function runStep(step: Step): StepResult {
  const { at, state, machine } = step;
  const insn = machine.insns[at]!;
  const next: StepResult = { kind: "next", next: at + 1 };
  switch (op.classOf(insn.opcode)) {
    case op.CLASS_ALU:
    case op.CLASS_ALU64:
      state.regs[insn.dst] = alu(step, insn);
      return next;
    case op.CLASS_LD:
      state.regs[insn.dst] = wideImmediate(step, insn);
      return { kind: "next", next: at + 2 };
    case op.CLASS_LDX: {
      const isSigned = op.modeOf(insn.opcode) === op.MODE_MEMSX;
      state.regs[insn.dst] = loadMemory(step, insn.src, insn.off, op.sizeBytesOf(insn.opcode), isSigned);
      return next;
    }
    case op.CLASS_ST:
      storeMemory(step, insn.dst, insn.off, op.sizeBytesOf(insn.opcode), constant(BigInt(insn.imm)));
      return next;
    case op.CLASS_STX:
      if (op.modeOf(insn.opcode) === op.MODE_ATOMIC) atomic(step, insn);
      else storeMemory(step, insn.dst, insn.off, op.sizeBytesOf(insn.opcode), shared(step, insn.src));
      return next;
    default:
      return jump(step, insn);
  }
}

/** The value of a register of which there will be a copy: an unknown number gets an id. */
function shared(step: Step, reg: number): StoredValue {
  const value = getReg(step, reg);
  if (value.kind !== "scalar" || value.id !== 0 || isConstant(value)) return value;
  const named = withId(value, step.machine.newId());
  step.state.regs[reg] = named;
  return named;
}

function alu(step: Step, insn: Insn): StoredValue {
  const code = op.opOf(insn.opcode);
  const is64 = op.classOf(insn.opcode) === op.CLASS_ALU64;
  const bySrc = op.isSrcReg(insn.opcode);
  if (code === op.ALU_END) {
    const dst = getReg(step, insn.dst);
    const bits = insn.imm as 16 | 32 | 64;
    return dst.kind === "scalar" ? swapScalar(is64 || bySrc, bits, dst) : unsignedOfBits(bits);
  }
  if (code === op.ALU_NEG) {
    const dst = getReg(step, insn.dst);
    return dst.kind === "scalar"
      ? aluScalar(is64, code, 0, dst, constant(0n))
      : unsignedOfBits(is64 ? 64 : 32);
  }
  if (code === op.ALU_MOV && bySrc && is64 && insn.off === 0) return shared(step, insn.src);
  const src = bySrc ? getReg(step, insn.src) : constant(BigInt(insn.imm));
  if (code === op.ALU_MOV) {
    if (src.kind === "scalar") return aluScalar(is64, code, insn.off, src, src);
    return aluScalar(is64, code, insn.off, unknownScalar, unknownScalar);
  }
  const dst = getReg(step, insn.dst);
  if (dst.kind === "scalar" && src.kind === "scalar") return aluScalar(is64, code, insn.off, dst, src);
  return pointerAlu(step, insn, dst, src);
}

const symbols: ReadonlyMap<number, string> = new Map([
  [op.ALU_MUL, "*="],
  [op.ALU_DIV, "/="],
  [op.ALU_MOD, "%="],
  [op.ALU_AND, "&="],
  [op.ALU_OR, "|="],
  [op.ALU_XOR, "^="],
  [op.ALU_LSH, "<<="],
  [op.ALU_RSH, ">>="],
  [op.ALU_ARSH, "s>>="],
]);

/** Arithmetic where at least one operand is a pointer. */
function pointerAlu(step: Step, insn: Insn, dst: StoredValue, src: StoredValue): StoredValue {
  const code = op.opOf(insn.opcode);
  const is64 = op.classOf(insn.opcode) === op.CLASS_ALU64;
  if (!is64) {
    if (code === op.ALU_SUB) return unsignedOfBits(32);
    reject(`R${insn.dst} 32-bit pointer arithmetic prohibited`);
  }
  if (dst.kind === "pointer" && src.kind === "pointer") {
    if (code === op.ALU_SUB) return unknownScalar;
    reject(`R${insn.dst} pointer ${symbols.get(code) ?? "+="} pointer prohibited`);
  }
  const pointer = dst.kind === "pointer" ? dst : (src as Pointer);
  const number = dst.kind === "pointer" ? (src as Scalar) : dst;
  if (pointer.nullId !== 0) {
    reject(`R${insn.dst} pointer arithmetic on ${typeName(pointer)} prohibited, null-check it first`);
  }
  if (pointer.to === "map" || pointer.to === "function")
    reject(`R${insn.dst} pointer arithmetic on ${typeName(pointer)} prohibited`);
  if (code !== op.ALU_ADD && code !== op.ALU_SUB) {
    const bitwise = code === op.ALU_AND || code === op.ALU_OR || code === op.ALU_XOR;
    reject(
      bitwise
        ? `R${insn.dst} bitwise operator ${symbols.get(code)} on pointer prohibited`
        : `R${insn.dst} pointer arithmetic with ${symbols.get(code)} operator prohibited`,
    );
  }
  if (code === op.ALU_SUB && dst.kind !== "pointer") {
    reject(`R${insn.dst} tried to subtract pointer from scalar`);
  }
  // The address depends on the number from here on.
  if (op.isSrcReg(insn.opcode)) step.note.needs |= 1 << (dst.kind === "pointer" ? insn.src : insn.dst);
  return addToPointer(pointer, number, code === op.ALU_SUB);
}

function addToPointer(pointer: Pointer, number: Scalar, subtracts: boolean): Pointer {
  const name = typeName(pointer);
  if (isConstant(number)) {
    const delta = subtracts ? -number.smin : number.smin;
    if (delta >= MAX_OFFSET || delta <= -MAX_OFFSET)
      reject(`math between ${name} pointer and ${delta} is not allowed`);
    const off = pointer.off + Number(delta);
    if (off >= MAX_OFFSET || off <= -MAX_OFFSET) reject(`${name} pointer offset ${off} is not allowed`);
    return { ...pointer, off };
  }
  if (number.smin === S64_MIN) {
    reject(`math between ${name} pointer and register with unbounded min value is not allowed`);
  }
  if (number.smin >= MAX_OFFSET || number.smin <= -MAX_OFFSET) {
    reject(`value ${number.smin} makes ${name} pointer be out of bounds`);
  }
  const code = subtracts ? op.ALU_SUB : op.ALU_ADD;
  return { ...pointer, variable: aluScalar(true, code, 0, pointer.variable, number) };
}

function wideImmediate(step: Step, insn: Insn): StoredValue {
  const { machine, at } = step;
  const high = machine.insns[at + 1]!;
  switch (insn.src) {
    case op.PSEUDO_MAP_FD:
    case op.PSEUDO_MAP_INDEX:
      return pointerTo("map", 0, insn.imm);
    case op.PSEUDO_MAP_VALUE:
    case op.PSEUDO_MAP_INDEX_VALUE:
      return { ...pointerTo("map-value", machine.getMap(insn.imm).valueBytes, insn.imm), off: high.imm };
    case op.PSEUDO_FUNCTION:
      return pointerTo("function", 0, at + 1 + insn.imm);
    default:
      return constant(imm64Of(insn, high));
  }
}

function atomic(step: Step, insn: Insn): void {
  const { state } = step;
  getReg(step, insn.src);
  if (insn.imm === op.ATOMIC_CMPXCHG) getReg(step, 0);
  const old = atomicMemory(step, insn.dst, insn.off, op.sizeBytesOf(insn.opcode));
  if (insn.imm === op.ATOMIC_CMPXCHG) state.regs[0] = old;
  else if ((insn.imm & op.ATOMIC_FETCH) !== 0) state.regs[insn.src] = old;
}

function jump(step: Step, insn: Insn): StepResult {
  const { at } = step;
  switch (insn.opcode) {
    case op.OP_JA:
      return { kind: "next", next: at + 1 + insn.off };
    case op.OP_JA32:
      return { kind: "next", next: at + 1 + insn.imm };
    case op.OP_CALL:
      return insn.src === op.CALL_LOCAL ? callLocal(step, insn) : callHelper(step, insn.imm);
    case op.OP_EXIT:
      return leaveFunction(step);
    default:
      return branch(step, insn);
  }
}

function branch(step: Step, insn: Insn): StepResult {
  const { at, state } = step;
  const dst = getReg(step, insn.dst);
  const src = op.isSrcReg(insn.opcode) ? getReg(step, insn.src) : constant(BigInt(insn.imm));
  const target = at + 1 + insn.off;
  if (dst.kind === "scalar" && src.kind === "scalar") return compare(step, insn, dst, src, target);
  const is64 = op.classOf(insn.opcode) === op.CLASS_JMP;
  const code = op.opOf(insn.opcode);
  const isZeroTest =
    is64 &&
    (code === op.JMP_JEQ || code === op.JMP_JNE) &&
    !op.isSrcReg(insn.opcode) &&
    insn.imm === 0 &&
    dst.kind === "pointer";
  if (isZeroTest) {
    const nullIsTaken = code === op.JMP_JEQ;
    if (dst.nullId !== 0)
      return testNull(state, dst, nullIsTaken ? target : at + 1, nullIsTaken ? at + 1 : target);
    // Only the unmoved pointer is known not to be 0.
    if (dst.off === 0 && isFixed(dst)) return { kind: "next", next: nullIsTaken ? at + 1 : target };
  }
  return {
    kind: "branch",
    ways: [
      { next: at + 1, state: state.clone(), note: newNote() },
      { next: target, state, note: newNote() },
    ],
  };
}

function testNull(state: State, pointer: Pointer, ifNull: number, ifNot: number): StepResult {
  const nullState = state.clone();
  nullState.resolveNull(pointer.nullId, true);
  // There is nothing to release if nothing was reserved.
  if (pointer.ref !== 0) nullState.refs = nullState.refs.filter(({ id }) => id !== pointer.ref);
  state.resolveNull(pointer.nullId, false);
  return {
    kind: "branch",
    ways: [
      { next: ifNot, state, note: newNote() },
      { next: ifNull, state: nullState, note: newNote() },
    ],
  };
}

function compare(step: Step, insn: Insn, dst: Scalar, src: Scalar, target: number): StepResult {
  const { state, note, at } = step;
  const code = op.opOf(insn.opcode);
  const is64 = op.classOf(insn.opcode) === op.CLASS_JMP;
  const sameReg = op.isSrcReg(insn.opcode) && insn.src === insn.dst;
  const yes = refine(is64, code, dst, src, true);
  const no = refine(is64, code, dst, src, false);
  // Both operands are one number: what one of the two results says is not the other's.
  const learn = (to: State, refined: { dst: Scalar; src: Scalar }): FramePlaces[] | undefined =>
    sameReg ? undefined : learned(to, insn, refined);
  if (yes && no) {
    const other = state.clone();
    const notTaken: Way = { next: at + 1, note: { ...newNote(), links: learn(state, no) }, state };
    const taken: Way = { next: target, note: { ...newNote(), links: learn(other, yes) }, state: other };
    // What is known to be one number is covered by what is not: the wider way first.
    const takenFirst = code === op.JMP_JNE && target > at;
    return { kind: "branch", ways: takenFirst ? [taken, notTaken] : [notTaken, taken] };
  }
  note.needs |= (1 << insn.dst) | (op.isSrcReg(insn.opcode) ? 1 << insn.src : 0);
  const only = yes ?? no;
  if (!only) return { kind: "end" };
  note.links = learn(state, only);
  return { kind: "next", next: yes ? target : at + 1 };
}

/** Puts what is now known into both operands and all their copies. */
function learned(state: State, insn: Insn, refined: { dst: Scalar; src: Scalar }): FramePlaces[] | undefined {
  const first = learnedOne(state, insn.dst, refined.dst);
  if (!op.isSrcReg(insn.opcode)) return first;
  const second = learnedOne(state, insn.src, refined.src);
  if (!first || !second) return first ?? second;
  return [...first, ...second];
}

function learnedOne(state: State, reg: number, known: Scalar): FramePlaces[] | undefined {
  if (known.id !== 0) return state.setNumber(known.id, known);
  state.regs[reg] = known;
  return undefined;
}
