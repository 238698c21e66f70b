/**
 * An assembler for the integer part of x86-64, for code that is placed at a known address.
 *
 *     const a = new Assembler(0x7f0000001000n);
 *     const done = a.label("done");
 *     a.test(RDI, RDI);
 *     a.jcc("e", done);
 *     a.lock().addImm({ base: RDI, disp: 8 }, 1);
 *     a.bind(done);
 *     a.ret();
 *     const code = a.finish();
 *
 * Strategy: each method asks the table in assembler-encodings.ts for the first encoding that fits, which is the
 * shortest; jumps to labels and addresses start as rel8 and grow in `finish` (assembler-layout.ts). Operands
 * are in Intel order. Sizes are in bits and 64 by default. Immediates have their own methods (`addImm`) because
 * registers are numbers too; an immediate may be written signed or unsigned, and is refused when the
 * instruction could not hold it.
 *
 * Not handled: vector and floating point instructions, the ah..dh registers, 16-bit addressing, far jumps.
 */
import { type Encoding, getEncodings, type OpSize } from "./assembler-encodings.ts";
import { type Fixup, type LabelPlace, type LaidOut, layOut, nopBytes } from "./assembler-layout.ts";
import {
  AssemblerError,
  type CodeTarget,
  encodeModRm,
  type Label,
  type Mem,
  type ModRm,
  type RegMem,
} from "./assembler-operands.ts";
import { RAX, RCX, type Reg, type RegSet } from "./registers.ts";

export type { OpSize } from "./assembler-encodings.ts";
export {
  AssemblerError,
  type CodeTarget,
  type FsMem,
  type IndexedMem,
  type Label,
  type Mem,
  type RegMem,
  type RipMem,
} from "./assembler-operands.ts";

/** Condition codes; the index is the encoding (Intel SDM 2D, appendix B, table B-10). */
const conditions = [
  "o",
  "no",
  "b",
  "ae",
  "e",
  "ne",
  "be",
  "a",
  "s",
  "ns",
  "p",
  "np",
  "l",
  "ge",
  "le",
  "g",
] as const;

export type Condition = (typeof conditions)[number];

/** The condition that holds exactly when `cc` does not. */
export function invertCondition(cc: Condition): Condition {
  return conditions[conditions.indexOf(cc) ^ 1]!;
}

/** Operations that have all the forms of `add`. */
export type AluOp = "add" | "or" | "adc" | "sbb" | "and" | "sub" | "xor" | "cmp";
export type ShiftOp = "rol" | "ror" | "shl" | "shr" | "sar";

interface ImmOperand {
  readonly imm: bigint;
}

type Operand = RegMem | ImmOperand;

export class Assembler {
  /** Address of the first byte. */
  readonly base: bigint;
  #raw = new Uint8Array(256);
  #rawLen = 0;
  readonly #fixups: Fixup[] = [];
  #popped: RegSet = 0;
  readonly #labels: { label: Label; place: LabelPlace | undefined }[] = [];
  #laidOut: LaidOut | undefined;

  constructor(base: bigint) {
    this.base = base;
  }

  // ---- labels, layout

  /** A new label without a place. `name` appears in errors. */
  label(name = "label"): Label {
    const label: Label = { name, id: this.#labels.length };
    this.#labels.push({ label, place: undefined });
    return label;
  }

  /** Gives a label its place: here. */
  bind(label: Label): void {
    const entry = this.#ownLabel(label);
    if (entry.place !== undefined)
      throw new AssemblerError(`bind label "${label.name}": it has a place already`);
    entry.place = { raw: this.#rawLen, fixupIndex: this.#fixups.length };
  }

  /** A new label that stands here. */
  here(name = "here"): Label {
    const label = this.label(name);
    this.bind(label);
    return label;
  }

  isBound(label: Label): boolean {
    return this.#ownLabel(label).place !== undefined;
  }

  /** Final code. Throws if a label has no place or a target is out of reach. No code can be added afterwards. */
  finish(): Uint8Array {
    this.#laidOut ??= layOut(this.base, this.#raw.subarray(0, this.#rawLen), this.#fixups, (label) =>
      this.#placeOf(label),
    );
    return this.#laidOut.bytes;
  }

  /** Byte offset of a label from the beginning; after `finish`. */
  offsetOf(label: Label): number {
    if (this.#laidOut === undefined)
      throw new AssemblerError(`offset of label "${label.name}": not finished`);
    const place = this.#placeOf(label);
    return this.#laidOut.finalOffset(place.raw, place.fixupIndex);
  }

  /** Address of a label; after `finish`. */
  addressOf(label: Label): bigint {
    return this.base + BigInt(this.offsetOf(label));
  }

  #ownLabel(label: Label): { label: Label; place: LabelPlace | undefined } {
    const entry = this.#labels[label.id];
    if (entry?.label !== label)
      throw new AssemblerError(`use label "${label.name}": made by another assembler`);
    return entry;
  }

  #placeOf(label: Label): LabelPlace {
    const { place } = this.#ownLabel(label);
    if (place === undefined) throw new AssemblerError(`place label "${label.name}": never bound`);
    return place;
  }

  // ---- data

  bytes(bytes: Iterable<number>): void {
    for (const byte of bytes) this.#byte(byte);
  }

  data32(value: number): void {
    for (let i = 0; i < 4; i++) this.#byte((value >>> (8 * i)) & 0xff);
  }

  data64(value: bigint): void {
    for (let i = 0n; i < 8n; i++) this.#byte(Number((value >> (8n * i)) & 0xffn));
  }

  /** The 64-bit address of a label as data. */
  dataAddress(target: CodeTarget): void {
    if (typeof target !== "bigint") this.#ownLabel(target);
    this.#fixups.push({ kind: "abs64", raw: this.#rawLen, target });
    this.bytes([0, 0, 0, 0, 0, 0, 0, 0]);
  }

  /** Pads until the address is a multiple of `to`. */
  align(to: number, fill: "nop" | "int3" | "zero" = "nop"): void {
    this.#assertOpen();
    this.#fixups.push({ kind: "align", raw: this.#rawLen, to, fill, lenBytes: 0 });
  }

  /** `lenBytes` bytes of no-operation instructions. */
  nop(lenBytes = 1): void {
    this.bytes(nopBytes(lenBytes));
  }

  // ---- moves

  mov(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.#emit("mov", size, [dst, src]);
  }

  /** Any constant into a register, or a sign-extended 32-bit one into memory. Flags stay as they are. */
  movImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    const imm = immediate(value, size);
    if (typeof dst !== "number" || size < 64) this.#emit("mov", size, [dst, { imm }]);
    else if (BigInt.asUintN(64, imm) >> 32n === 0n)
      this.#emit("mov", 32, [dst, { imm: BigInt.asUintN(32, imm) }]);
    else this.#emit(BigInt.asIntN(32, imm) === imm ? "mov" : "movabs", 64, [dst, { imm }]);
  }

  /** A 64-bit constant in its full 10-byte form, to be patched or to keep its size. */
  movabs(dst: Reg, value: bigint): void {
    this.#emit("movabs", 64, [dst, { imm: value }]);
  }

  /** Zero by `xor`: changes the flags. */
  zero(dst: Reg): void {
    this.#emit("xor", 32, [dst, dst]);
  }

  lea(dst: Reg, mem: Mem, size: 32 | 64 = 64): void {
    this.#emit("lea", size, [dst, mem]);
  }

  /** Zero-extended from `from` bits to 64. */
  movzx(dst: Reg, src: RegMem, from: 8 | 16): void {
    this.#emit(`movzx${from}`, 32, [dst, src]);
  }

  /** Sign-extended from `from` bits to `size`. */
  movsx(dst: Reg, src: RegMem, from: 8 | 16 | 32, size: 32 | 64 = 64): void {
    this.#emit(`movsx${from}`, size, [dst, src]);
  }

  bswap(dst: Reg, size: 32 | 64 = 64): void {
    this.#emit("bswap", size, [dst]);
  }

  cmov(cc: Condition, dst: Reg, src: RegMem, size: 16 | 32 | 64 = 64): void {
    this.#emit("cmov", size, [dst, src], cc);
  }

  set(cc: Condition, dst: RegMem): void {
    this.#emit("set", 8, [dst], cc);
  }

  // ---- arithmetic and logic

  alu(op: AluOp, dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.#emit(op, size, [dst, src]);
  }

  aluImm(op: AluOp, dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.#emit(op, size, [dst, { imm: immediate(value, size) }]);
  }

  add(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.alu("add", dst, src, size);
  }

  addImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.aluImm("add", dst, value, size);
  }

  or(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.alu("or", dst, src, size);
  }

  orImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.aluImm("or", dst, value, size);
  }

  and(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.alu("and", dst, src, size);
  }

  andImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.aluImm("and", dst, value, size);
  }

  sub(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.alu("sub", dst, src, size);
  }

  subImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.aluImm("sub", dst, value, size);
  }

  xor(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.alu("xor", dst, src, size);
  }

  xorImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.aluImm("xor", dst, value, size);
  }

  cmp(dst: RegMem, src: RegMem, size: OpSize = 64): void {
    this.alu("cmp", dst, src, size);
  }

  cmpImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.aluImm("cmp", dst, value, size);
  }

  test(dst: RegMem, src: Reg, size: OpSize = 64): void {
    this.#emit("test", size, [dst, src]);
  }

  testImm(dst: RegMem, value: number | bigint, size: OpSize = 64): void {
    this.#emit("test", size, [dst, { imm: immediate(value, size) }]);
  }

  /** Shift or rotate by a constant, 0 to size - 1. */
  shift(op: ShiftOp, dst: RegMem, count: number, size: OpSize = 64): void {
    if (!(count >= 0 && count < size))
      throw new AssemblerError(`encode ${op}: count ${count} of ${size} bits`);
    this.#emit(op, size, [dst, { imm: BigInt(count) }]);
  }

  /** Shift or rotate by cl. */
  shiftCl(op: ShiftOp, dst: RegMem, size: OpSize = 64): void {
    this.#emit(op, size, [dst, RCX]);
  }

  shl(dst: RegMem, count: number, size: OpSize = 64): void {
    this.shift("shl", dst, count, size);
  }

  shr(dst: RegMem, count: number, size: OpSize = 64): void {
    this.shift("shr", dst, count, size);
  }

  sar(dst: RegMem, count: number, size: OpSize = 64): void {
    this.shift("sar", dst, count, size);
  }

  rol(dst: RegMem, count: number, size: OpSize = 64): void {
    this.shift("rol", dst, count, size);
  }

  ror(dst: RegMem, count: number, size: OpSize = 64): void {
    this.shift("ror", dst, count, size);
  }

  neg(dst: RegMem, size: OpSize = 64): void {
    this.#emit("neg", size, [dst]);
  }

  not(dst: RegMem, size: OpSize = 64): void {
    this.#emit("not", size, [dst]);
  }

  inc(dst: RegMem, size: OpSize = 64): void {
    this.#emit("inc", size, [dst]);
  }

  dec(dst: RegMem, size: OpSize = 64): void {
    this.#emit("dec", size, [dst]);
  }

  imul(dst: Reg, src: RegMem, size: 16 | 32 | 64 = 64): void {
    this.#emit("imul", size, [dst, src]);
  }

  imulImm(dst: Reg, src: RegMem, value: number | bigint, size: 16 | 32 | 64 = 64): void {
    this.#emit("imul", size, [dst, src, { imm: immediate(value, size) }]);
  }

  /** rdx:rax = rax * src, unsigned. */
  mul(src: RegMem, size: OpSize = 64): void {
    this.#emit("mul", size, [src]);
  }

  /** rdx:rax / src, unsigned: quotient in rax, remainder in rdx. */
  div(src: RegMem, size: OpSize = 64): void {
    this.#emit("div", size, [src]);
  }

  idiv(src: RegMem, size: OpSize = 64): void {
    this.#emit("idiv", size, [src]);
  }

  /** rdx:rax = sign extension of rax. */
  cqo(): void {
    this.bytes([0x48, 0x99]);
  }

  /** edx:eax = sign extension of eax. */
  cdq(): void {
    this.#byte(0x99);
  }

  bsf(dst: Reg, src: RegMem, size: 16 | 32 | 64 = 64): void {
    this.#emit("bsf", size, [dst, src]);
  }

  bsr(dst: Reg, src: RegMem, size: 16 | 32 | 64 = 64): void {
    this.#emit("bsr", size, [dst, src]);
  }

  bt(dst: RegMem, bit: Reg, size: 16 | 32 | 64 = 64): void {
    this.#emit("bt", size, [dst, bit]);
  }

  btImm(dst: RegMem, bit: number, size: 16 | 32 | 64 = 64): void {
    this.#emit("bt", size, [dst, { imm: BigInt(bit) }]);
  }

  btsImm(dst: RegMem, bit: number, size: 16 | 32 | 64 = 64): void {
    this.#emit("bts", size, [dst, { imm: BigInt(bit) }]);
  }

  btrImm(dst: RegMem, bit: number, size: 16 | 32 | 64 = 64): void {
    this.#emit("btr", size, [dst, { imm: BigInt(bit) }]);
  }

  // ---- atomics

  /** The lock prefix for the instruction that is emitted next. */
  lock(): this {
    this.#byte(0xf0);
    return this;
  }

  /** Locked by the hardware when `dst` is memory. */
  xchg(dst: RegMem, src: Reg, size: OpSize = 64): void {
    // `xchg eax, eax` in its short form would be nop, which does not clear the upper half.
    const hasShortForm = typeof dst === "number" && size > 8 && (dst === RAX) !== (src === RAX);
    if (hasShortForm) this.#emit("xchgrax", size, [dst === RAX ? src : dst]);
    else this.#emit("xchg", size, [dst, src]);
  }

  xadd(dst: RegMem, src: Reg, size: OpSize = 64): void {
    this.#emit("xadd", size, [dst, src]);
  }

  /** If rax equals dst then dst = src, else rax = dst. */
  cmpxchg(dst: RegMem, src: Reg, size: OpSize = 64): void {
    this.#emit("cmpxchg", size, [dst, src]);
  }

  /** If rdx:rax equals the 16-byte aligned memory then it becomes rcx:rbx, else rdx:rax is loaded. */
  cmpxchg16b(mem: Mem): void {
    this.#emit("cmpxchg16b", 64, [mem]);
  }

  // ---- control flow

  /** `eb rel8` or `e9 rel32`. */
  jmp(target: CodeTarget): void {
    this.#jump(0xeb, [0xe9], target, false);
  }

  /** `e9 rel32` whatever the distance. */
  jmp32(target: CodeTarget): void {
    this.#jump(0xeb, [0xe9], target, true);
  }

  /** `7x rel8` or `0f 8x rel32`. */
  jcc(cc: Condition, target: CodeTarget): void {
    const n = conditions.indexOf(cc);
    this.#jump(0x70 | n, [0x0f, 0x80 | n], target, false);
  }

  call(target: CodeTarget): void {
    this.#jump(0, [0xe8], target, true);
  }

  /** Jump to an address in a register or in memory. */
  jmpTo(where: RegMem): void {
    this.#emit("jmp", 64, [where]);
  }

  callTo(where: RegMem): void {
    this.#emit("call", 64, [where]);
  }

  ret(): void {
    this.#byte(0xc3);
  }

  push(src: RegMem): void {
    this.#emit("push", 64, [src]);
  }

  /** Pushes a sign-extended 32-bit constant as 8 bytes. */
  pushImm(value: number): void {
    this.#emit("push", 64, [{ imm: immediate(value, 64) }]);
  }

  pop(dst: RegMem): void {
    if (typeof dst === "number") this.#popped |= 1 << dst;
    this.#emit("pop", 64, [dst]);
  }

  /** Registers that some code takes from the stack: what is given back before the end may be changed until then. */
  get poppedRegs(): RegSet {
    return this.#popped;
  }

  pushfq(): void {
    this.#byte(0x9c);
  }

  popfq(): void {
    this.#byte(0x9d);
  }

  lahf(): void {
    this.#byte(0x9f);
  }

  sahf(): void {
    this.#byte(0x9e);
  }

  // ---- system

  int3(): void {
    this.#byte(0xcc);
  }

  ud2(): void {
    this.bytes([0x0f, 0x0b]);
  }

  /** Clobbers rcx and r11. */
  syscall(): void {
    this.bytes([0x0f, 0x05]);
  }

  pause(): void {
    this.bytes([0xf3, 0x90]);
  }

  mfence(): void {
    this.bytes([0x0f, 0xae, 0xf0]);
  }

  lfence(): void {
    this.bytes([0x0f, 0xae, 0xe8]);
  }

  cpuid(): void {
    this.bytes([0x0f, 0xa2]);
  }

  /** edx:eax = time stamp counter. */
  rdtsc(): void {
    this.bytes([0x0f, 0x31]);
  }

  /** edx:eax = time stamp counter, ecx = TSC_AUX (the cpu number on Linux). */
  rdtscp(): void {
    this.bytes([0x0f, 0x01, 0xf9]);
  }

  /** dst = TSC_AUX: on Linux the cpu number in the low 12 bits, the node above them. */
  rdpid(dst: Reg): void {
    this.#emit("rdpid", 64, [dst]);
  }

  /** dst = limit of the segment that the selector names; ZF tells whether there is one. */
  lsl(dst: Reg, selector: RegMem, size: 32 | 64 = 32): void {
    this.#emit("lsl", size, [dst, selector]);
  }

  rdfsbase(dst: Reg): void {
    this.#emit("rdfsbase", 64, [dst]);
  }

  /** edx:eax = protection key rights; ecx must be 0. */
  rdpkru(): void {
    this.bytes([0x0f, 0x01, 0xee]);
  }

  /** Protection key rights = eax; ecx and edx must be 0. */
  wrpkru(): void {
    this.bytes([0x0f, 0x01, 0xef]);
  }

  endbr64(): void {
    this.bytes([0xf3, 0x0f, 0x1e, 0xfa]);
  }

  // ---- encoding

  #assertOpen(): void {
    if (this.#laidOut !== undefined) throw new AssemblerError("emit code: the assembler is finished");
  }

  #byte(byte: number): void {
    this.#assertOpen();
    if (this.#rawLen === this.#raw.length) {
      const larger = new Uint8Array(this.#raw.length * 2);
      larger.set(this.#raw);
      this.#raw = larger;
    }
    this.#raw[this.#rawLen++] = byte;
  }

  #jump(short: number, long: readonly number[], target: CodeTarget, isLong: boolean): void {
    this.#assertOpen();
    if (typeof target !== "bigint") this.#ownLabel(target);
    this.#fixups.push({ kind: "jump", raw: this.#rawLen, short, long, target, isLong });
  }

  #emit(mnemonic: string, size: OpSize, operands: readonly Operand[], cc?: Condition): void {
    const encoding = getEncodings(mnemonic, size).find((candidate) => fits(candidate, operands));
    if (encoding === undefined) {
      throw new AssemblerError(
        `encode ${mnemonic}${cc ?? ""}: no ${size}-bit form for ${describe(operands)}`,
      );
    }
    this.#encode(encoding, operands, cc === undefined ? 0 : conditions.indexOf(cc));
  }

  /** legacy prefixes, REX, opcode, ModRM, SIB, displacement, immediate (Intel SDM 2A, figure 2-1). */
  #encode(encoding: Encoding, operands: readonly Operand[], cc: number): void {
    let reg = typeof encoding.modrm === "number" ? encoding.modrm : 0;
    let rm: RegMem | undefined;
    let opcodeReg = 0;
    let imm = 0n;
    let needsRex = false;
    for (const [i, pattern] of encoding.operands.entries()) {
      const operand = operands[i]!;
      if (typeof operand === "object" && "imm" in operand) {
        imm = operand.imm;
        continue;
      }
      // Without REX the byte registers 4 to 7 would be ah, ch, dh, bh.
      if (encoding.byteRegs[i] && typeof operand === "number" && operand >= 4) needsRex = true;
      if (pattern.kind === "fixed") continue;
      if (pattern.kind === "r" && encoding.regInOpcode) opcodeReg = operand as Reg;
      else if (pattern.kind === "r" && encoding.modrm === "reg") reg = operand as Reg;
      else rm = operand;
    }
    const modrm: ModRm | undefined =
      encoding.modrm === "none" || rm === undefined ? undefined : encodeModRm(reg, rm);

    if (modrm !== undefined && modrm.segment !== 0) this.#byte(modrm.segment);
    for (const byte of encoding.prefix) this.#byte(byte);
    const rex =
      (encoding.rexW ? 8 : 0) | ((reg >> 3) << 2) | (modrm === undefined ? opcodeReg >> 3 : modrm.rexXb);
    if (rex !== 0 || needsRex) this.#byte(0x40 | rex);
    const { opcode } = encoding;
    for (const [i, byte] of opcode.entries()) {
      this.#byte(i === opcode.length - 1 ? byte + (opcodeReg & 7) + cc : byte);
    }
    if (modrm !== undefined) {
      for (const byte of modrm.bytes) this.#byte(byte);
      if (modrm.rip !== undefined) {
        const { ripTo, disp = 0 } = modrm.rip;
        if (typeof ripTo !== "bigint") this.#ownLabel(ripTo);
        this.#fixups.push({
          kind: "rel32",
          raw: this.#rawLen - 4,
          tailBytes: encoding.immBytes,
          target: ripTo,
          disp,
        });
      }
    }
    for (let i = 0; i < encoding.immBytes; i++) this.#byte(Number((imm >> BigInt(8 * i)) & 0xffn));
  }
}

/** The signed value of a constant that may be written signed or unsigned. */
function immediate(value: number | bigint, size: OpSize): bigint {
  const wide = BigInt(value);
  const signed = BigInt.asIntN(size, wide);
  if (wide !== signed && wide !== BigInt.asUintN(size, wide))
    throw new AssemblerError(`encode immediate 0x${wide.toString(16)}: exceeds ${size} bits`);
  return signed;
}

function fits(encoding: Encoding, operands: readonly Operand[]): boolean {
  return (
    encoding.operands.length === operands.length &&
    encoding.operands.every((pattern, i) => {
      const operand = operands[i]!;
      const isImm = typeof operand === "object" && "imm" in operand;
      switch (pattern.kind) {
        case "r":
          return typeof operand === "number";
        case "fixed":
          return operand === pattern.reg;
        case "rm":
          return !isImm;
        case "m":
          return typeof operand === "object" && !isImm;
        case "one":
          return isImm && operand.imm === 1n;
        case "imm":
          // The mov of 32 bits into a register takes an unsigned constant: it is zero-extended.
          return (
            isImm &&
            (BigInt.asIntN(pattern.bits, operand.imm) === operand.imm ||
              (pattern.bits === encoding.size && BigInt.asUintN(pattern.bits, operand.imm) === operand.imm))
          );
        default:
          return pattern satisfies never;
      }
    })
  );
}

function describe(operands: readonly Operand[]): string {
  return operands
    .map((operand) => {
      if (typeof operand === "number") return "register";
      return "imm" in operand ? `constant ${operand.imm}` : "memory";
    })
    .join(", ");
}
