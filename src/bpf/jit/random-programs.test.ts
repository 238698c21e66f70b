/**
 * Generated programs, compiled and interpreted from the same state of registers, context and maps: the result and
 * every byte of the maps must be the same. A failure prints its seed.
 */
import { afterAll, describe, expect, it } from "vitest";
import { contextOf, NativeBpf } from "../../../test/support/native-bpf.ts";
import { randomWords } from "../../../test/support/native-code.ts";
import {
  type AluName,
  type AtomicName,
  type BpfReg,
  bpfRegs,
  HELPER_MAP_DELETE_ELEM,
  HELPER_MAP_LOOKUP_ELEM,
  HELPER_MAP_UPDATE_ELEM,
  InsnBuilder,
  type JumpName,
  type MapSpec,
  printProgram,
  r0,
  r1,
  r2,
  r3,
  r4,
  r9,
  r10,
} from "../index.ts";

const PROGRAMS = 2400;
/** It takes seconds, except on a machine that is busy with other things. */
const TIMEOUT_MS = 300_000;
const SLOTS = 8;
const maps: readonly MapSpec[] = [
  { name: "array", kind: "array", keyBytes: 4, valueBytes: 32, maxEntries: 5 },
  { name: "hash", kind: "hash", keyBytes: 8, valueBytes: 16, maxEntries: 4 },
  { name: "wide", kind: "hash", keyBytes: 12, valueBytes: 20, maxEntries: 3 },
];

const alu: readonly AluName[] = [
  "add",
  "sub",
  "mul",
  "div",
  "sdiv",
  "or",
  "and",
  "lsh",
  "rsh",
  "mod",
  "smod",
  "xor",
  "mov",
  "arsh",
];
const jumps: readonly JumpName[] = ["eq", "ne", "gt", "ge", "lt", "le", "set", "sgt", "sge", "slt", "sle"];
const atomics: readonly AtomicName[] = [
  "add",
  "or",
  "and",
  "xor",
  "fetch_add",
  "fetch_or",
  "fetch_and",
  "fetch_xor",
  "xchg",
  "cmpxchg",
];

class Generator {
  readonly #b = new InsnBuilder();
  readonly #next: () => bigint;
  /** Whether r9 still holds the context. */
  readonly #keepsCtx: boolean;
  readonly #regs: readonly BpfReg[];

  constructor(seed: number) {
    this.#next = randomWords(seed);
    this.#keepsCtx = this.#once(2);
    this.#regs = bpfRegs.slice(0, this.#keepsCtx ? 9 : 10);
  }

  program() {
    const b = this.#b;
    if (this.#keepsCtx) b.mov64(r9, r1);
    for (let slot = 1; slot <= SLOTS; slot++) b.ldx(8, r0, r1, slot * 8).stx(8, r10, -8 * slot, r0);
    for (const reg of this.#regs) if (reg !== r1) b.ldx(8, reg, r1, reg.reg * 16);
    b.mov64(r1, r0);
    this.#block(8 + this.#below(30), 2);
    for (const reg of this.#regs.slice(1)) b.alu64("mul", r0, 31).alu64("add", r0, reg);
    for (let slot = 1; slot <= SLOTS; slot++)
      b.ldx(8, r1, r10, -8 * slot)
        .alu64("mul", r0, 7)
        .alu64("xor", r0, r1);
    return b.exit().build().insns;
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
    const kind = this.#below(depth > 0 ? 16 : 14);
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
    else if (kind === 13) {
      if (this.#once(3)) this.#mapCall();
      else if (this.#keepsCtx) b.ldx(this.#pick([4, 8] as const), dst, r9, 8 * this.#below(21));
    } else if (kind === 14) this.#branch(dst, src, depth);
    else this.#loop(depth);
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
    this.#b.loadConst(dst, value);
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
        () => b.atomic(this.#pick(atomics), 8, base, 0, src),
        () => b.stx(8, base, 0, src),
        () => b.ldx(8, src, base, 0),
      ])();
    } else if (isAtomic) b.atomic(this.#pick(atomics), this.#pick([4, 8] as const), base, 8, dst);
    else b.ldx(this.#pick([1, 2, 4, 8] as const), dst, base, 0);
    b.mov64(base, this.#below(100));
  }

  /** A helper on one of the maps; r0 to r5 hold numbers again afterwards. */
  #mapCall(): void {
    const b = this.#b;
    const map = this.#below(maps.length);
    const keyAt = -8 * SLOTS - 16;
    const valueAt = keyAt - 32;
    const key = this.#below(6);
    b.st(8, r10, keyAt, key).st(8, r10, keyAt + 8, key * 7);
    const helper = this.#pick([HELPER_MAP_LOOKUP_ELEM, HELPER_MAP_UPDATE_ELEM, HELPER_MAP_DELETE_ELEM]);
    if (helper === HELPER_MAP_UPDATE_ELEM) {
      for (let at = 0; at < 32; at += 8) b.st(8, r10, valueAt + at, this.#imm());
      b.mov64(r3, r10).alu64("add", r3, valueAt).mov64(r4, this.#below(4));
    }
    b.ldMapFd(r1, map).mov64(r2, r10).alu64("add", r2, keyAt).call(helper);
    if (helper === HELPER_MAP_LOOKUP_ELEM) {
      const [none, done] = [b.label(), b.label()];
      b.jmp("eq", r0, 0, none);
      if (this.#once(2))
        b.mov64(r1, this.#imm()).atomic(this.#pick(["add", "fetch_add", "xchg"] as const), 8, r0, 8, r1);
      b.ldx(this.#pick([4, 8] as const), r0, r0, 0).goto(done);
      b.bind(none).mov64(r0, -1).bind(done);
    }
    for (let reg = 1; reg <= 5; reg++) b.ldx(8, bpfRegs[reg]!, r10, this.#slot());
  }

  #branch(dst: BpfReg, src: BpfReg, depth: number): void {
    const b = this.#b;
    const [other, done] = [b.label(), b.label()];
    const operand = this.#once(2) ? src : this.#imm();
    if (this.#once(2)) b.jmp(this.#pick(jumps), dst, operand, other);
    else b.jmp32(this.#pick(jumps), dst, operand, other);
    this.#block(this.#below(4), depth - 1);
    if (this.#once(2)) {
      b.goto(done).bind(other);
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

describe.each([
  { name: "maps far from the code", isNear: false },
  { name: "maps in reach of the code", isNear: true },
])("generated programs, $name", ({ isNear }) => {
  const native = new NativeBpf({ maps, isNear });
  afterAll(() => native[Symbol.dispose]());

  it(
    `${PROGRAMS / 2} programs do the same compiled and interpreted`,
    () => {
      let run = 0;
      for (let seed = isNear ? PROGRAMS : 0; run < PROGRAMS / 2; seed++) {
        const insns = new Generator(seed).program();
        native.reset();
        let compiled: ReturnType<NativeBpf["compile"]>;
        try {
          compiled = native.compile(insns);
        } catch (error) {
          // Some of them are refused: a comparison that the verifier decides can cut instructions off.
          if (error instanceof Error && error.message.startsWith("verifier:")) continue;
          throw new Error(`seed ${seed}`, { cause: error });
        }
        run++;
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
        if (got !== want || Buffer.compare(native.memory.bytes, wantMemory) !== 0)
          expect.fail(
            `seed ${seed}: 0x${got.toString(16)}, not 0x${want.toString(16)}\n${printProgram(insns)}`,
          );
      }
    },
    TIMEOUT_MS,
  );
});
