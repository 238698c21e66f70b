/**
 * Machine code as instruction records.
 *
 * The decoder is iced-x86, a wasm module: every property read crosses the wasm border, and its objects live outside
 * the garbage collector. So a range of code is decoded once, into three typed arrays (place, kind of flow, branch
 * target), and nothing of iced outlives a call. What few instructions need (registers, flags, text) is computed on
 * demand and cached by the instruction's bytes, because code repeats itself.
 *
 * Invariants: decoding is linear from the first byte; it stops at the first byte that begins no instruction, and
 * says where. Branch targets are read from the bytes themselves: a relative branch always ends with its displacement.
 *
 * Not handled: 16- and 32-bit code. Facts: Intel SDM 2A chapter 2, 2B to 2D.
 */
import {
  Code,
  Decoder,
  DecoderOptions,
  FlowControl,
  Formatter,
  FormatterSyntax,
  Instruction,
  InstructionInfoFactory,
  Mnemonic,
  OpAccess,
  OpKind,
  Register,
  type UsedRegister,
} from "./iced.ts";
import type { RegSet } from "./registers.ts";

/** What follows an instruction, by number: `flowKinds[code.flows[i]]`. */
export const flowKinds = [
  "next",
  "jump",
  "branch",
  "jump-indirect",
  "call",
  "call-indirect",
  "return",
  "syscall",
  "trap",
  "stop",
] as const;

/**
 * `next`: the following instruction. `jump`: a constant address. `branch`: a constant address or the following
 * instruction (also loop, jrcxz, xbegin). `jump-indirect`, `call`, `call-indirect`, `return`: as they say.
 * `syscall`: syscall, sysenter, int 0x80. `trap`: int3, int n, int1. `stop`: ud2, hlt: nothing follows.
 */
export type FlowKind = (typeof flowKinds)[number];

const FLOW_NEXT = 0;
const FLOW_JUMP = 1;
const FLOW_BRANCH = 2;
const FLOW_JUMP_INDIRECT = 3;
const FLOW_CALL = 4;
const FLOW_CALL_INDIRECT = 5;
const FLOW_RETURN = 6;
const FLOW_SYSCALL = 7;
const FLOW_TRAP = 8;
const FLOW_STOP = 9;

/** One instruction. `bytes` is a view of the code that was decoded. */
export interface Insn {
  readonly addr: bigint;
  readonly lenBytes: number;
  readonly bytes: Uint8Array;
  readonly flow: FlowKind;
  /** Where a direct jump, branch or call leads. */
  readonly target: bigint | undefined;
}

/** Status flags and the direction flag as bits of RFLAGS (Intel SDM 1, section 3.4.3). */
export const FLAG_CF = 0x001;
export const FLAG_PF = 0x004;
export const FLAG_AF = 0x010;
export const FLAG_ZF = 0x040;
export const FLAG_SF = 0x080;
export const FLAG_DF = 0x400;
export const FLAG_OF = 0x800;
/** The six flags that arithmetic changes. */
export const STATUS_FLAGS = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF;

/** What an instruction does to general-purpose registers and flags; the same wherever it stands. */
export interface InsnEffects {
  /** Registers whose value may matter. */
  readonly reads: RegSet;
  /** Registers that may change. */
  readonly writes: RegSet;
  /** Registers that are always overwritten in full. */
  readonly kills: RegSet;
  /** Bits of RFLAGS whose value may matter. */
  readonly flagsRead: number;
  /** Bits of RFLAGS that always get a new (or undefined) value. */
  readonly flagsKilled: number;
  /** Offset of a RIP-relative disp32 in the instruction, or -1. */
  readonly ripDispOffset: number;
  /** Name in Intel syntax without operands, lower case. */
  readonly mnemonic: string;
}

/** A decoded stretch of code: usually one function. */
export class CodeBlock {
  readonly start: bigint;
  readonly bytes: Uint8Array;
  /** Number of instructions. */
  readonly count: number;
  /** Offset of each instruction from `start`; one more entry: where decoding ended. */
  readonly offsets: Int32Array;
  /** Index into `flowKinds` by instruction. */
  readonly flows: Uint8Array;
  /** Direct target by instruction, as offset from `start`; only where the flow has one. */
  readonly targets: Int32Array;

  constructor(
    start: bigint,
    bytes: Uint8Array,
    count: number,
    offsets: Int32Array,
    flows: Uint8Array,
    targets: Int32Array,
  ) {
    this.start = start;
    this.bytes = bytes;
    this.count = count;
    this.offsets = offsets;
    this.flows = flows;
    this.targets = targets;
  }

  get end(): bigint {
    return this.start + BigInt(this.bytes.length);
  }

  /** Address of the first byte that could not be decoded, or undefined if every byte belongs to an instruction. */
  get undecodableAt(): bigint | undefined {
    const stop = this.offsets[this.count]!;
    return stop < this.bytes.length ? this.start + BigInt(stop) : undefined;
  }

  /** Index of the instruction that contains the byte at `offset`, or -1. */
  indexContaining(offset: number): number {
    if (offset < 0 || offset >= this.offsets[this.count]!) return -1;
    let low = 0;
    let high = this.count;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.offsets[middle]! <= offset) low = middle;
      else high = middle;
    }
    return low;
  }

  /** Index of the instruction that begins at `offset`, or -1. */
  indexAt(offset: number): number {
    const index = this.indexContaining(offset);
    return index >= 0 && this.offsets[index] === offset ? index : -1;
  }

  flowAt(index: number): FlowKind {
    return flowKinds[this.flows[index]!]!;
  }

  hasTarget(index: number): boolean {
    const flow = this.flows[index]!;
    return flow === FLOW_JUMP || flow === FLOW_BRANCH || flow === FLOW_CALL;
  }

  /** Can the instruction be followed by the one behind it? A call counts as coming back. */
  fallsThrough(index: number): boolean {
    const flow = this.flows[index]!;
    return flow !== FLOW_JUMP && flow !== FLOW_JUMP_INDIRECT && flow !== FLOW_RETURN && flow !== FLOW_STOP;
  }

  bytesAt(index: number): Uint8Array {
    return this.bytes.subarray(this.offsets[index]!, this.offsets[index + 1]!);
  }

  insn(index: number): Insn {
    const offset = this.offsets[index]!;
    const end = this.offsets[index + 1]!;
    return {
      addr: this.start + BigInt(offset),
      lenBytes: end - offset,
      bytes: this.bytes.subarray(offset, end),
      flow: this.flowAt(index),
      target: this.hasTarget(index) ? this.start + BigInt(this.targets[index]!) : undefined,
    };
  }

  insns(): Insn[] {
    return Array.from({ length: this.count }, (_, i) => this.insn(i));
  }

  findInsn(addr: bigint): Insn | undefined {
    const index = this.indexAt(Number(addr - this.start));
    return index < 0 ? undefined : this.insn(index);
  }
}

/** Is an address the beginning of an instruction, and if not, which are the nearest beginnings? */
export type Boundary =
  | { readonly kind: "boundary"; readonly insn: Insn }
  | {
      readonly kind: "inside";
      /** The instruction that contains the address. */
      readonly insn: Insn;
      readonly before: bigint;
      readonly after: bigint;
    }
  | { readonly kind: "undecodable"; readonly at: bigint };

export function boundaryAt(code: CodeBlock, addr: bigint): Boundary {
  const index = code.indexContaining(Number(addr - code.start));
  if (index < 0) return { kind: "undecodable", at: code.undecodableAt ?? addr };
  const insn = code.insn(index);
  if (insn.addr === addr) return { kind: "boundary", insn };
  return { kind: "inside", insn, before: insn.addr, after: insn.addr + BigInt(insn.lenBytes) };
}

const scratch = new Instruction();

/** Decodes all of `bytes`, which stand at `start`. Time: about 0.15 µs an instruction. */
export function decodeBlock(start: bigint, bytes: Uint8Array): CodeBlock {
  let offsets = new Int32Array((bytes.length >> 2) + 8);
  let flows = new Uint8Array(offsets.length);
  let targets = new Int32Array(offsets.length);
  let count = 0;
  let offset = 0;
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  try {
    while (offset < bytes.length) {
      decoder.decodeOut(scratch);
      const code = scratch.code;
      if (code === Code.INVALID) break;
      const end = decoder.position;
      if (count + 1 >= offsets.length) {
        offsets = grown(offsets, Int32Array);
        flows = grown(flows, Uint8Array);
        targets = grown(targets, Int32Array);
      }
      const trait = flowTraits[code] ?? learnFlow(code, end - offset);
      offsets[count] = offset;
      flows[count] = trait & 0xf;
      const relBytes = trait >> 4;
      if (relBytes === 4) targets[count] = end + int32At(bytes, end - 4);
      else if (relBytes === 1) targets[count] = end + ((bytes[end - 1]! << 24) >> 24);
      // Intel processors fetch an `int 0x80` as a system call; the immediate tells.
      if (trait === FLOW_TRAP && bytes[end - 2] === 0xcd && bytes[end - 1] === 0x80)
        flows[count] = FLOW_SYSCALL;
      count++;
      offset = end;
    }
  } finally {
    decoder.free();
  }
  offsets[count] = offset;
  return new CodeBlock(
    start,
    bytes,
    count,
    offsets.slice(0, count + 1),
    flows.slice(0, count),
    targets.slice(0, count),
  );
}

function grown<T extends Int32Array | Uint8Array>(old: T, make: new (length: number) => T): T {
  const larger = new make(old.length * 2);
  larger.set(old as never);
  return larger;
}

export function int32At(bytes: Uint8Array, offset: number): number {
  return bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24);
}

/** Flow kind in the low four bits, size of the relative displacement in bytes above them, by iced's code. */
const flowTraits: number[] = [];

function learnFlow(code: Code, lenBytes: number): number {
  const flow = flowOf(scratch, code);
  let relBytes = 0;
  if (flow === FLOW_JUMP || flow === FLOW_BRANCH || flow === FLOW_CALL) {
    const isShort = scratch.isJmpShort || scratch.isJccShort || scratch.isJcxShort;
    relBytes = isShort || scratch.isLoop || scratch.isLoopcc ? 1 : 4;
  }
  if (relBytes > lenBytes) throw new Error(`decode: branch of ${lenBytes} bytes`);
  const trait = flow | (relBytes << 4);
  flowTraits[code] = trait;
  return trait;
}

function flowOf(insn: Instruction, code: Code): number {
  if (code === Code.Syscall || code === Code.Sysenter) return FLOW_SYSCALL;
  if (code === Code.Hlt) return FLOW_STOP;
  switch (insn.flowControl) {
    case FlowControl.Next:
      return FLOW_NEXT;
    case FlowControl.UnconditionalBranch:
      return FLOW_JUMP;
    case FlowControl.IndirectBranch:
      return FLOW_JUMP_INDIRECT;
    case FlowControl.ConditionalBranch:
      return FLOW_BRANCH;
    case FlowControl.Return:
      return FLOW_RETURN;
    case FlowControl.Call:
      // Also what calls a hypervisor or a secure world (vmcall), and goes on behind.
      return insn.op0Kind === OpKind.NearBranch64 ? FLOW_CALL : FLOW_NEXT;
    case FlowControl.IndirectCall:
      return FLOW_CALL_INDIRECT;
    case FlowControl.Interrupt:
      return FLOW_TRAP;
    case FlowControl.XbeginXabortXend:
      return insn.op0Kind === OpKind.NearBranch64 ? FLOW_BRANCH : FLOW_NEXT;
    case FlowControl.Exception:
      return FLOW_STOP;
    default:
      throw new Error(`decode: flow control ${insn.flowControl}`);
  }
}

/** Bit of RFLAGS for each bit of iced's RflagsBits, in its order: OF SF ZF AF CF PF DF. */
const rflagsBits = [FLAG_OF, FLAG_SF, FLAG_ZF, FLAG_AF, FLAG_CF, FLAG_PF, FLAG_DF];

function toRflags(icedBits: number): number {
  let bits = 0;
  for (const [i, bit] of rflagsBits.entries()) if ((icedBits >> i) & 1) bits |= bit;
  return bits;
}

/** Instructions of up to six bytes under a number made of their bytes and length, longer ones under a string. */
const effectsByBytes = new Map<number | string, InsnEffects>();
const EFFECTS_CACHED = 50_000;

function cacheKey(bytes: Uint8Array): number | string {
  if (bytes.length > 6) return String.fromCharCode(...bytes);
  let key = bytes.length;
  let scale = 8;
  for (const byte of bytes) {
    key += byte * scale;
    scale *= 256;
  }
  return key;
}

/** Effects of one instruction, given its bytes. */
export function effectsOf(bytes: Uint8Array): InsnEffects {
  const key = cacheKey(bytes);
  let effects = effectsByBytes.get(key);
  if (effects === undefined) {
    if (effectsByBytes.size >= EFFECTS_CACHED) effectsByBytes.clear();
    effects = computeEffects(bytes);
    effectsByBytes.set(key, effects);
  }
  return effects;
}

const infoFactory = new InstructionInfoFactory();

function computeEffects(bytes: Uint8Array): InsnEffects {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  const insn = decoder.decode();
  const info = infoFactory.info(insn);
  try {
    let reads = 0;
    let writes = 0;
    let kills = 0;
    for (const used of info.usedRegisters() as UsedRegister[]) {
      const place = registerPlaces[used.register];
      const access = used.access;
      used.free();
      if (place === undefined) continue;
      const bit = 1 << place.reg;
      if (access !== OpAccess.Write && access !== OpAccess.CondWrite) reads |= bit;
      if (access !== OpAccess.Read && access !== OpAccess.CondRead) writes |= bit;
      // A 32-bit write clears the upper half; 8 and 16 bits keep the rest of the register.
      if ((access === OpAccess.Write || access === OpAccess.ReadWrite) && place.bits >= 32) kills |= bit;
    }
    let flagsKilled = toRflags(insn.rflagsModified);
    // A count of zero leaves the flags alone, and so does a repeated compare of length zero.
    if (mayCountZero(insn)) flagsKilled = 0;
    let ripDispOffset = -1;
    if (insn.isIpRelMemoryOperand) {
      const constants = decoder.getConstantOffsets(insn);
      ripDispOffset = constants.displacementOffset;
      constants.free();
    }
    return {
      reads,
      writes,
      kills,
      flagsRead: toRflags(insn.rflagsRead),
      flagsKilled,
      ripDispOffset,
      mnemonic: (Mnemonic[insn.mnemonic] ?? "").toLowerCase(),
    };
  } finally {
    info.free();
    insn.free();
    decoder.free();
  }
}

function mayCountZero(insn: Instruction): boolean {
  if (insn.hasRepePrefix || insn.hasRepnePrefix) return insn.isStringInstruction;
  for (let i = 1; i < insn.opCount; i++) {
    if (insn.opKind(i) === OpKind.Register && insn.opRegister(i) === Register.CL)
      return isShift(insn.mnemonic);
  }
  return false;
}

function isShift(mnemonic: Mnemonic): boolean {
  switch (mnemonic) {
    case Mnemonic.Shl:
    case Mnemonic.Sal:
    case Mnemonic.Shr:
    case Mnemonic.Sar:
    case Mnemonic.Rol:
    case Mnemonic.Ror:
    case Mnemonic.Rcl:
    case Mnemonic.Rcr:
    case Mnemonic.Shld:
    case Mnemonic.Shrd:
      return true;
    default:
      return false;
  }
}

/** Encoding number and width of each general-purpose register name. */
const registerPlaces: ({ reg: number; bits: number } | undefined)[] = [];
{
  const place = (name: Register, reg: number, bits: number) => {
    registerPlaces[name] = { reg, bits };
  };
  for (let reg = 0; reg < 4; reg++) {
    place(Register.AL + reg, reg, 8);
    place(Register.AH + reg, reg, 8);
  }
  for (let reg = 4; reg < 16; reg++) place(Register.SPL + reg - 4, reg, 8);
  for (let reg = 0; reg < 16; reg++) {
    place(Register.AX + reg, reg, 16);
    place(Register.EAX + reg, reg, 32);
    place(Register.RAX + reg, reg, 64);
  }
}

/** Target of the RIP-relative memory operand, or undefined. */
export function ripTargetOf(insn: Insn): bigint | undefined {
  const { ripDispOffset } = effectsOf(insn.bytes);
  if (ripDispOffset < 0) return undefined;
  return BigInt.asUintN(64, insn.addr + BigInt(insn.lenBytes) + BigInt(int32At(insn.bytes, ripDispOffset)));
}

let formatter: Formatter | undefined;

/** The instruction in Intel syntax, hexadecimal with 0x, RIP-relative operands as absolute addresses. */
export function textOf(insn: { readonly addr: bigint; readonly bytes: Uint8Array }): string {
  if (formatter === undefined) {
    formatter = new Formatter(FormatterSyntax.Intel);
    formatter.hexPrefix = "0x";
    formatter.hexSuffix = "";
    formatter.uppercaseHex = false;
    formatter.smallHexNumbersInDecimal = true;
    formatter.spaceAfterOperandSeparator = true;
    formatter.branchLeadingZeros = false;
  }
  const decoder = new Decoder(64, insn.bytes, DecoderOptions.None);
  decoder.ip = insn.addr;
  const decoded = decoder.decode();
  try {
    return formatter.format(decoded);
  } finally {
    decoded.free();
    decoder.free();
  }
}
