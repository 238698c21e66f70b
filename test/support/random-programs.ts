/**
 * Generated programs that compute, to compare the JIT with the interpreter: from one seed always the same program.
 *
 * They are made of all instructions (RFC 9669): arithmetic of both widths, byte order, sign extension, loads and
 * stores of every width, atomics, jumps of all kinds, loops, calls of map helpers, local functions, bpf_loop and
 * bpf_for_each_map_elem. Registers hold numbers between the steps, never addresses, which differ between the two; at
 * the end of every function all registers and all of its stack go into its result.
 */
import { HELPER_FOR_EACH_MAP_ELEM, HELPER_LOOP } from "../../src/bpf/helpers.ts";
import {
  type AluName,
  type AtomicName,
  type BpfReg,
  bpfRegs,
  HELPER_GET_ATTACH_COOKIE,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  type Insn,
  InsnBuilder,
  type JumpName,
  type Label,
  type MapSpec,
  printProgram,
  r0,
  r1,
  r2,
  r3,
  r4,
  r9,
  r10,
} from "../../src/bpf/index.ts";
import { contextOf, type NativeBpf } from "./native-bpf.ts";
import { randomWords } from "./native-code.ts";

/** Words of the stack that hold numbers. */
const SLOTS = 8;
/** Where the key and the value of a map helper lie, and what a callback gets. */
const KEY_AT = -8 * SLOTS - 16;
const VALUE_AT = KEY_AT - 32;
const MAX_FUNCTIONS = 4;
/** Functions that run at once. */
const MAX_DEPTH = 3;

export const computingMaps: readonly MapSpec[] = [
  { name: "array", kind: "array", keyBytes: 4, valueBytes: 32, maxEntries: 5 },
  { name: "hash", kind: "hash", keyBytes: 8, valueBytes: 16, maxEntries: 4 },
  { name: "wide", kind: "hash", keyBytes: 12, valueBytes: 20, maxEntries: 3 },
];

const alu: readonly AluName[] = [
  ...(["add", "sub", "mul", "div", "sdiv", "or", "and"] as const),
  ...(["lsh", "rsh", "mod", "smod", "xor", "mov", "arsh"] as const),
];
const jumps: readonly JumpName[] = ["eq", "ne", "gt", "ge", "lt", "le", "set", "sgt", "sge", "slt", "sle"];
const atomics: readonly AtomicName[] = [
  ...(["add", "or", "and", "xor", "fetch_add", "fetch_or", "fetch_and", "fetch_xor"] as const),
  ...(["xchg", "cmpxchg"] as const),
];

/** A function that is yet to be written. */
interface Planned {
  readonly label: Label;
  readonly kind: "function" | "pointer" | "loop" | "element";
  /** How many functions run when it does. */
  readonly depth: number;
}

/** The instructions of one program. */
export function computingProgram(seed: number): Insn[] {
  return new Generator(seed).program();
}

class Generator {
  readonly #b = new InsnBuilder();
  readonly #next: () => bigint;
  readonly #planned: Planned[] = [];
  /** Written and planned. */
  readonly #functions: Planned[] = [];
  #depth = 1;
  /** Whether r9 still holds the context. */
  #keepsCtx: boolean;
  #regs: readonly BpfReg[];

  constructor(seed: number) {
    this.#next = randomWords(seed);
    this.#keepsCtx = this.#once(2);
    this.#regs = bpfRegs.slice(0, this.#keepsCtx ? 9 : 10);
  }

  program(): Insn[] {
    const b = this.#b;
    if (this.#keepsCtx) b.mov64(r9, r1);
    for (let slot = 1; slot <= SLOTS; slot++) b.ldx(8, r0, r1, slot * 8).stx(8, r10, -8 * slot, r0);
    for (const reg of this.#regs) if (reg !== r1) b.ldx(8, reg, r1, reg.reg * 16);
    b.mov64(r1, r0);
    this.#block(8 + this.#below(30), 2);
    this.#sum();
    b.exit();
    for (let fn = this.#planned.shift(); fn !== undefined; fn = this.#planned.shift()) this.#function(fn);
    return b.build().insns;
  }

  /** r0 = all registers and slots. */
  #sum(): void {
    const b = this.#b;
    for (const reg of this.#regs.slice(1)) b.alu64("mul", r0, 31).alu64("add", r0, reg);
    for (let slot = 1; slot <= SLOTS; slot++)
      b.ldx(8, r1, r10, -8 * slot)
        .alu64("mul", r0, 7)
        .alu64("xor", r0, r1);
  }

  #function({ label, kind, depth }: Planned): void {
    const b = this.#b;
    this.#depth = depth;
    this.#keepsCtx = false;
    this.#regs = bpfRegs.slice(0, 10);
    b.bind(label);
    // What the pointers lead to, then only numbers.
    const pointer = kind === "loop" ? r2 : kind === "pointer" ? r1 : kind === "element" ? r4 : undefined;
    if (pointer !== undefined) {
      b.ldx(8, r0, pointer, 0)
        .alu64("mul", r0, 5)
        .alu64("add", r0, kind === "loop" ? r1 : 3);
      if (kind === "element") b.ldx(4, r2, r2, 0).alu64("add", r0, r2).ldx(8, r1, r3, 8).alu64("xor", r0, r1);
      if (kind === "element") b.stx(8, r3, 0, r0).mov64(r3, 4);
      b.stx(8, pointer, 0, r0).mov64(pointer, this.#imm());
    } else b.mov64(r0, r1);
    if (kind === "loop" || kind === "pointer" || kind === "element")
      for (const reg of bpfRegs.slice(1, 6)) if (reg !== r1 || kind !== "loop") b.mov64(reg, this.#imm());
    for (let reg = 6; reg <= 9; reg++) b.mov64(bpfRegs[reg]!, bpfRegs[this.#below(6)]!);
    for (let slot = 1; slot <= SLOTS; slot++) b.stx(8, r10, -8 * slot, this.#pick(this.#regs));
    this.#block(2 + this.#below(10), 2);
    this.#sum();
    if (kind === "function" || kind === "pointer") {
      b.exit();
      return;
    }
    // A callback goes on with 0 and stops with 1.
    const stop = b.label();
    b.mov64(r1, r0)
      .mov64(r0, 1)
      .jmp("set", r1, this.#pick([0x7, 0x80, 0x1000_0000, 0]), stop);
    b.mov64(r0, 0).bind(stop).exit();
  }

  /** True once in `times`. */
  #once(times: number): boolean {
    return this.#below(times) === 0;
  }

  #below(limit: number): number {
    return Number(this.#next() % BigInt(limit));
  }

  #pick<T>(items: readonly T[]): T {
    return items[this.#below(items.length)]!;
  }

  #imm(): number {
    const shapes = [
      () => this.#below(16),
      () => -this.#below(16),
      () => 1 << this.#below(31),
      () => Number(BigInt.asIntN(32, this.#next())),
    ];
    return this.#pick(shapes)();
  }

  #slot(): number {
    return -8 * (1 + this.#below(SLOTS));
  }

  #block(length: number, depth: number): void {
    for (let i = 0; i < length; i++) this.#step(depth);
  }

  #step(depth: number): void {
    const b = this.#b;
    const dst = this.#pick(this.#regs);
    const src = this.#pick(this.#regs);
    const kind = this.#below(depth > 0 ? 18 : 14);
    if (kind < 5) this.#alu(dst, src);
    else if (kind === 5)
      b.swap(this.#pick(["le", "be", "bswap"] as const), dst, this.#pick([16, 32, 64] as const));
    else if (kind === 6) {
      if (this.#once(2)) b.movsx64(dst, src, this.#pick([8, 16, 32] as const));
      else b.movsx32(dst, src, this.#pick([8, 16] as const));
    } else if (kind === 7) {
      if (this.#once(2)) b.neg64(dst);
      else b.neg32(dst);
    } else if (kind === 8) this.#store(dst);
    else if (kind === 9) this.#load(dst);
    else if (kind === 10) b.atomic(this.#pick(atomics), this.#pick([4, 8] as const), r10, this.#slot(), src);
    else if (kind === 11) this.#mapValue(dst);
    else if (kind === 12) this.#loadConstant(dst);
    else if (kind === 13) this.#helper(dst);
    else if (kind === 14) this.#branch(dst, src, depth);
    else if (kind === 15) this.#loop(depth);
    else this.#call();
  }

  #alu(dst: BpfReg, src: BpfReg): void {
    const op = this.#pick(alu);
    const is64 = this.#once(2);
    let operand: BpfReg | number = src;
    if (this.#once(2)) {
      operand = this.#imm();
      if (op === "lsh" || op === "rsh" || op === "arsh") operand = this.#below(is64 ? 64 : 32);
      else if (operand === 0 && ["div", "mod", "sdiv", "smod"].includes(op)) operand = 3;
    }
    if (is64) this.#b.alu64(op, dst, operand);
    else this.#b.alu32(op, dst, operand);
  }

  #loadConstant(dst: BpfReg): void {
    const value = this.#next() >> BigInt(this.#below(64));
    if (this.#once(3)) this.#b.ldImm64(dst, value);
    else this.#b.loadConst(dst, value);
  }

  #store(src: BpfReg): void {
    const bytes = this.#pick([1, 2, 4, 8] as const);
    const at = this.#slot() + bytes * this.#below(8 / bytes);
    if (this.#once(3)) this.#b.st(bytes, r10, at, this.#imm());
    else this.#b.stx(bytes, r10, at, src);
  }

  #load(dst: BpfReg): void {
    const bytes = this.#pick([1, 2, 4, 8] as const);
    const at = this.#slot() + bytes * this.#below(8 / bytes);
    if (bytes !== 8 && this.#once(2)) this.#b.ldsx(bytes, dst, r10, at);
    else this.#b.ldx(bytes, dst, r10, at);
  }

  /** An access to element 0 of the array, with or without a computed index. */
  #mapValue(dst: BpfReg): void {
    const b = this.#b;
    // Not r0: cmpxchg would compare the address itself, which is another one in the interpreter.
    const base = this.#pick(this.#regs.filter((reg) => reg !== dst && reg !== r0));
    const offset = 8 * this.#below(2);
    b.ldMapValue(base, 0, offset);
    const isIndexed = this.#once(2);
    const isAtomic = this.#once(2);
    if (isIndexed) {
      // dst becomes 0 or 1, then a byte offset
      b.alu64("and", dst, 1).alu64("lsh", dst, 3).alu64("add", base, dst);
      const src = this.#pick(this.#regs.filter((reg) => reg !== base));
      this.#pick([
        () => b.atomic(this.#pick(atomics), this.#pick([4, 8] as const), base, 0, src),
        () => b.stx(this.#pick([1, 2, 4, 8] as const), base, 0, src),
        () => b.ldx(this.#pick([1, 2, 4, 8] as const), src, base, 0),
        () => b.ldsx(this.#pick([1, 2, 4] as const), src, base, 0),
      ])();
    } else if (isAtomic) b.atomic(this.#pick(atomics), this.#pick([4, 8] as const), base, 8, dst);
    else b.ldx(this.#pick([1, 2, 4, 8] as const), dst, base, 0);
    b.mov64(base, this.#below(100));
  }

  #helper(dst: BpfReg): void {
    const b = this.#b;
    if (this.#once(3)) this.#mapCall();
    else if (this.#keepsCtx && this.#once(4)) {
      b.mov64(r1, r9).call(HELPER_GET_ATTACH_COOKIE);
      this.#numbersAgain();
    } else if (this.#keepsCtx) b.ldx(this.#pick([4, 8] as const), dst, r9, 8 * this.#below(21));
  }

  /** r1 to r5 hold numbers after a call. */
  #numbersAgain(): void {
    for (let reg = 1; reg <= 5; reg++) this.#b.ldx(8, bpfRegs[reg]!, r10, this.#slot());
  }

  /** A helper on one of the maps. */
  #mapCall(): void {
    const b = this.#b;
    const map = this.#below(computingMaps.length);
    const key = this.#below(6);
    b.st(8, r10, KEY_AT, key).st(8, r10, KEY_AT + 8, key * 7);
    const helper = this.#pick([HELPER_MAP_LOOKUP_ELEM, HELPER_MAP_UPDATE_ELEM, HELPER_MAP_DELETE_ELEM]);
    if (helper === HELPER_MAP_UPDATE_ELEM) {
      for (let at = 0; at < 32; at += 8) b.st(8, r10, VALUE_AT + at, this.#imm());
      b.mov64(r3, r10).alu64("add", r3, VALUE_AT).mov64(r4, this.#below(4));
    }
    b.ldMapFd(r1, map).mov64(r2, r10).alu64("add", r2, KEY_AT).call(helper);
    if (helper === HELPER_MAP_LOOKUP_ELEM) {
      const [none, done] = [b.label(), b.label()];
      b.jmp("eq", r0, 0, none);
      if (this.#once(2))
        b.mov64(r1, this.#imm()).atomic(this.#pick(["add", "fetch_add", "xchg"] as const), 8, r0, 8, r1);
      b.ldx(this.#pick([4, 8] as const), r0, r0, 0).goto(done);
      b.bind(none).mov64(r0, -1).bind(done);
    }
    this.#numbersAgain();
  }

  /** A new function, or one that is there and cannot lead back here. */
  #planFunction(kinds: readonly Planned["kind"][]): Planned | undefined {
    if (this.#depth >= MAX_DEPTH) return undefined;
    const known = this.#functions.filter((fn) => kinds.includes(fn.kind) && fn.depth === this.#depth + 1);
    if (known.length > 0 && (this.#functions.length >= MAX_FUNCTIONS || this.#once(2)))
      return this.#pick(known);
    if (this.#functions.length >= MAX_FUNCTIONS) return undefined;
    const planned = { label: this.#b.label(), kind: this.#pick(kinds), depth: this.#depth + 1 };
    this.#functions.push(planned);
    this.#planned.push(planned);
    return planned;
  }

  /** A call of a local function, or of a helper that calls one back. */
  #call(): void {
    const b = this.#b;
    if (this.#once(3)) {
      const callback = this.#planFunction(["loop", "element"]);
      if (callback === undefined) return;
      const isLoop = callback.kind === "loop";
      if (isLoop && this.#once(2)) b.mov64(r1, this.#below(5));
      else if (isLoop) b.ldx(8, r1, r10, this.#slot()).alu64("and", r1, 3);
      else b.ldMapFd(r1, 0);
      b.ldFunction(r2, callback.label).mov64(r3, r10).alu64("add", r3, this.#slot());
      b.mov64(r4, this.#once(8) ? 1 : 0).call(isLoop ? HELPER_LOOP : HELPER_FOR_EACH_MAP_ELEM);
    } else {
      const fn = this.#planFunction(["function", "pointer"]);
      if (fn === undefined) return;
      if (fn.kind === "pointer") b.mov64(r1, r10).alu64("add", r1, this.#slot());
      b.callLocal(fn.label);
    }
    this.#numbersAgain();
  }

  #branch(dst: BpfReg, src: BpfReg, depth: number): void {
    const b = this.#b;
    const [other, done] = [b.label(), b.label()];
    const operand = this.#once(2) ? src : this.#imm();
    if (this.#once(2)) b.jmp(this.#pick(jumps), dst, operand, other);
    else b.jmp32(this.#pick(jumps), dst, operand, other);
    this.#block(this.#below(4), depth - 1);
    if (this.#once(2)) {
      if (this.#once(2)) b.goto(done);
      else b.gotol(done);
      b.bind(other);
      this.#block(1 + this.#below(4), depth - 1);
      b.bind(done);
      // A label needs something behind it that is not the same label again.
      b.alu64("xor", dst, 1);
    } else b.bind(other);
  }

  /** A loop that counts in the stack, where nothing else is. */
  #loop(depth: number): void {
    const b = this.#b;
    const counter = -8 * SLOTS - 64 - 8 * depth;
    const top = b.label();
    b.st(8, r10, counter, 0).bind(top);
    this.#block(1 + this.#below(3), 0);
    const reg = this.#pick(this.#regs);
    b.ldx(8, reg, r10, counter).alu64("add", reg, 1).stx(8, r10, counter, reg);
    b.jmp("lt", reg, 1 + this.#below(3), top);
  }
}

/**
 * Compiles and interprets one generated program from the same state of registers, context and maps. Returns
 * undefined if the verifier refuses it, otherwise what differs; "" if nothing does.
 */
export function findDifference(native: NativeBpf, seed: number): string | undefined {
  const insns = computingProgram(seed);
  native.reset();
  let compiled: ReturnType<NativeBpf["compile"]>;
  try {
    compiled = native.compile(insns);
  } catch (error) {
    // A comparison that the verifier decides can cut instructions off.
    if (error instanceof Error && error.message.startsWith("verifier:")) return undefined;
    throw new Error(`seed ${seed}`, { cause: error });
  }
  const words = randomWords(seed + 1_000_000);
  const ctx = contextOf((offset) => {
    const word = words();
    // Large and small numbers, and a few that are equal.
    return offset % 24 === 0 ? word % 4n : offset % 32 === 0 ? BigInt.asIntN(8, word) : word;
  });
  const start = native.memory.bytes.slice();
  const want = native.interpret(insns, ctx);
  const wantMemory = native.memory.bytes.slice();
  native.memory.bytes.set(start);
  const got = native.run(compiled, ctx);
  const isSame = got === want && Buffer.compare(native.memory.bytes, wantMemory) === 0;
  return isSame
    ? ""
    : `seed ${seed}: 0x${got.toString(16)}, not 0x${want.toString(16)}\n${printProgram(insns)}`;
}
