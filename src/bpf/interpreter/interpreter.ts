/**
 * Runs eBPF programs one instruction at a time: the reference for the JIT, and the engine of programs that run in
 * the tracer itself.
 *
 * It trusts nothing: memory is reached through regions only, so a program that was never verified can fault but not
 * harm. Semantics are RFC 9669's. With `checkInitialised` it also faults on what a verified program never does:
 * reading a register or a stack byte that was not written, or returning while a record is still reserved.
 *
 * Functions of the program run on a call stack of at most 8 frames (call-stack.ts); helpers that call a function back
 * are in callback-calls.ts. A tail call goes on in another program in the same frame, and that program's exit
 * returns to where the function that it replaced was called from, as in the kernel.
 */
import { evalAlu32, evalAlu64, evalJump32, evalJump64, swapBytes, u64 } from "../alu.ts";
import { findHelper, HELPER_TAIL_CALL } from "../helpers.ts";
import { type Insn, imm64Of, jumpTarget } from "../insn.ts";
import {
  ALU_END,
  ALU_MOV,
  ATOMIC_CMPXCHG,
  ATOMIC_FETCH,
  CALL_HELPER,
  CALL_LOCAL,
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
  JMP_JSLE,
  MODE_ATOMIC,
  MODE_MEM,
  MODE_MEMSX,
  modeOf,
  OP_CALL,
  OP_EXIT,
  OP_JA,
  OP_JA32,
  OP_LDIMM64,
  opOf,
  PSEUDO_FUNCTION,
  PSEUDO_MAP_FD,
  PSEUDO_MAP_INDEX,
  PSEUDO_MAP_INDEX_VALUE,
  PSEUDO_MAP_VALUE,
  PSEUDO_NONE,
  sizeBytesOf,
} from "../opcodes.ts";
import { atomicAt } from "./atomic.ts";
import { CallStack } from "./call-stack.ts";
import { callBackHelper } from "./callback-calls.ts";
import { callHelper } from "./helper-calls.ts";
import type { HelperWorld } from "./helper-world.ts";
import type { HelperHost, MapAccess } from "./host.ts";
import { InterpreterMaps } from "./map-regions.ts";
import { AddressSpace, loadAt, MemoryFault, newBlock, storeAt } from "./memory.ts";

const ENTRY_BASE = 0x7100_0000_0000n;
/** A function of the program as a callback: an address where nothing lies, plus its slot. */
const FUNCTION_BASE = 0x7200_0000_0000n;
const FRAME_POINTER = 10;
/** Bits of r1 to r5. */
const ARGUMENTS = 0b111110;
/** A tail call that would be one more does nothing. */
const MAX_TAIL_CALLS = 33;
const DEFAULT_MAX_STEPS = 16_000_000;

export interface InterpreterInput {
  readonly insns: readonly Insn[];
  /** What the slots of program arrays name, by index; none unless given. */
  readonly programs?: readonly { readonly insns: readonly Insn[] }[];
  /** Maps by the index that `ldimm64` names. */
  readonly maps: readonly MapAccess[];
  /** Index of the ring buffer that takes what the program prints (`Bundle.printk`). */
  readonly printk?: number | undefined;
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
  /** Whether `checkInitialised` lets a program read stack bytes that it never wrote; they are 0. "refuse" unless told. */
  readonly uninitStack?: "refuse" | "allow";
  /** Told the index of each instruction, r0 to r10 before it, and how many functions are running. */
  readonly trace?: (at: number, regs: readonly bigint[], depth: number) => void;
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
  #insns: readonly Insn[];
  readonly #programs: readonly { readonly insns: readonly Insn[] }[];
  readonly #maxSteps: number;
  readonly #trace: InterpreterInput["trace"];
  readonly #regs: bigint[] = Array.from({ length: 11 }, () => 0n);
  readonly #space = new AddressSpace();
  readonly #stack: CallStack;
  readonly #maps: InterpreterMaps;
  readonly #world: HelperWorld;
  readonly #entry;
  readonly #entryLen: number;
  #tailCalls = 0;
  /** Bit n: register n was written. Undefined: not checked. */
  #written: number | undefined;

  constructor(input: InterpreterInput) {
    this.#insns = input.insns;
    this.#programs = input.programs ?? [];
    this.#trace = input.trace;
    this.#maxSteps = input.maxSteps ?? DEFAULT_MAX_STEPS;
    this.#maps = new InterpreterMaps(input.maps, this.#space);
    this.#stack = new CallStack(
      this.#space,
      input.checkInitialised === true && input.uninitStack !== "allow",
    );
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
    if (input.checkInitialised) this.#written = (1 << 1) | (kind === "memory" ? 1 << 2 : 0);
    const printk = input.printk === undefined ? undefined : input.maps[input.printk];
    this.#world = {
      host: input.host,
      printk: printk !== undefined && "reserve" in printk ? printk : undefined,
      maps: this.#maps,
      space: this.#space,
      noteWritten: (addr, lenBytes) => this.#stack.noteWritten(addr, lenBytes),
      noteRead: (addr, lenBytes) => this.#stack.checkRead(addr, lenBytes),
    };
  }

  entryBytes(): Uint8Array {
    return this.#entry.bytes.subarray(0, this.#entryLen);
  }

  toExit(): bigint {
    this.#function(0);
    if (this.#written !== undefined && this.#maps.openRecords > 0) {
      throw new MemoryFault(`exit with ${this.#maps.openRecords} records still reserved`);
    }
    return this.#get(0);
  }

  /** Runs the function at `slot` on a frame of its own; r1 to r5 are its arguments, r0 its result. */
  #function(slot: number): void {
    const callerRegs = this.#regs.slice(6);
    const [callerWritten, callerInsns, callerPc] = [this.#written, this.#insns, this.pc];
    const { limit } = this.#stack;
    this.#regs[FRAME_POINTER] = this.#stack.enter();
    if (this.#written !== undefined) this.#written = (this.#written & ARGUMENTS) | (1 << FRAME_POINTER);
    this.pc = slot;
    this.#untilExit();
    this.#stack.leave();
    this.#stack.restoreLimit(limit);
    // The place of a fault is left as it is: only a function that returns comes here.
    this.#insns = callerInsns;
    this.pc = callerPc;
    for (const [i, value] of callerRegs.entries()) this.#regs[6 + i] = value;
    if (this.#written !== undefined && callerWritten !== undefined)
      this.#written = (callerWritten & ~(ARGUMENTS | 1)) | (this.#written & 1);
  }

  #untilExit(): void {
    for (;;) {
      const insn = this.#insns[this.pc];
      if (!insn) throw new MemoryFault(`execution left the program at instruction ${this.pc}`);
      if (++this.steps > this.#maxSteps) throw new MemoryFault(`no exit within ${this.#maxSteps} steps`);
      this.#trace?.(this.pc, this.#regs, this.#stack.depth);
      const next = this.#step(insn);
      if (next === undefined) return;
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
    switch (insn.opcode) {
      case OP_EXIT:
        return undefined;
      case OP_CALL:
        return this.#call(insn, next);
      case OP_JA:
      case OP_JA32:
        return jumpTarget(insn, this.pc);
      default:
    }
    const op = opOf(insn.opcode);
    const target = jumpTarget(insn, this.pc);
    if (target === undefined || op > JMP_JSLE) throw this.#unknown(insn);
    const src = isSrcReg(insn.opcode) ? this.#get(insn.src) : u64(BigInt(insn.imm));
    const is64 = classOf(insn.opcode) === CLASS_JMP;
    const holds = (is64 ? evalJump64 : evalJump32)(op, this.#get(insn.dst), src);
    return holds ? target : next;
  }

  /** Returns the index of the next instruction. */
  #call(insn: Insn, next: number): number {
    if (insn.src === CALL_LOCAL) {
      this.#function(next + insn.imm);
      return next;
    }
    if (insn.src !== CALL_HELPER)
      throw new MemoryFault(`call with source ${insn.src}: only helpers and functions can be called`);
    const args = (findHelper(insn.imm)?.args ?? []).map((arg, i) =>
      arg.kind === "anything" && arg.optional === true ? this.#regs[i + 1]! : this.#get(i + 1),
    );
    if (insn.imm === HELPER_TAIL_CALL && this.#tailCall(args)) return 0;
    const result =
      insn.imm === HELPER_TAIL_CALL
        ? 0n
        : (callBackHelper(this.#world, insn.imm, args, (fn, values) => this.#callBack(fn, values)) ??
          callHelper(this.#world, insn.imm, args));
    if (this.#written !== undefined) this.#written &= ~ARGUMENTS;
    this.#set(0, result);
    return next;
  }

  /** Calls a function of the program for a helper; returns its r0. */
  #callBack(fn: bigint, args: readonly bigint[]): bigint {
    const slot = fn - FUNCTION_BASE;
    if (slot < 0n || slot >= BigInt(this.#insns.length))
      throw new MemoryFault(`callback at 0x${fn.toString(16)}, which is no function`);
    for (const [i, value] of args.entries()) this.#regs[1 + i] = value;
    if (this.#written !== undefined)
      this.#written = (this.#written & ~ARGUMENTS) | (((1 << args.length) - 1) << 1);
    this.#function(Number(slot));
    return this.#get(0);
  }

  /** Goes on in another program, on an empty frame; false: there is none. */
  #tailCall([ctx = 0n, map = 0n, index = 0n]: readonly bigint[]): boolean {
    const program = this.#programs[this.#maps.programAt(map, Number(BigInt.asUintN(32, index))) ?? -1];
    if (program === undefined || this.#tailCalls >= MAX_TAIL_CALLS) return false;
    this.#tailCalls++;
    this.#insns = program.insns;
    this.#regs[FRAME_POINTER] = this.#stack.replace();
    this.#regs[1] = ctx;
    if (this.#written !== undefined) this.#written = (1 << 1) | (1 << FRAME_POINTER);
    return true;
  }

  #loadImm64(insn: Insn): void {
    const high = this.#insns[this.pc + 1];
    if (insn.opcode !== OP_LDIMM64 || !high) throw this.#unknown(insn);
    switch (insn.src) {
      case PSEUDO_NONE:
        this.#set(insn.dst, imm64Of(insn, high));
        return;
      case PSEUDO_FUNCTION:
        this.#set(insn.dst, FUNCTION_BASE + BigInt(this.pc + 1 + insn.imm));
        return;
      case PSEUDO_MAP_FD:
      case PSEUDO_MAP_INDEX:
        this.#set(insn.dst, this.#maps.handleOf(insn.imm));
        return;
      case PSEUDO_MAP_VALUE:
      case PSEUDO_MAP_INDEX_VALUE:
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
    this.#stack.checkRead(addr, lenBytes);
    const value = loadAt(region.block, at, lenBytes);
    return mode === MODE_MEMSX ? u64(BigInt.asIntN(lenBytes * 8, value)) : value;
  }

  #store(insn: Insn, value: bigint): void {
    if (modeOf(insn.opcode) !== MODE_MEM) throw this.#unknown(insn);
    const lenBytes = sizeBytesOf(insn.opcode);
    const addr = u64(this.#get(insn.dst) + BigInt(insn.off));
    const { region, at } = this.#space.getSpot(addr, lenBytes, true);
    this.#stack.noteWritten(addr, lenBytes);
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
    this.#stack.checkRead(addr, lenBytes);
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

  #unknown(insn: Insn): MemoryFault {
    return new MemoryFault(`unknown instruction ${JSON.stringify(insn)}`);
  }
}
