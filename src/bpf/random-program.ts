/**
 * Random eBPF programs for tests of the verifier, the interpreter and the JIT: from one seed always the same program.
 *
 * Random slots would hardly ever be accepted. These programs are made of small pieces that usually are legal: loads
 * from the context, arithmetic, bounded indexes into map values and the stack, spills, branches, counted loops,
 * lookups with a null test, records. Sizes, bounds and operators are chosen without regard to what fits, so many
 * programs are refused and many are accepted for a reason that is worth testing. A few slots are mutated at the end.
 *
 * They use three maps, see `randomProgramMaps`: an array, a hash, a ring buffer.
 */
import {
  type AluName,
  type AtomicName,
  type BpfReg,
  bpfRegs,
  InsnBuilder,
  type JumpName,
  r0,
  r1,
  r2,
  r3,
  r4,
  r6,
  r10,
} from "./builder.ts";
import type { Insn } from "./insn.ts";
import type { MapSpec } from "./program.ts";

/** What the `ldimm64` of the programs name. */
export const randomProgramMaps: readonly MapSpec[] = [
  { name: "array", kind: "array", keyBytes: 4, valueBytes: 64, maxEntries: 4 },
  { name: "hash", kind: "hash", keyBytes: 8, valueBytes: 24, maxEntries: 8 },
  { name: "ring", kind: "ringbuf", keyBytes: 0, valueBytes: 32, maxEntries: 4 },
];

/** A generator of numbers in 0 <= x < 1 (mulberry32). */
export function randomSource(seed: number): () => number {
  let a = seed | 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export interface RandomProgramOptions {
  /** Pieces of which the program is made, at most. */
  readonly pieces?: number;
  /** Whether slots are changed at the end, after which the program is seldom legal. */
  readonly mutate?: boolean;
}

/** One program. */
export function randomProgram(seed: number, options: RandomProgramOptions = {}): Insn[] {
  const random = randomSource(seed);
  const writer = new Writer(random);
  writer.write(1 + Math.floor(random() * (options.pieces ?? 14)));
  const { insns } = writer.b.build();
  return options.mutate ? mutate(insns, random) : insns;
}

const aluNames: readonly AluName[] = [
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
]; // prettier-ignore
const jumpNames: readonly JumpName[] = [
  "eq",
  "ne",
  "gt",
  "ge",
  "lt",
  "le",
  "set",
  "sgt",
  "sge",
  "slt",
  "sle",
];
const atomicNames: readonly AtomicName[] = [
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
/** Registers that hold numbers; r6 keeps the context, r0 to r5 are for calls and addresses. */
const numbers: readonly BpfReg[] = [bpfRegs[7]!, bpfRegs[8]!, bpfRegs[9]!];
const immediates = [
  0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 255, 4096, -1, -2, -8, -64, 0x7fffffff, -0x80000000,
];

class Writer {
  readonly b = new InsnBuilder();
  readonly #random: () => number;
  #depth = 0;

  constructor(random: () => number) {
    this.#random = random;
  }

  write(pieces: number): void {
    const { b } = this;
    b.mov64(r6, r1);
    for (const reg of numbers) b.ldx(8, reg, r6, 8 * this.#below(20));
    this.#pieces(pieces);
    if (this.#chance(0.3)) b.mov64(r0, this.#number());
    else b.mov64(r0, 0);
    b.exit();
  }

  #pieces(count: number): void {
    for (let i = 0; i < count; i++) this.#piece();
  }

  #piece(): void {
    const pieces: readonly (readonly [weight: number, write: () => void])[] = [
      [10, () => this.#alu(this.#number())],
      [3, () => this.#extend()],
      [3, () => this.#spill()],
      [3, () => this.#fill()],
      [6, () => this.#branch()],
      [2, () => this.#loop()],
      [6, () => this.#arrayIndex()],
      [3, () => this.#stackIndex()],
      [3, () => this.#lookup()],
      [2, () => this.#update()],
      [2, () => this.#record()],
      [2, () => this.#number() && this.b.call(this.#pick([5, 7, 8, 14, 15])).mov64(this.#number(), r0)],
      [2, () => this.#userMemory()],
      [2, () => this.#copy()],
    ];
    const total = pieces.reduce((sum, [weight]) => sum + weight, 0);
    let at = this.#random() * total;
    for (const [weight, write] of pieces) {
      at -= weight;
      if (at < 0) {
        write();
        return;
      }
    }
  }

  #alu(dst: BpfReg): void {
    const op = this.#pick(aluNames);
    const src = this.#chance(0.3) ? this.#number() : this.#immediate();
    if (this.#chance(0.5)) this.b.alu64(op, dst, src);
    else this.b.alu32(op, dst, src);
  }

  #extend(): void {
    const { b } = this;
    const dst = this.#number();
    const write = this.#pick([
      () => b.movsx64(dst, this.#number(), this.#pick([8, 16, 32] as const)),
      () => b.movsx32(dst, this.#number(), this.#pick([8, 16] as const)),
      () => b.neg64(dst),
      () => b.neg32(dst),
      () => b.swap(this.#pick(["le", "be", "bswap"] as const), dst, this.#pick([16, 32, 64] as const)),
      () => b.ldImm64(dst, BigInt.asIntN(64, (BigInt(this.#immediate()) << 31n) ^ BigInt(this.#immediate()))),
      () => b.ldx(this.#pick([4, 8] as const), dst, r6, 8 * this.#below(20)),
    ]);
    write();
  }

  #copy(): void {
    this.b.mov64(this.#number(), this.#number());
  }

  #spill(): void {
    const bytes = this.#pick([8, 8, 8, 4, 4, 2, 1] as const);
    const off = -bytes * (1 + this.#below(bytes === 8 ? 4 : 8));
    if (this.#chance(0.2)) this.b.st(bytes, r10, off, this.#immediate());
    else this.b.stx(bytes, r10, off, this.#number());
  }

  #fill(): void {
    const bytes = this.#pick([8, 8, 8, 4, 4, 2, 1] as const);
    const off = -bytes * (1 + this.#below(bytes === 8 ? 4 : 8));
    // Mostly written before, so that the program is not refused.
    if (this.#chance(0.6)) this.b.stx(8, r10, off & ~7, this.#number());
    if (bytes !== 8 && this.#chance(0.3)) this.b.ldsx(bytes, this.#number(), r10, off);
    else this.b.ldx(bytes, this.#number(), r10, off);
  }

  #compare(target: ReturnType<InsnBuilder["label"]>): void {
    const src = this.#chance(0.35) ? this.#number() : this.#immediate();
    if (this.#chance(0.6)) this.b.jmp(this.#pick(jumpNames), this.#number(), src, target);
    else this.b.jmp32(this.#pick(jumpNames), this.#number(), src, target);
  }

  #branch(): void {
    if (this.#depth > 3) return;
    this.#depth++;
    const { b } = this;
    const otherwise = b.label();
    const end = b.label();
    this.#compare(otherwise);
    this.#pieces(this.#below(3));
    if (this.#chance(0.5)) {
      b.goto(end).bind(otherwise);
      this.#pieces(this.#below(3));
      b.bind(end);
    } else {
      b.bind(otherwise);
    }
    this.#depth--;
  }

  /** Counts in a number register or on the stack, sometimes with a body that disturbs it. */
  #loop(): void {
    if (this.#depth > 1) return;
    this.#depth++;
    const { b } = this;
    const top = b.label();
    const out = b.label();
    const counter = this.#number();
    const onStack = this.#chance(0.3);
    b.mov64(counter, this.#below(3));
    if (onStack) b.stx(8, r10, -40, counter);
    b.bind(top);
    if (onStack) b.ldx(8, counter, r10, -40);
    if (this.#chance(0.8)) b.jmp(this.#pick(["ge", "sgt", "eq", "gt"]), counter, 1 + this.#below(6), out);
    this.#pieces(this.#below(3));
    if (onStack) b.ldx(8, counter, r10, -40);
    b.alu64("add", counter, 1);
    if (onStack) b.stx(8, r10, -40, counter);
    if (this.#chance(0.5)) b.jmp(this.#pick(["lt", "ne", "slt"]), counter, 2 + this.#below(6), top);
    else b.goto(top);
    b.bind(out);
    this.#depth--;
  }

  /** An index in r2 that is bounded somehow; returns a label that is to be placed after its use. */
  #boundedIndex(limit: number): ReturnType<InsnBuilder["label"]> {
    const { b } = this;
    const skip = b.label();
    b.mov64(r2, this.#number());
    const around = () => Math.max(0, limit - 1 + this.#below(3) - 1);
    const bounds = [
      () => b.alu64("and", r2, this.#pick([limit - 1, 7, 15, 31])),
      () => b.jmp("gt", r2, around(), skip),
      () => b.jmp("ge", r2, around(), skip),
      () => b.jmp32("gt", r2, around(), skip).mov32(r2, r2),
      () => b.jmp("slt", r2, 0, skip).jmp("sgt", r2, around(), skip),
      () => b.alu64("mod", r2, this.#pick([limit, limit - 4, limit + 1])),
      () => b.alu32("smod", r2, limit).jmp32("slt", r2, 0, skip),
      () => b.alu64("rsh", r2, 64 - Math.ceil(Math.log2(limit))),
      () => b.alu64("arsh", r2, 60).alu64("add", r2, this.#pick([8, 7])),
      () => b.ldx(1, r2, r10, -1),
      () => undefined,
    ];
    this.#pick(bounds)();
    if (this.#chance(0.3))
      b.alu64(
        this.#pick(["lsh", "rsh", "mul", "add", "sub", "xor", "and", "or"]),
        r2,
        this.#pick([1, 2, 3, 4, 8]),
      );
    if (this.#chance(0.15)) b.neg64(r2).alu64("add", r2, limit);
    return skip;
  }

  #access(base: BpfReg, limit: number): void {
    const { b } = this;
    const bytes = this.#pick([1, 1, 1, 2, 4, 8] as const);
    const off = this.#pick([0, 0, 0, 0, 8, 1, -1, limit - bytes, 4]);
    const access = [
      () => b.ldx(bytes, this.#number(), base, off),
      () => b.stx(bytes, base, off, this.#number()),
      () => b.st(bytes, base, off, this.#immediate()),
      () => bytes !== 8 && b.ldsx(bytes, this.#number(), base, off),
      () => {
        const op = this.#pick(atomicNames);
        if (op === "cmpxchg") b.mov64(r0, this.#immediate());
        b.atomic(op, this.#pick([4, 8] as const), base, off & ~7, this.#number());
      },
    ];
    this.#pick(access)();
  }

  #arrayIndex(): void {
    const { b } = this;
    const skip = this.#boundedIndex(64);
    b.ldMapValue(r1, 0, this.#pick([0, 0, 8]));
    if (this.#chance(0.1)) b.alu64("sub", r1, r2);
    else b.alu64("add", r1, r2);
    this.#access(r1, this.#chance(0.8) ? 8 : 64);
    b.bind(skip);
  }

  #stackIndex(): void {
    const { b } = this;
    for (const off of [-8, -16, -24, -32]) if (this.#chance(0.9)) b.st(8, r10, off, this.#immediate());
    const skip = this.#boundedIndex(32);
    if (this.#chance(0.4)) b.alu64("and", r2, ~7);
    b.mov64(r1, r10).alu64("add", r1, -32).alu64("add", r1, r2);
    this.#access(r1, 8);
    b.bind(skip);
  }

  /** A key at fp-8 and the map in r1. */
  #key(map: number): void {
    const { b } = this;
    if (this.#chance(0.5)) b.st(8, r10, -8, this.#below(5));
    else b.stx(8, r10, -8, this.#number());
    b.ldMapFd(r1, map).mov64(r2, r10).alu64("add", r2, -8);
  }

  #lookup(): void {
    const { b } = this;
    const map = this.#below(2);
    const skip = b.label();
    this.#key(map);
    b.call(1);
    if (this.#chance(0.2)) b.mov64(r3, r0);
    if (this.#chance(0.2)) b.stx(8, r10, -48, r0);
    if (this.#chance(0.95)) b.jmp("eq", r0, 0, skip);
    if (this.#chance(0.2)) b.ldx(8, r0, r10, -48);
    this.#access(r0, map === 0 ? 64 : 24);
    b.bind(skip);
  }

  #update(): void {
    const { b } = this;
    const map = this.#below(2);
    for (let off = -72; off < -8; off += 8) b.st(8, r10, off, this.#immediate());
    this.#key(map);
    if (this.#chance(0.7)) b.mov64(r3, r10).alu64("add", r3, -72).mov64(r4, this.#below(3)).call(2);
    else b.call(3);
    b.mov64(this.#number(), r0);
  }

  #record(): void {
    const { b } = this;
    const skip = b.label();
    b.ldMapFd(r1, 2)
      .mov64(r2, this.#pick([8, 16, 32, 32, 24]))
      .mov64(r3, 0)
      .call(131)
      .jmp("eq", r0, 0, skip);
    if (this.#chance(0.7)) this.#access(r0, 16);
    if (this.#chance(0.3)) b.stx(8, r10, -56, r0).ldx(8, r1, r10, -56);
    else b.mov64(r1, r0);
    if (this.#chance(0.97)) b.mov64(r2, 0).call(this.#pick([132, 133]));
    b.bind(skip);
  }

  #userMemory(): void {
    const { b } = this;
    b.mov64(r1, r10).alu64("add", r1, -this.#pick([8, 16, 24, 32]));
    if (this.#chance(0.6)) {
      b.mov64(r2, this.#pick([1, 7, 8, 16, 32]));
    } else {
      b.mov64(r2, this.#number()).alu64("and", r2, this.#pick([7, 15, 31]));
    }
    b.mov64(r3, this.#number())
      .call(this.#pick([112, 114, 16]))
      .mov64(this.#number(), r0);
  }

  #number(): BpfReg {
    return this.#pick(numbers);
  }

  #immediate(): number {
    return this.#chance(0.8) ? this.#pick(immediates) : Math.floor(this.#random() * 2 ** 32) | 0;
  }

  #below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  #chance(probability: number): boolean {
    return this.#random() < probability;
  }

  #pick<T>(from: readonly T[]): T {
    return from[this.#below(from.length)]!;
  }
}

/** Changes one to three fields. */
function mutate(insns: readonly Insn[], random: () => number): Insn[] {
  const mutated = insns.map((insn) => ({ ...insn }));
  const below = (limit: number) => Math.floor(random() * limit);
  for (let i = 0; i <= below(3); i++) {
    const insn = mutated[below(mutated.length)]!;
    const change = [
      () => (insn.opcode = below(256)),
      () => (insn.opcode = mutated[below(mutated.length)]!.opcode),
      () => (insn.dst = below(11)),
      () => (insn.src = below(11)),
      () => (insn.off = below(16) - 8),
      () => (insn.imm = immediates[below(immediates.length)]!),
      () => (insn.opcode ^= 1 << below(8)),
    ];
    change[below(change.length)]!();
  }
  return mutated;
}
