/** Writes programs on virtual registers: folds constants, keeps the stack frame. */
import type { AluName, JumpName, SourcePlace } from "../../bpf/index.ts";
import {
  type AtomicOp,
  type Base,
  type CallArgument,
  type IrInsn,
  type IrLabel,
  isVReg,
  type Operand,
  type VReg,
} from "./ir.ts";

/** A place in memory. Offsets from "frame" are negative. */
export interface Memory {
  readonly base: Base;
  readonly offset: number;
}

const INT32_MIN = -0x8000_0000n;
const INT32_MAX = 0x7fff_ffffn;

export function fitsImmediate(value: bigint): boolean {
  return value >= INT32_MIN && value <= INT32_MAX;
}

export class IrBuilder {
  readonly insns: IrInsn[] = [];
  #registers = 0;
  #labels = 0;
  #place: SourcePlace | undefined;
  #frameBytes = 0;
  #framePeak = 0;
  #context: VReg | undefined;

  constructor() {
    this.#context = this.register();
    this.insns.push({ op: "context", dst: this.#context });
  }

  /** The source place of the instructions that follow. */
  at(place: SourcePlace | undefined): void {
    this.#place = place;
  }

  get registerCount(): number {
    return this.#registers;
  }

  /** Most bytes of the frame in use at once. */
  get framePeakBytes(): number {
    return this.#framePeak;
  }

  register(): VReg {
    return { kind: "vreg", id: this.#registers++ };
  }

  label(name: string): IrLabel {
    return { name: `${name}${this.#labels++}` };
  }

  bind(label: IrLabel): void {
    this.#add({ op: "label", label });
  }

  /** The program's context pointer. */
  get context(): VReg {
    return this.#context!;
  }

  /** Reserves frame memory, 8-byte aligned, until `releaseFrame` with an earlier mark. */
  frame(bytes: number): Memory {
    this.#frameBytes += (bytes + 7) & ~7;
    this.#framePeak = Math.max(this.#framePeak, this.#frameBytes);
    return { base: "frame", offset: -this.#frameBytes };
  }

  markFrame(): number {
    return this.#frameBytes;
  }

  releaseFrame(mark: number): void {
    this.#frameBytes = mark;
  }

  move(dst: VReg, src: Operand): void {
    if (src !== dst) this.#add({ op: "move", dst, src });
  }

  /** A register with this value; a register is given back as it is. */
  inRegister(value: Operand): VReg {
    return isVReg(value) ? value : this.copy(value);
  }

  /** A fresh register with this value. */
  copy(value: Operand): VReg {
    const dst = this.register();
    this.#add({ op: "move", dst, src: value });
    return dst;
  }

  mapValue(map: number, offset = 0): VReg {
    const dst = this.register();
    this.#add({ op: "map-value", dst, map, offset });
    return dst;
  }

  /** `dst = dst op src` */
  aluInto(name: AluName, dst: VReg, src: Operand): void {
    if (isVReg(src)) this.#add({ op: "alu", name, dst, src });
    else if (fitsImmediate(src)) this.#add({ op: "alu", name, dst, src: Number(src) });
    else this.#add({ op: "alu", name, dst, src: this.copy(src) });
  }

  /** `left op right` in a fresh register, or a number if both are. */
  alu(name: AluName, left: Operand, right: Operand): Operand {
    if (!isVReg(left) && !isVReg(right)) {
      const folded = foldAlu(name, left, right);
      if (folded !== undefined) return folded;
    }
    if (!isVReg(right) && isNeutral(name, right)) return left;
    // A constant on the left of a commutative operation becomes the immediate.
    if (!isVReg(left) && isVReg(right) && isCommutative(name) && fitsImmediate(left)) {
      return this.alu(name, right, left);
    }
    const power = isVReg(right) ? undefined : powerOfTwo(right);
    if (power !== undefined) {
      if (name === "mul") return this.alu("lsh", left, BigInt(power));
      if (name === "div") return this.alu("rsh", left, BigInt(power));
      if (name === "mod" && !isVReg(right) && fitsImmediate(right - 1n)) {
        return this.alu("and", left, right - 1n);
      }
    }
    const dst = this.copy(left);
    this.aluInto(name, dst, right);
    return dst;
  }

  negate(value: Operand): Operand {
    if (!isVReg(value)) return BigInt.asIntN(64, -value);
    const dst = this.copy(value);
    this.#add({ op: "negate", dst });
    return dst;
  }

  swap(value: Operand, bits: 16 | 32 | 64): Operand {
    const dst = this.copy(value);
    this.#add({ op: "swap", dst, bits });
    return dst;
  }

  /** The low `bits`, extended to 64. */
  extend(value: Operand, bits: 8 | 16 | 32, signed: boolean): Operand {
    if (!isVReg(value)) return signed ? BigInt.asIntN(bits, value) : BigInt.asUintN(bits, value);
    const dst = this.register();
    this.#add({ op: "extend", dst, src: value, bits, signed });
    return dst;
  }

  load(memory: Memory, bytes: 1 | 2 | 4 | 8 = 8, signed = false): VReg {
    const dst = this.register();
    this.#add({ op: "load", dst, base: memory.base, offset: memory.offset, bytes, signed });
    return dst;
  }

  store(memory: Memory, value: Operand, bytes: 1 | 2 | 4 | 8 = 8): void {
    const src = isVReg(value) ? value : fitsImmediate(value) ? Number(value) : this.copy(value);
    this.#add({ op: "store", base: memory.base, offset: memory.offset, bytes, src });
  }

  /** Zeros, 8 bytes at a time; `bytes` is a multiple of 8. */
  clear(memory: Memory, bytes: number): void {
    for (let at = 0; at < bytes; at += 8) this.store(advance(memory, at), 0n);
  }

  /** Copies 8 bytes at a time; `bytes` is a multiple of 8. */
  copyMemory(to: Memory, from: Memory, bytes: number): void {
    for (let at = 0; at < bytes; at += 8) this.store(advance(to, at), this.load(advance(from, at)));
  }

  atomic(name: AtomicOp, memory: Memory, value: Operand): void {
    const base = this.#address(memory.base);
    this.#add({ op: "atomic", name, base, offset: memory.offset, src: this.inRegister(value) });
  }

  /** The same, and gives the value before. */
  fetch(name: AtomicOp, memory: Memory, value: Operand): VReg {
    const base = this.#address(memory.base);
    const reg = this.copy(value);
    this.#add({ op: "fetch", name, base, offset: memory.offset, reg });
    return reg;
  }

  /** Stores `src` if the memory holds `expected`; gives what it held. */
  compareExchange(memory: Memory, expected: VReg, src: VReg): VReg {
    const base = this.#address(memory.base);
    const dst = this.register();
    this.#add({ op: "compare-exchange", base, offset: memory.offset, expected, src, dst });
    return dst;
  }

  /** Calls a helper and gives r0. */
  call(helper: number, ...args: CallArgument[]): VReg {
    const dst = this.register();
    this.#add({ op: "call", helper, args, dst });
    return dst;
  }

  /** Calls a helper whose result is of no interest. */
  callVoid(helper: number, ...args: CallArgument[]): void {
    this.#add({ op: "call", helper, args, dst: undefined });
  }

  jump(cond: JumpName, left: Operand, right: Operand, target: IrLabel): void {
    const src = isVReg(right) ? right : fitsImmediate(right) ? Number(right) : this.copy(right);
    this.#add({ op: "jump", cond, left: this.inRegister(left), right: src, target });
  }

  goto(target: IrLabel): void {
    this.#add({ op: "goto", target });
  }

  exit(): void {
    this.#add({ op: "exit" });
  }

  #address(base: Base): VReg {
    if (base !== "frame") return base;
    const dst = this.register();
    this.#add({ op: "frame-address", dst, offset: 0 });
    return dst;
  }

  #add(insn: IrInsn): void {
    this.insns.push(this.#place === undefined ? insn : { ...insn, place: this.#place });
  }
}

/** A place `bytes` further on. */
export function advance(memory: Memory, bytes: number): Memory {
  return { base: memory.base, offset: memory.offset + bytes };
}

/** The address of a place as an argument of a call. */
export function addressArgument(memory: Memory): CallArgument {
  if (memory.base === "frame") return { kind: "frame", offset: memory.offset };
  if (memory.offset === 0) return memory.base;
  return { kind: "offset", base: memory.base, offset: memory.offset };
}

function isCommutative(name: AluName): boolean {
  return name === "add" || name === "mul" || name === "or" || name === "and" || name === "xor";
}

/** Whether `x op value` is x. */
function isNeutral(name: AluName, value: bigint): boolean {
  switch (name) {
    case "add":
    case "sub":
    case "or":
    case "xor":
    case "lsh":
    case "rsh":
    case "arsh":
      return value === 0n;
    case "mul":
    case "div":
    case "sdiv":
      return value === 1n;
    default:
      return false;
  }
}

function powerOfTwo(value: bigint): number | undefined {
  if (value <= 1n || (value & (value - 1n)) !== 0n) return undefined;
  return value.toString(2).length - 1;
}

/** The result of an operation on numbers, as BPF defines it (RFC 9669, section 4.1), signed 64 bits. */
export function foldAlu(name: AluName, left: bigint, right: bigint): bigint | undefined {
  const unsignedLeft = BigInt.asUintN(64, left);
  const unsignedRight = BigInt.asUintN(64, right);
  const shift = unsignedRight & 63n;
  const result = (): bigint | undefined => {
    switch (name) {
      case "add":
        return left + right;
      case "sub":
        return left - right;
      case "mul":
        return left * right;
      case "and":
        return left & right;
      case "or":
        return left | right;
      case "xor":
        return left ^ right;
      case "lsh":
        return left << shift;
      case "rsh":
        return unsignedLeft >> shift;
      case "arsh":
        return BigInt.asIntN(64, left) >> shift;
      case "div":
        return unsignedRight === 0n ? 0n : unsignedLeft / unsignedRight;
      case "sdiv":
        return right === 0n ? 0n : BigInt.asIntN(64, left) / BigInt.asIntN(64, right);
      case "mod":
        return unsignedRight === 0n ? left : unsignedLeft % unsignedRight;
      case "smod":
        return right === 0n ? left : BigInt.asIntN(64, left) % BigInt.asIntN(64, right);
      case "mov":
        return right;
    }
  };
  const value = result();
  return value === undefined ? undefined : BigInt.asIntN(64, value);
}
