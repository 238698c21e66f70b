/**
 * Runs eBPF programs one instruction at a time: the reference for the JIT, and the engine of programs that run in
 * the tracer itself.
 *
 * It trusts nothing: memory is reached through regions only, so a program that was never verified can fault but not
 * harm. Semantics are RFC 9669's. With `checkInitialised` it also faults on what a verified program never does:
 * reading a register or a stack byte that was not written, or returning while a record is still reserved.
 *
 * Not handled: calls of local functions, tail calls.
 */
import { evalAlu32, evalAlu64, evalJump32, evalJump64, s64, swapBytes, u64 } from "../alu.ts";
import { findHelper } from "../helpers.ts";
import { type Insn, imm64Of, jumpTarget } from "../insn.ts";
import {
  ALU_END,
  ALU_MOV,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  CALL_HELPER,
  CLASS_ALU,
  CLASS_ALU64,
  CLASS_JMP,
  CLASS_JMP32,
  CLASS_LD,
  CLASS_LDX,
  CLASS_ST,
  CLASS_STX,
  classOf,
  isAtomicOp,
  isSrcReg,
  JMP_CALL,
  JMP_EXIT,
  JMP_JA,
  MODE_ATOMIC,
  MODE_MEM,
  MODE_MEMSX,
  modeOf,
  OP_LDIMM64,
  opOf,
  PSEUDO_MAP_FD,
  PSEUDO_MAP_VALUE,
  PSEUDO_NONE,
  sizeBytesOf,
} from "../opcodes.ts";
import { atomicAt } from "./atomic.ts";
import { callHelper } from "./helper-calls.ts";
import type { HelperWorld } from "./helper-world.ts";
import type { HelperHost, MapAccess } from "./host.ts";
import { InterpreterMaps } from "./map-regions.ts";
import { AddressSpace, loadAt, MemoryFault, newBlock, storeAt } from "./memory.ts";

const STACK_BYTES = 512;
const STACK_BASE = 0x7000_0000_0000n;
const ENTRY_BASE = 0x7100_0000_0000n;
const FRAME_POINTER = 10;
const DEFAULT_MAX_STEPS = 16_000_000;

export interface InterpreterInput {
  readonly insns: readonly Insn[];
  /** Maps by the index that `ldimm64` names. */
  readonly maps: readonly MapAccess[];
  readonly host: HelperHost;
  /**
   * What r1 points to. A context is copied and read only; memory is written in place and its length is in r2.
   */
  readonly entry:
    | { readonly kind: "context"; readonly bytes: Uint8Array }
    | { readonly kind: "memory"; readonly bytes: Uint8Array };
  /** Steps before the run is given up. */
  readonly maxSteps?: number;
  readonly checkInitialised?: boolean;
  /** Told the index of each instruction and r0 to r10 before it. */
  readonly trace?: (at: number, regs: readonly bigint[]) => void;
}

export type InterpreterResult =
  /** `value` is r0, unsigned. */
  | { readonly kind: "returned"; readonly value: bigint; readonly steps: number }
  | { readonly kind: "faulted"; readonly at: number; readonly message: string; readonly steps: number };

/** Runs a program to its exit or first fault. */
export function interpret(input: InterpreterInput): InterpreterResult {
  const run = new Run(input);
  try {
    const value = run.toExit();
    if (input.entry.kind === "memory") input.entry.bytes.set(run.entryBytes());
    return { kind: "returned", value, steps: run.steps };
  } catch (error) {
    if (!(error instanceof MemoryFault)) throw error;
    return { kind: "faulted", at: run.pc, message: error.message, steps: run.steps };
  }
}

class Run {
  pc = 0;
  steps = 0;
  readonly #insns: readonly Insn[];
  readonly #maxSteps: number;
  readonly #trace: InterpreterInput["trace"];
  readonly #regs: bigint[] = Array.from({ length: 11 }, () => 0n);
  readonly #space = new AddressSpace();
  readonly #maps: InterpreterMaps;
  readonly #world: HelperWorld;
  readonly #entry;
  readonly #entryLen: number;
  /** Bit n: register n was written. Undefined: not checked. */
  #written: number | undefined;
  readonly #stackWritten = new Uint8Array(STACK_BYTES);

  constructor(input: InterpreterInput) {
    this.#insns = input.insns;
    this.#trace = input.trace;
    this.#maxSteps = input.maxSteps ?? DEFAULT_MAX_STEPS;
    this.#maps = new InterpreterMaps(input.maps, this.#space);
    this.#space.add({
      name: "stack",
      base: STACK_BASE,
      lenBytes: STACK_BYTES,
      writable: true,
      block: newBlock(STACK_BYTES),
      offset: 0,
    });
    const { bytes, kind } = input.entry;
    this.#entryLen = bytes.length;
    this.#entry = newBlock(bytes.length);
    this.#entry.bytes.set(bytes);
    this.#space.add({
      name: kind,
      base: ENTRY_BASE,
      lenBytes: bytes.length,
      writable: kind === "memory",
      block: this.#entry,
      offset: 0,
    });
    this.#regs[1] = ENTRY_BASE;
    if (kind === "memory") this.#regs[2] = BigInt(bytes.length);
    this.#regs[FRAME_POINTER] = STACK_BASE + BigInt(STACK_BYTES);
    if (input.checkInitialised)
      this.#written = (1 << 1) | (1 << FRAME_POINTER) | (kind === "memory" ? 1 << 2 : 0);
    this.#world = {
      host: input.host,
      maps: this.#maps,
      space: this.#space,
      noteWritten: (addr, lenBytes) => this.#noteStackWrite(addr, lenBytes),
      noteRead: (addr, lenBytes) => this.#checkStackRead(addr, lenBytes),
    };
  }

  entryBytes(): Uint8Array {
    return this.#entry.bytes.subarray(0, this.#entryLen);
  }

  toExit(): bigint {
    for (;;) {
      const insn = this.#insns[this.pc];
      if (!insn) throw new MemoryFault(`execution left the program at instruction ${this.pc}`);
      if (++this.steps > this.#maxSteps) throw new MemoryFault(`no exit within ${this.#maxSteps} steps`);
      this.#trace?.(this.pc, this.#regs);
      const next = this.#step(insn);
      if (next === undefined) {
        if (this.#written !== undefined && this.#maps.openRecords > 0) {
          throw new MemoryFault(`exit with ${this.#maps.openRecords} records still reserved`);
        }
        return this.#get(0);
      }
      this.pc = next;
    }
  }

  /** Runs one instruction; returns the next one's index, undefined after exit. */
  #step(insn: Insn): number | undefined {
    const next = this.pc + 1;
    switch (classOf(insn.opcode)) {
      case CLASS_ALU:
      case CLASS_ALU64:
        this.#set(insn.dst, this.#alu(insn));
        return next;
      case CLASS_JMP:
      case CLASS_JMP32:
        return this.#jump(insn, next);
      case CLASS_LD:
        this.#loadImm64(insn);
        return next + 1;
      case CLASS_LDX:
        this.#set(insn.dst, this.#load(insn));
        return next;
      case CLASS_ST:
        this.#store(insn, BigInt(insn.imm));
        return next;
      case CLASS_STX:
        if (modeOf(insn.opcode) === MODE_ATOMIC) this.#atomic(insn);
        else this.#store(insn, this.#get(insn.src));
        return next;
      default:
        throw this.#unknown(insn);
    }
  }

  #alu(insn: Insn): bigint {
    const op = opOf(insn.opcode);
    const is64 = classOf(insn.opcode) === CLASS_ALU64;
    if (op > ALU_END) throw this.#unknown(insn);
    if (op === ALU_END) {
      if (insn.imm !== 16 && insn.imm !== 32 && insn.imm !== 64) throw this.#unknown(insn);
      const value = this.#get(insn.dst);
      const swaps = is64 || isSrcReg(insn.opcode);
      return swaps ? swapBytes(value, insn.imm) : BigInt.asUintN(insn.imm, value);
    }
    const src = isSrcReg(insn.opcode) ? this.#get(insn.src) : u64(BigInt(insn.imm));
    const dst = op === ALU_MOV ? 0n : this.#get(insn.dst);
    return (is64 ? evalAlu64 : evalAlu32)(op, insn.off, dst, src);
  }

  #jump(insn: Insn, next: number): number | undefined {
    const op = opOf(insn.opcode);
    const is64 = classOf(insn.opcode) === CLASS_JMP;
    if (op === JMP_JA) return jumpTarget(insn, this.pc) ?? this.#fail(insn);
    if (op === JMP_EXIT && is64) return undefined;
    if (op === JMP_CALL && is64) {
      this.#call(insn);
      return next;
    }
    const target = jumpTarget(insn, this.pc);
    if (target === undefined || op > 0xd0) throw this.#unknown(insn);
    const src = isSrcReg(insn.opcode) ? this.#get(insn.src) : u64(BigInt(insn.imm));
    const holds = (is64 ? evalJump64 : evalJump32)(op, this.#get(insn.dst), src);
    return holds ? target : next;
  }

  #call(insn: Insn): void {
    if (insn.src !== CALL_HELPER)
      throw new MemoryFault(`call with source ${insn.src}: only helpers can be called`);
    const argCount = findHelper(insn.imm)?.args.length ?? 0;
    const args = Array.from({ length: argCount }, (_, i) => this.#get(i + 1));
    const result = callHelper(this.#world, insn.imm, args);
    if (this.#written !== undefined) this.#written &= ~0b111110;
    this.#set(0, result);
  }

  #loadImm64(insn: Insn): void {
    const high = this.#insns[this.pc + 1];
    if (insn.opcode !== OP_LDIMM64 || !high) throw this.#unknown(insn);
    switch (insn.src) {
      case PSEUDO_NONE:
        this.#set(insn.dst, imm64Of(insn, high));
        return;
      case PSEUDO_MAP_FD:
        this.#set(insn.dst, this.#maps.handleOf(insn.imm));
        return;
      case PSEUDO_MAP_VALUE:
        this.#set(insn.dst, this.#maps.addressInFirstValue(insn.imm, high.imm));
        return;
      default:
        throw this.#unknown(insn);
    }
  }

  #load(insn: Insn): bigint {
    const mode = modeOf(insn.opcode);
    const lenBytes = sizeBytesOf(insn.opcode);
    if (mode !== MODE_MEM && (mode !== MODE_MEMSX || lenBytes === 8)) throw this.#unknown(insn);
    const addr = u64(this.#get(insn.src) + BigInt(insn.off));
    const { region, at } = this.#space.getSpot(addr, lenBytes, false);
    this.#checkStackRead(addr, lenBytes);
    const value = loadAt(region.block, at, lenBytes);
    return mode === MODE_MEMSX ? u64(BigInt.asIntN(lenBytes * 8, value)) : value;
  }

  #store(insn: Insn, value: bigint): void {
    if (modeOf(insn.opcode) !== MODE_MEM) throw this.#unknown(insn);
    const lenBytes = sizeBytesOf(insn.opcode);
    const addr = u64(this.#get(insn.dst) + BigInt(insn.off));
    const { region, at } = this.#space.getSpot(addr, lenBytes, true);
    this.#noteStackWrite(addr, lenBytes);
    storeAt(region.block, at, lenBytes, u64(value));
  }

  #atomic(insn: Insn): void {
    const lenBytes = sizeBytesOf(insn.opcode);
    if ((lenBytes !== 4 && lenBytes !== 8) || !isAtomicOp(insn.imm)) throw this.#unknown(insn);
    const addr = u64(this.#get(insn.dst) + BigInt(insn.off));
    const { region, at } = this.#space.getSpot(addr, lenBytes, true);
    if (addr % BigInt(lenBytes) !== 0n) {
      throw new MemoryFault(`atomic access of ${lenBytes} bytes at 0x${addr.toString(16)}: not aligned`);
    }
    this.#checkStackRead(addr, lenBytes);
    const isCmpxchg = insn.imm === ATOMIC_CMPXCHG;
    const expected = isCmpxchg ? this.#get(0) : 0n;
    const old = atomicAt(region.block, at, lenBytes, insn.imm, this.#get(insn.src), expected);
    if (isCmpxchg) this.#set(0, old);
    else if ((insn.imm & ATOMIC_FETCH) !== 0) this.#set(insn.src, old);
  }

  #get(reg: number): bigint {
    const value = this.#regs[reg];
    if (value === undefined) throw new MemoryFault(`no register r${reg}`);
    if (this.#written !== undefined && ((this.#written >> reg) & 1) === 0) {
      throw new MemoryFault(`read of r${reg}, which was never written`);
    }
    return value;
  }

  #set(reg: number, value: bigint): void {
    if (reg >= FRAME_POINTER) throw new MemoryFault(`write of r${reg}`);
    this.#regs[reg] = value;
    if (this.#written !== undefined) this.#written |= 1 << reg;
  }

  #noteStackWrite(addr: bigint, lenBytes: number): void {
    const at = s64(addr - STACK_BASE);
    if (at >= 0n && at < STACK_BYTES) this.#stackWritten.fill(1, Number(at), Number(at) + lenBytes);
  }

  #checkStackRead(addr: bigint, lenBytes: number): void {
    if (this.#written === undefined) return;
    const at = Number(s64(addr - STACK_BASE));
    if (at < 0 || at >= STACK_BYTES) return;
    if (this.#stackWritten.subarray(at, at + lenBytes).includes(0)) {
      throw new MemoryFault(
        `read of ${lenBytes} stack bytes at fp${at - STACK_BYTES}, not all written before`,
      );
    }
  }

  #unknown(insn: Insn): MemoryFault {
    return new MemoryFault(`unknown instruction ${JSON.stringify(insn)}`);
  }

  #fail(insn: Insn): never {
    throw this.#unknown(insn);
  }
}
